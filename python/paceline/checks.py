"""Arguments of the wrong kind become one clear ValueError: where, which, what it must be, what it is."""

import operator
import os
from collections.abc import Set
from pathlib import Path
from typing import Any, NoReturn

INT32_MAX = 2**31 - 1


def refuse(where: str, name: str, expected: str, got: object) -> NoReturn:
    text = repr(got)
    raise ValueError(f"[{where}] {name} must be {expected}, got {text if len(text) <= 60 else text[:57] + '...'}")


def integer(where: str, name: str, value: Any, least: int, most: int = INT32_MAX) -> int:
    """An int in [least, most], NumPy's included; a bool is not one."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        refuse(where, name, "an int", value)
    if not least <= number <= most:
        refuse(where, name, f"in [{least}, {most}]", number)
    return number


def real(where: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        refuse(where, name, "a number", value)


def path(where: str, name: str, value: Any, expected: str = "a path") -> Path:
    try:
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
        return Path(text)
    except TypeError:
        refuse(where, name, expected, value)


def text(where: str, name: str, value: str) -> str:
    """Text that has a UTF-8 form: no half of a surrogate pair, which is also what Python makes of a byte that is no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"[{where}] {name} must be valid Unicode text, got a lone surrogate at index {error.start}") from None
    return value


def items(where: str, name: str, expected: str, value: Any, *, ordered: bool = True) -> tuple[Any, ...]:
    """Of what is not text. ordered: nor a set."""
    try:
        if isinstance(value, (str, bytes)) or ordered and isinstance(value, Set):
            raise TypeError
        return tuple(value)
    except TypeError:
        refuse(where, name, expected, value)


def one_of(where: str, name: str, value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        refuse(where, name, "one of " + ", ".join(allowed), value)
    return str(value)


def token_ids(where: str, name: str, value: Any) -> list[int]:
    """Token ids from any sequence of ints. The core checks that they exist."""
    return [integer(where, name + " token ids", each, 0) for each in items(where, name, "token ids", value)]
