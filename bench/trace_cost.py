"""What the trace costs: decoding with it over decoding without it, generation by generation in turns.

    python bench/trace_cost.py demo
    python bench/trace_cost.py 1.1b --dtype int8 --draft-dtype int4

Prints the median of the ratios of neighbouring generations and their quartiles, and what a cycle takes. What it costs is a log-softmax of the
rows that were drafted and judged, in both models: it grows with the vocabulary, a cycle with the model.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import sys

import numpy as np
import paceline
from paceline.bundled import demo_pair
from paceline.commands.demo import PROMPTS
from paceline.devices import processor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import options as option  # noqa: E402
from decode import DEFAULT_ALPHA, planted_directory  # noqa: E402
from planted_pair import FIRST_ID, PRESETS  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=["demo", *PRESETS], help="the bundled pair, or a planted one")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--draft-dtype", default="auto")
    parser.add_argument("--tau", type=option.in_range(int, 1, 64), default=4)
    parser.add_argument("--tokens", type=option.in_range(int, 2, 100_000), default=150, help="of a generation (default 150)")
    parser.add_argument("--temperature", type=option.in_range(float, 0, 100), default=0.0)
    parser.add_argument("--repetitions", type=option.repetitions, default=15, help="of every prompt (default 15)")
    parser.add_argument("--threads", type=option.threads, default=len(os.sched_getaffinity(0)), help="default: one per core")
    options = parser.parse_args()
    if options.pair == "demo":
        (target, draft), prompts = demo_pair(), PROMPTS[:4]
    else:
        directory = planted_directory(options.pair, DEFAULT_ALPHA)
        target, draft = directory / "target", directory / "draft"
        prompts = [[FIRST_ID + 97 * i] for i in range(4)]
    common = {"dtype": options.dtype, "draft_dtype": options.draft_dtype, "num_speculative_tokens": options.tau, "num_threads": options.threads,
              "prefix_cache_bytes": 0, "max_model_len": 512}
    ratios, cycle = [], []
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(paceline.Engine(target, draft, trace_cycles=cycles, **common)) for cycles in (0, 4096)]
        for repetition in range(-1, options.repetitions):  # the first is not counted
            for seed, prompt in enumerate(prompts):
                seconds = []
                for engine in engines[:: 1 if repetition % 2 else -1]:  # neither is always first
                    stats = engine.generate(prompt, max_tokens=options.tokens, temperature=options.temperature, seed=seed, ignore_eos=True).stats
                    seconds.append(stats.decode_time)
                    cycle.append(stats.decode_time / stats.num_cycles)
                off, on = seconds[:: 1 if repetition % 2 else -1]
                if repetition >= 0:
                    ratios.append(on / off)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"`python bench/trace_cost.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {processor()}, {options.threads} threads: with the trace over "
          f"without {middle:.4f} (quartiles {low:.4f} and {high:.4f}, {len(ratios)} pairs of generations), a cycle {1e3 * np.median(cycle):.3f} ms")


if __name__ == "__main__":
    main()
