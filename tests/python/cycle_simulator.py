"""Cycles of a pair that does not exist: known agreement, known costs. What `diagnose` says of their trace can be compared with the truth.

The simulator walks a text cycle by cycle, as the engine does, and knows nothing of the analysis: no parse, no curve, no median.
"""

import dataclasses

import numpy as np
from paceline.trace import Trace

TAU_MAX = 16


@dataclasses.dataclass(frozen=True)
class Machine:
    """Costs in seconds; rows are of all sequences together."""

    plain_pass: float = 0.020
    row: float = 0.0002
    """Of one more row of the target."""
    draft_step: float = 0.0015
    host: float = 0.0003
    sample: float = 0.0001
    """Per row."""
    row_position: float = 0.0
    """Of the target, per row and position of context."""
    draft_position: float = 0.0
    """Of a draft step, per position."""
    noise: float = 0.01
    """Standard deviation of every time, relative."""

    def verify(self, rows, context):
        return self.plain_pass + self.row * (rows - 1) + self.row_position * rows * context

    def draft(self, tau, context):
        return tau * (self.draft_step + self.draft_position * context)

    def cycle(self, tau, sequences=1, context=0.0):
        rows = sequences * (tau + 1)
        return self.verify(rows, context) + self.draft(tau, context) + self.sample * rows + self.host


def iid(alpha, length, stream):
    """m [length] of independent positions."""
    return (stream.random(length) < alpha).astype(float)


def clustered(alpha, length, stream, high=0.97, low=0.3, mean_run=50):
    """m [length] of easy and hard stretches of about mean_run tokens, together alpha."""
    easy_share = np.clip((alpha - low) / (high - low), 0.0, 1.0)
    m = []
    while len(m) < length:
        rate = high if stream.random() < easy_share else low
        m += (stream.random(stream.geometric(1 / mean_run)) < rate).astype(float).tolist()
    return np.array(m[:length])


class Simulator:
    """Runs texts on a machine; each call of `run` is what one `generate` leaves in the trace."""

    def __init__(self, machine=Machine(), *, sequences=1, seed=0, draft_logprob=-0.4, wrong_logprob=-3.0):
        """draft_logprob: of what it proposes, in its own row; wrong_logprob: of that in the target's, where it is rejected."""
        self.machine, self.sequences = machine, sequences
        self.stream = np.random.default_rng(seed)
        self.logprobs = draft_logprob, wrong_logprob
        self.rows, self.cycle, self.request, self.clock = [], 0, 0, 0.0

    def run(self, texts, tau, prompt=20):
        """texts: agreement [sequences][length], decoded together, each position's token being emitted once. Returns (tokens, seconds)."""
        assert len(texts) == self.sequences
        began, tokens = self.clock, 0
        at, pending = [0] * len(texts), [None] * len(texts)
        while any(i < len(text) for i, text in zip(at, texts, strict=True)):
            live = [s for s, text in enumerate(texts) if at[s] < len(text)]
            taus = {s: min(tau, len(texts[s]) - at[s] - 1) if at[s] else 0 for s in live}  # the first token comes before the draft is ready
            rows, context = sum(taus.values()) + len(live), prompt + np.mean([at[s] for s in live])
            self.cycle += 1
            times = [self._noisy(each) for each in (self.machine.draft(max(taus.values()), context), self.machine.verify(rows, context),
                                                   self.machine.sample * rows, self.machine.host)]
            for s in live:
                emitted, pending[s] = self._record(s, texts[s], at[s], taus[s], pending[s], rows, len(live), prompt, tau, times)
                at[s] += emitted
                tokens += emitted
            self.clock += sum(times)
        self.request += len(texts)
        return tokens, self.clock - began

    def _noisy(self, seconds):
        return seconds * (1 + self.machine.noise * self.stream.standard_normal())

    def _record(self, s, text, at, tau, pending, rows, sequences, prompt, wanted, times):
        """(emitted, agreement of the bonus token that the next cycle catches up with)."""
        accepted = 0
        while accepted < tau and self.stream.random() < text[at + accepted]:
            accepted += 1
        judged = min(accepted + 1, tau)
        drafted, own, theirs, agreement = np.full(TAU_MAX, -1), *(np.full(TAU_MAX, np.nan) for _ in range(3))
        drafted[:tau] = self.stream.integers(0, 1000, tau)
        own[:tau] = self.logprobs[0]
        theirs[:judged] = np.where(np.arange(judged) < accepted, -0.3, self.logprobs[1])
        agreement[:judged] = text[at:at + judged]
        self.rows.append(dict(
            cycle=self.cycle, request=self.request + s, position=prompt + at, wanted_tau=wanted, reason=0, tau=tau, accepted=accepted,
            emitted=accepted + 1, extra_token=7, extra_kind=1 if accepted < tau else 2, rows=rows, sequences=sequences, source=0,
            start=self.clock, draft_time=times[0], verify_time=times[1], sample_time=times[2], host_time=times[3], drafted=drafted,
            draft_logprob=own, target_logprob=theirs, agreement=agreement,
            catch_up_agreement=np.nan if pending is None or tau == 0 else pending))
        return accepted + 1, text[at + accepted] if accepted == tau > 0 else None

    def trace(self):
        kinds = {"cycle": np.int64, "request": np.int64, "reason": np.uint8, "extra_kind": np.uint8, "source": np.uint8,
                 **dict.fromkeys(("start", "draft_time", "verify_time", "sample_time", "host_time"), np.float64),
                 **dict.fromkeys(("draft_logprob", "target_logprob", "agreement", "catch_up_agreement"), np.float32)}
        names = [field.name for field in dataclasses.fields(Trace)]
        return Trace(**{name: np.array([row[name] for row in self.rows], kinds.get(name, np.int32)) for name in names})


def simulate(machine, texts, taus, *, sequences=1, seed=0, **options):
    """(trace of all taus, {tau: tokens per second}): the same texts for every tau, in turn, plain decoding among them."""
    simulator = Simulator(machine, sequences=sequences, seed=seed, **options)
    totals = {tau: np.zeros(2) for tau in sorted({0, *taus})}
    for first in range(0, len(texts), sequences):
        for tau, total in totals.items():
            total += simulator.run(texts[first:first + sequences], tau)
    return simulator.trace(), {tau: tokens / seconds for tau, (tokens, seconds) in totals.items()}
