"""Errors name the method that was called."""

import contextlib
from collections.abc import Iterator

from paceline import _core

_OTHERS = ("[generate] ", "[SamplingParams] ")  # what the core says of every request, and the checks of its parameters


def named(method: str, said: str, part: str = "") -> str:
    """What was said of a request in general, of the method that asked for it. part: of its arguments, "prompts[1]: " for instance."""
    for other in _OTHERS:
        if said.startswith(other):
            return f"[{method}] {part}{said.removeprefix(other)}"
    return said


@contextlib.contextmanager
def called(method: str, part: str = "") -> Iterator[None]:
    """What is raised inside, in the method's name."""
    try:
        yield
    except (ValueError, TypeError, _core.CapacityError) as error:
        renamed = named(method, str(error), part)
        if renamed != str(error):
            error.args = (renamed,)
        raise
