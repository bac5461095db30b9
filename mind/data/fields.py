"""Turns a row into a question: it accepts every notation that has only one meaning, whatever the source of the row."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mind.answer_line import ANSWER_MARKER
from mind.display import alike
from mind.errors import MindError, require
from mind.files import parse_json
from mind.typed_json import described

Answer = tuple[str, Mapping[str, str] | None]
"""An answer and the choices that it belongs to, as in mind.records.Question."""

YES_NO = {"yes": "yes", "no": "no"}
"""The choices of a question whose answer is yes or no, or true or false."""

_KNOWN = ("id", "question", "answer", "choices", "rationales", "response")
"""Columns whose names say what they hold; no other column is taken for one of them."""
_YES_OR_NO = re.compile(r"\s*(yes|no)\s*[.!]?\s*", re.IGNORECASE)
_LOST_BACKSLASH = re.compile(
    r"[\b](?=eta\b|ar\b|inom|mod\b|egin|oxed|ullet|ig|oldsymbol)|\f(?=rac|orall|box)"
    r"|\t(?=imes|heta|ext\s*\{|anh?(?:\s*[({\\0-9]|\s[a-z]\b)|o\b|frac|riangle|au\b|ilde|op\b|herefore)"
    r"|\n(?=eq\b|abla\b|otin\b|eg\b|geq|leq)|\r(?=ho\b|ight|angle|ceil|floor|m\b)"
)
"""The start of a LaTeX command whose backslash JSON read as an escape: "\\frac" as a form feed and "rac"."""
_ESCAPES = {"\b": "\\b", "\f": "\\f", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_AROUND_LABEL = " \t\n.():[]"


@dataclass(frozen=True)
class Columns:
    """Which column of a row holds which field."""

    id: str | None = None
    """None: "id" if the row has it, else the file's name and the row's number."""
    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    """None: "choices". A row without the column is a question without choices."""
    marker: str | None = None
    """The answer is the text after this marker in the answer column; None: "####" if the answer has it."""


OWN_COLUMNS = Columns()
"""The columns of files that this package writes."""


def id_of(where: str, row: Mapping[str, Any], columns: Columns, name: str) -> str:
    """The id in a row; `name` if the row has none. Raises a MindError that begins with `where`."""
    column = columns.id or ("id" if "id" in row else None)
    return name if column is None else field_of(where, row, column)


def field_of(where: str, row: Mapping[str, Any], name: str) -> str:
    """The text, or the number as text, in a column; raises a MindError that begins with `where`."""
    return whole_text(where, name, required_text(where, row, name, or_number=True))


def answer_of(where: str, row: Mapping[str, Any], columns: Columns) -> Answer:
    """The answer in a row, and its choices.

    A number becomes its text; true, false, "yes" and "no" become a choice of the two. Choices may be an object of
    labels and texts, {"label": [...], "text": [...]}, pairs of label and text, plain texts, which get the labels A, B
    and so on, or any of these as JSON text. The answer may be a label or a choice's text and, for plain texts, an index
    from 0; if more than one reading fits, they must agree.

    Raises MindError that begins with `where`.
    """
    given = row.get(columns.choices or "choices")
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):  # as in a cell of a table
        given = parse_json(f'{where}: "{columns.choices or "choices"}"', given.encode("utf-8", "surrogatepass"))
    answer = _present(where, row, columns.answer)
    if isinstance(answer, str) or columns.marker is not None:
        answer = _behind_marker(where, columns, field_of(where, row, columns.answer))
    if given is not None:
        choices = _choices(where, columns.choices or "choices", given)
        return _label(where, columns, answer, choices, _are_texts(given)), choices
    if isinstance(answer, bool):
        return "yes" if answer else "no", YES_NO
    text = text_of(where, columns.answer, answer, or_number=True)
    word = _YES_OR_NO.fullmatch(text)
    return (word[1].lower(), YES_NO) if word else (text, None)


def required_text(where: str, row: Mapping[str, Any], name: str, *, or_number: bool = False) -> str:
    """As `text_of` for the value of `name`; also raises a MindError that begins with `where` if the value is
    missing."""
    return text_of(where, name, _present(where, row, name), or_number=or_number)


def text_of(where: str, name: str, value: Any, *, or_number: bool = False) -> str:
    """`value`, which must be a text or, if `or_number`, a finite number, whose text is returned: 2 for 2.0, 0.00002 for
    2e-05.

    Raises a MindError that begins with `where` for other values and for a blank text.
    """
    if or_number and _is_finite_number(value):
        return _number_text(value)
    if not isinstance(value, str):
        expected = "a string or a number" if or_number else "a string"
        raise MindError(f'{where}: "{name}" is {described(value)}: expected {expected}')
    require(_is_visible(value), f'{where}: "{name}" is empty')
    return value


def folded(text: str) -> str:
    """A form of `text` that is equal for texts that differ in case, in compatible characters of Unicode, and in marks
    without a width, such as soft hyphens."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return text if text.isascii() else "".join(one for one in text if unicodedata.category(one) != "Cf")


def _is_visible(text: str) -> bool:
    """Whether `text` has more than white space, control characters and marks without a width."""
    return any(not one.isspace() and unicodedata.category(one) not in ("Cc", "Cf") for one in text)


def whole_text(where: str, name: str, text: str) -> str:
    """`text`; raises a MindError that begins with `where` if it has characters that no real text has.

    These are lone surrogates (halves of a character), and control characters where a backslash should be.
    """
    if half := _SURROGATE.search(text):
        raise MindError(
            f'{where}: "{name}" holds half of a character, \\u{ord(half[0]):04x}, as its character {half.start()}: '
            "write the character itself"
        )
    if lost := _LOST_BACKSLASH.search(text):
        word = re.match("[A-Za-z]*", text[lost.end() :])
        escape = _ESCAPES[lost[0]] + (word[0] if word else "")
        raise MindError(
            f'{where}: "{name}" has {escape} with one backslash, a control character in JSON: write \\{escape}'
        )
    return text


def _present(where: str, row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        others = [str(column) for column in row if name not in _KNOWN or column not in _KNOWN]
        near = alike(name, others)
        remedy = f'; if "{near}" is meant, rename it' if near else ""
        hint = f": the row has {', '.join(others):.500}{remedy}" if others else ""
        raise MindError(f'{where}: "{name}" is missing{hint}')
    return row[name]


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, int):  # of any size, even beyond the range of a float
        return not isinstance(value, bool)
    return isinstance(value, (float, Decimal)) and math.isfinite(value)


def _number_text(value: float | Decimal) -> str:
    """The number without an exponent, as people write it."""
    # the shortest digits are the ones that were written: 6.02e23 is not 602 and many other digits
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}".removesuffix(".0")
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _behind_marker(where: str, columns: Columns, answer: str) -> str:
    _, found, marked = answer.rpartition(columns.marker or ANSWER_MARKER)
    if not found:
        require(columns.marker is None, f'{where}: "{columns.answer}" has no {columns.marker} before the answer')
        return answer
    require(marked.strip() != "", f'{where}: "{columns.answer}" has nothing after {found}')
    return marked.strip()


def _label(where: str, columns: Columns, answer: Any, choices: Mapping[str, str], are_texts: bool) -> str:
    """The label of the choice that `answer` names."""
    if isinstance(answer, bool):
        names = ("yes", "true") if answer else ("no", "false")
        for label, choice in choices.items():
            if label.lower() in names or choice.lower() in names:
                return label
    text = text_of(where, columns.answer, answer, or_number=True)
    by_text = {label for label, choice in choices.items() if choice == text}
    meant = {text} & choices.keys()
    if are_texts:
        meant |= by_text
        if not isinstance(answer, str) and answer in range(len(choices)):  # 1.0, too, as tables with gaps have it
            meant.add(list(choices)[int(answer)])
    meant = meant or by_text or _loosely_meant(text, choices)
    if len(meant) != 1:
        which = "may be any of" if meant else "is not one of"
        raise MindError(
            f'{where}: "{columns.answer}" {text:.60} {which} the choices ' + ", ".join(sorted(meant or choices))
        )
    return meant.pop()


def _loosely_meant(text: str, choices: Mapping[str, str]) -> set[str]:
    """The labels that `text` names as "(b)" or "B.", else the labels of the choices whose texts equal it up to case."""
    bare = text.strip(_AROUND_LABEL).lower()
    labels = {label for label in choices if label.lower() == bare}
    return labels or {label for label, choice in choices.items() if choice.strip().lower() == text.strip().lower()}


def _choices(where: str, column: str, value: Any) -> dict[str, str]:
    """Choices as label -> text."""
    if _are_texts(value):
        require(len(value) <= len(string.ascii_uppercase), f'{where}: "{column}" has {len(value)} texts without labels')
        pairs = list(zip(string.ascii_uppercase, value, strict=False))
    elif isinstance(value, list):
        pairs = [(choice.get("label"), choice.get("text")) for choice in value]
    elif isinstance(value, dict) and value.keys() == {"label", "text"} and isinstance(value["label"], list):
        require(
            isinstance(value["text"], list) and len(value["text"]) == len(value["label"]),
            f'{where}: "{column}" does not have one text for each label',
        )
        pairs = list(zip(value["label"], value["text"], strict=True))
    elif isinstance(value, dict):
        # Arrow adds the labels of other rows
        pairs = [(label, text) for label, text in value.items() if text is not None]
    else:
        raise MindError(
            f'{where}: "{column}" is {described(value)}: expected choices, such as {{"A": "...", "B": "..."}}'
        )
    labels = [text_of(where, f"{column}.label", label, or_number=True) for label, _ in pairs]
    require(len(labels) >= 2, f'{where}: "{column}" has {len(labels)} choices: expected at least 2')
    once = {label.strip().lower() for label in labels}
    require(len(once) == len(labels), f'{where}: "{column}" has a label twice: {", ".join(labels)}')
    texts = [_choice_text(where, f"{column}.{label}", text) for label, (_, text) in zip(labels, pairs, strict=True)]
    return dict(zip(labels, texts, strict=True))


def _choice_text(where: str, name: str, value: Any) -> str:
    """The text of a choice; true and false may also be JSON values, written as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return whole_text(where, name, text_of(where, name, value, or_number=True))


def _are_texts(choices: Any) -> bool:
    """Whether these choices are texts without labels."""
    return isinstance(choices, list) and not all(isinstance(choice, dict) for choice in choices)
