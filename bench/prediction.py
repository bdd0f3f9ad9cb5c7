"""Predicted speedups beside measured ones, and `auto` beside every fixed tau, on planted pairs of several acceptances or on the bundled one.

    python bench/prediction.py tiny --alpha 0.5 0.65 0.8 0.95
    python bench/prediction.py demo

Half of the prompts are decoded with tau 0, 1, 2, 4 and 8, and from what that showed the speedup of every tau is predicted. The same prompts are then
decoded with every tau and by the policy, one generation of each after the other, so that whatever else the machine does meets all of them; medians.
The tau that the other half of the prompts chose in the same way is judged by what it brings on this half, beside the one that is best by hindsight.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import statistics
import sys
import tempfile

import numpy as np
import paceline
from paceline.bundled import demo_pair
from paceline.commands.demo import PROMPTS
from paceline.devices import processor
from paceline.diagnosis.measure import diagnose_engine

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import options as option  # noqa: E402
from planted_pair import FIRST_ID, PRESETS, write_pair  # noqa: E402

TAUS = range(9)


def planted_prompts(vocab, count):
    """Places of the chain, far from each other as far as there is room."""
    stream = np.random.default_rng(5)
    return [[int(stream.integers(FIRST_ID, vocab))] for _ in range(count)]


def pairs(options, folder):
    """(name, target, draft, prompts) of each pair."""
    if options.pair == "demo":
        target, draft = demo_pair()
        yield "demo", target, draft, PROMPTS
        return
    for alpha in options.alpha:
        out = pathlib.Path(folder) / f"{options.pair}-{alpha:g}"
        write_pair(out, **PRESETS[options.pair], alpha=alpha)
        yield f"alpha {alpha:g}", out / "target", out / "draft", planted_prompts(PRESETS[options.pair]["vocab"], options.prompts)


def measured_speeds(engines, prompts, tokens, temperature, repetitions):
    """{name: tokens per second}: generations of all in turn; of each prompt the median."""
    seconds = {name: [[] for _ in prompts] for name in engines}
    texts = {}
    for _ in range(repetitions):
        for i, prompt in enumerate(prompts):
            for name, (engine, tau) in engines.items():
                result = engine.generate(prompt, max_tokens=tokens, temperature=temperature, seed=i, ignore_eos=True, num_speculative_tokens=tau)
                seconds[name][i].append(result.stats.decode_time)
                if texts.setdefault(i, result.token_ids) != result.token_ids:
                    raise SystemExit(f"{name}: another text than plain decoding's")
    return {name: (tokens - 1) * len(prompts) / sum(map(statistics.median, of)) for name, of in seconds.items()}


def compare(name, target, draft, prompts, options):
    """One line of the table; |predicted / measured - 1| of every tau above 0."""
    common = {"num_threads": options.threads, "prefix_cache_bytes": 0, "num_speculative_tokens": TAUS[-1]}
    with contextlib.ExitStack() as stack:
        fixed = stack.enter_context(paceline.Engine(target, draft, **common))
        auto = stack.enter_context(paceline.Engine(target, draft, policy="auto", **common))
        auto.calibrate()
        chosen_by, found = (diagnose_engine(fixed, half, tau=4, max_tokens=options.tokens, repetitions=options.repetitions,
                                            temperature=options.temperature) for half in (prompts[::2], prompts[1::2]))
        engines = {tau: (fixed, tau) for tau in TAUS} | {"auto": (auto, None)}
        measured_speeds({"auto": engines["auto"]}, prompts[::2], options.tokens, options.temperature, 1)  # it has seen as many texts
        speeds = measured_speeds(engines, prompts[1::2], options.tokens, options.temperature, options.repetitions)
    speedup = {name: speed / speeds[0] for name, speed in speeds.items()}
    off = [found.predictions[tau].speedup / speedup[tau] - 1 for tau in TAUS[1:]]
    cells = [f"{found.predictions[tau].speedup:.2f} / {speedup[tau]:.2f}" for tau in TAUS[1:]]
    best = max(TAUS, key=lambda tau: speedup[tau])
    chosen = min(chosen_by.best_tau, TAUS[-1])
    print(f"| {name} | {' | '.join(cells)} | {chosen}: {speedup[chosen]:.2f} | {best}: {speedup[best]:.2f} | {speedup['auto']:.2f} | "
          f"{speedup['auto'] / speedup[best]:.3f} |", flush=True)
    return [abs(each) for each in off]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=["demo", *PRESETS], help="the bundled pair, or a planted one")
    parser.add_argument("--alpha", type=option.share, nargs="+", default=None, help="of a planted pair (default 0.5 0.65 0.8 0.95)")
    parser.add_argument("--prompts", type=option.in_range(int, 2, 1000), default=8, help="of a planted pair (default 8)")
    parser.add_argument("--tokens", type=option.in_range(int, 2, 100_000), default=160, help="of a generation (default 160)")
    parser.add_argument("--temperature", type=option.in_range(float, 0, 100), default=0.0, help="of the texts (default 0)")
    parser.add_argument("--repetitions", type=option.repetitions, default=5, help="of everything, interleaved (default 5)")
    parser.add_argument("--threads", type=option.threads, default=len(os.sched_getaffinity(0)), help="default: one per core")
    options = parser.parse_args()
    if options.pair == "demo" and options.alpha is not None:
        parser.error("--alpha is of a planted pair, one of " + ", ".join(PRESETS) + "; demo has its own")
    options.alpha = options.alpha or [0.5, 0.65, 0.8, 0.95]
    print(f"`python bench/prediction.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {processor()}, {options.threads} threads, "
          f"{options.repetitions} repetitions, medians; speedups over plain decoding as predicted / measured; texts identical to plain decoding's\n")
    print(f"| pair | {' | '.join(f'tau {tau}' for tau in TAUS[1:])} | chosen | best by hindsight | auto | auto / best |")
    print("| --- " * (len(TAUS) + 4) + "|")
    off = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs(options, folder):
            off += compare(*pair, options)
    print(f"\n|predicted / measured - 1|: {100 * statistics.median(off):.1f} % at the median, {100 * max(off):.1f} % at most, of {len(off)}")


if __name__ == "__main__":
    main()
