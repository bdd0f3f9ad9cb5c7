"""The medians that peers.py saved, as a bar chart.

    python bench/chart.py MEDIANS.json [MEDIANS.json ...] docs/peers.svg
"""

import json
import pathlib
import sys

WIDTH, BAR, GAP, GROUP_GAP, LEFT, TOP = 760, 20, 5, 24, 70, 64
COLOURS = {"llama.cpp": ("#c9c9c9", "#9b9b9b"), "OpenVINO": ("#d9c7a8", "#b8975a"), "ours": ("#8fb8de", "#1f5fa8")}
NAMES = {"ours": "Paceline"}


def bars(engines):
    """(label, colour, tokens per second): plain and best speculative of every engine, each with the best of its drafts."""
    for engine in (name for name in COLOURS if name in engines):
        answers = [answer for worker in engines[engine].values() for answer in worker.items()]
        plain = max(1 / seconds for name, seconds in answers if name == "plain")
        fast, tau = max((1 / seconds, name) for name, seconds in answers if name.startswith("tau"))
        name = NAMES.get(engine, engine)
        yield f"{name}, plain", COLOURS[engine][0], plain
        yield f"{name}, speculative ({tau})", COLOURS[engine][1], fast


def svg(runs):
    groups = {precision: list(bars(engines)) for run in runs for precision, engines in run["medians"].items()}
    longest = max(value for group in groups.values() for _, _, value in group)
    height = TOP + sum(len(group) * (BAR + GAP) + GROUP_GAP for group in groups.values())
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
             f'<text x="16" y="26" font-size="16" font-weight="bold">Tokens per second, 1.1B target, {runs[0]["threads"]} threads of an {runs[0]["machine"]}</text>',
             f'<text x="16" y="46" fill="#555">draft of 0.1B, planted acceptance 0.8, greedy; medians of interleaved runs, {runs[0]["date"]}</text>']
    y = TOP
    for precision, group in groups.items():
        parts.append(f'<text x="16" y="{y + len(group) * (BAR + GAP) / 2}" font-size="15" font-weight="bold">{precision}</text>')
        for label, colour, value in group:
            length = (WIDTH - LEFT - 260) * value / longest
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + 8 + length:.1f}" y="{y + 15}">{value:.0f}  {label}</text>')
            y += BAR + GAP
        y += GROUP_GAP
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    pathlib.Path(sys.argv[-1]).write_text(svg([json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:-1]]))
