"""A faster interpreter of Triton. It replaces the functions of triton.language again whenever a kernel calls a
function, which is half of its time: here once per launch. A version of Triton that does this elsewhere takes as long as
it takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any


def replacements() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """(where, name, what is to stand there)"""
    from triton.runtime import interpreter

    if hasattr(interpreter, "_patch_lang"):
        yield interpreter, "_patch_lang", _once_per_launch(interpreter)


def _once_per_launch(interpreter: Any) -> Callable[..., Any]:
    original, patched = interpreter._patch_lang, set()
    known = {id(interpreter.tl), id(interpreter.tl.core)}

    @functools.cache
    def languages(function: Any) -> set[int]:
        return known & set(map(id, function.__globals__.values()))

    def patch(function: Any) -> Any:
        if languages(function) <= patched:
            return interpreter._LangPatchScope()  # of a function within a launch, which nobody restores
        first, scope = not patched, original(function)
        patched.update(languages(function))
        if first:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    return patch
