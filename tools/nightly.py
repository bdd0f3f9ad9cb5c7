"""What takes longer than `make test`, bounded to about an hour: `make nightly`. What has not ended by then has failed, and says so.

    python tools/nightly.py               all parts, even if one fails; a summary with seconds; exit status 1 if any failed
    python tools/nightly.py PART...       these
    python tools/nightly.py --seed N      statistics and machines from this seed instead of a fresh one

Bounded forms, named as such: `decay` looks for trends over minutes, not over a day; `fuzz` runs for minutes, not for hours; `resources`
tries some dozens of limits. The results stand in docs/reliability.md after `tools/reliability.py --write`.
"""

import argparse
import os
import pathlib
import secrets
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/test"
PYTHON = sys.executable
STATISTICS = ("law_test", "conditional_law_test", "acceptance_test", "seeds_test", "numeric_test")
HOUR = 3600  # seconds that all parts together have


class Failed(Exception):
    pass


class Clock:
    """How much of the hour is left."""

    end = float("inf")

    @classmethod
    def left(cls):
        return cls.end - time.monotonic()


def call(*command, seconds, **settings):
    """Run it; its output is ours. Beyond its time, or the hour, it has failed."""
    print("  $", *(f"{name}={value}" for name, value in settings.items()), *command, flush=True)
    seconds = round(max(1, min(seconds, Clock.left())))
    try:
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | settings, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} did not end within {seconds} s") from None
    except OSError as error:
        raise Failed(str(error)) from None
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: status {done.returncode}")


def repeated(program, seed, scale, run=call):
    """A statistic that fails must fail again, with another seed and four times the draws: one false alarm in 10^12, not in 10^6."""
    try:
        run(BUILD / program, seconds=900, PACELINE_TEST_SEED=str(seed), PACELINE_TEST_SCALE=str(scale))
    except Failed as error:
        print(f"  {error}; once more with seed {seed + 1} and four times the draws", flush=True)
        run(BUILD / program, seconds=1800, PACELINE_TEST_SEED=str(seed + 1), PACELINE_TEST_SCALE=str(4 * scale))


def statistics(seed):
    """Laws, acceptance and independence with fresh noise, twice the draws of `make test`."""
    failures = []
    for program in STATISTICS:
        try:
            repeated(program, seed, 2)
        except Failed as error:
            failures.append(str(error))
    if failures:
        raise Failed("; ".join(failures))


def machines(seed):
    """State machines against plain lists, with fresh examples."""
    call(PYTHON, "-m", "pytest", "-q", "tests/python/test_cache_machine.py", "tests/python/test_engine_machine.py", "-k", "lists",
         seconds=900, PACELINE_TEST_SEED=str(seed), PACELINE_TEST_SCALE="3")


def asan(seed):
    """AddressSanitizer and UndefinedBehaviorSanitizer over the C++ tests that take too long for `.ci/run`, which has the others."""
    call("make", "asan", "PART=long", seconds=2400)


def tsan(seed):
    """ThreadSanitizer over the core's tests with threads."""
    call("make", "tsan", seconds=900)


def fuzz(seed):
    """Every parser that is ours, a minute of mutations each."""
    call(PYTHON, "-m", "tests.fuzz", "--seconds", "60", "--seed", seed % 2**32, seconds=1200)


def allocations(seed):
    """Every allocation fails once, and every one from there on."""
    for test in ("allocation_test", "engine_thread_memory_test"):
        call(BUILD / test, seconds=900, PACELINE_ALLOCATION_STRIDE="1")


def resources(seed):
    """Limits of the system and failing disks, at many more places than `make test` tries, ends of the interpreter as often, and a minute of sixteen threads."""
    call(PYTHON, "-m", "pytest", "-q", "tests/python/test_resources.py", seconds=900, PACELINE_TEST_SCALE="6")
    call(PYTHON, "-m", "pytest", "-q", "tests/python/test_threads.py", "-k", "the_interpreter_ends_with or sixteen_threads", seconds=900, PACELINE_TEST_SCALE="6")


def decay(seed):
    """Acceptance, tokens per cycle and slow cycles over four minutes: no trend."""
    call(PYTHON, "tests/soak/decay.py", "--minutes", "4", "--seed", seed % 2**32, seconds=600)


def lengths(seed):
    """What a cycle takes at every length, and what a draft that is never right costs: no cliff."""
    call(PYTHON, "tests/soak/lengths.py", seconds=600)


def soak(seed):
    """200,000 short requests of every fate, and 1,000,000 tokens against serial plain decoding."""
    call(PYTHON, "tests/soak/soak.py", "endurance", "--seed", seed % 2**32, seconds=1800)
    call(PYTHON, "tests/soak/soak.py", "differential", "--seed", seed % 2**32, seconds=1800)


def audit(seed):
    """The audit names every fault that is planted in the engine, and raises no alarm over a sound one: the replay part for eight minutes."""
    call("make", "audit-mutants", seconds=1800)
    call(PYTHON, "tests/audit/alarms.py", "--minutes", "8", "--seed", seed, seconds=900)


PARTS = {part.__name__: part for part in (statistics, machines, asan, tsan, fuzz, allocations, resources, decay, lengths, soak, audit)}


def main():
    from reliability import FAILED, PASSED, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default all")
    parser.add_argument("--seed", type=int, help="instead of a fresh one")
    options = parser.parse_args()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {seed}: python tools/nightly.py --seed {seed} repeats this run", flush=True)
    lines, failed = [], []
    if not options.parts:
        Clock.end = time.monotonic() + HOUR
    for name in options.parts or PARTS:
        print(f"==== {name}: {PARTS[name].__doc__}", flush=True)
        start, result, why = time.monotonic(), PASSED, ""
        try:
            PARTS[name](seed)
        except Failed as error:
            result, why = FAILED, str(error)
            failed.append(name)
        record({f"nightly {name}": result})
        lines.append(f"{result:7} {name:12} {time.monotonic() - start:6.0f} s  {why}")
    print("====", *lines, f"{len(lines) - len(failed)} passed, {len(failed)} failed, seed {seed}", sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
