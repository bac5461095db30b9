"""Finds the words of a text in any script.

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces between words, and only a dictionary knows where one
ends. Each of their letters is a word here. A vowel sign or an accent belongs to the letter before it, in every script.
"""

from __future__ import annotations

import functools
import re
import unicodedata

UNSPACED = (
    "\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
    "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3040-\u30ff\u31f0-\u31ff"  # kana and signs
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""The letters of scripts without spaces between words, for a set of characters in a regular expression."""
_ATTACHED = f"{UNSPACED}\uac00-\ud7a3"
"""The same with Hangul, which writes particles and units without a space before them."""
_SEAM = re.compile(rf"(?<=[{_ATTACHED}])(?=[-+$]?[0-9A-Za-z])|(?<=[0-9A-Za-z%])(?=[{_ATTACHED}])")


def words(text: str) -> list[str]:
    """The words of `text` in their order, without punctuation. In a script without spaces each letter is one."""
    return _word().findall(text)


def is_letter_alone(word: str) -> bool:
    """Whether this word of `words` is a letter of a script without spaces between words: less than a word, mostly."""
    return _LETTER.match(word) is not None


def with_seams(text: str) -> str:
    """`text` with a space between ASCII letters or digits and the letters of scripts that write none there.

    Then "有12个" has the number 12 as "has 12 of" has it: to Python's \\b and \\w a digit and a letter are one word.
    """
    return text if text.isascii() else _SEAM.sub(" ", text)


def ends_word(text: str, position: int) -> bool:
    """Whether a word may end at `position` of `text`. In a script without spaces, only punctuation and a few words that
    often follow an answer say so: "東京です" ends the word "東京", "東京都" does not."""
    return _END.match(text, position) is not None


@functools.cache
def word_pattern() -> str:
    """A regular expression, without groups, of the words that `words` finds."""
    mark, letter = f"[{_marks()}]", f"[^\\W{UNSPACED}]"
    return rf"(?=\w)[{UNSPACED}]{mark}*|{letter}+(?:{mark}+{letter}*)*"


_LETTER = re.compile(f"[{UNSPACED}]")
_END = re.compile(
    r"(?!\w)|です|でし|である|だ(?!け)|なので|が(?=正解|答え)|因[为為]|所以|[就便才]?是(?=正[确確]|答案)"
    r"|입니다|이다|이에요|예요|이므로|[가이](?=\s?정?답)"
)


@functools.cache
def _word() -> re.Pattern[str]:
    return re.compile(word_pattern())


def _marks() -> str:
    """The combining marks, such as the vowel signs of Hindi and Thai, which \\w leaves out; as ranges."""
    codes = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M")]
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
