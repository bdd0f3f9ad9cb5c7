"""A Jinja environment for templates that nobody trusts: plain values only, a list of what may be called, and a budget for all of it.

Jinja's own sandbox keeps templates from Python's internals. What it leaves open is time and memory, and what operators, filters and
methods do with them; so the parsed template is changed before it is compiled (template_syntax), what it may call is a list of ours
(template_functions), and both ask a budget (template_budget). The dialect is that of transformers: trimmed blocks, break and continue,
and {% generation %} as a mark without effect.
"""

import types
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro

from paceline._core import ModelFileError
from paceline.loading.strict_json import shown
from paceline.template_budget import ELEMENT, Budget, Limits, check_method
from paceline.template_functions import Refused, TemplateFunctions, own_functions
from paceline.template_syntax import Generation, Ticking, check_brackets, check_nesting

__all__ = ["Refused", "Sandbox", "lines_of"]

FILENAME = "<chat template>"


class Sandbox(TemplateFunctions):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, where: str, limits: Limits) -> None:
        super().__init__(limits, ["jinja2.ext.loopcontrols", Generation])
        self._where = where

    def read(self, source: str) -> tuple[jinja2.Template, set[str]]:
        """(template, names that it asks for). Raises ModelFileError."""
        self._running.budget = Budget(self._limits, self._where, (jinja2.Undefined,))
        try:
            check_brackets(self, source)
            tree = self.parse(source)
            check_nesting(tree)
            asked = meta.find_undeclared_variables(tree) - self.globals.keys()
            code = self.compile(Ticking().visit(tree), filename=FILENAME)
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

    # ------------------------------------------------------------------------------------------------ what compiled templates call
    def tick(self, elements: int) -> bool:
        return self.budget.tick(elements)

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
        if not (isinstance(of, LoopContext) or isinstance(__obj, jinja2.Undefined) or __obj in own_functions):
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


def _own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what compiled templates hand to functions that take their context."""
    return {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}


def lines_of(template: jinja2.Template, error: BaseException) -> Iterator[int]:
    """Lines of the template that an error came through."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            yield template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
