"""Long runs of one engine, judged by what serial plain decoding gives. Exit status 1 if anything is wrong.

python tests/soak/soak.py differential --tokens 1000000   random batches, cancels, prefix hits and taus: no token may differ
python tests/soak/soak.py endurance --requests 200000     short requests of every fate: memory, latency, threads, descriptors stay flat
"""

import argparse
import asyncio
import gc
import json
import os
import pathlib
import random
import statistics
import sys
import time

import paceline
from paceline import Engine, demo_pair
from workload import items

TAU, PLACES = 8, 6
KV_TOKENS = 2048  # less than the places could use: requests wait for pages, and the prefix cache is always full


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Counts:
    def __init__(self):
        self.requests = self.tokens = self.cancelled = self.cached = self.refused = 0
        self.wrong = []
        self.gaps = []  # seconds between two chunks of a stream


async def one_request(engine, item, choose, counts, longest):
    """Ask, read in one of four ways, perhaps leave early, and compare."""
    most = choose.randint(1, longest)
    tau = choose.choice([0, 1, 2, 3, 4, 6, 8])
    request = engine.submit(item.prompt, max_tokens=most, num_speculative_tokens=tau, **item.sampling)
    fate = choose.random()
    counts.requests += 1
    if fate < 0.1:  # dropped, unread
        return
    if fate < 0.25:  # left after some chunks
        after = choose.randint(0, 6)
        async for _ in request:
            if (after := after - 1) < 0:
                break
        request.cancel()
    elif fate < 0.6:
        last = None
        async for _ in request:
            now = time.perf_counter()
            if last is not None:
                counts.gaps.append(now - last)
            last = now
    result = await request
    counts.tokens += len(result.token_ids)
    counts.cancelled += result.finish_reason == "cancelled"
    counts.cached += result.stats.num_cached_prompt_tokens
    for mistake in item.mistakes(result.token_ids, result.logprobs, result.finish_reason, most):
        counts.wrong.append(f"tau {tau}, {item.sampling}, prompt of {len(item.prompt)}: {mistake}")


async def run_differential(engine, all_items, tokens, seed, longest):
    counts, choose = Counts(), random.Random(seed)

    async def client():
        while counts.tokens < tokens and not counts.wrong:
            await one_request(engine, choose.choice(all_items), choose, counts, longest)

    await asyncio.gather(*[client() for _ in range(3 * PLACES)])
    return counts


def differential(options):
    longest = 200
    references = items(options.items, longest, options.seed)
    with Engine(*demo_pair(), num_speculative_tokens=TAU, max_num_seqs=PLACES, kv_cache_tokens=KV_TOKENS) as engine:
        start = time.perf_counter()
        counts = asyncio.run(run_differential(engine, references, options.tokens, options.seed, longest))
        seconds = time.perf_counter() - start
    return dict(
        run="differential", seed=options.seed, tokens=counts.tokens, wrong=len(counts.wrong), requests=counts.requests, cancelled=counts.cancelled,
        cached_prompt_tokens=counts.cached, tokens_per_second=round(counts.tokens / seconds), gap_p50_ms=round(1e3 * percentile(counts.gaps, 0.5), 2),
        gap_p99_ms=round(1e3 * percentile(counts.gaps, 0.99), 2), mistakes=counts.wrong[:5])


# ---------------------------------------------------------------------------------------------------- endurance
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(xs, ys):
    """Theil-Sen: the median of the slopes of all pairs, and the lower end of its 95 % interval (Sen 1968, section 3)."""
    slopes = sorted((ys[j] - ys[i]) / (xs[j] - xs[i]) for i in range(len(xs)) for j in range(i + 1, len(xs)))
    n = len(xs)
    spread = 1.96 * (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    return statistics.median(slopes), slopes[max(0, int((len(slopes) - spread) / 2))]


def trend(values):
    """Mann-Kendall: the normal deviate of the number of pairs that rise minus those that fall."""
    n = len(values)
    balance = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1:])
    return (balance - (balance > 0) + (balance < 0)) / (n * (n - 1) * (2 * n + 5) / 18) ** 0.5


async def short_requests(engine, all_items, count, choose, counts, latencies):
    left = count

    async def client():
        nonlocal left
        while left > 0:
            left -= 1
            if choose.random() < 0.05:
                try:
                    engine.submit(choose.choice(all_items).prompt, temperature=-1.0)
                except ValueError:
                    counts.refused += 1
                continue
            start = time.perf_counter()
            await one_request(engine, choose.choice(all_items), choose, counts, longest=8)
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*[client() for _ in range(2 * PLACES)])


def endurance(options):
    references, choose = items(min(options.items, 200), 8, options.seed), random.Random(options.seed)
    counts, windows = Counts(), 40
    with Engine(*demo_pair(), num_speculative_tokens=TAU, max_num_seqs=PLACES, kv_cache_tokens=KV_TOKENS) as engine:
        async def all_of_it():
            await short_requests(engine, references, options.requests // 10, choose, counts, [])  # caches of every kind fill
            for window in range(windows):
                latencies = []
                await short_requests(engine, references, options.requests // windows, choose, counts, latencies)
                counts.gaps.clear()  # this test's own: 30 bytes per request
                gc.collect()
                served.append((window * (options.requests // windows), resident(), statistics.median(latencies)))
                tasks.append((len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))))

        served, tasks = [], []
        start = time.perf_counter()
        asyncio.run(all_of_it())
        seconds = time.perf_counter() - start
        whole = engine.generate([1] * 100, max_tokens=CONTEXT_LEFT, ignore_eos=True)  # every page can still be had
        stats = engine.stats()
    xs, memory, latency = zip(*served, strict=True)
    growth, least_growth = slope(xs, memory)
    found = list(counts.wrong)
    if growth > options.bytes_per_request and least_growth > 0:
        found.append(f"memory grows by {growth:.1f} bytes per request, by at least {least_growth:.1f} with 95 % confidence")
    if trend(latency) > options.trend:
        found.append(f"latency rises: Mann-Kendall {trend(latency):.1f}")
    if len(set(tasks)) > 1:
        found.append(f"threads and descriptors change: {sorted(set(tasks))}")
    if len(whole.token_ids) != CONTEXT_LEFT:
        found.append(f"the last request got {len(whole.token_ids)} of {CONTEXT_LEFT} tokens")
    if stats.num_requests != counts.requests + 1:
        found.append(f"{stats.num_requests} requests ended of {counts.requests + 1}")
    return dict(
        run="endurance", seed=options.seed, requests=counts.requests, refused=counts.refused, cancelled=counts.cancelled, wrong=len(found),
        requests_per_second=round(counts.requests / seconds), bytes_per_request=round(growth, 2), latency_trend=round(trend(latency), 2),
        latency_p50_ms=round(1e3 * statistics.median(latency), 2), threads_and_descriptors=tasks[0], mistakes=found[:5])


CONTEXT_LEFT = 411


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=["differential", "endurance"])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=400, help="prompts that plain decoding answers first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes-per-request", type=float, default=1.0, help="growth that is no leak")
    parser.add_argument("--trend", type=float, default=3.72, help="Mann-Kendall deviate that is no trend: one in 10,000 flat runs exceeds it")
    options = parser.parse_args(arguments)
    report = (differential if options.run == "differential" else endurance)(options)
    print(json.dumps(report, indent=2), f"\npaceline {paceline.__version__}")
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
