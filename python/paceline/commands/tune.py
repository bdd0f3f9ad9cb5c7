"""`paceline tune`: who drafts, in which precision, with which tau, for these prompts on this machine, as a file that Engine(config=...) reads."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args

from paceline import checks
from paceline.arguments import NGRAM, Dtype
from paceline.commands.options import add_models, engine_arguments
from paceline.commands.prompts import read_prompts
from paceline.engine_config import write_config
from paceline.tuning import DRAFTERS, Candidate, Tuning, tune


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("tune", help="which drafter, precision and tau are best for these prompts, here", argument_default=argparse.SUPPRESS)
    parser.set_defaults(run=run)
    parser.add_argument("--prompts", metavar="FILE", default=None,
                        help="a text per line, or FILE.jsonl with a JSON value per line, or FILE.json with a list (default: eight beginnings of Python code)")
    parser.add_argument("--latency-ms", type=float, metavar="L", default=None, help="p99 of the time between two chunks must keep it (default: any)")
    parser.add_argument("--drafters", nargs="+", choices=DRAFTERS, default=list(DRAFTERS),
                        help="who drafts: each --draft, the text itself, both in a chain (default: all three; without --draft the text)")
    parser.add_argument("--draft-dtypes", nargs="+", choices=("auto", *get_args(Dtype)), default=["auto", "int8", "int4"],
                        help="precisions of each draft to try (default: auto int8 int4)")
    parser.add_argument("--max-tokens", type=int, metavar="N", default=64, help="per prompt and run (default: 64)")
    parser.add_argument("--repetitions", type=int, metavar="N", default=3, help="of everything, in turn (default: 3)")
    parser.add_argument("--temperature", type=float, metavar="X", default=0.0, help="of the texts (default: 0)")
    parser.add_argument("--out", metavar="FILE", default=None, help="the choice, for Engine(config=FILE)")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON object on stdout instead of a table")
    add_models(parser, tuned=True)


def run(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    for name, least in (("max_tokens", 2), ("repetitions", 1)):
        checks.integer("tune", name, given[name], least)
    latency = given["latency_ms"]
    if latency is not None and not 0 < latency < float("inf"):
        checks.refuse("tune", "latency_ms", "positive", latency)
    options = engine_arguments(given)
    target, drafts = options.pop("target"), options.pop("draft", [])
    if not drafts and NGRAM not in given["drafters"]:
        raise ValueError("--target needs --draft: without one only the drafter ngram can be tried")
    found = tune(target, drafts if isinstance(drafts, list) else [drafts], read_prompts(given["prompts"]), drafters=given["drafters"],
                 draft_dtypes=given["draft_dtypes"], latency=None if latency is None else latency / 1e3, max_tokens=given["max_tokens"],
                 repetitions=given["repetitions"], sampling={"temperature": given["temperature"]}, progress=lambda line: print(line, file=sys.stderr),
                 **options)
    if given["out"] is not None:
        write_config(Path(given["out"]), chosen_arguments(target, options.get("dtype", "auto"), found.best), _told(found))
    if given["json"]:
        print(json.dumps(_told(found) | {"candidates": [dataclasses.asdict(each) for each in found.candidates]}))
    else:
        print("\n".join(table(found, given["out"])))


def chosen_arguments(target: Any, dtype: str, best: Candidate) -> dict[str, Any]:
    """Of Engine, for engine_config."""
    drafted = {} if best.draft is None else {"draft": best.draft, "drafter": best.drafter, "draft_dtype": best.draft_dtype}
    return {"target": target, "dtype": dtype, **drafted, "num_speculative_tokens": best.tau}


def _told(found: Tuning) -> dict[str, Any]:
    return {"best": dataclasses.asdict(found.best), "keeps_latency": found.keeps_latency}


def table(found: Tuning, out: str | None) -> list[str]:
    """Lines for a terminal. out: the file that the choice was written to."""
    return [*_rows(found), "", _recommendation(found), *([f"Written to {out}: Engine(config={out!r})"] if out is not None else [])]


def _rows(found: Tuning) -> list[str]:
    lines = [f"{'predicted':>9} {'measured':>8} {'tokens/s':>9} {'p99 ms':>8}  candidate"]
    lines += [f"{each.predicted:>8.2f}x {each.measured:>7.2f}x {each.tokens_per_second:>9.1f} {1e3 * each.latency:>8.2f}  {_name(each)}{_verdict(found, each)}"
              for each in found.candidates]
    return lines


def _recommendation(found: Tuning) -> str:
    best = found.best
    if found.latency_limit is not None and not found.keeps_latency:
        plain = next(each for each in found.candidates if each.draft is None)
        return (f"Nothing keeps {1e3 * found.latency_limit:g} ms: plain decoding alone takes {1e3 * plain.latency:.3g} ms between two chunks (p99); "
                f"the closest is {_name(best)}, {1e3 * best.latency:.3g} ms.")
    return f"Recommended: {_name(best)}, {best.measured:.2f} times plain decoding, measured on prompts that its tau was not chosen by."


def _name(each: Candidate) -> str:
    if each.draft is None:
        return "no draft"
    precision = f" in {each.draft_dtype}" if each.draft != NGRAM else ""
    return f"{each.draft}{precision}{' and ngram in a chain' if each.drafter == 'chain' else ''}, tau {each.tau}"


def _verdict(found: Tuning, each: Candidate) -> str:
    return "" if each.keeps(found.latency_limit) else "  (above the limit)"
