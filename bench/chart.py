"""The medians that peers.py saved, as a bar chart.

    python bench/chart.py MEDIANS.json [MEDIANS.json ...] docs/peers.svg
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import options as option  # noqa: E402

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


def medians(path):
    """A type for argparse: what `peers.py --save` wrote, with the answers that bars are made of."""
    try:
        run = json.loads(pathlib.Path(path).read_text())
        for engines in run["medians"].values():
            list(bars(engines))
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise argparse.ArgumentTypeError(f"must be a file of peers.py --save with plain and some tau answered, got {path}") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("medians", type=medians, nargs="+", metavar="MEDIANS.json", help="what peers.py --save wrote")
    parser.add_argument("out", type=option.new_file, metavar="OUT.svg", help="for example docs/peers.svg")
    options = parser.parse_args()
    options.out.write_text(svg(options.medians))


if __name__ == "__main__":
    main()
