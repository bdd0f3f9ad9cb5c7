"""Which rounding makes int8's divergence on a random network: of weights or of rows, and in groups of how many values.

    python bench/quantisation_parts.py        # needs torch and transformers: make oracle installs them

The 1.1B random Llama and the ids of bench/quantisation.py, in fp32 by transformers; what enters a linear layer and its weights are rounded
to 127 steps of the largest magnitude in a group, as math/quantised.h says. KL(exact || rounded) in nats per token.
"""

import datetime
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]

from quantisation import random_checkpoint  # noqa: E402

NONE, WHOLE = None, 0
PARTS = [("int8 as it is: weights per row of the matrix, rows in groups of 64", WHOLE, 64),
         ("only its weights rounded", WHOLE, NONE),
         ("only its rows rounded", NONE, 64),
         ("weights in groups of 64 as well", 64, 64),
         ("both in groups of 32", 32, 32),
         ("only weights rounded, groups of 64", 64, NONE),
         ("only weights rounded, groups of 32", 32, NONE)]


def rounded(values, group):
    """values [..., K] as integers of 127 steps times the scale of their group: WHOLE is one group, NONE leaves them."""
    if group is NONE:
        return values
    grouped = values.unflatten(-1, (-1, group or values.shape[-1]))
    scale = grouped.abs().amax(-1, keepdim=True) / 127
    return (torch.round(grouped / torch.where(scale == 0, 1, scale)) * scale).flatten(-2)


@torch.no_grad()
def logprobs(directory, windows, weight_group, row_group):
    """[positions, V], fp32; the embedding is rounded per row wherever weights are."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(rounded(module.weight, weight_group))
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], row_group), *inputs[1:]))
    if weight_group is not NONE:
        embedding = model.get_input_embeddings().weight
        embedding.copy_(rounded(embedding, WHOLE))
    return torch.cat([torch.log_softmax(model(torch.tensor([window])).logits[0], -1) for window in windows]).double()


def main():
    transformers.utils.logging.disable_progress_bar()
    directory = random_checkpoint(pathlib.Path(tempfile.gettempdir()) / "planted-pairs" / "random-1.1b")
    stream = np.random.default_rng(1)
    windows = [stream.integers(3, 32000, 65).tolist() for _ in range(4)]
    exact = logprobs(directory, windows, NONE, NONE)
    print(f"`python bench/quantisation_parts.py`, {datetime.date.today()}\n\n| what is rounded | KL |\n| --- | --- |")
    for name, weight_group, row_group in PARTS:
        divergence = (exact.exp() * (exact - logprobs(directory, windows, weight_group, row_group))).sum(-1).mean()
        print(f"| {name} | {divergence:.5f} |", flush=True)


if __name__ == "__main__":
    main()
