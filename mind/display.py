"""Makes texts and numbers fit to be shown; a model, a user or a stranger may have written the texts."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Characters that are invisible or can reorder the text around them: shown by name. Surrogates cannot be encoded in
# UTF-8.
_UNREADABLE = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if chr(code) not in "\t\n"
}
_UNREADABLE |= {
    code: f"[U+{code:04X}]" for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def readable(text: str, limit: int | None = None) -> str:
    """`text` made safe to show on a terminal or a page, which then obeys no control character in it; cut after `limit`
    characters.

    Control characters become U+FFFD, marks of writing direction become their code, and " ..." replaces what is cut off.
    """
    cut = limit is not None and len(text) > limit
    return text[:limit].replace("\r\n", "\n").translate(_UNREADABLE) + (" ..." if cut else "")


def one_line(text: str, limit: int | None = None) -> str:
    """`readable` text in which a space replaces each run of white space."""
    return readable(" ".join(text.split()), limit)


def code_span(value: object, limit: int = 200) -> str:
    """A code span of Markdown that shows `value` on one line, whatever characters it has; cut after `limit`
    characters."""
    text = one_line(str(value), limit) or " "
    fence = "`" * (_longest_fence(text) + 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_block(text: str, language: str) -> list[str]:
    """The lines of a fenced block of Markdown that shows `text`, whatever characters it has."""
    fence = "`" * max(3, _longest_fence(text) + 1)
    return [fence + language, *readable(text).split("\n"), fence]


def _longest_fence(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def number_of(count: float, noun: str) -> str:
    """A count with its noun: "1 question", "1,227 questions"."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share in percent: "58.0 %"."""
    return f"{100 * share:.1f} %"


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first `limit` names and, if there are more, their total: "a, b, c, ... (7 in all)"."""
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def meant(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A suggestion for the end of a message: the name among `known` most similar to `word`; empty if none is
    similar."""
    near = alike(word, known, cutoff)
    return f"; perhaps you meant {near}" if near else ""


def alike(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name among `known` most similar to `word`, in any case; None if none is similar."""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def path_meant(path: Path) -> str:
    """A suggestion for the end of a message: the existing path most similar to this one; empty if none is similar, or
    this one exists."""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not os.path.exists(found / part):  # False for a name that is too long, too
            names = os.listdir(found) if os.access(found, os.R_OK) and os.path.isdir(found) else []
            # Without suffixes first: ".json" alone makes no two files alike.
            stems = difflib.get_close_matches(Path(part).stem, {Path(name).stem for name in names})
            near = difflib.get_close_matches(part, [name for name in names if Path(name).stem in stems], n=1)
            if not near:
                return ""
            part = near[0]
        found /= part
    return "" if found == path else f"; perhaps you meant {found}"


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {one_line(str(error), 300)}"


def whole_characters(text: str) -> str:
    """`text` with U+FFFD in place of lone surrogates (halves of a character), which neither UTF-8 nor a tokenizer
    accepts."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
