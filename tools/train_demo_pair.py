"""Train the bundled pair: a target and a draft on the Python standard library's own sources.

    python tools/train_demo_pair.py --out python/paceline/pair --target-minutes 80

Writes two ordinary Hugging Face checkpoints, OUT/target and OUT/draft, in bf16 with one tokenizer (byte-level
BPE of 2048 tokens), and prints what the pair is worth on files kept out of training: validation loss of both,
and the acceptance of tau = 4 greedy drafts. The draft is distilled: it learns the target's own distributions, first on the
corpus, then on texts that the target wrote itself, since those are the texts it will have to draft.

Needs torch, transformers and paceline itself, which writes those texts. Learning rates follow the clock, not a step
count, so that a busy machine trains less and still finishes: the figures printed are those of the run at hand.
"""

import argparse
import hashlib
import json
import math
import pathlib
import sysconfig
import time

import paceline
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 2048
CONTEXT = 512  # positions; also max_position_embeddings, since no longer text is ever seen
PROMPT = 96    # tokens of corpus before a text of the target's own
TOP = 16       # probabilities kept of each of its distributions
END_OF_TEXT = "<|endoftext|>"  # id 0, between files

# 10.2 M and 1.2 M parameters: 22.8 MB in bf16. The draft has two layers because copying a name seen before
# (most of what code repeats) takes two attention layers to learn.
TARGET = dict(hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2, head_dim=64)
DRAFT = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=32)


def read_corpus():
    """Source texts of the standard library: (training, held out). One file in 33 is held out, by the hash of its name."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    training, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith("site-packages/"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # deliberately broken files of the test suite
        out = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 33 == 0
        (held_out if out else training).append(text)
    return training, held_out


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer, texts):
    """All texts as one int64 tensor, each ended by id 0."""
    ids = []
    for encoding in tokenizer.encode_batch(texts):
        ids.extend(encoding.ids)
        ids.append(0)
    return torch.tensor(ids)


def new_model(shape):
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_theta=10000.0, bos_token_id=None, eos_token_id=0, pad_token_id=None, attn_implementation="sdpa", **shape)
    return LlamaForCausalLM(config)


def windows_of(ids, count, generator):
    """[count, CONTEXT + 1] random windows."""
    starts = torch.randint(0, len(ids) - CONTEXT - 1, (count,), generator=generator)
    return torch.stack([ids[s:s + CONTEXT + 1] for s in starts.tolist()])


def own_texts(directory, ids, count):
    """Prompts from the corpus, continued by the target itself, every other one greedily and the rest sampled, with its
    distributions: tokens [count, CONTEXT], and for every token after the prompt the TOP most probable ids and their
    probabilities, [count, CONTEXT - PROMPT, TOP]. The engine writes them at ten times the speed of a training framework."""
    prompts = windows_of(ids, count, torch.Generator().manual_seed(2))[:, :PROMPT].tolist()
    tokens = torch.empty(count, CONTEXT, dtype=torch.int64)
    top_ids = torch.empty(count, CONTEXT - PROMPT, TOP, dtype=torch.int16)
    top_probabilities = torch.empty(count, CONTEXT - PROMPT, TOP, dtype=torch.float16)
    with paceline.Engine(directory, max_num_seqs=32, max_model_len=CONTEXT, num_threads=torch.get_num_threads()) as engine:
        for first in range(0, count, 256):
            params = [paceline.SamplingParams(ignore_eos=True, temperature=float(i % 2), seed=i, logprobs=TOP)
                      for i in range(first, min(count, first + 256))]
            for i, result in enumerate(engine.generate_batch(prompts[first:first + 256], params), start=first):
                tokens[i] = torch.tensor([*prompts[i], *result.token_ids])
                top = torch.tensor([entry.top for entry in result.logprobs])
                top_ids[i], top_probabilities[i] = top[..., 0].short(), top[..., 1].exp().half()
    return tokens, top_ids, top_probabilities


def logits_of(model, ids):
    with torch.autocast("cpu", torch.bfloat16):
        return model(ids).logits.float()


def train(model, minutes, learning_rate, name, loss_of):
    """Muon on the matrices inside the layers, AdamW on the rest; linear warm-up, flat, linear to zero over the last half.

    loss_of(model, generator) draws a batch and gives its loss.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)]
    generator = torch.Generator().manual_seed(1)
    start, step, recent = time.time(), 0, None
    while (progress := (time.time() - start) / (60 * minutes)) < 1:
        rate = learning_rate * min(1.0, (step + 1) / 40) * min(1.0, 2 * (1 - progress))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = loss_of(model, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if recent is None else 0.95 * recent + 0.05 * loss.item()
        step += 1
        if step % 25 == 0:
            print(f"{name}: step {step}, {progress:.0%} of the time, loss {recent:.3f}", flush=True)
    return model


def language_loss(ids, batch_size):
    """Cross-entropy against the text."""
    def loss_of(model, generator):
        batch = windows_of(ids, batch_size, generator)
        return torch.nn.functional.cross_entropy(logits_of(model, batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    return loss_of


def distillation_loss(target, ids, batch_size):
    """Cross-entropy against the target's distributions on the corpus."""
    def loss_of(model, generator):
        batch = windows_of(ids, batch_size, generator)[:, :-1]
        with torch.no_grad():
            goal = logits_of(target, batch).softmax(-1).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits_of(model, batch).flatten(0, 1), goal)
    return loss_of


def own_text_loss(own, batch_size):
    """Cross-entropy against the target's stored distributions on texts it wrote itself: no target is run, so a step is cheap."""
    tokens, top_ids, top_probabilities = own

    def loss_of(model, generator):
        chosen = torch.randint(0, len(tokens), (batch_size,), generator=generator)
        logits = logits_of(model, tokens[chosen])[:, PROMPT - 1:-1]
        weights = top_probabilities[chosen].float()
        mean = (logits.gather(-1, top_ids[chosen].long()) * weights).sum(-1)
        return (weights.sum(-1) * logits.logsumexp(-1) - mean).mean()
    return loss_of


@torch.no_grad()
def validation_loss(model, ids, windows=128):
    """Mean cross-entropy in nats per token over evenly spaced held-out windows."""
    starts = torch.linspace(0, len(ids) - CONTEXT - 1, windows).long().tolist()
    total = 0.0
    for i in range(0, windows, 16):
        batch = torch.stack([ids[s:s + CONTEXT + 1] for s in starts[i:i + 16]])
        total += torch.nn.functional.cross_entropy(logits_of(model, batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / (windows * CONTEXT)


@torch.no_grad()
def greedy_acceptance(target, draft, ids, tau=4, prompts=64, prompt_length=128, new_tokens=128):
    """Accepted drafts of greedy speculation on held-out prompts: (per-token acceptance alpha, accepted per drafted, tokens per cycle).

    The target's greedy text is written first. A draft at position j is right if the draft, given the true prefix, argmaxes
    to the same token; a cycle accepts its leading run of right drafts, so the text is parsed into cycles without running them.
    """
    starts = torch.linspace(0, len(ids) - prompt_length - 1, prompts).long().tolist()
    text = torch.stack([ids[s:s + prompt_length] for s in starts])
    past = None
    fed = text
    for _ in range(new_tokens):
        with torch.autocast("cpu", torch.bfloat16):
            out = target(fed, past_key_values=past, use_cache=True)
        past, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
        text = torch.cat([text, fed], 1)
    guesses = logits_of(draft, text[:, :-1]).argmax(-1)
    right = (guesses == text[:, 1:])[:, prompt_length - 1:].tolist()
    accepted = rejected = cycles = 0
    for row in right:
        position = 0
        while position < len(row):
            run = 0
            while run < tau and position + run < len(row) and row[position + run]:
                run += 1
            rejected += run < tau and position + run < len(row)
            accepted += run
            cycles += 1
            position += run + 1
    return accepted / (accepted + rejected), accepted / (cycles * tau), 1 + accepted / cycles


def save(model, tokenizer, folder):
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--target-minutes", type=float, default=80)
    parser.add_argument("--draft-minutes", type=float, default=22, help="on the corpus")
    parser.add_argument("--own-minutes", type=float, default=25, help="of the draft, on texts of the target's own")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences of 512 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--own-texts", type=int, default=4096, help="texts the target writes for the draft to learn from")
    parser.add_argument("--reuse-target", action="store_true", help="keep OUT/target, train the draft only")
    parser.add_argument("--reuse-draft", action="store_true", help="keep what OUT/draft learned on the corpus as well")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    training, held_out = read_corpus()
    if args.reuse_target:
        tokenizer = Tokenizer.from_file(str(args.out / "target" / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(training)
    ids, held_out_ids = encode(tokenizer, training), encode(tokenizer, held_out)
    print(f"{len(training)} files, {len(ids) / 1e6:.2f} M tokens; held out: {len(held_out)} files, {len(held_out_ids) / 1e6:.2f} M tokens")

    if args.reuse_target:
        target = LlamaForCausalLM.from_pretrained(args.out / "target", dtype=torch.float32)
    else:
        target = train(new_model(TARGET), args.target_minutes, args.learning_rate, "target", language_loss(ids, args.batch_size))
        save(target, tokenizer, args.out / "target")
        target = target.float()
    target.eval()
    if args.reuse_draft:
        draft = LlamaForCausalLM.from_pretrained(args.out / "draft", dtype=torch.float32)
    else:
        draft = train(new_model(DRAFT), args.draft_minutes, args.learning_rate, "draft", distillation_loss(target, ids, args.batch_size))
    own = own_texts(args.out / "target", ids, args.own_texts)
    print(f"{args.own_texts} texts of the target's own", flush=True)
    draft = train(draft, args.own_minutes, args.learning_rate / 2, "draft on own texts", own_text_loss(own, args.batch_size))
    save(draft, tokenizer, args.out / "draft")
    draft = draft.float().eval()

    target_loss, draft_loss = validation_loss(target, held_out_ids), validation_loss(draft, held_out_ids)
    alpha, per_drafted, tokens_per_cycle = greedy_acceptance(target, draft, held_out_ids)
    size = sum(f.stat().st_size for f in args.out.rglob("*.safetensors"))
    print(f"validation loss (nats per token): target {target_loss:.3f}, draft {draft_loss:.3f}, difference {draft_loss - target_loss:.3f}; "
          f"uniform is {math.log(VOCAB_SIZE):.3f}")
    print(f"tau = 4 greedy on held-out prompts: alpha {alpha:.3f} per token, {per_drafted:.3f} of all drafts accepted, {tokens_per_cycle:.2f} tokens per cycle")
    print(f"weights: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
