"""openvino-genai, asked over pipes as the other engines are: see llama_cpp_worker.py. Runs in an environment of its own.

    python openvino_worker.py TARGET DRAFT THREADS        directories that optimum-cli exported

Its pipeline has no way to ask for a pass, so it answers fewer questions.
"""

import functools
import json
import sys
import time

import numpy as np
import openvino
import openvino_genai


def generated(pipe, prompt, tokens, tau=0):
    """(ids, seconds)."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    if tau:
        config.num_assistant_tokens = tau
    start = time.perf_counter()
    result = pipe.generate(openvino.Tensor(np.asarray([prompt], np.int64)), config)
    return list(result.tokens[0]), time.perf_counter() - start


@functools.cache
def pipeline(drafts):
    """Made when it is first wanted: each holds the target's weights."""
    target, draft, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    how = dict(draft_model=openvino_genai.draft_model(draft, "CPU", INFERENCE_NUM_THREADS=threads)) if drafts else {}
    return openvino_genai.LLMPipeline(target, "CPU", INFERENCE_NUM_THREADS=threads, **how)


def plain(prompt, tokens):
    return speculative(prompt, tokens, 0)


def speculative(prompt, tokens, tau):
    _, first = generated(pipeline(tau > 0), prompt, 1, tau)
    out, seconds = generated(pipeline(tau > 0), prompt, tokens, tau)
    return {"seconds": (seconds - first) / (tokens - 1), "tokens": out}


def prefill(prompt):
    return {"seconds": generated(pipeline(False), prompt, 1)[1]}


def main():
    doing = {"plain": plain, "speculative": speculative, "prefill": prefill}
    print("ready", *doing, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(doing[asked.pop("do")](**asked)), flush=True)


if __name__ == "__main__":
    main()
