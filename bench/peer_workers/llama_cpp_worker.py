"""llama.cpp, asked over pipes: one JSON object per line in, one out. Runs in the peers' environment.

    python llama_cpp_worker.py TARGET.gguf DRAFT.gguf THREADS

{"do": "plain", "prompt": [...], "tokens": n}                 seconds per token, greedy
{"do": "speculative", "prompt": [...], "tokens": n, "tau": t} the same with the draft, as llama.cpp's own speculative example does it
{"do": "pass", "prompt": [...], "rows": m}                    seconds of one decode call of m tokens, all logits wanted
{"do": "prefill", "prompt": [...]}                            seconds of the whole prompt
{"do": "batch", "prompts": [[...], ...], "tokens": n}         seconds per token of all sequences together, decoding plainly
"""

import json
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np

CONTEXT, SEQUENCES = 2048, 4


class Model:
    def __init__(self, path, threads):
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(path.encode(), parameters)
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = CONTEXT, 512, 512, SEQUENCES
        context.n_threads = context.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, context)
        assert self.context, path
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(512, 0, 1)
        self.length = 0

    def decode(self, rows):
        """rows: (token, position, sequence, whether logits are wanted). The best next token of each row that wants it."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
        assert llama.llama_decode(self.context, self.batch) == 0
        return [int(np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, i), (self.vocab,)).argmax())
                for i, row in enumerate(rows) if row[3]]

    def feed(self, tokens, all_logits):
        """The best next token after each of the tokens, or after the last."""
        last = len(tokens) - 1
        out = self.decode([(token, self.length + i, 0, all_logits or i == last) for i, token in enumerate(tokens)])
        self.length += len(tokens)
        return out

    def cut(self, length):
        for sequence in range(SEQUENCES):
            llama.llama_memory_seq_rm(self.memory, sequence, length, -1)
        self.length = length


def plain(target, draft, prompt, tokens):
    target.cut(0)
    token = target.feed(prompt, False)[0]
    out, start = [token], time.perf_counter()
    while len(out) < tokens:
        out += target.feed(out[-1:], False)
    return {"seconds": (time.perf_counter() - start) / (tokens - 1), "tokens": out}


def speculative(target, draft, prompt, tokens, tau):
    target.cut(0)
    draft.cut(0)
    out = target.feed(prompt, False)
    draft.feed(prompt, False)
    start = time.perf_counter()
    while len(out) < tokens:
        known = prompt + out
        proposed = draft.feed(known[draft.length:], False)
        while len(proposed) < tau:
            proposed += draft.feed(proposed[-1:], False)
        chosen = target.feed(known[target.length:] + proposed, True)
        accepted = 0
        while accepted < tau and chosen[accepted] == proposed[accepted]:
            accepted += 1
        out += chosen[:accepted + 1]
        target.cut(len(known) + accepted)
        draft.cut(min(draft.length, len(known) + accepted))
    return {"seconds": (time.perf_counter() - start) / (len(out) - 1), "tokens": out[:tokens]}


def one_pass(target, draft, prompt, rows):
    target.cut(0)
    target.feed(prompt, False)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.feed(list(range(100, 100 + rows)), True)
        times.append(time.perf_counter() - start)
        target.cut(len(prompt))
    return {"seconds": sorted(times)[len(times) // 2]}


def prefill(target, draft, prompt):
    target.cut(0)
    start = time.perf_counter()
    target.feed(prompt, False)
    return {"seconds": time.perf_counter() - start}


def batch(target, draft, prompts, tokens):
    target.cut(0)
    out = [target.decode([(token, i, s, i == len(prompt) - 1) for i, token in enumerate(prompt)]) for s, prompt in enumerate(prompts)]
    start = time.perf_counter()
    for step in range(tokens - 1):
        best = target.decode([(each[-1], len(prompt) + step, s, True) for s, (prompt, each) in enumerate(zip(prompts, out, strict=True))])
        for each, token in zip(out, best, strict=True):
            each.append(token)
    seconds = time.perf_counter() - start
    target.cut(0)
    return {"seconds": seconds / (tokens - 1) / len(prompts)}


def main():
    silence = llama.llama_log_callback(lambda *_: None)  # kept: C holds a bare pointer
    llama.llama_log_set(silence, None)
    llama.llama_backend_init()
    threads = int(sys.argv[3])
    target, draft = Model(sys.argv[1], threads), Model(sys.argv[2], threads)
    doing = {"plain": plain, "speculative": speculative, "pass": one_pass, "prefill": prefill, "batch": batch}
    print("ready", *doing, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(doing[asked.pop("do")](target, draft, **asked)), flush=True)


if __name__ == "__main__":
    main()
