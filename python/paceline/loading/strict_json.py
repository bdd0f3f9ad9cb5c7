"""JSON of files that somebody else wrote: bounded, UTF-8, no key twice, nothing that is not JSON."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from paceline._core import ModelFileError
from paceline.loading.files import read_bytes

MAX_DEPTH = 8
MAX_DIGITS = 400
"""Of a number: Python turns longer ones into integers in quadratic time, where its own limit is switched off."""

FEW = 64

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PAIR = re.compile(rb"\[\]|\{\}")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a regular file of at most `most` bytes."""
    return parse_object(read_bytes(path, most), str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """where: the file, for messages."""
    _check_depth(data, where)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=lambda pairs: _without_duplicates(pairs, where),
                           parse_constant=lambda name: _refuse_constant(name, where), parse_int=_integer, parse_float=_real)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair is no text
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where}: expected JSON in UTF-8, found: {shown(error)}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{where}: expected a JSON object, found {type(value).__name__}")
    if _depth(value) > MAX_DEPTH:
        raise _too_deep(where)
    return value


def shown(value: object) -> str:
    """Of a file's content in a message: 100 characters at most, and none that could pass for a line or a command of a terminal."""
    text = str(value)[:100]
    return text if text.isprintable() else ascii(text)[1:-1]


def _check_depth(data: bytes, where: str) -> None:
    """Before anything recurses over it: the interpreter's own limit may have been raised as far as its stack does not reach.

    What is left of the text without its strings is brackets, and each round takes the innermost pairs away. A few that remain may be
    an error of the syntax, which the parser names."""
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        brackets = _PAIR.sub(b"", brackets)
    if brackets.count(b"[") + brackets.count(b"{") > FEW:
        raise _too_deep(where)


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _too_deep(where: str) -> ModelFileError:
    return ModelFileError(f"{where}: expected JSON nested at most {MAX_DEPTH} deep, found more")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} characters")
    return float(digits)


def _without_duplicates(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ModelFileError(f"{where}: expected every key once, found {twice[:100]!r} twice")
    return names


def _refuse_constant(name: str, where: str) -> NoReturn:
    raise ModelFileError(f"{where}: expected JSON, found {name}")
