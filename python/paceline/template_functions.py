"""What a chat template may call by name: the globals, filters and tests in lists of ours, in the dialect of transformers (`tojson` that escapes
nothing for HTML, raise_exception, strftime_now). Each asks the budget before it does what costs time or memory.
"""

import datetime
import functools
import json
import re
import threading
import types
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from markupsafe import escape

from paceline.loading.strict_json import shown
from paceline.template_budget import ELEMENT, Budget, Limits

WRITING = ("capitalize", "lower", "string", "title", "trim", "upper")
"""Filters that make a text of what they get."""
COMPARING = ("dictsort", "max", "min", "sort", "unique")
"""Filters that look into what they get."""
PASSING = ("abs", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")
"""Filters that look at no element, or have it looked at by other filters and tests."""
KINDS = ("boolean", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sameas", "sequence", "string", "true", "undefined")
"""Tests that ask what a value is, not what is in it."""
RELATIONS = ("in", "lower", "upper", "eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<", "lessthan", "le", "<=")
JINJA_FILTERS: Mapping[str, Any] = FILTERS
JINJA_TESTS: Mapping[str, Any] = TESTS


class Refused(Exception):
    """The template called raise_exception: it does not take such messages."""


class TemplateFunctions(ImmutableSandboxedEnvironment):
    """An environment with what templates may call by name: globals, filters and tests, each under the budget of who renders."""

    def __init__(self, limits: Limits, extensions: Sequence[str | type[Extension]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
        self._limits, self._running = limits, threading.local()
        self.finalize = _printed
        self.globals = {"range": self._range, "dict": dict, "namespace": _Namespace, "raise_exception": _raise_exception,
                        "strftime_now": _strftime_now}
        self.filters = {name: self._guarded(JINJA_FILTERS[name], name) for name in (*WRITING, *COMPARING, *PASSING)}
        self.filters |= {"join": self._join, "replace": self._replace, "indent": self._indent, "tojson": self._tojson, "int": self._int,
                         "float": self._float, "round": _round, "safe": str, "e": self._escape, "escape": self._escape}
        self.tests = {name: JINJA_TESTS[name] for name in KINDS} | {name: self._guarded(JINJA_TESTS[name], name) for name in RELATIONS}
        self.tests |= {name: _of_integers(JINJA_TESTS[name]) for name in ("divisibleby", "even", "odd")}

    @property
    def budget(self) -> Budget:
        budget: Budget = self._running.budget
        return budget

    def weighed(self, value: Any) -> Any:
        self.budget.weigh(value)
        return value

    def _range(self, *bounds: int) -> range:
        values = range(*bounds)
        if values and abs(values[-1] - values[0]) // abs(values.step) >= self._limits.iterations:
            raise self.budget.exceeded(f"ranges of at most {self._limits.iterations}")
        return values

    def _guarded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            budget, values = self.budget, list(args[skipped:])
            budget.look_at_the_clock()
            if name in PASSING:
                budget.spend(ELEMENT * len(values[0]) if isinstance(values[0], Sized) and name not in ("count", "length") else 0)
            else:
                values = list(map(budget.listed, values))
                weight = budget.weigh([values, kwargs])
                budget.spend(weight if name in WRITING else 0)
            result = function(*args[:skipped], *values, **kwargs)
            return budget.ticking(result) if isinstance(result, types.GeneratorType) else result
        return guarded

    def _join(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        values = self.budget.listed(value)
        if attribute is not None:
            values = [self.getitem(each, attribute) for each in values]
        values, separator = [str(self.weighed(each)) for each in values], str(self.weighed(d))
        self.budget.check_join(values, separator)
        return separator.join(values)

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = (str(self.weighed(each)) for each in (text, old, new))
        self.budget.check_replace(text, old, new, count)
        return str(text.replace(old, new, -1 if count is None else count))

    def _indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = str(self.weighed(text))
        self.budget.check_indent(text, width)
        return str(JINJA_FILTERS["indent"](text, width, first, blank))

    def _escape(self, text: Any) -> str:
        text = str(self.weighed(text))
        self.budget.spend(5 * len(text))
        return str(escape(text))

    def _float(self, value: Any, default: float = 0.0) -> float:
        self.budget.check_number(value)
        return float(JINJA_FILTERS["float"](value, default))

    def _int(self, value: Any, default: int = 0, base: int = 10) -> int:
        self.budget.check_number(value)
        return int(JINJA_FILTERS["int"](value, default, base))

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
        value = self.budget.listed(value)
        weight = self.budget.weigh([value, separators])
        self.budget.check_indent("", indent or 0)
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.budget.spend(max(weight, len(text)))
        return text


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<namespace>"  # and not all that is in it


@jinja2.pass_context
def _printed(context: Context, value: Any) -> Any:
    """Every value on its way into the text. With the context, so that nothing is printed while a template is compiled."""
    environment = context.environment
    assert isinstance(environment, TemplateFunctions)
    environment.budget.spend(environment.budget.weigh(value))
    return value


def _raise_exception(message: Any) -> None:
    raise Refused(shown(message))


def _strftime_now(form: str) -> str:
    if len(form) > 100 or re.search(r"%[^a-zA-Z%]*\d", form):
        raise SecurityError("strftime_now takes a short format without widths")
    return datetime.datetime.now().strftime(form)


def _of_integers(test: Callable[..., bool]) -> Callable[..., bool]:
    def guarded(*values: Any) -> bool:
        if not all(isinstance(value, (int, float)) for value in values):
            raise TypeError("a number is needed")  # the test divides by %, which formats strings
        return test(*values)
    return guarded


def _round(value: float, precision: int = 0, method: str = "common") -> Any:
    if not 0 <= precision <= 16:
        raise SecurityError("round takes 0 to 16 digits")
    return JINJA_FILTERS["round"](value, precision, method)


own_functions = (dict, _Namespace, _raise_exception, _strftime_now)
"""Of the globals, those that are called like any other object."""
