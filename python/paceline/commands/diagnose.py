"""`paceline diagnose`: how fast a pair is here, why not faster, and what would help."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from paceline import checks
from paceline.arguments import DEFAULT_TAU
from paceline.commands.options import add_models, engine_arguments
from paceline.commands.prompts import read_prompts
from paceline.diagnosis.html import write_html
from paceline.diagnosis.measure import SPREAD, cycles_of, diagnose_engine, measure
from paceline.diagnosis.page import page
from paceline.engine import Engine
from paceline.trace import Trace


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("diagnose", help="how fast a pair is here, why not faster, and what would help", argument_default=argparse.SUPPRESS)
    parser.set_defaults(run=run)
    parser.add_argument("--prompts", metavar="FILE", default=None,
                        help="a text per line, or FILE.jsonl with a JSON value per line, or FILE.json with a list (default: eight beginnings of Python code)")
    parser.add_argument("--max-tokens", type=int, metavar="N", default=64, help="per prompt and tau (default: 64)")
    parser.add_argument("--repetitions", type=int, metavar="N", default=3, help="of everything, in turn (default: 3)")
    parser.add_argument("--max-num-seqs", type=int, metavar="N", default=1, help="prompts decoded at once (default: 1)")
    parser.add_argument("--temperature", type=float, metavar="X", default=0.0, help="of the texts (default: 0)")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON object on stdout instead of the page")
    parser.add_argument("--html", metavar="FILE", default=None, help="also one self-contained page with charts; needs paceline[report]")
    add_models(parser)


def run(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    for name in ("max_tokens", "repetitions"):
        checks.integer("diagnose", name, given[name], 2 if name == "max_tokens" else 1)
    prompts, options = read_prompts(given["prompts"]), engine_arguments(given)
    if options.get("draft") is None:
        raise ValueError("--target needs --draft: without one there is nothing to diagnose")
    tau = checks.integer("diagnose", "num_speculative_tokens", options.pop("num_speculative_tokens", DEFAULT_TAU), 1, 64)
    options |= {"num_speculative_tokens": max(tau, *SPREAD), "max_num_seqs": given["max_num_seqs"],
                "trace_cycles": cycles_of(given["max_num_seqs"], given["max_tokens"])}
    sampling = {"temperature": given["temperature"], "max_tokens": given["max_tokens"]}
    whole = _unquantised(options, prompts, tau, sampling)
    with Engine(**options) as engine:
        found = diagnose_engine(engine, prompts, tau=tau, repetitions=given["repetitions"], unquantised=whole, progress=_say, **sampling)
        notes = engine.info["notes"]
    if given["html"] is not None:
        write_html(Path(given["html"]), found)
    if given["json"]:
        print(json.dumps(found.to_dict() | {"engine_notes": notes}, allow_nan=False))
        return
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(page(found))


def _unquantised(options: dict[str, Any], prompts: list[Any], tau: int, sampling: dict[str, Any]) -> Trace | None:
    """The same prompts with the draft as its checkpoint has it, where it is quantised: on the same text the two can be compared."""
    if not str(options.get("draft_dtype", "auto")).startswith("int"):
        return None
    with Engine(**options | {"draft_dtype": "auto"}) as engine:
        return measure(engine, prompts, [tau], repetitions=1, **sampling)[0]


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="\n" if line == "" else "", file=sys.stderr, flush=True)
