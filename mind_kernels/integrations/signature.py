"""Checks that functions of a library, which an integration replaces, have the expected arguments."""

from __future__ import annotations

import importlib.metadata
import inspect
from typing import Any


def expect(library: str, owner: Any, name: str, *arguments: str) -> None:
    """Raises ImportError, which names the library's version, unless a function has these arguments in this order.

    Args:
        library: the name of the distribution.
        owner: the module or class to look in.
        name: the dotted path from there to the function: "forward", "SomeClass.forward".
        arguments: the names of all its arguments, `self` and `ctx` included.
    """
    function: Any = owner
    for part in name.split("."):
        function = getattr(function, part, None)
    taken = None if function is None else [*inspect.signature(function).parameters]
    if taken != [*arguments]:
        place = f"{getattr(owner, '__module__', '')}.{owner.__qualname__}" if inspect.isclass(owner) else owner.__name__
        found = "does not exist" if taken is None else f"takes {', '.join(taken) or 'nothing'}"
        raise ImportError(
            f"{library} {importlib.metadata.version(library)}: {place}.{name} {found}: expected {', '.join(arguments)}"
        )
