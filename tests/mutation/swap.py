"""Puts a changed module in the place of the one that is imported, for every name that holds one of its functions."""

from __future__ import annotations

import ast
import gc
import sys
import types
from collections.abc import Iterator


def swap(name: str, path: str, tree: ast.Module, where: str) -> bool:
    """Functions keep their identity and get the changed code; if the change lies in no function, the constants of the
    module that it changes get their new values, in all modules that imported them by name. Returns whether anything has
    changed; raises ImportError if the changed module cannot be imported."""
    code = compile(tree, path, "exec")
    if where:
        return _swap_functions({_key(one): one for one in _codes(code)}, path)
    return _swap_constants(name, code)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _key(code: types.CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _swap_functions(changed: dict[tuple[str, int], types.CodeType], path: str) -> bool:
    taken = False
    for function in gc.get_objects():
        if type(function) is types.FunctionType and function.__code__.co_filename == path:
            other = changed.get(_key(function.__code__))
            if other is not None and other.co_freevars == function.__code__.co_freevars:
                taken |= other != function.__code__
                function.__code__ = other
    return taken


def _swap_constants(name: str, code: types.CodeType) -> bool:
    module, taken = sys.modules[name], False
    fresh = types.ModuleType(name)
    fresh.__dict__.update(__file__=module.__file__, __package__=module.__package__, __spec__=module.__spec__)
    try:
        exec(code, fresh.__dict__)
    except Exception as error:
        raise ImportError(name) from error
    for constant, value in vars(fresh).items():
        former = vars(module).get(constant)
        if constant.isupper() and former is not None and former != value:
            taken = True
            for other in list(sys.modules.values()):
                if vars(other).get(constant) is former:
                    vars(other)[constant] = value
    return taken
