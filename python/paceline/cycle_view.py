"""A trace for the terminal, a line per request and cycle: what was drafted, what became of it, what it cost."""

from collections.abc import Iterator, Mapping

import numpy as np

from paceline.trace import Trace

GREEN, RED, BLUE, GREY, OFF = "\x1b[32m", "\x1b[31m", "\x1b[34m", "\x1b[90m", "\x1b[0m"
LEGEND = "accepted +draft+   rejected -draft-   never judged .draft.   the target's own [token]"


def cycle_lines(trace: Trace, texts: Mapping[int, str], *, colour: bool = False) -> Iterator[str]:
    """A line per row of the trace, after two of legend. colour: also with the terminal's colours."""
    yield LEGEND
    yield f"{'cycle':>6} {'request':>7} {'position':>8} {'tau':>4} {'emitted':>7} {'draft':>8} {'verify':>8} {'sample':>8} {'host':>8}  ms; tokens"
    for row in range(len(trace)):
        times = " ".join(f"{1e3 * float(column[row]):8.3f}" for column in (trace.draft_time, trace.verify_time, trace.sample_time, trace.host_time))
        tau = f"{trace.tau[row]}" + ("" if trace.tau[row] == trace.wanted_tau[row] else f"/{trace.wanted_tau[row]}")
        yield (f"{trace.cycle[row]:>6} {trace.request[row]:>7} {trace.position[row]:>8} {tau:>4} {trace.emitted[row]:>7} {times}  "
               f"{' '.join(_tokens(trace, row, texts, colour))}")


def summary_line(trace: Trace) -> str:
    """Totals of what is shown."""
    cycles, drafted = len(np.unique(trace.cycle)), int(trace.tau.sum())
    emitted, accepted = int(trace.emitted.sum()), int(trace.accepted.sum())
    share = f", {100 * accepted / drafted:.0f} % of {drafted} drafts accepted" if drafted else ", nothing drafted"
    return f"{cycles} cycles, {emitted} tokens, {emitted / max(1, len(trace)):.2f} per cycle and request{share}"


def _tokens(trace: Trace, row: int, texts: Mapping[int, str], colour: bool) -> Iterator[str]:
    """Drafts in their order and the extra token. Every token is quoted as Python would, so that spaces and line ends are seen, and no
    control character of a text reaches the terminal."""
    accepted, cut = int(trace.accepted[row]), int(trace.emitted[row])
    for place in range(int(trace.tau[row])):
        taken, judged = place < min(accepted, cut), place < cut  # a stop or limit may cut before what was accepted ends
        mark, paint = ("+", GREEN) if taken else ("-", RED) if judged and place == accepted else (".", GREY)
        yield _painted(mark + _shown(int(trace.drafted[row, place]), texts) + mark, paint, colour)
    if trace.extra_token[row] >= 0:
        yield _painted(f"[{_shown(int(trace.extra_token[row]), texts)}]", BLUE, colour)


def _shown(token: int, texts: Mapping[int, str]) -> str:
    return repr(texts[token])[1:-1] if token in texts else f"<{token}>"


def _painted(text: str, paint: str, colour: bool) -> str:
    return f"{paint}{text}{OFF}" if colour else text
