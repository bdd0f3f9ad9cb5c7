"""Jobs of the gate that need the engine, in a process of their own: one JSON object per line as each is done (gate/cells.py).

    python engine_worker.py parity|invariance|greedy|beside|cycle|serve '{"...": ...}'
"""

import functools
import json
import statistics
import subprocess
import sys
import threading
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
    return paceline.Engine(target, drafting if draft else None, device=device, dtype="bf16", max_model_len=LONGEST, prefix_cache_bytes=0, **how)


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
                say(cell, failed=f"tau {tau}, prompt {i}: " + ("lengths or logprobs differ" if place is None else f"token {place} differs"))
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
    """The CPU engine rounds alike and adds in another order: the texts may part only where the rows of both, computed anew for the text
    that they have in common, explain it."""
    cell, texts = "greedy text of the CPU engine", {}
    with bundled(device="cuda") as here, bundled(device="cpu") as there:
        for device, engine in (("cuda", here), ("cpu", there)):
            texts[device] = [engine.generate(prompt, max_tokens=tokens, ignore_eos=True, logprobs=0) for prompt in PROMPTS[:prompts]]
        compared, partings, apart = 0, [], 0.0
        for i, (ours, theirs) in enumerate(zip(texts["cuda"], texts["cpu"], strict=True)):
            same = next((k for k, pair in enumerate(zip(ours.token_ids, theirs.token_ids, strict=True)) if pair[0] != pair[1]), tokens)
            compared += same
            apart = max([apart, *(abs(a.logprob - b.logprob) for a, b in zip(ours.logprobs[:same], theirs.logprobs[:same], strict=True))])
            if same < tokens:
                text = ours.prompt_token_ids + ours.token_ids[:same]
                rows = [engine.verify(text, []).logprobs[0] for engine in (here, there)]
                partings.append((f"prompt {i}, token {same}", *rows, ours.token_ids[same], theirs.token_ids[same]))
    wrong = [said for said in (unexplained(*each) for each in partings) if said]
    if apart >= NEAR:
        wrong.append(f"logprobs of the same token are {apart:.3f} nats apart")
    say(cell, **({"failed": "; ".join(wrong)} if wrong else {}), tokens=compared, parted_at_near_ties=len(partings), rows_apart=apart)


NEAR = 0.1
"""Nats that the rows of two engines may be apart for one text: bf16 weights, sums in other orders. 0.07 was seen."""


def unexplained(where, row, cpu_row, token, cpu_token):
    """Why a parting is no near tie, or "": both rows of that place, and what either engine chose there."""
    margin = float(cpu_row[cpu_token] - cpu_row[token])
    moved = [abs(float(row[each] - cpu_row[each])) for each in (token, cpu_token)]
    if max(moved) >= NEAR:
        return f"{where}: the rows are {max(moved):.3f} nats apart"
    if margin > sum(moved):
        return f"{where}: {token}, not {cpu_token}, which is better by {margin:.4f} nats where the rows differ by {sum(moved):.4f}"
    return ""


def beside(prompts, tokens, processes, neighbours, runs, minutes):
    """Seeded texts while other processes, and other engines of this one, keep the device busy: only latency may change."""
    cell, over = "seeded texts beside other work", threading.Event()

    def texts(engine):
        start = time.perf_counter()
        params = [paceline.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.9, seed=40 + i, logprobs=0) for i in range(prompts)]
        results = engine.generate_batch(PROMPTS[:prompts], params)
        return [(each.token_ids, each.logprobs) for each in results], time.perf_counter() - start

    def neighbour():
        with bundled(num_speculative_tokens=3) as other:
            while not over.is_set():
                other.generate(TEXT, max_tokens=tokens, ignore_eos=True, temperature=1.1)

    with bundled(num_speculative_tokens=4, max_num_seqs=3) as engine:
        quiet, alone = texts(engine)
        others = [subprocess.Popen([sys.executable, __file__, "busy", json.dumps(dict(tokens=tokens, seconds=60 * minutes))],
                                   stdout=subprocess.PIPE) for _ in range(processes)]
        threads = [threading.Thread(target=neighbour) for _ in range(neighbours)]
        for thread in threads:
            thread.start()
        try:
            started = [bool(other.stdout.readline()) for other in others]  # each has decoded
            done = [texts(engine) for _ in range(runs)]
            alive = [other.poll() is None for other in others]
        finally:
            over.set()
            for other in others:
                other.kill()
                other.wait()
                other.stdout.close()
            for thread in threads:
                thread.join()
    if not all(started) or not all(alive):
        return say(cell, failed="a process that should have kept the device busy ended")
    wrong = sum(each != quiet for each, _ in done)
    slowest = max(seconds for _, seconds in done)
    say(cell, **({"failed": f"{wrong} of {runs} runs gave other texts"} if wrong else {}), runs=runs, processes=processes, neighbours=neighbours,
        slower_by=slowest / alone)


def busy(tokens, seconds):
    """Decodes until it is killed, or for so many seconds."""
    until = time.monotonic() + seconds
    with bundled(num_speculative_tokens=2) as engine:
        while time.monotonic() < until:
            engine.generate(TEXT, max_tokens=tokens, ignore_eos=True, temperature=1.0)
            print("busy", flush=True)


# ---------------------------------------------------------------------------------------------------- cycle
def share_weights():
    """Engine reads its checkpoints anew, half a minute for 8B: here every engine has one backend and each checkpoint once."""
    arguments = paceline.arguments
    arguments.make_backend = functools.cache(lambda device, threads, notes, make=arguments.make_backend: make(device, threads, []))
    backend_of, load, loaded = arguments.make_backend, arguments.Settings.load, {}
    arguments.make_backend = lambda device, threads, notes: backend_of(device, threads, None)

    def load_once(settings, checkpoint, dtype):
        key = (str(checkpoint.directory), dtype)
        if key not in loaded:
            loaded[key] = load(settings, checkpoint, dtype)
        return loaded[key]

    arguments.Settings.load = load_once


def prompts_of(count, length):
    """Ids that even the tiny pair has."""
    return [np.random.RandomState(i).randint(3, 290, length).tolist() for i in range(count)]


PREFILL_ROWS = 512
"""Rows of a prompt per step, for these measurements: a step feeds one sequence and decodes the others, so that with the engine's own few
rows the first of a batch would be done before the last has begun. It changes no bits, and no time that is reported."""


def room(batch, context, tokens, tau):
    """Tokens that the first of a batch may emit before the last has emitted `tokens`."""
    return tokens + batch * ((2 if tau else 1) * context // PREFILL_ROWS + 3) * (tau + 1) + 2 * tau  # the models read in turns


def decoded(engine, prompts, tokens, tau):
    """One batch, while all of it decodes with all its drafts: tokens per second over all sequences, seconds of a cycle and of its passes.

    The last prompt comes to an end, the others are dropped then. Its first cycles have no drafts, since the draft is fed the prompt once a
    token is out, and its last ones have few: the window lies between.
    """
    most = room(len(prompts), len(prompts[0]), tokens, tau)
    requests = [engine.stream(prompt, max_tokens=tokens if prompt is prompts[-1] else most, ignore_eos=True, num_speculative_tokens=tau)
                for prompt in prompts]
    texts, drafting, window, over = [[] for _ in requests], [-1] * len(requests), [], False  # window: (time, tokens) of each cycle's end
    stats = None
    while stats is None:
        emitted, chunks = 0, [(len(requests) - 1, next(requests[-1]))]
        stats = chunks[0][1].stats
        for i, request in enumerate(requests[:-1]):
            while request.ready():
                chunks.append((i, next(request)))
        for i, chunk in chunks:
            texts[i] += chunk.token_ids
            drafting[i] = chunk.num_draft_tokens
            emitted += len(chunk.token_ids)
        if not over and all(drafts == tau for drafts in drafting):
            window.append((time.perf_counter(), emitted))
        else:
            over = bool(window)
    for request in requests:
        request.cancel()
    if len(window) < 4:
        raise RuntimeError(f"a text of {tokens} tokens is too short to be timed at tau {tau}")
    (start, _), *cycles = window[2:]  # two cycles are under way when the drafts begin
    seconds = cycles[-1][0] - start
    return dict(speed=sum(count for _, count in cycles) / seconds, cycle=seconds / len(cycles), verify=stats.verify_time / stats.num_cycles,
                draft=tau * stats.draft_time / stats.num_draft_tokens if tau else 0.0, sample=stats.sample_time / stats.num_cycles,
                per_cycle=sum(count for _, count in cycles) / len(cycles) / len(prompts), texts=texts)


def same_texts(runs):
    """As far as both go: who is dropped with the last one has got anywhere."""
    return all(a[:len(b)] == b[:len(a)] for run in runs for a, b in zip(run["texts"], runs[0]["texts"], strict=True))


def measure(engine, prompts, tokens, taus, repetitions):
    """{tau: medians}, in turns, and whether all texts were the same."""
    runs = {tau: [] for tau in taus}
    for _ in range(repetitions):
        for tau in taus:
            runs[tau].append(decoded(engine, prompts, tokens, tau))
    medians = {tau: {key: statistics.median(run[key] for run in some) for key in some[0] if key != "texts"} for tau, some in runs.items()}
    return medians, same_texts([run for some in runs.values() for run in some])


def measured(case, target, device):
    """{tau: medians}, and the gigabytes that the engine takes."""
    batch, context, tokens, taus = (case[key] for key in ("batch", "context", "tokens", "taus"))
    length = context + room(batch, context, tokens, max(taus)) + max(taus) + 1
    with paceline.Engine(
            case.get("target", target), case["draft"], device=device, dtype="bf16",
            draft_dtype=case["draft_dtype"] if case["draft"] else "auto", num_speculative_tokens=max(taus) if case["draft"] else 0,
            max_num_seqs=batch, max_model_len=length, kv_cache_tokens=batch * (length + 64), prefix_cache_bytes=0) as engine:
        prompts = prompts_of(batch, context)
        engine.generate_batch([prompt[:16] for prompt in prompts], max_tokens=4, ignore_eos=True)
        medians, same = measure(engine, prompts, tokens, taus, case["repetitions"])
        if not same:
            say(f"{case['label']}, texts", failed="the texts of different tau are not the same")
        return medians, sum(engine.info[f"{each}_bytes"] for each in ("weight", "kv_cache", "workspace")) / 1e9


def cycle(target, cases, device, until):
    """Each case: label, draft or None, draft_dtype, batch, context, taus, tokens, repetitions."""
    share_weights()
    paceline.settings.PREFILL_CHUNK["cuda"] = paceline.settings.PREFILL_CHUNK_BESIDE = PREFILL_ROWS
    for case in cases:
        label = case["label"]
        if time.time() > until:
            say(label, not_run="the part's time is over")
            continue
        try:
            medians, memory = measured(case, target, device)
        except Exception as error:  # of one case; the others are asked all the same
            say(label, **{"not_run" if isinstance(error, paceline.CapacityError) else "failed": f"{type(error).__name__}: {error}"})
            continue
        for tau, of in medians.items():
            say(f"{label}, tau {tau}", batch=case["batch"], context=case["context"], tau=tau, tokens_per_second=of["speed"],
                speedup=of["speed"] / medians[0]["speed"], tokens_per_cycle=of["per_cycle"], cycle_ms=1e3 * of["cycle"],
                target_pass_ms=1e3 * of["verify"], draft_pass_ms=1e3 * of["draft"] / tau if tau else 0.0,
                over_one_row=of["verify"] / medians[0]["verify"], beyond_passes_us=1e6 * (of["cycle"] - of["draft"] - of["verify"]),
                sample_us=1e6 * of["sample"], memory_gb=memory)


# ---------------------------------------------------------------------------------------------------- peers
def serve(target, draft, tau, context, tokens):
    """Answers questions over pipes, as the workers of bench/peer_workers do."""
    paceline.settings.PREFILL_CHUNK["cuda"] = paceline.settings.PREFILL_CHUNK_BESIDE = PREFILL_ROWS
    length = context + room(1, context, tokens, tau) + tau + 1
    with paceline.Engine(target, draft, device="cuda", dtype="bf16", num_speculative_tokens=tau, max_model_len=length,
                         kv_cache_tokens=length + 64, prefix_cache_bytes=0) as engine:
        print("ready plain speculative", flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            run = decoded(engine, [asked["prompt"]], asked["tokens"], asked.get("tau", 0))
            print(json.dumps({"seconds": 1 / run["speed"], "tokens": run["texts"][0]}), flush=True)


def main():
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
