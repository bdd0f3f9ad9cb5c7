"""An engine under load: throughput, and what a long prompt that arrives costs the streams beside it.

    python bench/load.py 1.1b --dtype int8     write the planted pair (bench/planted_pair.py) and measure it
    python bench/load.py DIR                   DIR/target and DIR/draft

Streams decode the whole time, and a coroutine of each notes when its chunks arrive: the gap between two is a cycle as a consumer sees it,
event loop and GIL included. First they are alone, then one long prompt after the other arrives and is prefilled beside them, for both models.
A chunk of a prompt is chosen to cost at most four passes of the target, so the 99th percentile of the gaps then has to stay below the median
before plus as much; and plus the 99th percentile of what chunks really took, which the engine's trace has: from the end of a cycle's work to
the next launch, less what passes there without a prompt.
"""

import argparse
import asyncio
import datetime
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import paceline
from paceline.devices import processor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import options as option  # noqa: E402
import planted_pair  # noqa: E402


async def read(request, gaps, tokens, passes):
    """Until the request ends: seconds since the stream's previous chunk, how many tokens each brought, and seconds of the target's pass."""
    last = None
    async for chunk in request:
        now = time.perf_counter()
        if last is not None and chunk.num_cycles == 1:
            gaps.append(now - last)
            tokens.append(len(chunk.token_ids))
            passes.append(chunk.verify_time)
        last = now


TRACE_CYCLES = 1 << 16


def between(trace, after):
    """Seconds from the end of a cycle's work to the next launch, of the cycles after number `after`."""
    cycles, first = np.unique(trace.cycle, return_index=True)
    rows = trace.where(first[cycles > after])
    ends = rows.start + rows.draft_time + rows.verify_time + rows.sample_time
    return (rows.start[1:] - ends[:-1])[np.diff(rows.cycle) == 1]


def chunks(trace, last_alone, passes):
    """Seconds of each chunk beside the streams, ascending: `passes` of them were read after cycle `last_alone`."""
    alone, beside = between(trace.where(trace.cycle <= last_alone), 0), between(trace, last_alone)
    return np.sort(beside)[-passes:] - np.median(alone)


class Phase:
    """What the streams saw while it lasted."""

    def __init__(self, gaps, tokens):
        self.gaps, self.tokens = gaps, tokens
        self.first, self.start = len(gaps), time.perf_counter()

    def end(self):
        self.seconds = time.perf_counter() - self.start
        self.seen, self.emitted = sorted(self.gaps[self.first:]), sum(self.tokens[self.first:])
        return self

    def ms(self, share):
        return 1e3 * self.seen[min(len(self.seen) - 1, int(share * len(self.seen)))]

    def row(self, name):
        return (f"| {name} | {len(self.seen)} | {self.emitted / self.seconds:.1f} | {self.ms(0.5):.2f} | {self.ms(0.9):.2f} | {self.ms(0.99):.2f} | "
                f"{1e3 * self.seen[-1]:.2f} |")


async def measure(engine, options, vocab):
    random = np.random.default_rng(0)
    gaps, tokens, passes = [], [], []

    def prompt(length):
        return random.integers(planted_pair.FIRST_ID, vocab, length).tolist()

    streams = [engine.submit(prompt(64), ignore_eos=True, max_tokens=options.most) for _ in range(options.streams)]
    readers = [asyncio.ensure_future(read(stream, gaps, tokens, passes)) for stream in streams]
    while len(gaps) < 20 * options.streams:  # prompts and the draft's catching up
        await asyncio.sleep(0.05)
    alone = Phase(gaps, tokens)
    await asyncio.sleep(options.seconds)
    alone.end()
    one_pass = statistics.median(passes)
    last_alone = int((await asyncio.to_thread(engine.trace)).cycle[-1])
    beside, stats = Phase(gaps, tokens), []
    for _ in range(options.arrivals):
        stats.append((await engine.submit(prompt(options.prompt), max_tokens=4, ignore_eos=True)).stats)
    beside.end()
    if any(reader.done() for reader in readers):
        raise SystemExit("a stream ended before the measurement did: fewer --arrivals, or a longer context")
    trace = await asyncio.to_thread(engine.trace)
    if len(trace) == TRACE_CYCLES:
        raise SystemExit(f"more than {TRACE_CYCLES} cycles of streams: the trace has forgotten the first; fewer --arrivals or --seconds")
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*readers)
    return alone, beside, stats, one_pass, chunks(trace, last_alone, sum(each.num_prefill_passes for each in stats))


def report(alone, beside, stats, one_pass, chunk_seconds, options):
    print("| streams | cycles seen | tokens/s | gap p50 ms | p90 ms | p99 ms | max ms |\n| --- | --- | --- | --- | --- | --- | --- |")
    print(alone.row("alone"))
    print(beside.row(f"beside prompts of {options.prompt} tokens"))
    print(f"\n* such a prompt: {statistics.mean(each.num_prefill_passes for each in stats):.0f} chunks of both models, the first token after "
          f"{statistics.mean(each.time_to_first_token for each in stats):.2f} s")
    p50, p99, longest = 1e3 * np.quantile(chunk_seconds, [0.5, 0.99, 1.0])
    print(f"* a chunk took {p50:.2f} ms (p50), {p99:.2f} ms (p99), {longest:.2f} ms (the longest); four plain passes take {4e3 * one_pass:.2f} ms")
    held = True
    for chunk, ms in (("a chunk of four plain passes", 4e3 * one_pass), ("the p99 of the chunks", p99)):
        bound = alone.ms(0.5) + ms
        held &= bool(beside.ms(0.99) <= bound)
        print(f"* p99 beside them {beside.ms(0.99):.2f} ms; median alone and {chunk}: {bound:.2f} ms: {'holds' if beside.ms(0.99) <= bound else 'MISSED'}")
    return held


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", type=option.pair(tuple(planted_pair.PRESETS)), help="tiny, 1.1b, or a directory with target and draft")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--draft-dtype", default="auto")
    parser.add_argument("--tau", type=option.tau, default=3)
    parser.add_argument("--streams", type=option.in_range(int, 1, 64), default=3)
    parser.add_argument("--prompt", type=option.in_range(int, 2, 1 << 20), default=4096, help="tokens of a prompt that arrives")
    parser.add_argument("--arrivals", type=option.in_range(int, 1, 1000), default=4)
    parser.add_argument("--seconds", type=option.in_range(float, 0.1, 3600), default=10.0, help="how long the streams are alone first")
    parser.add_argument("--threads", type=option.threads)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(options.pair)
        if options.pair in planted_pair.PRESETS:
            directory = pathlib.Path(scratch)
            planted_pair.write_pair(directory, **planted_pair.PRESETS[options.pair], alpha=0.8)
        options.most = max(options.prompt, 8192)
        with paceline.Engine(
                directory / "target", directory / "draft", dtype=options.dtype, draft_dtype=options.draft_dtype, num_speculative_tokens=options.tau,
                max_num_seqs=options.streams + 1, trace_cycles=TRACE_CYCLES, max_model_len=options.most + 128, num_threads=options.threads,
                kv_cache_tokens=(options.streams + 1) * (options.most + 128)) as engine:
            print(f"`python bench/load.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {processor()}, {engine.info['device']}\n")
            return 0 if report(*asyncio.run(measure(engine, options, engine.info["vocab_size"])), options) else 1


if __name__ == "__main__":
    sys.exit(main())
