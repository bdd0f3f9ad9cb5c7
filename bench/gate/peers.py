"""This engine beside torch on the same checkpoints, in turns: transformers eager, compiled and assisted, and a loop of CUDA graphs."""

import importlib.util
import json
import pathlib
import selectors
import statistics
import subprocess
import sys
import tempfile
import time

from gate import cycle
from gate.cells import MEASURED, NOT_RUN, Failed, NotRun

WORKERS = pathlib.Path(__file__).resolve().parents[1] / "peer_workers"
OURS = ("plain", "speculative")
TURNS = ("eager", "assisted", "graph", "graph_speculative")  # in turns with ours; `compiled` comes last, since it compiles for minutes
NAMES = {
    "plain": "ours, plain", "speculative": "ours, speculative", "eager": "transformers, eager",
    "compiled": "transformers, static cache and torch.compile", "assisted": "transformers, assisted generation",
    "graph": "torch, a CUDA graph per pass", "graph_speculative": "torch, a CUDA graph per cycle"}


class Asked:
    """A process that answers one JSON question per line, and a limit for each answer."""

    def __init__(self, gate, command, environment, limit):
        self.gate, self.errors = gate, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([str(each) for each in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        env=environment)
        self.pending, self.lost = b"", None
        while not self.line(limit).startswith("ready"):
            pass

    def line(self, limit):
        until = time.monotonic() + min(limit, self.gate.left())
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.pending:
                if not selector.select(timeout=max(0.0, until - time.monotonic())):
                    late = NotRun if self.gate.left() <= 0 else Failed
                    raise late(f"no answer within {limit:.0f} s, or before the part's time was over")
                read = self.process.stdout.read1(1 << 16)
                if not read:
                    self.errors.seek(0)
                    raise Failed(f"the process ended: {self.errors.read().strip()[-600:]}")
                self.pending += read
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode()

    def ask(self, limit=300.0, **question):
        """Once an answer has not come, none of a later question can be told from it."""
        if self.lost:
            raise NotRun(f"its process was given up: {self.lost}")
        try:
            return self._ask(limit, question)
        except (NotRun, Failed) as error:
            self.lost = str(error)
            raise

    def _ask(self, limit, question):
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are read below
        while not (line := self.line(limit)).startswith("{"):
            pass
        return json.loads(line)

    def close(self):
        self.process.kill()
        self.process.wait()
        for each in (self.process.stdin, self.process.stdout, self.errors):
            each.close()


def missing():
    """Why torch cannot be asked, or None."""
    lacking = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} not installed" if lacking else None


class Contest:
    """Everybody's answers to the same question, in turns."""

    def __init__(self, gate, prompt, tokens):
        self.gate, self.question, self.answers, self.broken = gate, dict(prompt=prompt, tokens=tokens), {}, set()

    def turn(self, worker, who, keep=True, **more):
        if who in self.broken:
            return
        try:
            answer = worker.ask(do=who, **self.question, **more)
            if keep:
                self.answers.setdefault(who, []).append(answer)
        except (NotRun, Failed) as error:
            self.broken.add(who)
            self.gate.record(NAMES[who], NOT_RUN if isinstance(error, NotRun) else "failed", reason=str(error))

    def speed(self, who):
        return 1 / statistics.median(answer["seconds"] for answer in self.answers[who])

    def report(self, who):
        """Its cell: speed, and ours over it, plain against plain and speculative against speculative."""
        if not self.answers.get(who):
            return
        data = dict(tokens_per_second=self.speed(who), repetitions=len(self.answers[who]))
        rival = "speculative" if who in ("assisted", "graph_speculative") else "plain"
        targets = []
        if who not in OURS and self.answers.get(rival):
            data["ours_over_it"] = self.speed(rival) / self.speed(who)
            data["same_text"] = self.answers[who][0]["tokens"] == self.answers[rival][0]["tokens"]
            if who == "assisted" and not self.gate.stub:
                targets.append(("ours, speculative, over assisted generation", data["ours_over_it"], ">= 10", data["ours_over_it"] >= 10))
        self.gate.record(NAMES[who], MEASURED, data=data, targets=targets)


def run(gate, built, scratch):
    if gate.stub:
        directory, context, tokens, tau, repetitions = gate.out / "tiny", 16, 24, 2, 1
        ready = cycle.written(gate, directory, cycle.TINY, [0.8])
    else:
        directory, context, tokens, tau, repetitions = scratch / "llama", 2048, 128, 4, 3
        ready = cycle.written(gate, directory, cycle.LLAMA, cycle.ALPHAS[:1])
    if not ready:
        return
    target, draft, length = directory / "target", directory / "draft-0.8", context + tokens + 2 * tau + 2
    contest, workers = Contest(gate, [3 + i % 97 for i in range(context)], tokens), {}
    why = missing()
    try:
        start(gate, workers, "ours", built.worker("serve", json.dumps(dict(
            target=str(target), draft=str(draft), tau=tau, context=context, tokens=tokens))), built.environment)
        if why is None:
            device = "cpu" if gate.stub else "cuda"
            start(gate, workers, "torch", [sys.executable, WORKERS / "torch_cuda_worker.py", target, draft, device, length, tau], None)
        else:
            for who in (*TURNS, "compiled"):
                gate.record(NAMES[who], NOT_RUN, reason=why)
        compete(contest, workers, tau, repetitions)
    finally:
        for worker in workers.values():
            worker.close()
    for who in (*OURS, *TURNS, "compiled"):
        contest.report(who)


def start(gate, workers, name, command, environment):
    def body():
        workers[name] = Asked(gate, command, environment, 180)
        return {}

    gate.cell(f"start of {name}", body)


def compete(contest, workers, tau, repetitions):
    everyone = [(workers[name], who, more) for name, some in (("ours", OURS), ("torch", TURNS)) if name in workers for who in some
                for more in [dict(tau=tau) if who == "speculative" else {}]]
    for repetition in range(-1, repetitions):  # the first round warms up
        for worker, who, more in everyone:
            contest.turn(worker, who, keep=repetition >= 0, **more)
    if "torch" not in workers:
        return
    if contest.gate.stub:
        contest.gate.record(NAMES["compiled"], NOT_RUN, reason="stub")
        return
    for repetition in range(-1, repetitions):
        contest.turn(workers["torch"], "compiled", keep=repetition >= 0)
        if "ours" in workers:
            contest.turn(workers["ours"], "plain")
