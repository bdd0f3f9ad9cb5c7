"""Decay: acceptance, tokens per cycle and slow cycles of one engine over minutes. A trend in any of them is a failure (exit status 1).

    python tests/soak/decay.py --minutes 4

The bounded form of a run over a day: the same few prompts again and again, alone and side by side, with speculation on and off, so that
every window of time does the same work and only what the engine has been through differs.
"""

import argparse
import json
import sys
import time

from paceline import Engine, SamplingParams, demo_pair

PROMPTS = ("import os\nimport sys\n", "class Request:\n    def __init__(self", "def main():\n    parser = argparse.",
           "return [each for each in")
ONE_IN_TEN_THOUSAND = 3.89  # two-sided normal deviate


def trend(values):
    """Mann-Kendall: the normal deviate of pairs that rise minus pairs that fall, tied values taken out of its variance."""
    n = len(values)
    balance = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1:])
    ties = sum(k * (k - 1) * (2 * k + 5) for k in (values.count(value) for value in set(values)))
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    return (balance - (balance > 0) + (balance < 0)) / variance**0.5 if variance else 0.0


def one_window(engine, seed):
    """The same work every time but for its seed: (accepted per draft, tokens per cycle, the slowest hundredth of all cycles in ms)."""
    times, stats = [], []
    for i, prompt in enumerate(PROMPTS):
        last = time.perf_counter()
        for chunk in engine.stream(prompt, max_tokens=80, ignore_eos=True, temperature=0.8, seed=seed + i):
            now = time.perf_counter()
            times.append(now - last)
            last = now
            if chunk.stats:
                stats.append(chunk.stats)
    params = [SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.8, seed=seed + i, num_speculative_tokens=None if i % 2 else 0)
              for i in range(len(PROMPTS))]
    stats += [result.stats for result in engine.generate_batch(PROMPTS, params)]
    drafts = sum(each.num_draft_tokens for each in stats)
    tokens, cycles = sum(each.num_tokens for each in stats), sum(each.num_cycles for each in stats)
    return (sum(each.num_accepted_draft_tokens for each in stats) / drafts, tokens / cycles,
            1e3 * sorted(times)[len(times) - 1 - len(times) // 100])


def mistakes_in(windows):
    """windows: what one_window gives, in their order."""
    acceptance, per_cycle, slow = zip(*windows, strict=True)
    judged = {"acceptance falls": -trend(acceptance), "tokens per cycle fall": -trend(per_cycle), "slow cycles get slower": trend(slow)}
    return [f"{name}: Mann-Kendall {deviate:.1f}" for name, deviate in judged.items() if deviate > ONE_IN_TEN_THOUSAND]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    windows, until = [], time.monotonic() + 60 * options.minutes
    with Engine(*demo_pair(), num_speculative_tokens=4, max_num_seqs=len(PROMPTS)) as engine:
        one_window(engine, options.seed)  # caches of every kind fill
        while time.monotonic() < until or len(windows) < 10:
            windows.append(one_window(engine, options.seed + 1000 * len(windows)))
    found = mistakes_in(windows)
    acceptance, per_cycle, slow = (sorted(each)[len(each) // 2] for each in zip(*windows, strict=True))
    print(json.dumps(dict(run="decay", seed=options.seed, windows=len(windows), acceptance=round(acceptance, 3),
                          tokens_per_cycle=round(per_cycle, 3), slowest_hundredth_ms=round(slow, 2), mistakes=found)))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
