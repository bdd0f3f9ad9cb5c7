"""The medians that peers.py saved, as a bar chart.

    python bench/chart.py MEDIANS.json docs/peers.svg
"""

import json
import pathlib
import sys

WIDTH, BAR, GAP, GROUP_GAP, LEFT, TOP = 760, 22, 6, 26, 170, 64
SERIES = [("llama.cpp, plain", "#b9b9b9"), ("llama.cpp, best speculative", "#8c8c8c"), ("Paceline, plain", "#8fb8de"), ("Paceline, speculative", "#1f5fa8")]


def speeds(medians):
    """Tokens per second in the order of SERIES."""
    def best(workers, plain):
        return max(1 / seconds for answers in workers.values() for name, seconds in answers.items()
                   if (name == "plain" if plain else name.startswith("tau")))

    return [best(medians[who], plain) for who in ("llama.cpp", "ours") for plain in (True, False)]


def svg(saved):
    groups = {precision: speeds(medians) for precision, medians in saved["medians"].items()}
    longest = max(max(values) for values in groups.values())
    height = TOP + len(groups) * (len(SERIES) * (BAR + GAP) + GROUP_GAP) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
             f'<text x="16" y="26" font-size="16" font-weight="bold">Tokens per second, 1.1B target, {saved["threads"]} threads of an {saved["machine"]}</text>',
             f'<text x="16" y="46" fill="#555">draft of 0.1B, planted acceptance 0.8, greedy; medians of interleaved runs, {saved["date"]}</text>']
    y = TOP
    for precision, values in groups.items():
        parts.append(f'<text x="16" y="{y + 2 * (BAR + GAP)}" font-size="15" font-weight="bold">{precision}</text>')
        for (name, colour), value in zip(SERIES, values, strict=True):
            length = (WIDTH - LEFT - 250) * value / longest
            parts.append(f'<rect x="{LEFT - 90}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT - 82 + length:.1f}" y="{y + 16}">{value:.0f}  {name}</text>')
            y += BAR + GAP
        y += GROUP_GAP
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    pathlib.Path(sys.argv[2]).write_text(svg(json.loads(pathlib.Path(sys.argv[1]).read_text())))
