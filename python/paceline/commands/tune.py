"""`paceline tune`: which draft, precision and tau for these prompts on this machine, as a file that Engine(config=...) reads."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import get_args

from paceline import checks
from paceline.arguments import Dtype
from paceline.commands.options import add_models, engine_arguments
from paceline.commands.prompts import read_prompts
from paceline.engine_config import write_config
from paceline.tuning import Candidate, Tuning, tune


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("tune", help="which draft, precision and tau are best for these prompts, here", argument_default=argparse.SUPPRESS)
    parser.set_defaults(run=run)
    parser.add_argument("--prompts", metavar="FILE", default=None,
                        help="a text per line, or FILE.jsonl with a JSON value per line, or FILE.json with a list (default: eight beginnings of Python code)")
    parser.add_argument("--latency-ms", type=float, metavar="L", default=None, help="p99 of the time between two chunks must keep it (default: any)")
    parser.add_argument("--draft-dtypes", nargs="+", choices=("auto", *get_args(Dtype)), default=["auto", "int8", "int4"],
                        help="precisions of each draft to try (default: auto int8 int4)")
    parser.add_argument("--max-tokens", type=int, metavar="N", default=64, help="per prompt and run (default: 64)")
    parser.add_argument("--repetitions", type=int, metavar="N", default=3, help="of everything, in turn (default: 3)")
    parser.add_argument("--temperature", type=float, metavar="X", default=0.0, help="of the texts (default: 0)")
    parser.add_argument("--out", metavar="FILE", default=None, help="the choice, for Engine(config=FILE)")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON object on stdout instead of a table")
    add_models(parser, several_drafts=True)


def run(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    for name, least in (("max_tokens", 2), ("repetitions", 1)):
        checks.integer("tune", name, given[name], least)
    latency = given["latency_ms"]
    if latency is not None and not 0 < latency < float("inf"):
        checks.refuse("tune", "latency_ms", "positive", latency)
    options = engine_arguments(given)
    target, drafts = options.pop("target"), options.pop("draft", None)
    if drafts is None:
        raise ValueError("--target needs --draft: without one there is nothing to tune")
    for name in ("draft_dtype", "num_speculative_tokens"):  # what is sought
        options.pop(name, None)
    found = tune(target, drafts if isinstance(drafts, list) else [drafts], read_prompts(given["prompts"]), draft_dtypes=given["draft_dtypes"],
                 latency=None if latency is None else latency / 1e3, max_tokens=given["max_tokens"], repetitions=given["repetitions"],
                 sampling={"temperature": given["temperature"]}, progress=lambda line: print(line, file=sys.stderr), **options)
    best = found.best
    if given["out"] is not None:
        chosen = {"target": target, "dtype": options.get("dtype", "auto"), "num_speculative_tokens": best.tau}
        drafted = {"draft": best.draft, "draft_dtype": best.draft_dtype} if best.draft else {}
        write_config(Path(given["out"]), chosen | drafted, dataclasses.asdict(best))
    if given["json"]:
        print(json.dumps({"best": dataclasses.asdict(best), "candidates": [dataclasses.asdict(each) for each in found.candidates]}))
    else:
        print("\n".join(_table(found, given["out"])))


def _table(found: Tuning, out: str | None) -> list[str]:
    lines = [f"{'predicted':>9} {'measured':>8} {'tokens/s':>9} {'p99 ms':>8}  candidate"]
    lines += [f"{each.predicted:>8.2f}x {each.measured:>7.2f}x {each.tokens_per_second:>9.1f} {1e3 * each.latency:>8.2f}  {_name(each)}{_verdict(found, each)}"
              for each in found.candidates]
    best = found.best
    lines.append(f"\nRecommended: {_name(best)}, {best.measured:.2f} times plain decoding as measured on prompts that it was not chosen by.")
    if out is not None:
        lines.append(f"Written to {out}: Engine(config={out!r})")
    return lines


def _name(each: Candidate) -> str:
    return "no draft" if each.draft is None else f"{each.draft} in {each.draft_dtype}, tau {each.tau}"


def _verdict(found: Tuning, each: Candidate) -> str:
    return "  (above the limit)" if found.latency_limit is not None and each.latency > found.latency_limit else ""
