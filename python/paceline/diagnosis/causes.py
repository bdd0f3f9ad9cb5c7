"""Why it is not faster: each cause is put right in the model alone, and what that would bring is its weight.

A cause is something of the costs or of the agreement that is worse than in a sound pair on a sound machine. It is replaced by the sound value,
the best tau is sought anew, and the tokens per second gained are the cause's gain; whoever gains most is named first. What can be had
for nothing, another tau, is weighed alike, at the costs as they are.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.diagnosis.agreement import Run, acceptance_by_place, mean_agreement
from paceline.diagnosis.costs import CycleCosts
from paceline.diagnosis.curve import Curve
from paceline.diagnosis.parse import Emitted, emitted_per_cycle
from paceline.diagnosis.prediction import Prediction, best_of, predict
from paceline.trace import Trace

# What is sound. Each was chosen so that the pairs of docs/performance.md that are fast show no cause.
SOUND_DRAFT_STEP = 0.10  # of a plain pass of the target
SOUND_AGREEMENT = 0.70
SOUND_ROW = 0.02  # of a plain pass, per further row
SOUND_HOST = 0.05  # of a plain pass
SOUND_CONTEXT = 0.30  # of a plain pass
NAMED = 1.05  # gain from which a cause is named

MISMATCH_AGREEMENT = 0.10  # below it a draft agrees by accident
MISMATCH_NATS = 4.0  # and its rejected tokens are that much less probable to the target than to itself: it is sure of them
JUDGED = 20  # drafts judged at a place before its rate means anything


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    name: str
    """One of NAMES."""
    gain: float
    """Tokens per second without it, over those with it."""
    evidence: str
    advice: str


NAMES = {
    "draft_too_slow": "the draft is too slow", "acceptance_too_low": "too few drafts are accepted", "tau_too_long": "tau is too long",
    "tau_too_short": "tau is too short", "verification_not_flat": "verifying more rows costs more",
    "host_overhead": "the time between passes is too long", "batch_compute_bound": "the batch is so large that the pass computes instead of reading",
    "context_dominates": "the context is so long that reading its KV dominates",
    "mismatch": "draft and target do not speak of the same tokens, or not in the same prompt format",
    "quantised_draft": "the draft diverges because it is quantised"}


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """All that causes are read from."""

    trace: Trace
    runs: list[Run]
    costs: CycleCosts
    tau: int
    """In use."""
    taus: NDArray[np.int64]
    """To choose from."""
    emitted: Emitted
    """Of `runs` and `taus`."""
    predictions: tuple[Prediction, ...]
    """Of `taus`."""
    unquantised: list[Run] | None = None
    """Agreement of the same texts with the draft as its checkpoint has it."""

    def best(self, *, costs: CycleCosts | None = None, runs: list[Run] | None = None) -> Prediction:
        """The best tau with other costs, or another agreement."""
        if costs is None and runs is None:
            return best_of(self.predictions)
        emitted = self.emitted if runs is None else emitted_per_cycle(runs, self.taus)
        return best_of(predict(costs or self.costs, emitted, self.taus))

    def gain(self, *, costs: CycleCosts | None = None, runs: list[Run] | None = None) -> float:
        """Tokens per second at the best tau then, over those at the best tau now."""
        then, now = self.best(costs=costs, runs=runs), self.best()
        return then.tokens_per_cycle / then.cycle_time / (now.tokens_per_cycle / now.cycle_time)


def causes_of(evidence: Evidence) -> tuple[Cause, ...]:
    """All that are worth naming, the one that costs most first."""
    found = [_tau(evidence), _draft(evidence), _agreement(evidence), _verification(evidence), _host(evidence), _context(evidence)]
    return tuple(sorted((each for each in found if each and each.gain >= NAMED), key=lambda each: -each.gain))


def _tau(evidence: Evidence) -> Cause | None:
    best = evidence.best()
    present = next((each for each in evidence.predictions if each.tau == evidence.tau), None)
    if present is None or present.tau == best.tau:
        return None
    name = "tau_too_long" if present.tau > best.tau else "tau_too_short"
    less_or_more = "fewer" if present.tau > best.tau else "more"
    advice = "decode without speculation" if best.tau == 0 else f"num_speculative_tokens={best.tau}"
    return Cause(name, best.speedup / present.speedup,
                 f"tau {present.tau} gives {present.tokens_per_cycle:.2f} tokens in {_ms(present.cycle_time)}, {present.speedup:.2f}x; with {less_or_more} "
                 f"drafts, tau {best.tau}, {best.tokens_per_cycle:.2f} in {_ms(best.cycle_time)}, {best.speedup:.2f}x", advice)


def _draft(evidence: Evidence) -> Cause | None:
    costs = evidence.costs
    ratio = costs.draft_step / costs.plain_pass
    if ratio <= SOUND_DRAFT_STEP:
        return None
    return Cause("draft_too_slow", evidence.gain(costs=faster_draft(costs, SOUND_DRAFT_STEP / ratio)),
                 f"a draft token costs {_ms(costs.draft_step)}, {100 * ratio:.0f} % of a plain pass of the target ({_ms(costs.plain_pass)}); up to "
                 f"{100 * SOUND_DRAFT_STEP:.0f} % is sound", "a smaller draft, or the same one in int4 (draft_dtype=\"int4\")")


def _agreement(evidence: Evidence) -> Cause | None:
    """One of three: foreign tokens, a draft that its quantisation spoils, or just a weak one. The special ones explain the general one."""
    alpha = mean_agreement(evidence.runs)
    if evidence.unquantised is not None:
        whole = mean_agreement(evidence.unquantised)
        gain = evidence.gain(runs=evidence.unquantised)
        if gain >= NAMED:
            return Cause("quantised_draft", gain, f"on the same texts the draft agrees with the target at {100 * whole:.0f} % of the positions as its "
                         f"checkpoint has it, and at {100 * alpha:.0f} % as it is quantised", "a wider draft_dtype, or int4_g32 instead of int4")
    if alpha >= SOUND_AGREEMENT:
        return None
    gain = evidence.gain(runs=better_draft(evidence.runs, SOUND_AGREEMENT))
    surprise = _surprise(evidence.trace)
    if alpha < MISMATCH_AGREEMENT and surprise > MISMATCH_NATS:
        return Cause("mismatch", gain, f"the draft agrees at {100 * alpha:.0f} % of the positions, no more than by accident, and is sure of what it proposes: the "
                     f"target holds its rejected tokens for e^{surprise:.0f} times less probable than it does itself",
                     "a draft trained on the target's tokenizer and prompt format")
    return Cause("acceptance_too_low", gain, f"the draft agrees with the target at {100 * alpha:.0f} % of the positions; {100 * SOUND_AGREEMENT:.0f} % is sound"
                 + _worst_place(evidence.trace), "a draft of the target's family, a larger one, or one tuned on texts like these")


def _surprise(trace: Trace) -> float:
    """Median over rejected drafts of the draft's log-probability less the target's, in nats; 0 without any."""
    rejected = np.flatnonzero((trace.accepted < trace.tau) & (trace.accepted < trace.emitted))
    place = trace.accepted[rejected]
    nats = trace.draft_logprob[rejected, place] - trace.target_logprob[rejected, place]
    nats = nats[np.isfinite(nats)]
    return float(np.median(nats)) if len(nats) else 0.0


def _worst_place(trace: Trace) -> str:
    judged = trace.accepted[:, None] >= np.arange(trace.drafted.shape[1])
    rates = acceptance_by_place(trace)
    rates = np.where((judged & (np.arange(len(rates)) < trace.tau[:, None])).sum(axis=0) >= JUDGED, rates, np.nan)
    if np.isnan(rates).all():
        return ""
    worst = int(np.nanargmin(rates))
    return f"; it is lowest at draft {worst + 1} of a cycle, {100 * rates[worst]:.0f} % of those that were judged"


def _verification(evidence: Evidence) -> Cause | None:
    """Weights are read once for all rows, so a few more rows should cost little. The part that the context costs is judged by itself."""
    costs = evidence.costs
    tau = max(evidence.tau, 1)
    first, rows = costs.sequences, int(costs.rows(tau))
    flat = dataclasses.replace(costs, target=flattened(costs.target, costs.target_context, first, _rows_of(evidence)))
    slope = float(costs.target(rows) - costs.target(first)) / max(rows - first, 1) / costs.plain_pass
    evidence_text = f"a pass of {rows} rows takes {_ms(float(costs.target(rows)))}, one of {first} {_ms(costs.plain_pass)}: " \
                    f"{100 * slope:.1f} % more per row; up to {100 * SOUND_ROW:.0f} % is sound"
    if costs.sequences > 1:
        return Cause("batch_compute_bound", evidence.gain(costs=flat), f"{evidence_text}, with {costs.sequences} sequences in a pass",
                     "a smaller tau or none while so many decode, fewer sequences at once, or a smaller dtype")
    return Cause("verification_not_flat", evidence.gain(costs=flat), evidence_text,
                 "a smaller tau; more threads, or a weight format whose pass is bound by memory")


def _host(evidence: Evidence) -> Cause | None:
    costs = evidence.costs
    now = float(costs.host(evidence.tau))
    share = now / costs.plain_pass
    if share <= SOUND_HOST:
        return None
    quick = dataclasses.replace(costs, host=costs.host.mapped(lambda at, seconds: np.minimum(seconds, SOUND_HOST * costs.plain_pass)))
    return Cause("host_overhead", evidence.gain(costs=quick), f"{_ms(now)} of every cycle, {100 * share:.0f} % of a plain pass, are neither model's; up to "
                 f"{100 * SOUND_HOST:.0f} % is sound", "leave a core to the engine's thread, fewer threads, no work beside it that takes its cores")


def _context(evidence: Evidence) -> Cause | None:
    costs = evidence.costs
    share = float(costs.target_context(costs.sequences)) / costs.plain_pass
    if share <= SOUND_CONTEXT:
        return None
    return Cause("context_dominates", evidence.gain(costs=costs.without_context()), f"at position {costs.context:.0f} the KV of the past costs "
                 f"{100 * share:.0f} % of a plain pass; it grows with rows and context, and no draft takes it away",
                 "kv_dtype=\"bf16\", shorter prompts, or a smaller tau at such lengths")


def faster_draft(costs: CycleCosts, factor: float) -> CycleCosts:
    return dataclasses.replace(costs, draft=costs.draft.mapped(lambda at, seconds: factor * seconds))


def better_draft(runs: list[Run], alpha: float) -> list[Run]:
    """As if, where the draft is wrong, it were right just often enough for a mean of alpha: clusters stay where they are."""
    mean = mean_agreement(runs)
    share = (alpha - mean) / (1.0 - mean)
    return [dataclasses.replace(run, agreement=run.agreement + share * (1.0 - run.agreement)) for run in runs]


def flattened(target: Curve, context: Curve, first: int, rows: NDArray[np.float64]) -> Curve:
    """The target's pass with SOUND_ROW per row beyond the plain pass, or what it takes where that is less; the context's part unchanged."""
    without = target(rows) - context(rows)
    plain = float(target(np.array([first], np.float64))[0] - context(np.array([first], np.float64))[0])
    return Curve(rows, np.minimum(without, plain * (1.0 + SOUND_ROW * (rows - first))) + context(rows))


def _rows_of(evidence: Evidence) -> NDArray[np.float64]:
    return np.unique(evidence.costs.rows(evidence.taus)).astype(np.float64)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
