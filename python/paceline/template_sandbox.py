"""A Jinja environment for templates that nobody trusts: plain values only, a list of what may be called, and a budget for all of it.

Jinja's own sandbox keeps templates from Python's internals. What it leaves open is time and memory, and what operators, filters and
methods do with them; so the parsed template is changed before it is compiled: loops and macros tick, comparisons and `~` ask first.
The dialect is that of transformers: trimmed blocks, break and continue, `tojson` that escapes nothing for HTML, raise_exception,
strftime_now, and {% generation %} as a mark without effect.
"""

import datetime
import functools
import json
import re
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from paceline._core import ModelFileError
from paceline.loading.strict_json import shown
from paceline.template_budget import ELEMENT, Budget, Limits, check_method

MAX_NESTING = 64
"""Of brackets and of statements. The compiler recurses, and templates in use reach about twenty."""
FILENAME = "<chat template>"

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


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, where: str, limits: Limits) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", _Generation])
        self._where, self._limits, self._running = where, limits, threading.local()
        self.finalize = _printed
        self.globals = {"range": self._range, "dict": dict, "namespace": _Namespace, "raise_exception": _raise_exception,
                        "strftime_now": _strftime_now}
        self.filters = {name: self._guarded(JINJA_FILTERS[name], name) for name in (*WRITING, *COMPARING, *PASSING)}
        self.filters |= {"join": self._join, "replace": self._replace, "indent": self._indent, "tojson": self._tojson, "int": self._int,
                         "float": self._float, "round": _round, "safe": str, "e": self._escape, "escape": self._escape}
        self.tests = {name: JINJA_TESTS[name] for name in KINDS} | {name: self._guarded(JINJA_TESTS[name], name) for name in RELATIONS}
        self.tests |= {name: _of_integers(JINJA_TESTS[name]) for name in ("divisibleby", "even", "odd")}

    def read(self, source: str) -> tuple[jinja2.Template, set[str]]:
        """(template, names that it asks for). Raises ModelFileError."""
        self._running.budget = Budget(self._limits, self._where, (jinja2.Undefined,))
        try:
            _check_brackets(self, source)
            tree = self.parse(source)
            _check_nesting(tree)
            asked = meta.find_undeclared_variables(tree) - self.globals.keys()
            code = self.compile(_Ticking().visit(tree), filename=FILENAME)
            return jinja2.Template.from_code(self, code, self.globals), asked
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ModelFileError(f"{self._where}: chat template{line}: {shown(error.message)}") from None
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:  # of the compilers, Jinja's and Python's
            raise ModelFileError(f"{self._where}: chat template: cannot be compiled: {type(error).__name__}") from None

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Raises ModelFileError when it breaks a limit, Refused when it says so, and whatever its expressions raise."""
        budget = self._running.budget = Budget(self._limits, self._where, (jinja2.Undefined,))
        pieces: list[str] = []
        length = 0
        for piece in template.root_render_func(template.new_context(dict(variables))):
            length += len(piece)
            if length > self._limits.text:
                raise budget.exceeded(f"a text of at most {self._limits.text} characters")
            pieces.append(piece)
        return "".join(pieces)

    @property
    def budget(self) -> Budget:
        budget: Budget = self._running.budget
        return budget

    # ------------------------------------------------------------------------------------------------ what compiled templates call
    def tick(self, elements: int) -> bool:
        return self.budget.tick(elements)

    def weighed(self, value: Any) -> Any:
        self.budget.weigh(value)
        return value

    def sliced(self, value: Any, first: int | None, last: int | None, step: int | None) -> Any:
        self.budget.spend(len(value) if isinstance(value, str) else ELEMENT * len(value))
        return value[first:last:step]

    def concatenated(self, *values: Any) -> str:
        self.budget.check_join(values, "")
        return "".join(map(str, values))

    def concat(self, pieces: Any) -> str:
        """What {% set %}...{% endset %} and macros have written."""
        texts = list(pieces)
        self.budget.spend(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902 (kwargs may have any name)
        of = getattr(__obj, "__self__", None)
        if of is __self:  # what was put into the template, and `range`
            return __obj(*args, **_own(kwargs))
        budget = __self.budget
        budget.tick()
        if isinstance(__obj, types.BuiltinMethodType) and not isinstance(of, types.ModuleType):
            if not check_method(budget, of, __obj.__name__, args, _own(kwargs)):
                raise SecurityError(f"{__obj.__name__} of {type(of).__name__} may not be called")
            return __obj(*args, **_own(kwargs))
        if isinstance(__obj, (Macro, LoopContext)):
            budget.enter_macro()
            try:
                return super().call(__context, __obj, *args, **kwargs)
            finally:
                budget.leave_macro()
        if not (isinstance(of, LoopContext) or isinstance(__obj, jinja2.Undefined) or __obj in (dict, _Namespace, _raise_exception, _strftime_now)):
            raise SecurityError(f"{type(__obj).__name__} may not be called")
        budget.weigh(args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int)):
            self.budget.weigh(argument)  # it is hashed
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> None:
        """str.format stays what it is, and `call` refuses it."""
        return None

    # ------------------------------------------------------------------------------------------------ globals, filters and tests
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


class _Ticking(NodeTransformer):
    """Puts the budget into the parsed template: `environment.NAME` is out of a template's own reach."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, _tick(node))
        if node.test is not None:
            node.test = nodes.And(_asked("tick", nodes.Const(0)), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, _tick(node))
        return node

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _asked("concatenated", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        return _asked("sliced", node.node, *(part or nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step)))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = _weighed(node.key)  # it is hashed
        return node


class _Generation(Extension):
    """{% generation %}...{% endgeneration %}: what a model has written itself, for those who train on it."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<namespace>"  # and not all that is in it


def _own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what compiled templates hand to functions that take their context."""
    return {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}


def _asked(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _asked("weighed", node)


def _tick(node: nodes.Node) -> nodes.Node:
    """Of a body, with the elements that its literals make each time."""
    elements = sum(len(list(each.iter_child_nodes())) for each in node.find_all((nodes.List, nodes.Tuple, nodes.Dict)))
    return nodes.ExprStmt(_asked("tick", nodes.Const(elements))).set_lineno(node.lineno)


@jinja2.pass_context
def _printed(context: Context, value: Any) -> Any:
    """Every value on its way into the text. With the context, so that nothing is printed while a template is compiled."""
    environment = context.environment
    assert isinstance(environment, Sandbox)
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


def _check_brackets(environment: Sandbox, source: str) -> None:
    """Before the parser recurses into them."""
    depth = chain = 0
    for _, token, text in environment.lexer.tokeniter(source, None, None, None):
        if token != "whitespace":
            depth += int(text in "([{") - int(text in ")]}") if token == "operator" else 0
            chain = chain + 1 if text in ("not", "-", "+") else 0
        if max(depth, chain) > MAX_NESTING:
            raise jinja2.TemplateSyntaxError(f"expected brackets and signs nested at most {MAX_NESTING} deep, found more", 1)


def _check_nesting(tree: nodes.Node) -> None:
    """Before the compiler recurses into it. And no other file: templates that include one have no directory to find it in."""
    level, depth = [tree], 0
    while level:
        depth += 1
        if depth > 4 * MAX_NESTING:
            raise jinja2.TemplateSyntaxError(f"expected statements and expressions nested at most {4 * MAX_NESTING} deep, found more", 1)
        for node in level:
            if isinstance(node, (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)):
                raise jinja2.TemplateSyntaxError(f"expected a template of one piece, found {type(node).__name__.lower()}", node.lineno)
        level = [child for node in level for child in node.iter_child_nodes()]


def lines_of(template: jinja2.Template, error: BaseException) -> Iterator[int]:
    """Lines of the template that an error came through."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            yield template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
