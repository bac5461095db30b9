"""Texts that a model, a user or a stranger wrote, made fit to be shown."""

from __future__ import annotations

from collections.abc import Sequence

# Invisible, or able to reorder the text around them: shown by name. Surrogates have no place in UTF-8.
_UNREADABLE = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if chr(code) not in "\t\n"
}
_UNREADABLE |= {
    code: f"[U+{code:04X}]" for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def readable(text: str, limit: int | None = None) -> str:
    """`text`, or its first `limit` characters, for a terminal or a page, which shall show it and obey none of it.

    Control characters become U+FFFD, marks of writing direction their code.
    """
    return text[:limit].replace("\r\n", "\n").translate(_UNREADABLE)


def one_line(text: str, limit: int | None = None) -> str:
    """`readable` text with a space for each run of white space, or its first `limit` characters."""
    return " ".join(text.split()).translate(_UNREADABLE)[:limit]


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first `limit` names and, if there are more, how many: "a, b, c, ... (7 in all)"."""
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {one_line(str(error), 300)}"


def whole_characters(text: str) -> str:
    """`text` with U+FFFD for half of a character, a lone surrogate, which neither UTF-8 nor a tokenizer takes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
