"""Drafters beside plain decoding on one pair: the draft model, the n-gram, and the chain of both, on code that repeats itself and on code that
does not yet.

    python bench/drafters.py demo --tau 3 7

The bundled pair, or DIR/target and DIR/draft with the same words. Repetitions are interleaved, one generation of each engine after the other,
so that whatever else the machine does meets all of them; medians are reported, as Markdown. host is what remains of the wall time of
`generate` after prefill, drafting, verification and sampling, per cycle: with a drafter on the host, its own work and the round trip too.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import statistics
import sys
import time

import paceline
from paceline.bundled import demo_pair
from paceline.commands.demo import PROMPTS
from paceline.devices import processor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import options as option  # noqa: E402
from decode import median  # noqa: E402

REPETITIVE = [
    "def first(items):\n    return items[0]\n\n\ndef second(items):\n    return items[1]\n\n\ndef third(items):\n    return",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n\n    def __add__(self, other):\n"
    "        return Point(self.x + other.x, self.y + other.y)\n\n    def __sub__(self, other):\n        return Point(",
    "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n\n    def test_sub(self):\n        self.assertEqual(sub(1, 2), -1)\n\n"
    "    def test_mul(self):\n        self.assertEqual(",
]


def engines_of(target, draft, taus, threads):
    """Name and arguments of each."""
    common = {"num_threads": threads, "prefix_cache_bytes": 0}
    yield "plain", {"target": target, **common}
    for tau in taus:
        yield f"draft model, tau {tau}", {"target": target, "draft": draft, "num_speculative_tokens": tau, **common}
        yield f"n-gram, tau {tau}", {"target": target, "draft": "ngram", "num_speculative_tokens": tau, **common}
        yield f"chain, tau {tau}", {"target": target, "draft": draft, "drafter": "chain", "num_speculative_tokens": tau, **common}
    yield "draft model, auto", {"target": target, "draft": draft, "policy": "auto", **common}
    yield "n-gram, auto", {"target": target, "draft": "ngram", "policy": "auto", **common}
    yield "chain, auto", {"target": target, "draft": draft, "drafter": "chain", "policy": "auto", **common}


def measure(engine, prompt, **sampling):
    start = time.perf_counter()
    result = engine.generate(prompt, ignore_eos=True, **sampling)
    wall, stats = time.perf_counter() - start, result.stats
    host = wall - stats.prefill_time - stats.draft_time - stats.verify_time - stats.sample_time
    return {"seconds": stats.decode_time, "tokens": result.token_ids, "cycles": stats.num_cycles, "drafted": stats.num_draft_tokens,
            "accepted": stats.num_accepted_draft_tokens, "host": host / stats.num_cycles}


def report(runs, prompts):
    """runs: per engine, one after the other, of all prompts in turn."""
    print("| drafter | tokens per cycle | accepted / drafted | host ms | tokens/s | speedup |")
    print("| --- | --- | --- | --- | --- | --- |")
    plain = runs["plain"]
    seconds = {name: sum(median(of[i::prompts], "seconds") for i in range(prompts)) for name, of in runs.items()}
    tokens = sum(len(run["tokens"]) - 1 for run in plain[:prompts])
    for name, of in runs.items():
        if [run["tokens"] for run in of] != [run["tokens"] for run in plain]:
            raise SystemExit(f"{name}: another text than plain decoding's")
        per_cycle = sum(len(run["tokens"]) for run in of) / sum(run["cycles"] for run in of)
        accepted, drafted = sum(run["accepted"] for run in of), sum(run["drafted"] for run in of)
        print(f"| {name} | {per_cycle:.2f} | {accepted / drafted if drafted else float('nan'):.2f} | {1e3 * statistics.median(run['host'] for run in of):.3f} "
              f"| {tokens / seconds[name]:.0f} | {seconds['plain'] / seconds[name]:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", type=option.pair(["demo"]), help="demo, or a directory with target and draft")
    parser.add_argument("--tau", type=option.in_range(int, 1, 64), nargs="+", default=[3, 7])
    parser.add_argument("--tokens", type=option.in_range(int, 2, 100_000), default=160, help="of a generation (default 160)")
    parser.add_argument("--temperature", type=option.in_range(float, 0, 100), nargs="+", default=[0.0, 0.8])
    parser.add_argument("--repetitions", type=option.repetitions, default=5, help="of everything, interleaved (default 5)")
    parser.add_argument("--threads", type=option.threads, default=len(os.sched_getaffinity(0)), help="default: one per core")
    options = parser.parse_args()
    target, draft = demo_pair() if options.pair == "demo" else (pathlib.Path(options.pair) / role for role in ("target", "draft"))
    print(f"`python bench/drafters.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {processor()}, {options.threads} threads, "
          f"{options.repetitions} repetitions, medians; texts identical to plain decoding's")
    with contextlib.ExitStack() as stack:
        engines = {name: stack.enter_context(paceline.Engine(**arguments)) for name, arguments in engines_of(target, draft, options.tau, options.threads)}
        for what, prompts in (("prompts that repeat themselves", REPETITIVE), ("prompts of the demo", PROMPTS)):
            for temperature in options.temperature:
                runs = {name: [] for name in engines}
                for _ in range(options.repetitions):
                    for seed, prompt in enumerate(prompts):
                        for name, engine in engines.items():
                            runs[name].append(measure(engine, prompt, max_tokens=options.tokens, temperature=temperature, seed=seed))
                print(f"\n{what}, T = {temperature:g}:\n")
                report(runs, len(prompts))


if __name__ == "__main__":
    main()
