"""Parameters by the names that other libraries have for them: nobody is left to guess ours."""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

_OURS = {
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "max_completion_tokens": "max_tokens", "n_predict": "max_tokens",
    "min_new_tokens": "min_tokens", "temp": "temperature", "do_sample": "temperature (0 is greedy)",
    "repeat_penalty": "repetition_penalty", "stop_strings": "stop", "stop_sequences": "stop",
    "eos_token_id": "stop_token_ids", "top_logprobs": "logprobs", "num_assistant_tokens": "num_speculative_tokens",
    "draft_tokens": "num_speculative_tokens", "num_draft_tokens": "num_speculative_tokens"}


def meant(name: str, ours: Sequence[str]) -> str | None:
    """What somebody meant by a name that is none of ours."""
    if name in _OURS:
        return _OURS[name]
    close = difflib.get_close_matches(name, ours, 1)
    return close[0] if close else None


def with_hints(kind: type[_T]) -> type[_T]:
    """A dataclass whose TypeError for an unknown parameter says which one may be meant."""
    init, ours = kind.__init__, [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked(self: _T, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in ours:
                hint = meant(name, ours)
                raise TypeError(f"[{kind.__name__}] got an unexpected keyword argument {name!r}" + (f": did you mean {hint}?" if hint else ""))
        init(self, *args, **given)

    setattr(kind, "__init__", checked)  # noqa: B010  a type checker wants the very same type there
    return kind
