"""Train the bundled pair: a target and a draft on the Python standard library's own sources.

    python tools/train_demo_pair.py --out python/paceline/pair --target-minutes 80 --draft-minutes 22

Writes two ordinary Hugging Face checkpoints, OUT/target and OUT/draft, in bf16 with one tokenizer (byte-level
BPE of 2048 tokens), and prints what the pair is worth on files kept out of training: validation loss of both,
and the acceptance of tau = 4 greedy drafts. The draft is distilled: it learns the target's own distributions.

Needs torch and transformers (never a dependency of the engine). Learning rates follow the clock, not a step
count, so that a busy machine trains less and still finishes: the figures printed are those of the run at hand.
"""

import argparse
import hashlib
import json
import math
import pathlib
import sysconfig
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 2048
CONTEXT = 512  # positions; also max_position_embeddings, since no longer text is ever seen
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


def batch_of(ids, batch_size, generator):
    starts = torch.randint(0, len(ids) - CONTEXT - 1, (batch_size,), generator=generator)
    return torch.stack([ids[s:s + CONTEXT + 1] for s in starts.tolist()])


def logits_of(model, ids):
    with torch.autocast("cpu", torch.bfloat16):
        return model(ids).logits.float()


def train(model, ids, minutes, batch_size, learning_rate, name, teacher=None):
    """Muon on the matrices inside the layers, AdamW on the rest; linear warm-up, flat, linear to zero over the last half.

    teacher: the target's model. Then the loss is the cross-entropy against its distributions (distillation).
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
        batch = batch_of(ids, batch_size, generator)
        logits = logits_of(model, batch[:, :-1])
        if teacher is None:
            goal = batch[:, 1:].flatten()
        else:
            with torch.no_grad():
                goal = logits_of(teacher, batch[:, :-1]).softmax(-1).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), goal)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if recent is None else 0.95 * recent + 0.05 * loss.item()
        step += 1
        if step % 25 == 0:
            print(f"{name}: step {step}, {step * batch_size * CONTEXT / 1e6:.1f} M tokens, "
                  f"{progress:.0%} of the time, loss {recent:.3f}", flush=True)
    return model


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
    parser.add_argument("--draft-minutes", type=float, default=22)
    parser.add_argument("--batch-size", type=int, default=16, help="sequences of 512 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--reuse-target", action="store_true", help="keep OUT/target, train the draft only")
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
        target = train(new_model(TARGET), ids, args.target_minutes, args.batch_size, args.learning_rate, "target")
        save(target, tokenizer, args.out / "target")
        target = target.float()
    target.eval()
    draft = train(new_model(DRAFT), ids, args.draft_minutes, args.batch_size, args.learning_rate, "draft", teacher=target)
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
