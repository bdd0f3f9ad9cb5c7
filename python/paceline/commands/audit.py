"""`paceline audit`: a page that ends in PASS or FAIL, and an exit status that says the same."""

import argparse
import json
from typing import Any

from paceline.audit.run import TOKENS
from paceline.commands.options import add_models, engine_arguments
from paceline.commands.prompts import read_prompts
from paceline.engine import Engine

NUM_SEQS = 8  # batches show more than single sequences


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    audit = commands.add_parser("audit", help="whether a pair emits what its target says, on this machine: PASS or FAIL",
                                argument_default=argparse.SUPPRESS)
    audit.set_defaults(run=_run)
    audit.add_argument("--prompts", metavar="FILE", default=None,
                       help="to decode from: a text per line, or FILE.jsonl with a JSON value per line, or FILE.json with a list (default: eight short ones)")
    audit.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"emitted from end to end under rejection, a sixth as many under coupled (default: {TOKENS})")
    audit.add_argument("--seed", type=int, default=None, metavar="N", help="of everything that is drawn (default: drawn, and in the report)")
    audit.add_argument("--json", action="store_true", default=False, help="the report as one JSON object on stdout instead of the page")
    audit.add_argument("--max-num-seqs", type=int, default=NUM_SEQS, metavar="N", help=f"texts decoded at once (default: {NUM_SEQS})")
    add_models(audit)


def _run(parsed: argparse.Namespace) -> int:
    """Exit status 0 for PASS, 1 for FAIL."""
    given = vars(parsed)
    prompts = None if given["prompts"] is None else read_prompts(given["prompts"])
    with Engine(**engine_arguments(given), max_num_seqs=given["max_num_seqs"]) as engine:
        report = engine.audit(prompts, tokens=given["tokens"], seed=given["seed"])
    print(json.dumps(report.to_json(), indent=1) if given["json"] else report.page())
    return 0 if report.passed else 1
