"""`paceline generate PROMPT`: continue a prompt, to the terminal or as JSON."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from paceline.commands.options import ENGINE_OPTIONS, add_models, engine_arguments, prompt_from
from paceline.engine import Engine
from paceline.results import Stats
from paceline.sampling_params import MAX_LOGPROBS, SamplingParams

_SAMPLING_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
_SAMPLING = {
    "max_tokens": "tokens to emit at most (default: to the end of the context)", "min_tokens": "no end before that many tokens",
    "temperature": "0 takes the most probable token", "top_p": "in (0, 1]; 1 is off", "top_k": "0 is off", "min_p": "in [0, 1]; 0 is off",
    "repetition_penalty": "1 is off", "presence_penalty": "0 is off", "frequency_penalty": "0 is off",
    "seed": "of the noise (default: drawn, and in the JSON)", "logprobs": f"per token, its own and the N largest, 0 to {MAX_LOGPROBS}, in the JSON"}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("generate", help="continue a prompt; streams to the terminal", argument_default=argparse.SUPPRESS)
    parser.set_defaults(run=run)
    parser.add_argument("prompt", help="text; - reads it from stdin")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON object on stdout instead of the text")
    parser.add_argument("--trace", metavar="FILE", default=None,
                        help="what every cycle did, as JSON for ui.perfetto.dev and `paceline trace show`; of the newest 4096 cycles")
    add_models(parser)
    sampling = parser.add_argument_group("sampling", "as in SamplingParams; greedy by default")
    for name, what in _SAMPLING.items():
        kind = float if isinstance(_SAMPLING_DEFAULTS[name], float) else int
        shown = f" (default: {_SAMPLING_DEFAULTS[name]})" if _SAMPLING_DEFAULTS[name] is not None else ""
        sampling.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X" if kind is float else "N", help=what + shown)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="ends the text; may be given more than once")
    sampling.add_argument("--stop-token-ids", type=int, action="append", metavar="ID", help="ends the text; may be given more than once")
    sampling.add_argument("--ignore-eos", action="store_true", help="go on past the model's own end")


def run(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    prompt = prompt_from(given["prompt"])
    sampling = {name: given[name] for name in _SAMPLING_DEFAULTS if name in given and name not in ENGINE_OPTIONS}
    with Engine(**engine_arguments(given)) as engine:
        if given["json"]:
            result = dataclasses.asdict(engine.generate(prompt, **sampling))
            print(json.dumps(result | {"prompt": prompt, "notes": engine.info["notes"]}))
        else:
            _stream(engine, prompt, sampling)
        if given["trace"] is not None:
            engine.profile(given["trace"])


def _stream(engine: Engine, prompt: str, sampling: dict[str, Any]) -> None:
    """The prompt and its continuation on stdout as they come; on stderr the engine's notes before, a line of figures after them."""
    chunks = engine._submit("generate", prompt, None, sampling)  # the command's name, not stream's
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
