"""Writes what the pages say of each field of a configuration from its dataclass: `python docs/write_reference.py`.

All of reference/configuration.md, and in the page of each method the table of its options, between two comments.
tests/test_docs_pages.py fails if either is not up to date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DOCS = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))

from docs.generated import replaced  # noqa: E402
from mind.config import DataConfig, MethodOptions, MindConfig, StageConfig, StudentConfig  # noqa: E402
from mind.curation.config import FilterConfig, FilterOptions  # noqa: E402
from mind.evaluation.config import SamplingConfig  # noqa: E402
from mind.experiment.plan import Plan  # noqa: E402
from mind.methods import METHODS  # noqa: E402
from mind.teacher.config import BudgetConfig, GenerateConfig, JudgeConfig, TrafficConfig  # noqa: E402

BEGIN = "<!-- written by docs/write_reference.py -->"
_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null", dict: "object"}


def main() -> None:
    for page, text in pages().items():
        page.write_text(text)


def pages() -> dict[Path, str]:
    """Every page that this file writes, wholly or in part, with its text."""
    found = {DOCS / "reference" / "configuration.md": configuration_page()}
    for name, method in METHODS.items():
        page = DOCS / "methods" / f"{page_of_method(name)}.md"
        if method.Options is not MethodOptions:
            found[page] = replaced(page.read_text(), BEGIN, f"\n{option_table(method.Options)}\n")
    return found


def page_of_method(name: str) -> str:
    """The page of a method: the parts of LoRID share one."""
    return "lorid" if name.startswith("lorid-") else name


def configuration_page() -> str:
    """reference/configuration.md."""
    train = [
        ("The run", "", MindConfig),
        *(
            (f"`{field.name}`", field.name, type(getattr(MindConfig(), field.name)))
            for field in dataclasses.fields(MindConfig)
            if dataclasses.is_dataclass(getattr(MindConfig(), field.name)) and field.name != "options"
        ),
        ("`stages`", "stages.NAME", StageConfig),
    ]
    own = [f"[`{name}`](../methods/{page_of_method(name)}.md#options)" for name in METHODS if has_options(name)]
    parts = [
        _INTRODUCTION,
        "## `mind train`\n",
        *(f"### {title}\n\n{_about(kind)}{table(kind, prefix)}" for title, prefix, kind in train),
        f"### `options`\n\nThe options of the method. {', '.join(own)} have some; each page has the table.\n",
        *(f"## {title}\n\n{_about(kind)}{nested(kind)}" for title, kind in _OTHERS.items()),
    ]
    return "\n".join(parts)


_INTRODUCTION = f"""# Configuration

Every field of every configuration, with its type, its default and its meaning.

{BEGIN}

A field `train.max_steps` is the option `--train.max-steps` of the command and `{{"train": {{"max_steps": ...}}}}` in a
JSON file, which `--config FILE` reads. Options on the command line count more than those of the file. A run writes the
whole configuration into its `config.json`, which is such a file. A field of another type or outside its bounds, and a
field that there is not, is one line on standard error before anything is written.

[paper] marks what arXiv 2601.03717 states, [ours] what it leaves open.
"""
_OTHERS = {
    "`mind data generate`": GenerateConfig,
    "`mind data judge`": JudgeConfig,
    "`mind data filter`": FilterOptions,
    "Rules of `mind data filter`": FilterConfig,
    "Samples of `mind evaluate`": SamplingConfig,
    "A plan of `mind experiment`": Plan,
}


_PLACES = {
    StudentConfig: "[student](#student)",
    DataConfig: "[data](#data)",
    TrafficConfig: "[traffic](#traffic)",
    BudgetConfig: "[budget](#budget)",
    FilterConfig: "[the rules](#rules-of-mind-data-filter), whose options are without `filter.`",
}


def has_options(name: str) -> bool:
    return METHODS[name].Options is not MethodOptions


def _about(kind: type) -> str:
    return f"{one_line(inspect.getdoc(kind) or '')}\n\n"


def nested(kind: type, prefix: str = "") -> str:
    """The table of a configuration, and one for each dataclass in it."""
    hints = get_type_hints(kind)
    parts = [table(kind, prefix)]
    known = [*_OTHERS.values(), StudentConfig, DataConfig]
    if kind is not GenerateConfig:
        known += [TrafficConfig, BudgetConfig]
    for field in dataclasses.fields(kind):
        inner = _dataclass_in(hints[field.name])
        if inner in known:
            parts.append(f"`{field.name}.*`: see {_PLACES[inner]}.\n")
        elif inner is not None:
            name = f"{prefix}.{field.name}".strip(".")
            shown = name if dataclasses.is_dataclass(hints[field.name]) else f"{name}.NAME"
            parts.append(f"### `{shown}`\n\n{_about(inner)}{table(inner, shown)}")
    return "\n".join(parts)


def _dataclass_in(hint: Any) -> type | None:
    """A dataclass that a field holds, alone or as the values of a mapping."""
    found = [some for some in (hint, *get_args(hint)) if dataclasses.is_dataclass(some)]
    return found[0] if found else None  # pyright: ignore[reportReturnType]


def table(kind: type, prefix: str) -> str:
    """The fields of a dataclass that are no dataclasses themselves."""
    hints = get_type_hints(kind)
    meanings = docstrings(kind)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if _dataclass_in(hints[field.name]) is None:
            name = f"{prefix}.{field.name}".strip(".")
            cells = (f"`{name}`", type_in_words(hints[field.name]), default_of(field), meanings.get(field.name, ""))
            rows.append(_row(cells))
    return "\n".join(rows) + "\n"


def option_table(kind: type[MethodOptions]) -> str:
    """The options of a method, with what its numbers may be."""
    hints, meanings = get_type_hints(kind), docstrings(kind)
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        allowed = kind.BOUNDS.get(field.name) or type_in_words(hints[field.name])
        flag = f"`--options.{field.name.replace('_', '-')}`"
        rows.append(_row((flag, allowed, default_of(field), meanings.get(field.name, ""))))
    return "\n".join(rows) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def default_of(field: dataclasses.Field) -> str:
    """As JSON has it; a field without a default must be given."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    return f"`{json.dumps(value)}`"


def type_in_words(hint: Any) -> str:
    """The values that a field takes."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(type_in_words(part) for part in parts)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in parts)
    if origin is tuple:
        if parts[-1] is not Ellipsis:
            return f"list of {len(parts)} {type_in_words(parts[0])}s"
        inner = type_in_words(parts[0])
        return f"list of {inner}" if "`" in inner else f"list of {inner}s"
    if origin is None:
        return _PLAIN.get(hint, "object")
    return "object"


def docstrings(kind: type) -> dict[str, str]:
    """The text below each field, of the class that says it last."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if dataclasses.is_dataclass(one):
            found |= dict(_own_docstrings(one))
    return found


def _own_docstrings(kind: type) -> Iterator[tuple[str, str]]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield field.target.id, one_line(str(after.value.value))  # pyright: ignore[reportAttributeAccessIssue]


def one_line(text: str) -> str:
    """A docstring as prose of Markdown: one line, and no character that would begin a tag or a link."""
    text = re.sub(r"\s+", " ", text).strip()
    return text.replace("<", "&lt;")


if __name__ == "__main__":
    main()
