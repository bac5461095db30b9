"""Texts that a model, a user or a stranger wrote, made fit to be shown."""

from __future__ import annotations

# Invisible, or able to reorder the text around them: shown by name. Surrogates have no place in UTF-8.
_UNREADABLE = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if chr(code) not in "\t\n"
}
_UNREADABLE |= {
    code: f"[U+{code:04X}]" for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def readable(text: str, limit: int) -> str:
    """The first `limit` characters, with control characters as U+FFFD and marks of writing direction as their code."""
    return text[:limit].replace("\r\n", "\n").translate(_UNREADABLE)


def one_line(text: str, limit: int) -> str:
    """`text` with a space for each run of white space, and then its first `limit` characters."""
    return " ".join(text.split())[:limit]


def whole_characters(text: str) -> str:
    """`text` with U+FFFD for half of a character, a lone surrogate, which neither UTF-8 nor a tokenizer takes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
