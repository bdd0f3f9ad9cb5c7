"""A chat template between its text and its code: what is too deep to be compiled is refused, and what is parsed is changed so that the budget
sees it: loops and macros tick, comparisons, slices and `~` ask first.
"""

from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer

MAX_NESTING = 64
"""Of brackets and of statements. The compiler recurses, and templates in use reach about twenty."""


def check_brackets(environment: jinja2.Environment, source: str) -> None:
    """Before the parser recurses into them."""
    depth = chain = 0
    for _, token, text in environment.lexer.tokeniter(source, None, None, None):
        if token != "whitespace":
            depth += int(text in "([{") - int(text in ")]}") if token == "operator" else 0
            chain = chain + 1 if text in ("not", "-", "+") else 0
        if max(depth, chain) > MAX_NESTING:
            raise jinja2.TemplateSyntaxError(f"expected brackets and signs nested at most {MAX_NESTING} deep, found more", 1)


def check_nesting(tree: nodes.Node) -> None:
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


class Ticking(NodeTransformer):
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


class Generation(Extension):
    """{% generation %}...{% endgeneration %}: what a model has written itself, for those who train on it."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _asked(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _asked("weighed", node)


def _tick(node: nodes.Node) -> nodes.Node:
    """Of a body, with the elements that its literals make each time."""
    elements = sum(len(list(each.iter_child_nodes())) for each in node.find_all((nodes.List, nodes.Tuple, nodes.Dict)))
    return nodes.ExprStmt(_asked("tick", nodes.Const(elements))).set_lineno(node.lineno)
