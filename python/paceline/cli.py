"""The command line: `paceline generate PROMPT`, `paceline demo`, `paceline doctor`; `python -m paceline` alike."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, get_args

import paceline
from paceline.arguments import AcceptanceRule, Device, Dtype, KvDtype
from paceline.bundled import demo_pair
from paceline.demo import run_demo
from paceline.doctor import run_doctor
from paceline.engine import Engine
from paceline.results import Stats
from paceline.sampling_params import SamplingParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 after an error said on stderr, 2 for a wrong command line, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.command == "demo":
            run_demo(json_output=parsed.json)
        elif parsed.command == "doctor":
            run_doctor()
        else:
            _generate(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; nothing more can be said on stdout, at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"paceline: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paceline", description="Exact speculative decoding.")
    parser.add_argument("--version", action="version", version=f"paceline {paceline.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="generate from the bundled pair, plain and speculative, and compare")
    demo.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")

    commands.add_parser("doctor", help="what this installation has and can do, and why CUDA is not used where it is not")

    generate = commands.add_parser("generate", help="continue a prompt; streams to the terminal", argument_default=argparse.SUPPRESS)
    generate.add_argument("prompt", help="text; - reads it from stdin")
    generate.add_argument("--json", action="store_true", default=False, help="one JSON object on stdout instead of the text")
    models = generate.add_argument_group("models", "by default the bundled pair")
    models.add_argument("--target", metavar="DIR", help="checkpoint whose text is written")
    models.add_argument("--draft", metavar="DIR", help="checkpoint that proposes; without it decoding is plain")
    models.add_argument("--tokenizer", metavar="PATH", help="directory or tokenizer.json; by default the target's")
    for name, choices in (("dtype", ("auto", *get_args(Dtype))), ("draft-dtype", ("auto", *get_args(Dtype))),
                          ("kv-dtype", ("auto", *get_args(KvDtype))), ("device", get_args(Device)), ("acceptance", get_args(AcceptanceRule))):
        models.add_argument(f"--{name}", choices=choices)
    models.add_argument("--weights-cache", metavar="DIR", help="keep packed weights there for the next start; auto: the user's cache directory")
    for name, what in (("max-model-len", "tokens of the sequence at most, prompt included"), ("kv-cache-tokens", "positions of the KV cache"),
                       ("num-threads", "computing threads")):
        models.add_argument(f"--{name}", type=int, metavar="N", help=what)
    sampling = generate.add_argument_group("sampling", "as in SamplingParams; greedy by default")
    for name in ("max-tokens", "min-tokens", "top-k", "seed", "logprobs"):
        sampling.add_argument(f"--{name}", type=int, metavar="N")
    sampling.add_argument("--num-speculative-tokens", type=int, metavar="TAU", help="draft tokens per cycle; 0 is plain decoding")
    for name in ("temperature", "top-p", "min-p", "repetition-penalty", "presence-penalty", "frequency-penalty"):
        sampling.add_argument(f"--{name}", type=float, metavar="X")
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="may be given more than once")
    sampling.add_argument("--stop-token-ids", type=int, action="append", metavar="ID", help="may be given more than once")
    sampling.add_argument("--ignore-eos", action="store_true")
    return parser


def _generate(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    prompt = sys.stdin.read() if given["prompt"] == "-" else given["prompt"]
    sampling = {field.name: given[field.name] for field in dataclasses.fields(SamplingParams) if field.name in given}
    engine_options = {name: given[name] for name in _ENGINE_OPTIONS if name in given}
    if "target" not in given:
        if "draft" in given:
            raise ValueError("--draft needs --target: the bundled pair is used as a pair")
        engine_options["target"], engine_options["draft"] = demo_pair()
    if engine_options.get("draft") is not None and "num_speculative_tokens" in sampling:
        engine_options["num_speculative_tokens"] = sampling["num_speculative_tokens"]
    with Engine(**engine_options) as engine:
        if given["json"]:
            print(json.dumps(dataclasses.asdict(engine.generate(prompt, **sampling)) | {"prompt": prompt}))
        else:
            _stream(engine, prompt, sampling)


_ENGINE_OPTIONS = ("target", "draft", "tokenizer", "device", "dtype", "draft_dtype", "kv_dtype", "acceptance", "max_model_len",
                   "kv_cache_tokens", "num_threads", "weights_cache")


def _stream(engine: Engine, prompt: str, sampling: dict[str, Any]) -> None:
    """The prompt and its continuation on stdout as they come, one line of figures on stderr."""
    chunks = engine.stream(prompt, **sampling)
    sys.stdout.write(prompt)
    for chunk in chunks:
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    assert chunk.stats is not None
    print(_figures(chunk.stats), file=sys.stderr)


def _figures(stats: Stats) -> str:
    return (f"[{stats.num_tokens} tokens, {stats.decode_tokens_per_second:.0f} tokens/s, "
            f"{stats.mean_acceptance_length:.2f} tokens per cycle]")
