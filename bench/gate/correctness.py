"""Whether the CUDA engine is right on this device: its kernel tests, the sanitizers over them, parity, row invariance, the CPU engine."""

import json
import re
import shutil

from gate.cells import FAILED, PASSED, Failed, NotRun

TOKENS = 100_000  # that speculative and plain decoding must have in common
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SKIPS = ("engine_test",)  # minutes under a sanitizer, and its kernels are those of the other tests
STUB_TESTS = ("rows_test",)  # the others are ctest's, and take minutes


def run_test(gate, built, program, *filters):
    def body():
        if not program.exists():
            raise Failed(f"{program} was not built")
        done = gate.run([program, *filters], limit=300, environment=built.environment)
        if done.returncode:
            wrong = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
            raise Failed(f"status {done.returncode}: {' / '.join(wrong)[-800:]}")
        return dict(said=done.stdout.strip().splitlines()[-1])

    return body


CLEAN = re.compile(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)")


def sanitized(status, said):
    """The summary, if it is one of no errors and nothing else; it also ends well where it refuses the device."""
    lines = [line.strip("= ") for line in said.splitlines()]
    refused = [line for line in lines if "Device not supported" in line]
    if refused:
        raise NotRun(f"compute-sanitizer: {refused[0]}")
    summaries = [line for line in lines if "SUMMARY" in line]
    if status or not summaries or not all(CLEAN.fullmatch(line) for line in summaries):
        told = [line.strip("= ") for line in said.splitlines() if "=====" in line] or lines[-6:]
        raise Failed(f"status {status}, {' / '.join(summaries) or 'no summary'}: {' / '.join(told)[:1200]}")
    return summaries[-1]


def sanitize(gate, built, program, tool, seconds):
    """A program under compute-sanitizer, so many seconds of it."""
    def body():
        if gate.stub:
            raise NotRun("stub")
        sanitizer = shutil.which("compute-sanitizer")
        if sanitizer is None:
            raise NotRun("compute-sanitizer is not here")
        done = gate.run([sanitizer, "--tool", tool, "--error-exitcode", "86", program], limit=seconds, environment=built.environment,
                        late=NotRun)
        return dict(said=sanitized(done.returncode, done.stdout))

    return body


def check_parity(gate, needed):
    """The sum of all parity cells is a cell of its own."""
    parity = [cell for cell in gate.cells if cell["name"].startswith("parity, ")]
    tokens = sum(cell["data"].get("tokens", 0) for cell in parity if cell["status"] == PASSED)
    if any(cell["status"] == FAILED for cell in parity):
        gate.record("parity of all tokens", FAILED, reason="a cell of it failed")
    elif tokens < needed:
        gate.cell("parity of all tokens", lambda: not_enough(tokens, needed))
    else:
        gate.record("parity of all tokens", PASSED, data=dict(tokens=tokens))


def not_enough(tokens, needed):
    raise NotRun(f"{tokens} tokens were compared, {needed} are asked for")


def run(gate, built, scratch):
    tests = [path for path in built.tests() if not gate.stub or path.name.removeprefix("simt_") in STUB_TESTS]
    if not tests:
        gate.record("kernel tests", FAILED, reason=f"no test programs in {built.directory}")
    for program in tests:
        gate.cell(program.name, run_test(gate, built, program))
    steady = built.directory / f"{built.prefix}_engine_test"
    gate.cell("a cycle is one launch, without allocations or synchronisations", run_test(gate, built, steady, "a_cycle_is_one_launch"))
    gate.cell("graphs replayed equal operations launched one by one", run_test(gate, built, steady, "graphs_replayed_equal"))

    sizes = dict(taus=[2], temperatures=[0.8], batches=[1, 2], prompts=1, tokens=4) if gate.stub else dict(
        taus=list(range(1, 9)), temperatures=[0.0, 0.8, 1.3], batches=[1, 3, 8], prompts=8, tokens=200)
    asked = {
        "parity": sizes,
        "invariance": dict(starts=[5], most=3) if gate.stub else dict(starts=[1, 5, 48, 63, 64, 65, 100, 127, 200], most=16),
        "greedy": dict(prompts=1, tokens=4) if gate.stub else dict(prompts=8, tokens=200),
        "beside": dict(prompts=2, tokens=3, processes=1, neighbours=0, runs=1, minutes=2) if gate.stub else dict(  # the stub has one thread
            prompts=8, tokens=120, processes=2, neighbours=1, runs=5, minutes=4)}
    for job, details in asked.items():
        gate.stream(job, built.worker(job, json.dumps(details)), limit=300, environment=built.environment, status=PASSED)
    check_parity(gate, 16 if gate.stub else TOKENS)

    small = [program for program in built.tests() if not program.name.endswith(SANITIZER_SKIPS)]
    checks = [(tool, program) for tool in SANITIZERS for program in small]
    for i, (tool, program) in enumerate(checks):  # none of them takes more than two shares of what is left for all
        gate.cell(f"{tool}, {program.name}", sanitize(gate, built, program, tool, 2 * gate.left() / (len(checks) - i)), needs=5)
