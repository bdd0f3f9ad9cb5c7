"""`paceline trace show FILE`: cycle by cycle, what was drafted and what became of it."""

import argparse
import sys
from pathlib import Path

from paceline.commands.options import add_models, engine_arguments, prompt_from
from paceline.cycle_view import cycle_lines, summary_line
from paceline.engine import Engine
from paceline.timeline import read_timeline
from paceline.trace import Trace


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    trace = commands.add_parser("trace", help="look at what every cycle did").add_subparsers(dest="what", required=True)
    show = trace.add_parser("show", help="a line per cycle: drafts accepted, rejected, never judged, the target's own, and the cost",
                            argument_default=argparse.SUPPRESS)
    show.set_defaults(run=run)
    what = show.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE", help="of `paceline generate --trace FILE` or engine.profile(FILE)")
    what.add_argument("--prompt", metavar="TEXT", help="instead of a file: run this; - reads it from stdin")
    show.add_argument("--max-tokens", type=int, metavar="N", default=48, help="of the run (default: 48)")
    show.add_argument("--temperature", type=float, metavar="X", default=0.0, help="of the run (default: 0)")
    show.add_argument("--seed", type=int, metavar="N", default=0, help="of the run (default: 0)")
    show.add_argument("--colour", choices=("auto", "always", "never"), default="auto", help="(default: auto, on a terminal)")
    add_models(show)


def run(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    trace, texts = read_timeline(Path(given["file"])) if given.get("file") is not None else _fresh(given)
    colour = given["colour"] == "always" or given["colour"] == "auto" and sys.stdout.isatty()
    for line in cycle_lines(trace, texts, colour=colour):
        print(line)
    print(summary_line(trace))


def _fresh(given: dict[str, object]) -> tuple[Trace, dict[int, str]]:
    prompt = prompt_from(str(given["prompt"]))
    with Engine(**engine_arguments(given)) as engine:
        engine.generate(prompt, max_tokens=given["max_tokens"], temperature=given["temperature"], seed=given["seed"])
        return engine.trace(), engine._token_texts()
