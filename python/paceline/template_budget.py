"""What rendering a chat template may cost. A template is a program of whoever made the model: it may loop, and its values may grow.

Every loop, call, operation and filter that can take time or memory out of proportion asks here first, so that nothing large is made
before it is refused. All counts are of one rendering.
"""

import dataclasses
import re
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from paceline._core import ModelFileError


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    text: int = 8 << 20
    """Characters of a value, of the messages and of the result: a context of a million tokens has about five million."""
    made: int = 64 << 20
    """Characters of all values on the way, each counted when it is made: a template that adds message by message to one text makes a
    hundred times what it shows. An element of a list counts as ELEMENT."""
    iterations: int = 200_000
    """Iterations of all loops, calls included: twenty per message of ten thousand messages."""
    seconds: float = 1.0
    """Of this thread's time. Templates in use take some milliseconds; between two looks at the clock there is one operation."""
    macros: int = 32
    """Macros that are under way at once: a nested schema of a tool is rendered by a macro that calls itself."""


ELEMENT = 16
NUMBER_BITS = 256
"""Of an integer. Only powers and products grow, and no prompt has such numbers."""
WIDTH = 64
"""Characters that a line may be indented by."""
BACKWARDS = 10**8
"""Characters of a text times characters of what is searched in it from its end: CPython then compares every place with all of it, in one
call that nothing interrupts, some 20 ms long. A word of twelve in the longest of texts."""
_WIDE = re.compile(r"(?:\d{4,}|\*)[\d.*hlL]*[diouxXeEfFgGcrsa%]")


class Budget:
    """Of one rendering. Whatever exceeds it is a ModelFileError that names the limit."""

    def __init__(self, limits: Limits, where: str, plain: tuple[type, ...] = ()) -> None:
        """plain: types, besides those of JSON, whose values may be printed and compared."""
        self._plain: tuple[type, ...] = (int, float, type(None), range, *plain)
        self._limits, self._where = limits, where
        self._made = self._iterations = self._macros = 0
        self._until = time.thread_time() + limits.seconds

    def exceeded(self, expected: str) -> ModelFileError:
        return ModelFileError(f"{self._where}: chat template: expected {expected}, found more")

    def tick(self, elements: int = 0) -> bool:
        """An iteration or a call that makes `elements` elements of lists. True: so that it may stand in a condition."""
        self._iterations += 1
        if self._iterations > self._limits.iterations:
            raise self.exceeded(f"at most {self._limits.iterations} iterations and calls")
        if elements:
            self.spend(elements * ELEMENT)
        self.look_at_the_clock()
        return True

    def look_at_the_clock(self) -> None:
        if time.thread_time() > self._until:
            raise self.exceeded(f"at most {self._limits.seconds:g} seconds of rendering")

    def ticking(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield value

    def listed(self, value: Any) -> Any:
        """With its elements at hand, if it is something that makes them one by one."""
        return list(self.ticking(value)) if isinstance(value, Iterator) else value

    def enter_macro(self) -> None:
        self._macros += 1
        if self._macros > self._limits.macros:
            raise self.exceeded(f"at most {self._limits.macros} macros inside each other")

    def leave_macro(self) -> None:
        self._macros -= 1

    def spend(self, characters: int) -> None:
        """Before a value of so many characters is made."""
        if characters > self._limits.text:
            raise self.exceeded(f"values of at most {self._limits.text} characters")
        self._made += characters
        if self._made > self._limits.made:
            raise self.exceeded(f"values of at most {self._limits.made} characters in all")

    def weigh(self, value: Any) -> int:
        """Characters of a value written out, at least: what one looks into in order to print, compare or hash it. A list that holds a list
        twice, which holds a list twice, and so on, is small in memory and has no end for whoever looks into it."""
        if isinstance(value, str):
            return len(value)
        total, pending = 0, [value]
        while pending:
            each = pending.pop()
            total += ELEMENT
            if isinstance(each, str):
                total += len(each)
            elif isinstance(each, Mapping):
                pending += each.keys()
                pending += each.values()
            elif isinstance(each, (list, tuple, KeysView, ValuesView, ItemsView)):
                pending += each
            elif not isinstance(each, self._plain):
                raise ModelFileError(f"{self._where}: chat template: expected texts, numbers, lists and mappings, found {type(each).__name__}")
            if total > self._limits.text:
                raise self.exceeded(f"values of at most {self._limits.text} characters")
        return total

    # ------------------------------------------------------------------------------------------------ operators
    def check_operation(self, operator: str, left: Any, right: Any) -> None:
        if operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif operator == "+" and _is_sequence(left) and _is_sequence(right):
            self.spend(_length(left) + _length(right))
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if _is_sequence(sequence) and isinstance(times, int):
                    self.spend(_length(sequence) * max(0, times))
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
            if bits > NUMBER_BITS:
                raise self.exceeded(f"integers of at most {NUMBER_BITS} bits")

    def _check_format(self, text: str, values: Any) -> None:
        if _WIDE.search(text):
            raise self.exceeded("widths of at most 999 in a format")
        self.spend(len(text) + text.count("%") * (self.weigh(values) + 1000))

    # ------------------------------------------------------------------------------------------------ filters and methods
    def check_replace(self, text: str, old: str, new: str, count: int | None = None) -> None:
        times = text.count(old)
        if count is not None and count >= 0:
            times = min(times, count)
        self.spend(len(text) + times * max(0, len(new) - len(old)))

    def check_join(self, values: Sequence[Any], separator: str) -> None:
        self.spend(self.weigh(values) + len(values) * len(separator))

    def check_indent(self, text: str, width: int | str) -> None:
        indent = len(width) if isinstance(width, str) else width
        if indent > WIDTH:
            raise self.exceeded(f"lines indented by at most {WIDTH} characters")
        self.spend(len(text) + (text.count("\n") + 1) * max(0, indent))

    def check_search_from_the_end(self, text: str, sought: Any) -> None:
        if isinstance(sought, str) and len(text) * len(sought) > BACKWARDS:
            raise self.exceeded(f"a search from the end over at most {BACKWARDS} characters times characters")

    def check_number(self, text: Any) -> None:
        if isinstance(text, str) and len(text) > NUMBER_BITS:
            raise self.exceeded(f"numbers of at most {NUMBER_BITS} characters")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (str, list, tuple))


def _length(value: Any) -> int:
    return len(value) * (1 if isinstance(value, str) else ELEMENT)


def check_method(budget: Budget, value: Any, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether a template may call this method of a value, and then with room for its result."""
    if isinstance(value, str) and name in STRING_METHODS:
        budget.weigh([list(args), dict(named)])
        STRING_METHODS[name](budget, value, *args, **named)
        return True
    if isinstance(value, dict):
        budget.weigh(list(args))
        return name in ("get", "items", "keys", "values")
    if isinstance(value, (list, tuple)) and name in ("index", "count"):
        budget.weigh([value, args])
        return True
    return False


def _same(budget: Budget, text: str, *_: Any) -> None:
    budget.spend(len(text))


def _other_case(budget: Budget, text: str) -> None:
    budget.spend(3 * len(text))  # some letters become three


def _nothing(budget: Budget, text: str, *_: Any) -> None:
    pass


def _parts(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    parts = 1 + (text.count(sep) if isinstance(sep, str) and sep else len(text) // 2)
    budget.spend(len(text) + 4 * ELEMENT * (parts if maxsplit < 0 else min(parts, maxsplit + 1)))


def _found_from_the_end(budget: Budget, text: str, sought: Any, *_: Any) -> None:
    budget.check_search_from_the_end(text, sought)


def _parts_from_the_end(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    budget.check_search_from_the_end(text, sep)
    _parts(budget, text, sep, maxsplit)


def _partition_from_the_end(budget: Budget, text: str, sep: Any) -> None:
    budget.check_search_from_the_end(text, sep)
    budget.spend(len(text))


def _lines(budget: Budget, text: str, keepends: bool = False) -> None:
    lines = 1 + sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    budget.spend(len(text) + 4 * ELEMENT * lines)


def _joined(budget: Budget, text: str, values: Any) -> None:
    if not isinstance(values, (list, tuple, dict)):
        raise TypeError("join takes a list")
    budget.check_join(list(values), text)


def _padded(budget: Budget, text: str, width: int, *_: Any) -> None:
    budget.spend(max(len(text), width))


def _tabs(budget: Budget, text: str, tabsize: int = 8) -> None:
    budget.spend(len(text) + text.count("\t") * max(0, tabsize))


STRING_METHODS: Mapping[str, Any] = {
    **dict.fromkeys(("strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "partition"), _same),
    **dict.fromkeys(("upper", "lower", "title", "capitalize", "casefold", "swapcase"), _other_case),
    **dict.fromkeys(("startswith", "endswith", "find", "index", "count", "isdigit", "isalpha", "isalnum", "isspace", "islower",
                     "isupper", "istitle", "isnumeric", "isdecimal", "isidentifier", "isascii", "isprintable"), _nothing),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("rfind", "rindex"), _found_from_the_end), "rpartition": _partition_from_the_end, "rsplit": _parts_from_the_end,
    "split": _parts, "splitlines": _lines, "join": _joined, "replace": Budget.check_replace, "expandtabs": _tabs}
"""Not among them: format and format_map, which walk into attributes, encode and translate, which no prompt needs."""
