"""A diagnosis as one HTML page: the words of the page for terminals, and four charts, as SVG in the file itself. No network, no script."""

import html
import io
from pathlib import Path
from typing import Any

from paceline.diagnosis.causes import NAMES, SOUND_ROW
from paceline.diagnosis.diagnose import Diagnosis
from paceline.diagnosis.page import page

INK, SECOND, SHADE = "#1f5fa8", "#b8475a", "#8fb8de"
PARTS = {"draft": "#8fb8de", "verify": "#1f5fa8", "sample": "#d9c7a8", "host": "#9b9b9b"}

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}pre{background:#f5f5f5;padding:1rem;overflow-x:auto;font-size:.8rem}
svg{max-width:100%;height:auto}li{margin:.4rem 0}td,th{padding:.15rem .8rem;text-align:left}"""


def write_html(path: Path, found: Diagnosis) -> None:
    """Raises RuntimeError without matplotlib, OSError."""
    path.write_text(html_page(found), encoding="utf-8")


def html_page(found: Diagnosis) -> str:
    """The whole document."""
    charts = "".join(f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(words)}</p>\n{svg}\n" for title, words, svg in _charts(found))
    headline = page(found).split("\n\n", 1)[0]
    causes = "".join(f"<li><b>{html.escape(NAMES[cause.name])}</b>: {html.escape(cause.evidence)}. Without that: {cause.gain:.2f} times the tokens/s. "
                     f"Try: {html.escape(cause.advice)}.</li>" for cause in found.causes) or "<li>Nothing stands out.</li>"
    remedies = "".join(f"<tr><td>{each.speedup:.2f}x</td><td>{html.escape(each.what)}</td><td>tau {each.tau}</td></tr>" for each in found.remedies)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Paceline: diagnosis</title><style>{STYLE}</style></head><body>\n'
            f"<h1>Diagnosis of a pair</h1>\n<p>{html.escape(headline)}</p>\n<h2>Why</h2>\n<ul>{causes}</ul>\n"
            f"<h2>What would help</h2>\n<p>Each alone, against plain decoding as it is now.</p>\n<table>{remedies}</table>\n"
            f"{charts}<h2>All figures</h2>\n<pre>{html.escape(page(found))}</pre>\n</body></html>\n")


def _charts(found: Diagnosis) -> list[tuple[str, str, str]]:
    """(title, what to see, SVG)."""
    return [("Speedup by tau", "Tokens per second over plain decoding: predicted from one parse of the agreement and the costs of the passes, with "
             "95 % of a block bootstrap, and measured in turn.", _svg(_speedup, found)),
            ("Acceptance by place", f"Of the drafts judged at each place of a cycle of tau {found.tau}. To look at: no prediction is made of these rates.",
             _svg(_acceptance, found)),
            ("Where a cycle goes", f"A cycle of tau {found.tau} beside one of plain decoding.", _svg(_cycle, found)),
            ("T(M)", f"The target's pass of M rows. Grey: {100 * SOUND_ROW:.0f} % more per row, which is sound.", _svg(_passes, found))]


def _svg(draw: Any, found: Diagnosis) -> str:
    """An <svg> element, the same bytes for the same figures."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError('[diagnose] html needs matplotlib, which is not there: pip install "paceline[report]"') from None
    with matplotlib.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7.5, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, found)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg"):]


def _speedup(axes: Any, found: Diagnosis) -> None:
    shown = [each for each in found.predictions if each.tau <= max(8, found.tau, found.best_tau)]
    taus = [each.tau for each in shown]
    axes.fill_between(taus, [each.low for each in shown], [each.high for each in shown], color=SHADE, alpha=0.5, linewidth=0)
    axes.plot(taus, [each.speedup for each in shown], color=INK, label="predicted")
    if found.measured.get(0):
        measured = sorted((tau, speed / found.measured[0]) for tau, speed in found.measured.items())
        axes.plot(*zip(*measured, strict=True), "o", color=SECOND, label="measured")
    axes.axhline(1.0, color="#999", linewidth=0.8)
    axes.set(xlabel="tau", ylabel="speedup", ylim=(0, None), xticks=taus)
    axes.legend(frameon=False)


def _acceptance(axes: Any, found: Diagnosis) -> None:
    places = [(place + 1, 100 * rate) for place, rate in enumerate(found.acceptance_by_place) if rate == rate]
    axes.bar([place for place, _ in places], [rate for _, rate in places], color=INK)
    axes.axhline(100 * found.agreement, color=SECOND, linewidth=1, label="agreement over all positions")
    axes.set(xlabel="draft of the cycle", ylabel="accepted, % of judged", ylim=(0, 100), xticks=[place for place, _ in places])
    axes.legend(frameon=False)


def _cycle(axes: Any, found: Diagnosis) -> None:
    at = 0.0
    for part, seconds in found.cycle.items():
        axes.barh([f"tau {found.tau}"], [1e3 * seconds], left=at, color=PARTS[part], label=part)
        at += 1e3 * seconds
    axes.barh(["plain"], [1e3 * found.plain_cycle], color="#ddd", label="plain, all of it")
    axes.set(xlabel="ms")
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.25))


def _passes(axes: Any, found: Diagnosis) -> None:
    rows, times = list(found.pass_rows), [1e3 * time for time in found.pass_times]
    axes.plot(rows, times, "o-", color=INK, label="measured")
    axes.plot(rows, [times[0] * (1 + SOUND_ROW * (each - rows[0])) for each in rows], color="#aaa", linewidth=1, label="sound")
    axes.set(xlabel="rows", ylabel="ms", ylim=(0, None))
    axes.legend(frameon=False)
