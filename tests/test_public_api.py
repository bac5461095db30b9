"""The public names of mind_kernels, their parameters, defaults and annotations are those of public_api.txt.

Users depend on them, so they change on purpose only: `python -m tests.test_public_api` writes the file anew.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mind_kernels

FROZEN = Path(__file__).parent / "public_api.txt"
PACKAGES = (mind_kernels,)


def describe(module: ModuleType) -> list[str]:
    """A line for each public name of a package, and below it one for each parameter, field and property."""
    lines = []
    for name in sorted(module.__all__):
        value = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if inspect.isfunction(value):
            lines += _function(path, value)
        elif inspect.isclass(value):
            lines += _class(path, value)
        else:
            lines.append(f"{path}: {type(value).__name__}")
    return lines


def _function(path: str, function: Callable[..., Any]) -> list[str]:
    signature = inspect.signature(function)
    lines, keyword_only = [f"{path} -> {signature.return_annotation}"], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("    *")
            keyword_only = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        lines.append(f"    {parameter.name}{annotation}{default}")
    return lines


def _class(path: str, kind: type) -> list[str]:
    bases = ", ".join(base.__name__ for base in kind.__bases__ if base is not object)
    lines = [f"class {path}({bases})"]
    fields = kind.__annotations__ if "__annotations__" in vars(kind) else {}
    defaults = getattr(kind, "_field_defaults", {})
    if dataclasses.is_dataclass(kind):
        defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    for name, annotation in fields.items():
        annotation = getattr(annotation, "__forward_arg__", annotation)
        lines.append(f"    {name}: {annotation}" + (f" = {defaults[name]!r}" if name in defaults else ""))
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, property) and not name.startswith("_"):
            lines.append(f"    property {name}")
    return lines


def current() -> list[str]:
    return [line for package in PACKAGES for line in describe(package)]


def test_public_names_and_signatures_are_frozen():
    frozen = FROZEN.read_text().splitlines()
    difference = list(difflib.unified_diff(frozen, current(), FROZEN.name, "this code", lineterm=""))
    assert not difference, "\n".join([*difference, "on purpose? then: python -m tests.test_public_api"])


@pytest.mark.parametrize("name", [name for name in mind_kernels.__all__ if name.startswith("linear_")])
def test_overloads_are_the_function(name):
    """But for `return_stats`, on which the type of the result depends; a function without it needs none."""
    function = getattr(mind_kernels, name)
    signature = inspect.signature(function)
    overloads = [inspect.signature(each) for each in typing.get_overloads(function)] or [signature]
    results = [each.return_annotation for each in overloads]
    assert (len(overloads) == 2) == ("return_stats" in signature.parameters)
    assert " | ".join(results) == signature.return_annotation
    for each in overloads:
        for parameter in each.parameters.values():
            if parameter.name == "return_stats":
                assert "Literal" in parameter.annotation
            else:
                assert parameter == signature.parameters[parameter.name]
        assert list(each.parameters) == list(signature.parameters)


@pytest.mark.parametrize("name", mind_kernels.__all__)
def test_every_public_name_is_documented(name):
    """A function's docstring describes each parameter; a string below each field of a class describes that."""
    value = getattr(mind_kernels, name)
    documented = inspect.getdoc(value) or ""
    assert documented
    if inspect.isfunction(value):
        described = set(re.findall(r"^    (\w+): ", documented, re.MULTILINE))
        assert set(inspect.signature(value).parameters) <= described
    for field in getattr(value, "__annotations__", {}) if inspect.isclass(value) else ():
        assert re.search(rf'^    {field}: .*\n    """', inspect.getsource(value), re.MULTILINE), field


if __name__ == "__main__":
    FROZEN.write_text("\n".join(current()) + "\n")
