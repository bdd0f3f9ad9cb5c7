"""Write a target and a draft checkpoint of any geometry whose greedy acceptance is a dial.

    python bench/planted_pair.py OUT --preset 1.1b --alpha 0.8
    python bench/planted_pair.py OUT --target layers=22,hidden=2048,heads=32,kv_heads=4,ffn=5632 --draft layers=4,hidden=768,... --vocab 32000

OUT/target and OUT/draft are ordinary Llama checkpoints that every engine loads. A Markov chain is planted in them: the
head's row of the id that follows v is v's embedding, so the best next id after v is `follows[v]`, by a margin of about
20 to 40 standard deviations of the other logits. The draft has an embedding and a head of its own and follows the same
chain but for a share 1 - alpha of the ids, where it names another one.

The timing is honest: every matrix has its full size and random values of normal magnitude; only o_proj and down_proj
are scaled down, so that the layers compute all they must and decide nothing. Needs numpy; 1.1b takes about 20 seconds
and no more memory than its two largest tensors.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]

import options as option  # noqa: E402
from checkpoint_writer import tensor_shapes, to_bf16, write_checkpoint  # noqa: E402

FIRST_ID = 3  # ids below are special: unknown, begin, end; the chain never meets them
BLOCK = 50  # ids along the chain that share out their disagreements exactly: a run of n tokens is then within 1 / sqrt(n) of alpha
LOGIT_GAP = 30.0  # logit of the planted id, those of the others being near 0: acceptance at temperature 1 is alpha too

PRESETS = {
    "tiny": dict(vocab=512, target=dict(layers=4, hidden=256, heads=4, kv_heads=2, ffn=704),
                 draft=dict(layers=1, hidden=128, heads=2, kv_heads=1, ffn=352)),
    # TinyLlama's geometry, 1.10 G parameters; a draft of 99 M (49 M of them in embedding and head).
    "1.1b": dict(vocab=32000, target=dict(layers=22, hidden=2048, heads=32, kv_heads=4, ffn=5632),
                 draft=dict(layers=8, hidden=768, heads=12, kv_heads=4, ffn=2048)),
}


def planted_chain(vocab, alpha, stream):
    """(follows, guessed) [vocab]: the target's next id after each id, and the draft's, equal for a share alpha of them.

    follows is one cycle through all ids from FIRST_ID up, so that a long generation repeats nothing.
    """
    chain = FIRST_ID + stream.permutation(vocab - FIRST_ID)
    wrong = []
    for begin in range(0, len(chain), BLOCK):
        block = chain[begin:begin + BLOCK]
        count = round((1 - alpha) * (begin + len(block))) - round((1 - alpha) * begin)
        wrong.extend(stream.permutation(block)[:count])
    follows = np.arange(vocab)
    follows[chain] = np.roll(chain, -1)
    guessed = follows.copy()
    guessed[wrong] = np.roll(follows[wrong], -1)  # where it is wrong, the draft names the successor of the next such id
    return follows, guessed


def config_of(vocab, layers, hidden, heads, kv_heads, ffn, context, head_dim=None):
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim or hidden // heads,
        max_position_embeddings=context, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False,
        attention_bias=False, mlp_bias=False, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16")


def normal_bf16(stream, shape, deviation):
    """bf16 bits of normal numbers, made a few rows at a time."""
    bits = np.empty(shape, np.uint16)
    rows = max(1, (1 << 22) // int(np.prod(shape[1:])))
    for begin in range(0, shape[0], rows):
        part = bits[begin:begin + rows]
        part[...] = to_bf16(stream.standard_normal(part.shape, np.float32) * np.float32(deviation))
    return bits


class Pool:
    """Numbers for models of gigabytes: drawn once, then dealt out over and over, from another place of the pool for every tensor, with
    deviations rounded to powers of two, for which bf16 needs its exponent changed alone. As fast as memory; time does not see it.
    """

    def __init__(self, stream, size=(1 << 25) - 39):  # a prime: rows of the usual lengths repeat at no whole row
        self.bits = normal_bf16(stream, (size,), 1.0)
        self.bits[(self.bits & 0x7F80) < 40 << 7] = 0x3F80  # so that no exponent can run out
        self.stream = stream

    def __call__(self, shape, deviation):
        count, first = int(np.prod(shape)), int(self.stream.integers(len(self.bits)))
        bits = np.empty(count, np.uint16)
        lowered = np.uint16(round(-np.log2(deviation)) << 7)
        for begin in range(0, count, len(self.bits)):
            part = bits[begin:begin + len(self.bits)]
            head = min(len(part), len(self.bits) - first)
            np.subtract(self.bits[first:first + head], lowered, out=part[:head])
            np.subtract(self.bits[:len(part) - head], lowered, out=part[head:])
        return bits.reshape(shape)


def planted_tensors(config, follows, draw):
    """The checkpoint's tensors, of draw(shape, deviation). The embedding is drawn first: the head is made of its rows."""
    hidden = config["hidden_size"]
    embedding = draw((config["vocab_size"], hidden), 1.0)

    def planted_head():
        head = np.empty_like(embedding)
        head[follows[FIRST_ID:]] = embedding[FIRST_ID:]
        head[:FIRST_ID] = draw((FIRST_ID, hidden), 1.0)
        return head

    def maker(name, shape):
        if name == "model.embed_tokens.weight":
            return lambda: embedding
        if name == "lm_head.weight":
            return planted_head
        if name == "model.norm.weight":  # a normed embedding row times itself in the head is `hidden`
            return lambda: np.full(shape, LOGIT_GAP / hidden, np.float32)
        if len(shape) == 1:
            return lambda: np.ones(shape, np.float32)
        outwards = name.endswith(("o_proj.weight", "down_proj.weight"))
        return lambda: draw(shape, (1e-2 if outwards else 1.0) / np.sqrt(shape[1]))

    return [(name, shape, maker(name, shape)) for name, shape in tensor_shapes(config)]


def word_tokenizer(vocab):
    """tokenizer.json of ids as words: "w17 w4" is [17, 4]. For engines that insist on text."""
    words = ["<unk>", "<s>", "</s>"] + [f"\u2581w{i}" for i in range(FIRST_ID, vocab)]
    spaces = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return dict(
        version="1.0", truncation=None, padding=None, normalizer=None, pre_tokenizer=spaces, post_processor=None, decoder=spaces,
        model={"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
        added_tokens=[dict(id=i, content=words[i], single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
                      for i in range(FIRST_ID)])


def write_model(directory, config, follows, draw):
    """One checkpoint, bf16. generation_config.json is written last: where it is, the others are."""
    directory, vocab = pathlib.Path(directory), config["vocab_size"]
    write_checkpoint(directory, config, planted_tensors(config, follows, draw), "BF16")
    (directory / "tokenizer.json").write_text(json.dumps(word_tokenizer(vocab)))
    (directory / "tokenizer_config.json").write_text(json.dumps(dict(
        tokenizer_class="PreTrainedTokenizerFast", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=config["max_position_embeddings"])))
    (directory / "generation_config.json").write_text(json.dumps(dict(bos_token_id=1, eos_token_id=2)))


def write_pair(out, *, vocab, target, draft, alpha, seed=0, context=16384):
    """OUT/target and OUT/draft, bf16. alpha: share of ids after which both agree, in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    stream = np.random.default_rng(seed)
    chains = planted_chain(vocab, alpha, stream)
    for name, shape, follows in zip(("target", "draft"), (target, draft), chains, strict=True):
        write_model(pathlib.Path(out) / name, config_of(vocab, context=context, **shape), follows, lambda *what: normal_bf16(stream, *what))


def write_family(out, *, vocab, target, draft, alphas, context=16384):
    """OUT/target and OUT/draft-ALPHA for each, where they are missing, from a pool: 8B takes as long as writing 16 GB. The target's chain
    is the same for every alpha."""
    pool = None
    for name, shape, alpha in [("target", target, alphas[0]), *((f"draft-{alpha}", draft, alpha) for alpha in alphas)]:
        directory = pathlib.Path(out) / name
        if (directory / "generation_config.json").exists():
            continue
        pool = pool or Pool(np.random.default_rng(1))
        follows, guessed = planted_chain(vocab, alpha, np.random.default_rng(0))
        write_model(directory, config_of(vocab, context=context, **shape), follows if name == "target" else guessed, pool)


def geometry(text):
    """"layers=2,hidden=64,..." -> dict."""
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if not {"layers", "hidden", "heads", "kv_heads", "ffn"} <= parts.keys() <= {"layers", "hidden", "heads", "kv_heads", "ffn", "head_dim"}:
        raise argparse.ArgumentTypeError(f"must be layers=,hidden=,heads=,kv_heads=,ffn=[,head_dim=], got {text}")
    return {key: option.in_range(int, 1, 1 << 20)(value) for key, value in parts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="directory, made where it is missing")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="default tiny")
    parser.add_argument("--alpha", type=option.share, default=0.8, help="share of the target's tokens that the draft proposes (default 0.8)")
    parser.add_argument("--target", type=geometry, help="layers=,hidden=,heads=,kv_heads=,ffn=[,head_dim=]; replaces the preset's")
    parser.add_argument("--draft", type=geometry, help="the same for the draft")
    parser.add_argument("--vocab", type=option.in_range(int, 2 * BLOCK, 1 << 18), help="replaces the preset's")
    parser.add_argument("--context", type=option.in_range(int, 2, 1 << 24), default=16384, help="max_position_embeddings (default 16384)")
    parser.add_argument("--seed", type=option.in_range(int, 0, 2**63), default=0, help="of the weights (default 0)")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    write_pair(options.out, vocab=options.vocab or preset["vocab"], target=options.target or preset["target"],
               draft=options.draft or preset["draft"], alpha=options.alpha, seed=options.seed, context=options.context)
    for name in ("target", "draft"):
        size = (options.out / name / "model.safetensors").stat().st_size
        print(f"{options.out / name}: {size / 2e9:.3f} G parameters, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
