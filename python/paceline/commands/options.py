"""Options that several commands share: which models, on what, and a prompt from stdin."""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from paceline.arguments import DEFAULT_NGRAM_TAU, DEFAULT_TAU, NGRAM, AcceptanceRule, Drafter, Dtype, KvDtype, Policy
from paceline.bundled import demo_pair
from paceline.devices import Device
from paceline.engine_config import read_config
from paceline.sampling_params import MAX_TAU

ENGINE_OPTIONS = ("target", "draft", "drafter", "tokenizer", "device", "dtype", "draft_dtype", "kv_dtype", "acceptance", "max_model_len",
                  "kv_cache_tokens", "num_threads", "weights_cache", "cost_cache", "num_speculative_tokens", "policy", "verify_budget",
                  "latency_target", "min_draft_confidence")


def add_models(parser: argparse.ArgumentParser, *, tuned: bool = False) -> None:
    """The arguments of Engine, for parsers with argument_default=SUPPRESS. tuned: --draft is a list, and what
    `paceline tune` seeks is not asked for."""
    models = parser.add_argument_group("models", "by default the bundled pair")
    models.add_argument("--target", metavar="DIR", help="checkpoint whose text is written")
    models.add_argument("--draft", metavar="DIR", nargs="+" if tuned else None,
                        help="checkpoints that propose" if tuned else "checkpoint that proposes, or ngram: the text itself; without it decoding is plain")
    models.add_argument("--tokenizer", metavar="PATH", help="directory or tokenizer.json (default: the target's)")
    for name, choices, what in (
            ("dtype", ("auto", *get_args(Dtype)), "of the target's weights (default: auto, fp32 for fp32 checkpoints, bf16 for all others)"),
            ("kv-dtype", ("auto", *get_args(KvDtype)), "of the KV caches (default: auto, fp32 for a target in fp32, else bf16)"),
            ("device", get_args(Device), "(default: auto)"),
            ("acceptance", get_args(AcceptanceRule), "how drafts are judged at a temperature (default: coupled)")):
        models.add_argument(f"--{name}", choices=choices, help=what)
    models.add_argument("--weights-cache", metavar="DIR",
                        help="keep packed weights there for the next start; auto: ~/.cache/paceline (default: nowhere)")
    models.add_argument("--cost-cache", metavar="DIR", help="keep what cycles cost there, for --policy auto and latency; auto: ~/.cache/paceline (default: nowhere)")
    for name, what in (("max-model-len", "tokens of the sequence at most, prompt included (default: the target's context)"),
                       ("kv-cache-tokens", "positions of the KV cache (default: those of the sequence, at most 8192)"),
                       ("num-threads", "computing threads (default: one per core)")):
        models.add_argument(f"--{name}", type=int, metavar="N", help=what)
    if not tuned:
        _add_drafting(models)


def _add_drafting(models: "argparse._ArgumentGroup") -> None:
    models.add_argument("--config", metavar="FILE", help="as `paceline tune --out` writes it; what is said beside it counts more")
    models.add_argument("--drafter", choices=get_args(Drafter), help="chain: the text itself too, beside a draft's checkpoint (default: auto)")
    models.add_argument("--draft-dtype", choices=("auto", *get_args(Dtype)), help="of the draft's weights (default: auto)")
    models.add_argument("--policy", choices=get_args(Policy), help="who chooses how many drafts a cycle has (default: fixed)")
    models.add_argument("--num-speculative-tokens", type=int, metavar="TAU",
                        help=f"draft tokens per cycle, 0 to {MAX_TAU}; 0 is plain decoding (default: {DEFAULT_TAU} with a draft, "
                             f"{DEFAULT_NGRAM_TAU} with ngram)")
    models.add_argument("--verify-budget", type=int, metavar="ROWS", help="rows of a verification pass at most, with --policy budget")
    models.add_argument("--latency-target", type=float, metavar="SECONDS", help="between two chunks at most, 99 of 100, with --policy latency")
    models.add_argument("--min-draft-confidence", type=float, metavar="P", help="drafts end where the draft is less sure (default: 0)")


def engine_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Of the engine, the bundled pair where no target is named."""
    told = read_config(Path(given["config"])) if "config" in given else {}
    engine_options = told | {name: given[name] for name in ENGINE_OPTIONS if name in given}
    if "target" not in engine_options:
        if given.get("draft", NGRAM) != NGRAM:
            raise ValueError("--draft needs --target: the bundled pair is used as a pair")
        engine_options["target"], bundled_draft = demo_pair()
        engine_options.setdefault("draft", bundled_draft)
    return engine_options


def prompt_from(given: str) -> str:
    """The prompt, or stdin for -."""
    if given != "-":
        return given
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"[generate] prompt must be valid Unicode text, got byte 0x{error.object[error.start]:02x} "
                         f"at index {error.start}: {error.reason}") from None
