"""JSON of files that somebody else wrote: bounded, UTF-8, no key twice, nothing that is not JSON."""

import json
from pathlib import Path
from typing import Any, NoReturn

from paceline._core import ModelFileError

MAX_DEPTH = 8


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a regular file of at most `most` bytes."""
    return parse_object(read_bytes(path, most), str(path))


def read_bytes(path: Path, most: int) -> bytes:
    try:
        if not path.is_file():  # a FIFO would block, a directory cannot be read
            raise ModelFileError(f"{path}: expected a regular file, found {'something else' if path.exists() else 'nothing'}")
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise ModelFileError(f"{path}: expected at most {most} bytes, found more")
    return data


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """where: the file, for messages."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=lambda pairs: _without_duplicates(pairs, where),
                           parse_constant=lambda name: _refuse_constant(name, where))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where}: expected JSON in UTF-8, found: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{where}: expected a JSON object, found {type(value).__name__}")
    if _depth(value) > MAX_DEPTH:
        raise ModelFileError(f"{where}: expected JSON nested at most {MAX_DEPTH} deep, found more")
    return value


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _without_duplicates(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ModelFileError(f"{where}: expected every key once, found {twice[:100]!r} twice")
    return names


def _refuse_constant(name: str, where: str) -> NoReturn:
    raise ModelFileError(f"{where}: expected JSON, found {name}")
