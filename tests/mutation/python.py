"""Mutants of Python source. Each changes one operator, condition, constant or statement."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}
_WITHOUT_EFFECT = ("log.", "_log.", "tracing.", "warnings.")
"""Calls without effect on behaviour."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a source, identified by `description`."""

    line: int
    description: str
    code: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()
    found: list[Mutant] = []
    for node, new in _changes(ast.parse(source)):
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = raw[begin:end].decode()
        code = (raw[:begin] + new.encode() + raw[end:]).decode()
        found.append(Mutant(node.lineno, f"{_short(old)} -> {_short(new)}", code))
    return sorted(found, key=lambda mutant: mutant.line)


def _short(text: str) -> str:
    return " ".join(text.split())[:160]


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in _executed(tree):
        for changed in (*_conditions(node), *_values(node), *_texts(node), *_statements(node)):
            yield node, changed
        if isinstance(node, ast.If | ast.While):
            yield node.test, f"not ({ast.unparse(node.test)})"


def _conditions(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Compare(ops=[op, *others], left=left, comparators=values) if type(op) in _COMPARED:
            yield f"({ast.unparse(ast.Compare(left, [_COMPARED[type(op)](), *others], values))})"
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"({ast.unparse(ast.BoolOp(other, values))})"
            for position in range(len(values)):
                rest = [*values[:position], *values[position + 1 :]]
                yield f"({ast.unparse(rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield f"({ast.unparse(ast.IfExp(test, orelse, body))})"
        case _:
            pass


def _values(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _COUNTED:
            yield f"({ast.unparse(ast.BinOp(left, _COUNTED[type(op)](), right))})"
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() as value):
            yield f"({value + 1})"
        case _:
            pass


def _texts(node: ast.AST) -> Iterator[str]:
    """Drop the literal parts of an f-string, and the negations in one that is a query."""
    if not isinstance(node, ast.JoinedStr):
        return
    for position, part in enumerate(node.values):
        if isinstance(part, ast.Constant):
            text = str(part.value)
            news = ("", text.replace("-@", "@"), text.replace("[(", "["), text.replace(" (", " "))
            for new in [new for new in dict.fromkeys(news) if new != text]:
                values = [*node.values[:position], ast.Constant(new), *node.values[position + 1 :]]
                yield ast.unparse(ast.JoinedStr(values))


def _statements(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield "return None"
        case ast.Raise():
            yield "pass"
        case ast.Expr(value=ast.Call() | ast.Await()) if not ast.unparse(node).startswith(_WITHOUT_EFFECT):
            yield "pass"
        case _:
            pass


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the nodes that do something at run time: no annotations, imports, messages or assertions."""
    yield node
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "bases", "keywords"} and not isinstance(node, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_skipped(child):
                yield from _executed(child)


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith(_WITHOUT_EFFECT)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert)
