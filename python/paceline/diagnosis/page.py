"""A diagnosis in plain words, for a terminal."""

import textwrap
from collections.abc import Iterator

from paceline.diagnosis.causes import NAMES, SOUND_DRAFT_STEP
from paceline.diagnosis.diagnose import Diagnosis

WIDTH = 100
BAR = 30


def page(found: Diagnosis) -> str:
    """Headline, cause, remedies, and the tables they rest on."""
    return "\n".join([*_headline(found), "", *_causes(found), "", *_remedies(found), "", *_taus(found), "", *_cycle(found), "", *_passes(found),
                      *_notes(found)])


def _headline(found: Diagnosis) -> Iterator[str]:
    now, best = found.predicted(found.tau), found.predicted(found.best_tau)
    if found.speedup is not None:
        verdict = "faster than" if found.speedup >= 1 else "slower than"
        yield (f"tau {found.tau} decodes {found.measured[found.tau]:.1f} tokens/s, {found.speedup:.2f} times plain decoding "
               f"({found.measured[0]:.1f}): {verdict} without a draft. Predicted from its parts: {now.speedup:.2f}.")
    else:
        yield f"tau {found.tau} is predicted to decode {now.speedup:.2f} times as fast as plain decoding; it was not measured against it."
    if found.best_tau == 0:
        yield "No tau is predicted to be faster than plain decoding."
    elif found.best_tau == found.tau:
        yield "No other tau is predicted to be faster."
    else:
        yield f"The best tau is predicted to be {found.best_tau}: {best.speedup:.2f} times plain ({best.low:.2f} to {best.high:.2f})."


def _causes(found: Diagnosis) -> Iterator[str]:
    if not found.causes:
        yield "Nothing stands out: draft, acceptance, tau, verification and host are sound."
        return
    for i, cause in enumerate(found.causes):
        yield from _paragraph(f"{'Because' if i == 0 else 'Also,'} {NAMES[cause.name]} [{cause.name}]: {cause.evidence}. "
                              f"Without that: {cause.gain:.2f} times the tokens/s. Try: {cause.advice}.")


def _remedies(found: Diagnosis) -> Iterator[str]:
    yield "What would help, alone, against plain decoding as it is now:"
    for remedy in found.remedies:
        at = "" if remedy.what.startswith(("tau", "no spec")) else f" (tau {remedy.tau})"
        yield f"  {remedy.speedup:5.2f}x  {remedy.what}{at}"


def _taus(found: Diagnosis) -> Iterator[str]:
    yield "Speedup by tau:"
    yield "  tau   tokens/cycle   cycle        predicted                measured"
    plain = found.measured.get(0)
    shown = [each for each in found.predictions if each.tau <= max(8, found.tau, found.best_tau) or each.tau in found.measured]
    for each in shown:
        measured = f"{found.measured[each.tau] / plain:.2f}" if plain and each.tau in found.measured else ""
        marks = "".join(mark for mark, there in (("  <- in use", each.tau == found.tau), ("  <- best", each.tau == found.best_tau)) if there)
        interval = f"{each.speedup:.2f} ({each.low:.2f} to {each.high:.2f})" + ("*" if each.extrapolated else "")
        yield f"  {each.tau:<5} {each.tokens_per_cycle:<14.2f} {1e3 * each.cycle_time:<8.3f} ms  {interval:<24} {measured:<6}{marks}".rstrip()
    if any(each.extrapolated for each in shown):
        yield "  * beyond the passes that were seen"


def _cycle(found: Diagnosis) -> Iterator[str]:
    total = sum(found.cycle.values())
    yield f"A cycle of tau {found.tau}, {1e3 * total:.3f} ms (plain: {1e3 * found.plain_cycle:.3f} ms):"
    for part, seconds in found.cycle.items():
        yield f"  {part:<7} {1e3 * seconds:8.3f} ms  {100 * seconds / total:3.0f} %  {'#' * round(BAR * seconds / total)}".rstrip()
    yield (f"  a draft token costs {100 * found.draft_to_target:.0f} % of a plain pass of the target (sound: up to {100 * SOUND_DRAFT_STEP:.0f} %)")
    rates = ", ".join(f"{100 * rate:.0f}" for rate in found.acceptance_by_place if rate == rate)
    yield f"  the draft agrees at {100 * found.agreement:.0f} % of {found.num_positions} positions; accepted of those judged at each place: {rates or 'none'} %"


def _passes(found: Diagnosis) -> Iterator[str]:
    yield "The target's pass by rows:"
    shown = [(rows, time) for rows, time in zip(found.pass_rows, found.pass_times, strict=True) if rows >= found.sequences][:10]
    yield "  rows " + "".join(f"{rows:>9}" for rows, _ in shown)
    yield "  ms   " + "".join(f"{1e3 * time:>9.3f}" for _, time in shown)


def _notes(found: Diagnosis) -> Iterator[str]:
    for note in found.notes:
        yield from _paragraph(f"note: {note}")


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
