"""transformers in bf16, asked over pipes as the other engines are: see llama_cpp_worker.py. Runs in the peers' environment.

    python transformers_worker.py TARGET DRAFT THREADS
"""

import json
import sys
import time

import torch
import transformers


def loaded(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()


def timed(call):
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def generated(target, prompt, tokens, **how):
    """(ids, seconds) of all but the prompt."""
    ids = torch.tensor([prompt])
    out, seconds = timed(lambda: target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                                                 do_sample=False, pad_token_id=0, **how))
    return out[0, len(prompt):].tolist(), seconds


def plain(target, draft, prompt, tokens):
    return speculative(target, None, prompt, tokens, 0)


def speculative(target, draft, prompt, tokens, tau):
    how = {}
    if draft is not None:
        draft.generation_config.num_assistant_tokens = tau
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        how = dict(assistant_model=draft)
    _, first = generated(target, prompt, 1)
    out, seconds = generated(target, prompt, tokens, **how)
    return {"seconds": (seconds - first) / (tokens - 1), "tokens": out}


def one_pass(target, draft, prompt, rows):
    cache = transformers.DynamicCache(config=target.config)
    target(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
    times = []
    for _ in range(5):
        times.append(timed(lambda: target(torch.arange(100, 100 + rows)[None], past_key_values=cache, use_cache=True).logits.argmax(-1))[1])
        cache.crop(-rows)
    return {"seconds": sorted(times)[len(times) // 2]}


def prefill(target, draft, prompt):
    return {"seconds": generated(target, prompt, 1)[1]}


def batch(target, draft, prompts, tokens):
    ids = torch.tensor(prompts)

    def run(count):
        return timed(lambda: target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                                             do_sample=False, pad_token_id=0))[1]

    return {"seconds": (run(tokens) - run(1)) / (tokens - 1) / len(prompts)}


@torch.inference_mode()
def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(sys.argv[3]))
    target, draft = loaded(sys.argv[1]), loaded(sys.argv[2])
    doing = {"plain": plain, "speculative": speculative, "pass": one_pass, "prefill": prefill, "batch": batch}
    print("ready", *doing, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(doing[asked.pop("do")](target, draft, **asked)), flush=True)


if __name__ == "__main__":
    main()
