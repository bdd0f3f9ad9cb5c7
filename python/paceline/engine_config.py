"""A file of engine arguments, as `paceline tune` writes it and `Engine(config=...)` and `--config` read it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline._core import ModelFileError
from paceline.arguments import NGRAM
from paceline.loading.strict_json import read_json, shown

FORMAT = 1
MAX_FILE = 64 << 10
NAMES = ("target", "draft", "drafter", "dtype", "draft_dtype", "num_speculative_tokens")
"""What such a file may set."""


def write_config(path: Path, arguments: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """arguments: of NAMES; paths are kept absolute, so that the file may be read from anywhere, and draft="ngram" is none. about: for people, read by nobody."""
    paths = {"target": arguments.get("target"), "draft": None if arguments.get("draft") == NGRAM else arguments.get("draft")}
    told = {**arguments, **{name: str(Path(value).resolve()) for name, value in paths.items() if value is not None}}
    path.write_text(json.dumps({"paceline_config": FORMAT} | told | {"about": dict(about)}, indent=1) + "\n", encoding="utf-8")


def with_config(path: Path, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The given arguments, and from the file those that are at their defaults. Their values are checked like any argument's.

    Raises ModelFileError for a file that is none.
    """
    told = read_config(path)
    return {name: told[name] if name in told and _is_default(value, defaults.get(name)) else value for name, value in given.items()}


def read_config(path: Path) -> dict[str, Any]:
    """Arguments of NAMES. Raises ModelFileError for a file that is none."""
    told = read_json(path, MAX_FILE)
    if told.pop("paceline_config", None) != FORMAT:
        raise ModelFileError(f'{path}: expected "paceline_config": {FORMAT}, found another file or format')
    told.pop("about", None)
    unknown = sorted(told.keys() - set(NAMES))
    if unknown:
        raise ModelFileError(f"{path}: expected {', '.join(NAMES)}, found {shown(unknown[0])}")
    return told


def _is_default(value: Any, default: Any) -> bool:
    return value is default or type(value) is type(default) and value == default
