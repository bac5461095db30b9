"""The small changes that a test should notice: another comparison, number, sign or condition, or one statement less."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor", "floor": "ceil", "amax": "amin",
    "amin": "amax", "mean": "sum", "argmax": "argmin", "argmin": "argmax", "argsort": "sort", "extend": "append",
    "rstrip": "lstrip", "startswith": "endswith", "endswith": "startswith", "searchsorted": "bucketize",
    "cumsum": "cumprod",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module's source with one change, which lies in the function `where` ("" if in none) at `line`."""

    line: int
    where: str
    change: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """All of them, in the order of the source's nodes."""
    tree = ast.parse(source)
    for position, (node, where) in enumerate(_nodes(tree)):
        for change, apply in _changes(node):
            changed = copy.deepcopy(tree)
            target, _ = next(one for index, one in enumerate(_nodes(changed)) if index == position)
            apply(target)
            yield Mutant(node.lineno, where, change, ast.fix_missing_locations(changed))


def _nodes(tree: ast.AST, where: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, str]]:
    """Every node that runs when a function is called, or that a constant of the module is computed from."""
    for child in _children(tree):
        inside = (*where, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else where
        if hasattr(child, "lineno"):
            yield child, ".".join(inside)
        yield from _nodes(child, inside)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """No annotation, decorator, default, base class, field of a class or message of an error."""
    if isinstance(node, ast.Module):
        yield from (one for one in node.body if isinstance(one, ast.FunctionDef | ast.ClassDef) or _is_constant(one))
    elif isinstance(node, ast.ClassDef):
        yield from (one for one in node.body if isinstance(one, ast.FunctionDef | ast.ClassDef))
    elif isinstance(node, ast.FunctionDef):
        yield from node.body
    elif isinstance(node, ast.AnnAssign):
        yield from [node.value] if node.value else []
    elif isinstance(node, ast.keyword) and node.arg == "strict":
        pass  # of zip, for sequences of one length
    elif not isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        yield from ast.iter_child_nodes(node)


def _is_constant(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id.isupper() for target in targets)


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                if other := COMPARISONS.get(type(operator)):
                    yield f"{_sign(operator)} becomes {_sign(other())}", _setting_op(index, other)
        case ast.BinOp() | ast.AugAssign():
            if (other := ARITHMETIC.get(type(node.op))) and not _is_text(node):
                yield f"{_sign(node.op)} becomes {_sign(other())}", _setting(op=other())
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield f"{_sign(node.op)} becomes {_sign(other)}", _setting(op=other)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "- is left out", lambda target: _replace(target, target.operand)
        case ast.Constant(value=bool()):
            yield f"{node.value} becomes {not node.value}", _setting(value=not node.value)
        case ast.Constant(value=int() | float()):
            value = node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0
            yield f"{node.value} becomes {value}", _setting(value=value)
        case ast.If() | ast.IfExp() | ast.While():
            yield "the condition is negated", lambda target: setattr(target, "test", _negated(target.test))
        case ast.Name(id=name) if name in NAMES and isinstance(node.ctx, ast.Load):
            yield f"{name} becomes {NAMES[name]}", _setting(id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield f"{name} becomes {NAMES[name]}", _setting(attr=NAMES[name])
        case ast.Expr(value=ast.Call() | ast.Await() | ast.Yield()):
            yield "the statement is left out", lambda target: setattr(target, "value", _never(target.value))
        case ast.Raise():
            yield "the error is left out", _never_raise
        case ast.Break():
            yield "break becomes continue", lambda target: setattr(target, "__class__", ast.Continue)
        case ast.Continue():
            yield "continue becomes break", lambda target: setattr(target, "__class__", ast.Break)


def _setting(**values: object) -> Callable[[ast.AST], None]:
    return lambda target: target.__dict__.update(values)


def _setting_op(index: int, other: type[ast.AST]) -> Callable[[ast.AST], None]:
    return lambda target: target.ops.__setitem__(index, other())


def _negated(test: ast.expr) -> ast.expr:
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def _replace(target: ast.AST, other: ast.AST) -> None:
    target.__class__ = other.__class__
    target.__dict__ = other.__dict__


def _never(value: ast.expr) -> ast.expr:
    """The names in it are still the function's (super() makes one), and a generator remains one."""
    return ast.IfExp(ast.Constant(False), value, ast.Constant(None))


def _never_raise(target: ast.AST) -> None:
    error = copy.copy(target)
    _replace(target, ast.copy_location(ast.If(ast.Constant(False), [error], []), error))


def _is_text(node: ast.BinOp | ast.AugAssign) -> bool:
    """A format or a sum of strings, whose changes fail before any test."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def _sign(operator: ast.AST) -> str:
    """As in source."""
    a, b = ast.Name("a"), ast.Name("b")
    if isinstance(operator, ast.cmpop):
        return ast.unparse(ast.Compare(a, [operator], [b]))[2:-2]
    if isinstance(operator, ast.boolop):
        return ast.unparse(ast.BoolOp(operator, [a, b]))[2:-2]
    return ast.unparse(ast.BinOp(a, operator, b))[2:-2]
