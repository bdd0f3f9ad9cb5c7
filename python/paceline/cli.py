"""The command line: `paceline generate PROMPT`, `paceline demo`, `paceline doctor`; `python -m paceline` alike."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

import paceline
from paceline.arguments import DEFAULT_NGRAM_TAU, DEFAULT_TAU, NGRAM, AcceptanceRule, Drafter, Dtype, KvDtype
from paceline.bundled import demo_pair
from paceline.demo import run_demo
from paceline.devices import Device
from paceline.doctor import run_doctor
from paceline.engine import Engine
from paceline.results import Stats
from paceline.sampling_params import MAX_LOGPROBS, MAX_TAU, SamplingParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 after an error said on stderr, 2 for a wrong command line, 130 after Ctrl-C. stderr also has the engine's notes
    and the figures; stdout has text, or JSON, only."""
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """The line that matters; the usage, with its forty options, only where it is asked for."""
        self.exit(2, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="paceline", description="Exact speculative decoding.")
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
    models.add_argument("--draft", metavar="DIR", help="checkpoint that proposes, or ngram: the text itself; without it decoding is plain")
    models.add_argument("--drafter", choices=get_args(Drafter), help="chain: the text itself too, beside a draft's checkpoint (default: auto)")
    models.add_argument("--tokenizer", metavar="PATH", help="directory or tokenizer.json (default: the target's)")
    for name, choices, what in (
            ("dtype", ("auto", *get_args(Dtype)), "of the target's weights (default: auto, fp32 for fp32 checkpoints, bf16 for all others)"),
            ("draft-dtype", ("auto", *get_args(Dtype)), "of the draft's weights (default: auto)"),
            ("kv-dtype", ("auto", *get_args(KvDtype)), "of the KV caches (default: auto, fp32 for a target in fp32, else bf16)"),
            ("device", get_args(Device), "(default: auto)"),
            ("acceptance", get_args(AcceptanceRule), "how drafts are judged at a temperature (default: coupled)")):
        models.add_argument(f"--{name}", choices=choices, help=what)
    models.add_argument("--weights-cache", metavar="DIR",
                        help="keep packed weights there for the next start; auto: ~/.cache/paceline (default: nowhere)")
    for name, what in (("max-model-len", "tokens of the sequence at most, prompt included (default: the target's context)"),
                       ("kv-cache-tokens", "positions of the KV cache (default: those of the sequence, at most 8192)"),
                       ("num-threads", "computing threads (default: one per core)")):
        models.add_argument(f"--{name}", type=int, metavar="N", help=what)
    models.add_argument("--num-speculative-tokens", type=int, metavar="TAU",
                        help=f"draft tokens per cycle, 0 to {MAX_TAU}; 0 is plain decoding (default: {DEFAULT_TAU} with a draft, {DEFAULT_NGRAM_TAU} with ngram)")
    sampling = generate.add_argument_group("sampling", "as in SamplingParams; greedy by default")
    for name, what in _SAMPLING.items():
        kind = float if isinstance(_SAMPLING_DEFAULTS[name], float) else int
        shown = f" (default: {_SAMPLING_DEFAULTS[name]})" if _SAMPLING_DEFAULTS[name] is not None else ""
        sampling.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X" if kind is float else "N", help=what + shown)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="ends the text; may be given more than once")
    sampling.add_argument("--stop-token-ids", type=int, action="append", metavar="ID", help="ends the text; may be given more than once")
    sampling.add_argument("--ignore-eos", action="store_true", help="go on past the model's own end")
    return parser


_ENGINE_OPTIONS = ("target", "draft", "drafter", "tokenizer", "device", "dtype", "draft_dtype", "kv_dtype", "acceptance", "max_model_len",
                   "kv_cache_tokens", "num_threads", "weights_cache", "num_speculative_tokens")
_SAMPLING_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
_SAMPLING = {
    "max_tokens": "tokens to emit at most (default: to the end of the context)", "min_tokens": "no end before that many tokens",
    "temperature": "0 takes the most probable token", "top_p": "in (0, 1]; 1 is off", "top_k": "0 is off", "min_p": "in [0, 1]; 0 is off",
    "repetition_penalty": "1 is off", "presence_penalty": "0 is off", "frequency_penalty": "0 is off",
    "seed": "of the noise (default: drawn, and in the JSON)", "logprobs": f"per token, its own and the N largest, 0 to {MAX_LOGPROBS}, in the JSON"}


def _generate(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    prompt = _stdin() if given["prompt"] == "-" else given["prompt"]
    sampling = {name: given[name] for name in _SAMPLING_DEFAULTS if name in given and name not in _ENGINE_OPTIONS}
    engine_options = {name: given[name] for name in _ENGINE_OPTIONS if name in given}
    if "target" not in given:
        if given.get("draft", NGRAM) != NGRAM:
            raise ValueError("--draft needs --target: the bundled pair is used as a pair")
        engine_options["target"], bundled_draft = demo_pair()
        engine_options.setdefault("draft", bundled_draft)
    with Engine(**engine_options) as engine:
        if given["json"]:
            result = dataclasses.asdict(engine.generate(prompt, **sampling))
            print(json.dumps(result | {"prompt": prompt, "notes": engine.info["notes"]}))
        else:
            _stream(engine, prompt, sampling)


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"[generate] prompt must be valid Unicode text, got byte 0x{error.object[error.start]:02x} "
                         f"at index {error.start}: {error.reason}") from None


def _stream(engine: Engine, prompt: str, sampling: dict[str, Any]) -> None:
    """The prompt and its continuation on stdout as they come; on stderr the engine's notes before, a line of figures after them."""
    chunks = engine.stream(prompt, **sampling)
    for note in engine.info["notes"]:
        print(f"note: {note}", file=sys.stderr)
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
