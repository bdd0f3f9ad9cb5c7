"""Cliffs: what a cycle takes at every length of the context, and what a draft that is never right costs. Exit status 1 for either.

    python tests/soak/lengths.py

Lengths: the fastest of some cycles at each position, plain and with four drafts of which none is right, so that each cycle moves by one position.
Eight lengths together may take at most 1.2 times what the eight before them take, past the end of pages, groups and the draft's own context.
A draft that is never right: under policy "auto" 1,000 tokens take at most 1.1 times what they take without drafts, by the median of pairs.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import planted_pair  # noqa: E402
from paceline import Engine  # noqa: E402

PROMPT, TOKENS = [5, 9, 77], 1000
SIDE = 8  # lengths on either side of a jump
JUMP, SLOWER = 1.2, 1.1


def cycle_times(engine, drafts, repeats):
    """[positions] seconds from the start of a cycle to that of the next, the fastest of all repeats."""
    fastest = {}
    for _ in range(repeats):
        request = engine.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True, num_speculative_tokens=drafts)
        assert request.stats.num_accepted_draft_tokens == 0
        trace = engine.trace()
        starts, positions = trace.start[-TOKENS:], trace.position[-TOKENS:]
        for position, seconds in zip(positions[:-1], starts[1:] - starts[:-1], strict=True):
            fastest[int(position)] = min(float(seconds), fastest.get(int(position), float("inf")))
    return [fastest[position] for position in sorted(fastest)]


def largest_jump(times):
    """(ratio, index): of the medians of SIDE values from the index on and SIDE values before it."""
    return max((statistics.median(times[i:i + SIDE]) / statistics.median(times[i - SIDE:i]), i) for i in range(SIDE, len(times) - SIDE + 1))


def cost_of_drafts(engine, pairs):
    """Median of seconds with drafts over seconds without, in turns."""
    def seconds(drafts):
        engine.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True, num_speculative_tokens=drafts)
        trace = engine.trace()
        return float(trace.start[-1] - trace.start[trace.request == trace.request[-1]][0])

    return statistics.median(seconds(None) / seconds(0) for _ in range(pairs))


def measured(directory, repeats):
    """{name: (found, most)}."""
    planted_pair.write_pair(directory, alpha=0.0, context=16384, **planted_pair.PRESETS["tiny"])
    pair = dict(target=directory / "target", draft=directory / "draft", max_model_len=2048)
    with Engine(**pair, policy="auto") as engine:
        found = {"a draft that is never right": (cost_of_drafts(engine, repeats), SLOWER)}
    with Engine(**pair, num_speculative_tokens=4) as engine:
        found |= {name: (largest_jump(cycle_times(engine, drafts, repeats))[0], JUMP) for name, drafts in (("plain", 0), ("drafts", None))}
    config = directory / "draft/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": TOKENS // 2}))
    with Engine(**pair, num_speculative_tokens=4) as engine:
        return found | {"drafts beyond the draft's context": (largest_jump(cycle_times(engine, None, repeats))[0], JUMP)}


def mistakes_in(found):
    return [f"{name}: {ratio:.2f}, at most {most}" for name, (ratio, most) in found.items() if ratio > most]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    for repeats in (options.repeats, 4 * options.repeats):  # what others do on the machine does not come twice
        with tempfile.TemporaryDirectory() as directory:
            found = measured(pathlib.Path(directory), repeats)
        mistakes = mistakes_in(found)
        print(json.dumps(dict(run="lengths", repeats=repeats, **{name: round(ratio, 3) for name, (ratio, _) in found.items()}, mistakes=mistakes)))
        if not mistakes:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
