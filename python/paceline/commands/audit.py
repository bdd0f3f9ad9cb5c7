"""`paceline audit`: a page that ends in PASS or FAIL, and an exit status that says the same."""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from paceline.arguments import AcceptanceRule, Dtype, KvDtype
from paceline.audit.run import TOKENS
from paceline.bundled import demo_pair
from paceline.devices import Device
from paceline.engine import Engine

TAU, NUM_SEQS = 4, 8  # long cycles and batches show more than short ones


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    audit = commands.add_parser("audit", help="whether a pair emits what its target says, on this machine: PASS or FAIL",
                                argument_default=argparse.SUPPRESS)
    audit.set_defaults(run=_run)
    audit.add_argument("--target", metavar="DIR", help="checkpoint whose law is kept (default: the bundled pair)")
    audit.add_argument("--draft", metavar="DIR", help="checkpoint that proposes")
    audit.add_argument("--tokenizer", metavar="PATH", help="directory or tokenizer.json (default: the target's)")
    audit.add_argument("--prompts", metavar="FILE", help="a prompt per line to decode from (default: eight short ones)")
    audit.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"emitted from end to end under rejection, a third as many under coupled (default: {TOKENS})")
    audit.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: drawn, and in the report)")
    audit.add_argument("--json", metavar="FILE", help="write the report there as well, as JSON")
    for name, choices in (("dtype", ("auto", *get_args(Dtype))), ("draft-dtype", ("auto", *get_args(Dtype))),
                          ("kv-dtype", ("auto", *get_args(KvDtype))), ("device", get_args(Device)), ("acceptance", get_args(AcceptanceRule))):
        audit.add_argument(f"--{name}", choices=choices, help="as in generate")
    audit.add_argument("--num-speculative-tokens", type=int, default=TAU, metavar="TAU", help=f"draft tokens per cycle (default: {TAU})")
    for name, default in (("max-num-seqs", NUM_SEQS), ("max-model-len", None), ("kv-cache-tokens", None), ("num-threads", None)):
        shown = {} if default is None else {"default": default}
        audit.add_argument(f"--{name}", type=int, metavar="N", help="as in Engine" + (f" (default: {default})" if default else ""), **shown)


def _run(parsed: argparse.Namespace) -> int:
    """Exit status 0 for PASS, 1 for FAIL."""
    given = vars(parsed)
    asked = {name: given.pop(name) for name in ("tokens", "seed") if name in given}
    prompts, report_file = given.pop("prompts", None), given.pop("json", None)
    options = {name: value for name, value in given.items() if name not in ("command", "run")}
    if "target" not in options:
        if "draft" in options:
            raise ValueError("--draft needs --target: the bundled pair is used as a pair")
        options["target"], options["draft"] = demo_pair()
    lines = None if prompts is None else [line for line in Path(prompts).read_text().splitlines() if line]
    with Engine(**options) as engine:
        report = engine.audit(lines, **asked)
    print(report.page())
    if report_file is not None:
        Path(report_file).write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return 0 if report.passed else 1
