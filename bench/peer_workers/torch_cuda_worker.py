"""What torch and transformers make of a pair on a GPU, in bf16, asked over pipes as the other engines are: see llama_cpp_worker.py.

    python torch_cuda_worker.py TARGET DRAFT DEVICE LENGTH TAU        DEVICE cuda, or cpu to try it without one

`eager`, `compiled` (static cache, torch.compile) and `assisted` are transformers' generate. `graph` and `graph_speculative` are the loop
that people write by hand when that is too slow: static caches, layers compiled once, a whole pass or a whole cycle in one CUDA graph, one
read-back each. Its matrices are those of the transformers models, packed together; there is one copy of the weights.
"""

import functools
import json
import sys
import time

import torch
import torch.nn.functional as F
import transformers

TARGET, DRAFT, DEVICE, LENGTH, TAU = sys.argv[1], sys.argv[2], sys.argv[3], (int(sys.argv[4]) + 63) // 64 * 64, int(sys.argv[5])


def now():
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------------------------------------------- transformers
@functools.cache
def loaded(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(DEVICE).eval()


def generated(prompt, tokens, **how):
    """(ids, seconds per token after the first)."""
    ids = torch.tensor([prompt], device=DEVICE)

    def run(count):
        start = now()
        out = loaded(TARGET).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                                      pad_token_id=0, **how)
        return out[0, len(prompt):].tolist(), now() - start

    _, first = run(1)
    out, seconds = run(tokens)
    return {"seconds": (seconds - first) / (tokens - 1), "tokens": out}


def eager(prompt, tokens):
    return generated(prompt, tokens)


def compiled(prompt, tokens):
    return generated(prompt, tokens, cache_implementation="static")


def assisted(prompt, tokens):
    config = loaded(DRAFT).generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule, config.assistant_confidence_threshold = TAU, "constant", 0.0
    return generated(prompt, tokens, assistant_model=loaded(DRAFT))


# ---------------------------------------------------------------------------------------------------- a loop of CUDA graphs
def rms_norm(x, weight, eps):
    floats = x.float()
    return (floats * torch.rsqrt(floats.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotated(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def layer(x, position, cos, sin, mask, keys, values, norms, qkv, output, gate_up, down, heads, kv_heads, eps):
    """One layer of a few rows x [n, d]; keys and values [kv_heads, length, head_dim] take theirs at `position` [n]."""
    n, head_dim = x.shape[0], keys.shape[-1]
    together = F.linear(rms_norm(x, norms[0], eps), qkv).view(n, heads + 2 * kv_heads, head_dim)
    q, k, v = together.transpose(0, 1).split([heads, kv_heads, kv_heads])
    keys.index_copy_(1, position, rotated(k, cos, sin))
    values.index_copy_(1, position, v)
    packed = rotated(q, cos, sin).reshape(kv_heads, -1, head_dim)  # query heads that share keys are rows of one product
    seen = F.scaled_dot_product_attention(packed[None], keys[None], values[None], attn_mask=mask)[0].view(heads, n, head_dim)
    x = x + F.linear(seen.transpose(0, 1).reshape(n, -1), output)
    gate, up = F.linear(rms_norm(x, norms[1], eps), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


class Llama:
    """A network over the matrices of a transformers model, with a static cache."""

    def __init__(self, model):
        config = model.config
        self.config, self.body, self.head = config, model.model, model.lm_head.weight
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.layers = [self.packed(each) for each in model.model.layers]
        shape = (config.num_key_value_heads, LENGTH, self.head_dim)
        self.caches = [(torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE), torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE))
                       for _ in self.layers]
        angles = torch.outer(torch.arange(LENGTH, device=DEVICE).float(), self.body.rotary_emb.inv_freq.float().to(DEVICE))
        self.cos, self.sin = (torch.cat((each, each), -1).to(torch.bfloat16) for each in (angles.cos(), angles.sin()))
        self.places = torch.arange(LENGTH, device=DEVICE)

    @staticmethod
    def packed(module):
        """Matrices that read the same input become one; the model's own are views of it from now on."""
        attention, mlp = module.self_attn, module.mlp
        together = []
        for parts in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
            whole, row = torch.cat([part.weight.data for part in parts]), 0
            for part in parts:
                part.weight.data = whole[row:row + part.weight.shape[0]]
                row += part.weight.shape[0]
            together.append(whole)
        norms = (module.input_layernorm.weight.data, module.post_attention_layernorm.weight.data)
        return norms, together[0], attention.o_proj.weight.data, together[1], mlp.down_proj.weight.data

    def forward(self, tokens, position, one_layer=layer):
        """The best next ids [n] after tokens [n] at position [n]."""
        config = self.config
        x = F.embedding(tokens, self.body.embed_tokens.weight)
        cos, sin, mask = self.cos[position], self.sin[position], (self.places <= position[:, None]).repeat(self.group, 1)
        for (norms, qkv, output, gate_up, down), (keys, values) in zip(self.layers, self.caches, strict=True):
            x = one_layer(x, position, cos, sin, mask, keys, values, norms, qkv, output, gate_up, down, config.num_attention_heads,
                          config.num_key_value_heads, config.rms_norm_eps)
        return F.linear(rms_norm(x, self.body.norm.weight, config.rms_norm_eps), self.head).argmax(-1)

    def prefill(self, prompt):
        for begin in range(0, len(prompt), 512):
            part = torch.tensor(prompt[begin:begin + 512], device=DEVICE)
            best = self.forward(part, begin + torch.arange(len(part), device=DEVICE))
        return best[-1].item()


class Captured:
    """call() as a CUDA graph; on a CPU the call itself."""

    def __init__(self, call):
        self.call = call
        if DEVICE != "cuda":
            return
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = call()

    def __call__(self):
        if DEVICE != "cuda":
            return self.call().tolist()
        self.graph.replay()
        return self.out.tolist()


class Loop:
    def __init__(self):
        self.target, self.draft = Llama(loaded(TARGET)), Llama(loaded(DRAFT))
        self.last = torch.zeros(2, dtype=torch.long, device=DEVICE)  # the last two tokens; the draft may lack the first of them
        self.position = torch.ones((), dtype=torch.long, device=DEVICE)  # of last[1]
        self.layer = torch.compile(layer, dynamic=False) if DEVICE == "cuda" else layer
        self.pass_of_one, self.whole_cycle = Captured(self.one), Captured(self.cycle)

    def at(self, first, count):
        return self.position + first + torch.arange(count, device=DEVICE)

    def one(self):
        return self.target.forward(self.last[1:], self.at(0, 1), self.layer)

    def cycle(self):
        """The drafts, and the target's best after the last token and after each of them."""
        drafts = [self.draft.forward(self.last, self.at(-1, 2), self.layer)[1:]]
        for step in range(1, TAU):
            drafts.append(self.draft.forward(drafts[-1], self.at(step, 1), self.layer))
        rows = torch.cat([self.last[1:], *drafts])
        return torch.cat([*drafts, self.target.forward(rows, self.at(0, TAU + 1), self.layer)])

    def decode(self, prompt, tokens, speculative):
        out = [self.target.prefill(prompt)]
        if speculative:
            self.draft.prefill(prompt)
        start = now()
        while len(out) < tokens:
            known = len(prompt) + len(out)
            self.last.copy_(torch.tensor((prompt[-1:] + out)[-2:]))
            self.position.fill_(known - 1)
            if not speculative:
                out += self.pass_of_one()
                continue
            answer = self.whole_cycle()
            drafts, best = answer[:TAU], answer[TAU:]
            accepted = next((i for i in range(TAU) if drafts[i] != best[i]), TAU)
            out += best[:accepted + 1]
        return {"seconds": (now() - start) / (len(out) - 1), "tokens": out[:tokens]}


@functools.cache
def loop():
    return Loop()


def graph(prompt, tokens):
    return loop().decode(prompt, tokens, False)


def graph_speculative(prompt, tokens):
    return loop().decode(prompt, tokens, True)


@torch.inference_mode()
def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    doing = {each.__name__: each for each in (eager, compiled, assisted, graph, graph_speculative)}
    print("ready", *doing, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(doing[asked.pop("do")](**asked)), flush=True)


if __name__ == "__main__":
    main()
