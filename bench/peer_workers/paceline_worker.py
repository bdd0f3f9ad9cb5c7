"""Paceline, asked over pipes as the other engines are: see llama_cpp_worker.py.

    python paceline_worker.py TARGET DRAFT THREADS DTYPE DRAFT_DTYPE MAX_TAU
"""

import json
import statistics
import sys

import paceline


def plain(engine, prompt, tokens):
    return speculative(engine, prompt, tokens, 0)


def speculative(engine, prompt, tokens, tau):
    result = engine.generate(prompt, max_tokens=tokens, ignore_eos=True, num_speculative_tokens=tau)
    return {"seconds": 1 / result.stats.decode_tokens_per_second, "tokens": list(result.token_ids)}


def one_pass(engine, prompt, rows):
    """Verification of rows tokens, judging included: the median of the cycles that had so many, which the first and the last ones have not."""
    chunks = engine.stream(prompt, max_tokens=5 * rows, ignore_eos=True, num_speculative_tokens=rows - 1)
    return {"seconds": statistics.median(chunk.verify_time + chunk.sample_time for chunk in chunks if chunk.num_draft_tokens == rows - 1)}


def prefill(engine, prompt):
    """Up to the first token: the last row of the prompt and the head are not in stats.prefill_time, but in what the others are timed with."""
    return {"seconds": engine.generate(prompt, max_tokens=1, ignore_eos=True, num_speculative_tokens=0).stats.time_to_first_token}


def batch(engine, prompts, tokens):
    results = engine.generate_batch(prompts, max_tokens=tokens, ignore_eos=True, num_speculative_tokens=0)
    return {"seconds": max(result.stats.decode_time for result in results) / (tokens - 1) / len(prompts)}


def main():
    target, draft, threads, dtype, draft_dtype, max_tau = sys.argv[1:]
    with paceline.Engine(target, draft, dtype=dtype, draft_dtype=draft_dtype, num_threads=int(threads), max_model_len=2048,
                         max_num_seqs=4, num_speculative_tokens=int(max_tau), prefix_cache_bytes=0) as engine:
        doing = {"plain": plain, "speculative": speculative, "pass": one_pass, "prefill": prefill, "batch": batch}
        print("ready", *doing, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(doing[asked.pop("do")](engine, **asked)), flush=True)


if __name__ == "__main__":
    main()
