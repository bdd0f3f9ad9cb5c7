"""Decoding speed of a pair: plain against the machine's read bandwidth, speculation and the parts of its cycles, passes of M rows.

    python bench/decode.py 1.1b                  write the planted pair (bench/planted_pair.py) and measure it
    python bench/decode.py demo                  the bundled pair
    python bench/decode.py DIR                   DIR/target and DIR/draft

Repetitions are interleaved (bandwidth, then every tau once, then again) so that a disturbance of the machine meets all
of them; medians are reported, as Markdown. rows, draft, verify, sample and host are means over a generation's cycles, among which the
first and the last have fewer drafts than tau; host is what remains of the wall time of `generate` after prefill, drafting, verification and
sampling: the core's own work between cycles, and Python's. T(M) is of a stream beside it: the median of its cycles of exactly M = tau + 1 rows.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import struct
import sys
import tempfile
import threading
import time

import numpy as np
import paceline
from paceline.bundled import demo_pair
from paceline.devices import processor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import options as option  # noqa: E402
import planted_pair  # noqa: E402

PROMPTS = ["def read_header(path):\n    ", "class Request:\n    def __init__(self", "import os\nimport sys\n\n\ndef main("]
LONGEST_PROMPT = 32  # tokens, at most, of one of these


DEFAULT_ALPHA, DEFAULT_CONTEXT = 0.8, 128


class Bandwidth:
    """Reading memory as fast as the threads can: the maximum over int32, which numpy vectorises (within 3 % of an
    AVX-512 loop on 2 threads of a Zen 5), over an array far larger than the last level cache."""

    def __init__(self, num_threads, megabytes=512):
        self.parts = np.array_split(np.ones(megabytes << 18, np.int32), num_threads)

    def measure(self):
        """GB/s."""
        threads = [threading.Thread(target=np.max, args=(part,)) for part in self.parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(part.nbytes for part in self.parts) / (time.perf_counter() - start) / 1e9


BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5 + 2 / 64, "int4_g32": 0.5 + 2 / 32}
"""Of a weight, its share of a group's scale included."""


def bytes_per_pass(directory, dtype):
    """Weight bytes that a pass of few rows reads: every tensor but an untied embedding, of which it reads a row or two."""
    total = 0
    table = max(BYTES[dtype], 1)  # embedding and head are never below int8
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__", None)
        total += sum(np.prod(tensor["shape"]) * (table if name == "lm_head.weight" else BYTES[dtype])
                     for name, tensor in header.items() if name != "model.embed_tokens.weight")
    config = json.loads((pathlib.Path(directory) / "config.json").read_text())
    if config.get("tie_word_embeddings"):
        total += config["vocab_size"] * config["hidden_size"] * table
    return total


def kv_bytes_per_position(directory, item_size):
    config = json.loads((pathlib.Path(directory) / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * item_size


def max_position_embeddings(directory):
    return json.loads((pathlib.Path(directory) / "config.json").read_text())["max_position_embeddings"]


def measure(engine, prompt, tokens, tau):
    """One generation: means per cycle, seconds of its four parts among them, and tokens per second. And a stream, for the pass."""
    start = time.perf_counter()
    result = engine.generate(prompt, max_tokens=tokens, ignore_eos=True, num_speculative_tokens=tau)
    wall, stats = time.perf_counter() - start, result.stats
    host = wall - stats.prefill_time - stats.draft_time - stats.verify_time - stats.sample_time
    return dict(
        draft=stats.draft_time / stats.num_cycles, verify=stats.verify_time / stats.num_cycles, sample=stats.sample_time / stats.num_cycles,
        host=host / stats.num_cycles, speed=stats.decode_tokens_per_second, per_cycle=stats.mean_acceptance_length,
        rows=1 + stats.num_draft_tokens / stats.num_cycles, alpha=alpha_of(stats), one_pass=pass_time(engine, prompt, tokens, tau + 1),
        prompt_tokens=len(result.prompt_token_ids), tokens=list(result.token_ids))


def pass_time(engine, prompt, tokens, rows):
    """Median seconds of verification passes over exactly so many rows, in at most `tokens` tokens; NaN if there is none."""
    chunks = engine.stream(prompt, max_tokens=min(tokens, 5 * rows), ignore_eos=True, num_speculative_tokens=rows - 1)
    times = [chunk.verify_time for chunk in chunks if chunk.num_draft_tokens == rows - 1]
    return statistics.median(times) if times else float("nan")


def alpha_of(stats):
    """Accepted per judged draft token: the first of a cycle is judged, and each whose forerunner was accepted. NaN without drafts."""
    drafted, accepted = stats.drafted_per_position, stats.accepted_per_position
    judged = sum(min(here, before) for here, before in zip(drafted, [*drafted[:1], *accepted], strict=False))
    return sum(accepted) / judged if judged else float("nan")


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def report(runs, bandwidths, weight_bytes, kv_bytes):
    bandwidth, plain = statistics.median(bandwidths), runs[0]
    position = median(plain, "prompt_tokens") + len(plain[0]["tokens"]) / 2
    rate = (weight_bytes + kv_bytes * position) * median(plain, "speed") / 1e9
    print(f"\nContext {median(plain, 'prompt_tokens'):.0f}:\n")
    print(f"* read bandwidth {bandwidth:.1f} GB/s ({min(bandwidths):.1f} to {max(bandwidths):.1f})")
    print(f"* plain {median(plain, 'speed'):.2f} tokens/s x {(weight_bytes + kv_bytes * position) / 1e6:.0f} MB = {rate:.1f} GB/s, "
          f"{100 * rate / bandwidth:.0f} % of it")
    print(f"* outputs of all tau identical: {'yes' if same_outputs(runs) else 'NO'}\n")
    print("| tau | rows | draft ms | verify ms | sample ms | host ms | T(tau + 1) ms | T(tau + 1)/T(1) | tokens per cycle | alpha | tokens/s | speedup |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for tau, all_runs in runs.items():
        draft, verify, sample, host, one = (f"{1e3 * median(all_runs, part):.3f}" for part in ("draft", "verify", "sample", "host", "one_pass"))
        speed = median(all_runs, "speed")
        print(f"| {tau} | {median(all_runs, 'rows'):.2f} | {draft} | {verify} | {sample} | {host} "
              f"| {one} | {median(all_runs, 'one_pass') / median(plain, 'one_pass'):.2f} | {median(all_runs, 'per_cycle'):.2f} | {median(all_runs, 'alpha'):.3f} | {speed:.2f} | {speed / median(plain, 'speed'):.2f} |",
              flush=True)


def same_outputs(runs):
    return all(run["tokens"] == plain["tokens"] for all_runs in runs.values() for run, plain in zip(all_runs, runs[0], strict=True))


def check_alpha(parser, pair, alpha):
    """The dial's value. Only a preset, which is written here, has one."""
    if alpha is not None and pair not in planted_pair.PRESETS:
        parser.error(f"--alpha is of a planted pair, one of {', '.join(planted_pair.PRESETS)}; {pair} has its own")
    return DEFAULT_ALPHA if alpha is None else alpha


def planted_directory(pair, alpha):
    """Of a preset, written once to a temporary folder; any other name is a directory."""
    if pair not in planted_pair.PRESETS:
        return pathlib.Path(pair)
    directory = pathlib.Path(tempfile.gettempdir()) / "planted-pairs" / f"{pair}-{alpha}"
    if not (directory / "draft" / "generation_config.json").exists():  # the last file that is written
        planted_pair.write_pair(directory, alpha=alpha, **planted_pair.PRESETS[pair])
    return directory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", type=option.pair(["demo", *planted_pair.PRESETS]),
                        help="demo, a preset of planted_pair.py (tiny, 1.1b), or a directory with target and draft")
    parser.add_argument("--alpha", type=option.share, help=f"acceptance of a planted pair (default {DEFAULT_ALPHA})")
    parser.add_argument("--tau", type=option.tau, nargs="+", default=[0, 1, 2, 3, 4, 7, 15])
    parser.add_argument("--tokens", type=option.in_range(int, 2, 100_000), default=128, help="of a generation (default 128)")
    parser.add_argument("--repetitions", type=option.repetitions, default=5, help="of everything, interleaved (default 5)")
    parser.add_argument("--threads", type=option.threads, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--dtype", choices=BYTES, default="bf16", help="default bf16")
    parser.add_argument("--draft-dtype", choices=BYTES, help="default: that of the target")
    parser.add_argument("--context", type=option.in_range(int, 1, 100_000), nargs="+",
                        help="tokens of the prompt (default 128); demo has prompts of its own")
    options = parser.parse_args()
    taus = sorted({0, *options.tau})
    alpha = check_alpha(parser, options.pair, options.alpha)
    if options.pair == "demo" and options.context:
        parser.error("--context is of planted pairs and directories; demo has prompts of its own")

    directory = demo_pair()[0].parent if options.pair == "demo" else planted_directory(options.pair, alpha)
    longest = max_position_embeddings(directory / "target")
    contexts = options.context or [DEFAULT_CONTEXT]
    needed = (LONGEST_PROMPT if options.pair == "demo" else max(contexts)) + options.tokens + 1
    if needed > longest:
        parser.error(f"the prompt and --tokens need {needed} positions, the target has {longest}")
    prompts = {0: PROMPTS} if options.pair == "demo" else {
        context: [np.random.RandomState(i).randint(3, 500, context).tolist() for i in range(3)] for context in contexts}
    bandwidth = Bandwidth(options.threads)
    print(f"`python bench/decode.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {processor()}, "
          f"{options.threads} threads, {options.repetitions} repetitions, medians")
    with paceline.Engine(directory / "target", directory / "draft", num_speculative_tokens=max(taus), dtype=options.dtype,
                         draft_dtype=options.draft_dtype or options.dtype, num_threads=options.threads,
                         max_model_len=max(prompts) + options.tokens + 1 if max(prompts) else None,
                         kv_cache_tokens=max(prompts) + options.tokens + 1 if max(prompts) else None,
                         prefix_cache_bytes=0) as engine:  # every generation pays for its prompt
        engine.generate(prompts[max(prompts)][0][:64], max_tokens=8, ignore_eos=True)
        for some in prompts.values():
            bandwidths, runs = [], {tau: [] for tau in taus}
            for i in range(options.repetitions):
                bandwidths.append(bandwidth.measure())
                for tau in taus:
                    runs[tau].append(measure(engine, some[i % len(some)], options.tokens, tau))
            report(runs, bandwidths, bytes_per_pass(directory / "target", options.dtype),
                   kv_bytes_per_position(directory / "target", 4 if options.dtype == "fp32" else 2))


if __name__ == "__main__":
    main()
