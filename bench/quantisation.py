"""What the integer formats cost in quality: the divergence of a quantised target, and the acceptance that a quantised draft loses.

    python bench/quantisation.py

KL(bf16 || format), in nats per token, of the bundled target over the standard library's text, and of a 1.1B Llama geometry whose weights
are random (normal, deviation 0.02) over random ids. Acceptance of the bundled draft at tau 4, greedy, per judged token. The output never
depends on the draft: a quantised one costs speed or nothing.
"""

import argparse
import datetime
import inspect
import pathlib
import sys
import tempfile
import textwrap

import numpy as np
import paceline
from paceline.bundled import demo_pair
from paceline.commands.demo import PROMPTS
from paceline.tokenizer import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]

from checkpoint_writer import tensor_shapes, write_checkpoint  # noqa: E402
from decode import alpha_of  # noqa: E402
from planted_pair import PRESETS, config_of, normal_bf16  # noqa: E402

FORMATS = ["int8", "int4_g32", "int4"]
DEVIATION = 0.02


def random_checkpoint(directory):
    """A 1.1B Llama of random weights, written once."""
    if not (directory / "model.safetensors").exists():
        preset, stream = PRESETS["1.1b"], np.random.default_rng(0)
        config = config_of(preset["vocab"], context=2048, **preset["target"])
        write_checkpoint(directory, config, [
            (name, shape, (lambda shape=shape: np.ones(shape, np.float32)) if len(shape) == 1 else
             (lambda shape=shape: normal_bf16(stream, shape, DEVIATION))) for name, shape in tensor_shapes(config)], "BF16")
    return directory


def logprobs(target, windows, dtype):
    """[positions, V]: every window's rows but the first token's own."""
    with paceline.Engine(target, dtype=dtype, warmup=False) as engine:
        return np.concatenate([engine.verify(window[:1], window[1:]).logprobs for window in windows])


def divergences(target, windows):
    """{format: KL in nats}."""
    exact = logprobs(target, windows, "bf16")
    share = np.exp(exact.astype(np.float64))
    return {dtype: float((share * (exact - logprobs(target, windows, dtype))).sum(-1).mean()) for dtype in FORMATS}


def acceptance(target, draft, draft_dtype):
    with paceline.Engine(target, draft, dtype="bf16", draft_dtype=draft_dtype, num_speculative_tokens=4) as engine:
        for prompt in PROMPTS:
            engine.generate(prompt, max_tokens=200)
        return alpha_of(engine.stats())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "planted-pairs" / "random-1.1b",
                        help="where the random 1.1B checkpoint is kept")
    options = parser.parse_args()
    target, draft = demo_pair()
    ids = Tokenizer.read(target).encode("\n".join(inspect.getsource(module) for module in (textwrap, pathlib)))
    stream = np.random.default_rng(1)
    bundled = divergences(target, [ids[first:first + 480] for first in range(0, 1920, 480)])
    untrained = divergences(random_checkpoint(options.random), [stream.integers(3, 32000, 65).tolist() for _ in range(4)])
    alphas = {dtype: acceptance(target, draft, dtype) for dtype in ["bf16", *FORMATS]}
    print(f"`python bench/quantisation.py`, {datetime.date.today()}\n")
    print("| format | KL, bundled target | KL, random 1.1B | alpha of a bundled draft in it |\n| --- | --- | --- | --- |")
    print(f"| bf16 | 0 | 0 | {alphas['bf16']:.3f} |")
    for dtype in FORMATS:
        print(f"| {dtype} | {bundled[dtype]:.5f} | {untrained[dtype]:.5f} | {alphas[dtype]:.3f} |")


if __name__ == "__main__":
    main()
