"""Jobs of the gate that need the engine, in a process of their own: one JSON object per line as each is done (gate/cells.py).

    python engine_worker.py parity|invariance|greedy|cycle|serve '{"...": ...}'
"""

import functools
import json
import statistics
import sys
import time

import numpy as np
import paceline
import paceline.arguments

TEXT = "def read_header(path):\n    with open(path) as file:\n        lines = file.read().split()\n"
PROMPTS = ["import os\nimport sys\n", "class Request:\n    def __init__(self", TEXT, "def main():\n    parser = argparse.",
           "    for name in sorted(", "# The tests of\n", "return [each for each in", "try:\n    import json\nexcept ImportError"]
LONGEST = 320  # positions of a sequence of the bundled pair


def say(cell, **data):
    print(json.dumps({"cell": cell} | data), flush=True)


def bundled(draft=True, device="cuda", **how):
    target, drafting = paceline.demo_pair()
    return paceline.Engine(target, drafting if draft else None, device=device, dtype="bf16", max_model_len=LONGEST, **how)


# ---------------------------------------------------------------------------------------------------- correctness
def parity(taus, temperatures, batches, prompts, tokens):
    """Speculative decoding against an engine that has no draft: tokens and logprobs, bit for bit."""
    some = PROMPTS[:prompts]

    def params_of(temperature, tau=None):
        """Of every prompt another way to choose."""
        ways = [{}, dict(top_p=0.9), dict(top_k=40, repetition_penalty=1.2), dict(min_p=0.05, frequency_penalty=0.3)]
        return [paceline.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=temperature, seed=100 + i, logprobs=0,
                                        num_speculative_tokens=tau, **ways[i % len(ways)]) for i in range(len(some))]

    def texts(engine, params):
        return [(result.token_ids, [each.logprob for each in result.logprobs]) for result in engine.generate_batch(some, params)]

    with bundled(draft=False) as engine:
        plain = {temperature: texts(engine, params_of(temperature)) for temperature in temperatures}
    for batch in batches:
        with bundled(num_speculative_tokens=max(taus), max_num_seqs=batch) as engine:
            for temperature in temperatures:
                compare(f"parity, batch {batch}, T {temperature}", plain[temperature],
                        {tau: texts(engine, params_of(temperature, tau)) for tau in [0, *taus]})


def compare(cell, plain, by_tau):
    tokens = 0
    for tau, texts in by_tau.items():
        for i, (got, want) in enumerate(zip(texts, plain, strict=True)):
            if got != want:
                place = next((k for k, pair in enumerate(zip(got[0], want[0], strict=False)) if pair[0] != pair[1]), None)
                say(cell, failed=f"tau {tau}, prompt {i}: " + ("logprobs differ" if place is None else f"token {place} differs"))
                return
            tokens += len(got[0])
    say(cell, tokens=tokens, taus=str(list(by_tau)))


def invariance(starts, most):
    """The rows of one text, split into prefix and drafts in every way: the same bits."""
    with bundled(num_speculative_tokens=most) as engine:
        text = list(engine.generate(TEXT, max_tokens=max(1, max(starts) + most - 20), ignore_eos=True, temperature=1.0, seed=1,
                                    num_speculative_tokens=0).token_ids)
        text = (engine.generate(TEXT, max_tokens=1).prompt_token_ids + tuple(text))[:max(starts) + most]
        for start in starts:
            end = min(len(text), start + most - 1)
            whole = engine.verify(text[:start], text[start:end]).logprobs.view(np.uint32)
            wrong, rows = None, 0
            for first in range(end - start + 1):
                for count in range(1, end - start - first + 2):
                    part = engine.verify(text[:start + first], text[start + first:start + first + count - 1]).logprobs.view(np.uint32)
                    rows += count
                    if wrong is None and not np.array_equal(part, whole[first:first + count]):
                        wrong = f"{count} rows behind a prefix of {start + first} are not those behind a prefix of {start}"
            say(f"row invariance from position {start}, up to {most} rows", **({"failed": wrong} if wrong else dict(rows=rows)))


def greedy(prompts, tokens):
    """The CPU engine rounds alike and adds in another order: the texts may part only where the target hardly prefers one token."""
    near, texts = 0.1, {}
    for device in ("cuda", "cpu"):
        with bundled(device=device) as engine:
            texts[device] = [engine.generate(prompt, max_tokens=tokens, ignore_eos=True, logprobs=2) for prompt in PROMPTS[:prompts]]
    compared, parted = 0, 0
    for i, (here, there) in enumerate(zip(texts["cuda"], texts["cpu"], strict=True)):
        for k, (got, want, best) in enumerate(zip(here.token_ids, there.token_ids, there.logprobs, strict=True)):
            compared += 1
            if got != want:
                margin = best.top[0][1] - best.top[1][1]
                parted += 1
                if margin >= near:
                    return say("greedy text of the CPU engine", failed=f"prompt {i}, token {k}: {got}, not {want}, which is better by {margin:.3f} nats")
                break
    say("greedy text of the CPU engine", tokens=compared, parted_at_near_ties=parted)


# ---------------------------------------------------------------------------------------------------- cycle
def share_weights():
    """Engine reads its checkpoints anew, half a minute for 8B: here every engine has one backend and each checkpoint once."""
    arguments = paceline.arguments
    arguments._backend = functools.cache(lambda device, threads, notes, make=arguments._backend: make(device, threads, []))
    backend_of, load, loaded = arguments._backend, arguments.Settings.load, {}
    arguments._backend = lambda device, threads, notes: backend_of(device, threads, None)

    def load_once(settings, checkpoint, dtype):
        key = (str(checkpoint.directory), dtype)
        if key not in loaded:
            loaded[key] = load(settings, checkpoint, dtype)
        return loaded[key]

    arguments.Settings.load = load_once


def prompts_of(count, length):
    """Ids that even the tiny pair has."""
    return [np.random.RandomState(i).randint(3, 290, length).tolist() for i in range(count)]


def decoded(engine, prompts, tokens, tau):
    """One batch: seconds per cycle and of its parts, tokens per second over all sequences."""
    results = engine.generate_batch(prompts, max_tokens=tokens, ignore_eos=True, num_speculative_tokens=tau)
    stats = [result.stats for result in results]
    cycles = max(each.num_cycles for each in stats)
    longest = max(stats, key=lambda each: each.decode_time)
    decoding = max(1, longest.num_cycles - 1)  # the first cycle ends with the first token, where decode_time begins
    return dict(
        speed=sum(each.num_tokens - 1 for each in stats) / longest.decode_time, cycle=longest.decode_time / decoding,
        draft=longest.draft_time / longest.num_cycles, verify=longest.verify_time / longest.num_cycles,
        sample=longest.sample_time / longest.num_cycles, per_cycle=sum(each.num_tokens for each in stats) / cycles / len(stats),
        text=[result.token_ids for result in results], seconds=longest.decode_time)


def measure(engine, prompts, tokens, taus, repetitions):
    """{tau: medians}, in turns."""
    runs = {tau: [] for tau in taus}
    for _ in range(repetitions):
        for tau in taus:
            runs[tau].append(decoded(engine, prompts, tokens, tau))
    same = all(run["text"] == runs[taus[0]][0]["text"] for some in runs.values() for run in some)
    return {tau: {key: statistics.median(run[key] for run in some) for key in ("speed", "cycle", "draft", "verify", "sample", "per_cycle")}
            for tau, some in runs.items()}, same


def cycle(target, cases, device, until):
    """Each case: label, draft or None, draft_dtype, batch, context, taus, tokens, repetitions."""
    share_weights()
    for case in cases:
        label, batch, context, tokens, taus = (case[key] for key in ("label", "batch", "context", "tokens", "taus"))
        if time.time() > until:
            say(label, not_run="the part's time is over")
            continue
        length = context + tokens + max(taus) + 1
        try:
            engine = paceline.Engine(
                case.get("target", target), case["draft"], device=device, dtype="bf16", draft_dtype=case["draft_dtype"] if case["draft"] else "auto",
                num_speculative_tokens=max(taus) if case["draft"] else 0, max_num_seqs=batch, max_model_len=length, kv_cache_tokens=batch * (length + 64))
        except (ValueError, paceline.CapacityError) as error:  # a format that the device does not know, or no room
            say(label, not_run=str(error))
            continue
        with engine:
            prompts = prompts_of(batch, context)
            engine.generate_batch([prompt[:16] for prompt in prompts], max_tokens=4, ignore_eos=True)
            medians, same = measure(engine, prompts, tokens, taus, case["repetitions"])
            memory = engine.info["weight_bytes"] + engine.info["kv_cache_bytes"] + engine.info["workspace_bytes"]
        if not same:
            say(f"{label}, texts", failed="the texts of different tau are not the same")
        plain = medians[taus[0]]
        for tau, of in medians.items():
            passes = of["draft"] + of["verify"]
            say(f"{label}, tau {tau}", batch=batch, context=context, tau=tau, tokens_per_second=of["speed"], speedup=of["speed"] / plain["speed"],
                tokens_per_cycle=of["per_cycle"], cycle_ms=1e3 * of["cycle"], target_pass_ms=1e3 * of["verify"],
                draft_pass_ms=1e3 * of["draft"] / tau if tau else 0.0, over_one_row=of["verify"] / plain["verify"],
                beyond_passes_us=1e6 * (of["cycle"] - passes), sample_us=1e6 * of["sample"], memory_gb=memory / 1e9)


# ---------------------------------------------------------------------------------------------------- peers
def serve(target, draft, tau, length):
    """Answers questions over pipes, as the workers of bench/peer_workers do."""
    with paceline.Engine(target, draft, device="cuda", dtype="bf16", num_speculative_tokens=tau, max_model_len=length + tau + 1,
                         kv_cache_tokens=length + tau + 65) as engine:
        print("ready plain speculative", flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            result = engine.generate(asked["prompt"], max_tokens=asked["tokens"], ignore_eos=True, num_speculative_tokens=asked.get("tau", 0))
            print(json.dumps({"seconds": 1 / result.stats.decode_tokens_per_second, "tokens": list(result.token_ids)}), flush=True)


def main():
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
