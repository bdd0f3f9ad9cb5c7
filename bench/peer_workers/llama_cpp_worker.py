"""llama.cpp, asked over pipes: one JSON object per line in, one out. Runs in the peers' environment.

    python llama_cpp_worker.py TARGET.gguf DRAFT.gguf THREADS

{"do": "plain", "prompt": [...], "tokens": n}                 seconds per token, greedy
{"do": "speculative", "prompt": [...], "tokens": n, "tau": t} the same with the draft, as llama.cpp's own speculative example does it
{"do": "pass", "prompt": [...], "rows": m}                    seconds of one decode call of m tokens, all logits wanted
{"do": "prefill", "prompt": [...]}                            seconds of the whole prompt
"""

import json
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np

CONTEXT = 2048


class Model:
    def __init__(self, path, threads):
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(path.encode(), parameters)
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = CONTEXT, 512, 512
        context.n_threads = context.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, context)
        assert self.context, path
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(512, 0, 1)
        self.length = 0

    def feed(self, tokens, all_logits):
        """The best next token after each of the tokens, or after the last."""
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, self.length + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
            self.batch.logits[i] = all_logits or i == len(tokens) - 1
        assert llama.llama_decode(self.context, self.batch) == 0
        self.length += len(tokens)
        wanted = range(len(tokens)) if all_logits else [len(tokens) - 1]
        return [int(np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, i), (self.vocab,)).argmax()) for i in wanted]

    def cut(self, length):
        llama.llama_memory_seq_rm(self.memory, 0, length, -1)
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


def main():
    silence = llama.llama_log_callback(lambda *_: None)  # kept: C holds a bare pointer
    llama.llama_log_set(silence, None)
    llama.llama_backend_init()
    threads = int(sys.argv[3])
    target, draft = Model(sys.argv[1], threads), Model(sys.argv[2], threads)
    doing = {"plain": plain, "speculative": speculative, "pass": one_pass, "prefill": prefill}
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(doing[asked.pop("do")](target, draft, **asked)), flush=True)


if __name__ == "__main__":
    main()
