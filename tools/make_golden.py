"""Ask transformers for the answers that tests/python/test_golden.py compares the engine with.

    python tools/make_golden.py

For each checkpoint of tests/python/oracle_models.py, run in fp32 with eager attention: log-probabilities of all
ids for some rows of a fixed text, and 48 greedy tokens after a prompt. Stored as tests/python/golden/NAME.npz.
Refuses a checkpoint whose greedy choice is nearly a tie or runs in circles: then choose another seed there.
Needs torch and transformers.
"""

import dataclasses
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/python"), str(ROOT / "tools")]

from oracle_models import CASES, GREEDY_TOKENS, PROMPT_TOKENS, TEXT_TOKENS, WINDOWS, build, fixed_tokens  # noqa: E402

MIN_MARGIN = 2e-3  # nats between the best two ids of every greedy step: ten times what 1e-4 of error per id could turn
MIN_DISTINCT = 12  # different ids in the continuation


def load(directory, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()


@torch.no_grad()
def logprobs_of(model, ids):
    """float32 [len(ids), vocab_size]: row t is the law of the token after ids[0, t]."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def greedy(model, prompt, count):
    """(tokens, their log-probabilities, smallest distance between the best two). No cache: every step reads all tokens."""
    ids, chosen, margin = list(prompt), [], float("inf")
    for _ in range(count):
        best = logprobs_of(model, ids)[-1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        chosen.append(float(best.values[0]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt):], chosen, margin


def rows_of(logprobs):
    """The rows that are stored: after each prefix of WINDOWS, its last token and the drafts behind it."""
    rows = [row for prefix, drafts in WINDOWS for row in range(prefix - 1, prefix + drafts)]
    return logprobs[rows].numpy()


def answers(case, directory):
    text = fixed_tokens(case, TEXT_TOKENS)
    digest = build(case, directory / "fp32")
    model = load(directory / "fp32")
    tokens, chosen, margin = greedy(model, text[:PROMPT_TOKENS], GREEDY_TOKENS)
    rounded = dataclasses.replace(case, dtype="BF16")
    bf16_digest = build(rounded, directory / "bf16")
    exact = rows_of(logprobs_of(load(directory / "bf16"), text))  # rounded weights, everything else in fp32
    torch_bf16 = rows_of(logprobs_of(load(directory / "bf16", torch.bfloat16), text))
    stored = dict(
        digest=digest, logprobs=rows_of(logprobs_of(model, text)), greedy_tokens=np.array(tokens, np.int16),
        greedy_logprobs=np.array(chosen, np.float32), bf16_digest=bf16_digest, bf16_logprobs=exact)
    return stored, margin, float(np.sqrt(np.mean((torch_bf16 - exact) ** 2)))


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = ROOT / "tests/python/golden"
    folder.mkdir(exist_ok=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    refused, smallest = [], float("inf")
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            stored, margin, bf16_rms = answers(case, pathlib.Path(directory))
        distinct = len(set(stored["greedy_tokens"].tolist()))
        print(f"{case.name:20s} margin {margin:.4f}  distinct {distinct:2d}  rms difference of torch's own bf16 {bf16_rms:.4f}")
        if margin < MIN_MARGIN or distinct < MIN_DISTINCT:
            refused.append(case.name)
        smallest = min(smallest, margin)
        np.savez_compressed(folder / f"{case.name}.npz", **stored)
    size = sum(path.stat().st_size for path in folder.glob("*.npz"))
    print(f"{len(CASES)} checkpoints, {size / 1e6:.2f} MB, smallest margin {smallest:.4f}")
    if refused:
        sys.exit(f"choose other seeds for: {', '.join(refused)}")


if __name__ == "__main__":
    main()
