"""Words: names, days and everything else that is not a number or a formula. Compared as words, not as LaTeX."""

from __future__ import annotations

import re

from mind.grading.answer_type import AnswerType
from mind.grading.calendar_day import full_name
from mind.grading.latex import compare_latex
from mind.grading.latex_notation import normal_latex
from mind.grading.number_notation import ORDINAL, in_digits
from mind.grading.plain_text import LATEX_SIGNS, bare, sentences, without_latex_text
from mind.records import Grade, Question

_FONT = re.compile(r"\s*\\(?:text|mbox|mathrm|textbf|mathbf|textit)\s*\{[^{}]*\}\s*\.?\s*")
_WORDS = re.compile(r"[^\W_]+(?:['.,&/ -]{1,3}[^\W_]+)*[.!]?")
_ORDINAL_IN_DIGITS = re.compile(r"(?:the\s)?[0-9]{1,9}(?:st|nd|rd|th)\.?", re.IGNORECASE)
_LONG_WORD = re.compile(r"\b(?!(?:and|sin|cos|tan|cot|sec|csc|log|mod|exp|max|min)\b)[^\W\d_]{3,}")
_SEPARATOR = re.compile(r"\s?[,;/&+]\s?(?:and\s)?|\sand\s", re.IGNORECASE)
_ABBREVIATED = re.compile(
    r"(?:(?<=\bSt)|(?<=\bM[rst])|(?<=\b[DJS]r)|(?<=\bFt)|(?<=\bMrs)|(?<=\bProf))\."
    r"|(?<=\b[A-Z])\.(?=\s?[A-Z])(?!\s(?:The|It|This|That|Because|He|She|They|We|In|So|An?|But|As|Since)\b)"
)
_CLAUSES = re.compile(
    r"[;:]|[.!?]\s+\S|\b(?:but|whether|if|fails?|nobody|unclear|unknown|unless|except)\b", re.IGNORECASE
)
"""What follows or precedes the gold answer may be about something else."""
_REMAINDER = re.compile(r"(?<=[0-9])\s?r\.?\s?(?=[0-9])")
_FEW = 2
_ARTICLE = re.compile(r"(?:an?|the)\s")
_FRAME = re.compile(
    r"(?:(?:it|he|she|they|this|that|which)\s(?:is|are|was|were|falls\son|lands\son|must\sbe|would\sbe)\s)?"
    r"(?:on\s|in\s|at\s)?(?:an?\s|the\s)?"
)
_OR = r"(?:or|nor|maybe|perhaps|possibly)\b"
_CLAUSE_END = re.compile(rf"[,;](?=\s)(?!\s{_OR})|\s?\((?!{_OR})|\s(?:because|since|as)\s|\s-\s|\u2014")
_SAID_LAST = r"\b(?:is|are|was|were|be|on|in|at|named|called)\s(?:an?\s|the\s)?"
_ALSO_WORDS = frozenset({"sun", "sat", "wed", "mon", "mar", "jan", "jun", "dec"})
"""Abbreviations of months and days of the week that may mean something else in a gold answer."""
_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|or|either|rather\sthan|instead\sof|over|wrong|doubt|doubtful|used\sto|maybe|perhaps"
    r"|(?:many|some|most|people)\s(?:\w+\s)?(?:think|thought|say|said|believe|guess))\b|n't\b"
)


class Words(AnswerType):
    """Equal in any case, without articles and quotes. A longer statement that contains the gold answer is undecided."""

    name = "words"

    def fits(self, question: Question) -> bool:
        if question.choices is not None:
            return False
        answer = question.answer.strip()
        if _FONT.fullmatch(answer) or _ORDINAL_IN_DIGITS.fullmatch(answer):
            return True
        return _WORDS.fullmatch(answer) is not None and _LONG_WORD.search(answer) is not None

    def readable(self, response: str) -> str:
        """Without the periods of abbreviations, which end no sentence: St Louis, John F Kennedy."""
        return _ABBREVIATED.sub("", response)

    def marked(self, statement: str, question: Question) -> str | None:
        return statement

    def unmarked(self, text: str, question: Question) -> str | None:
        """The gold answer, if the last sentence contains it and denies nothing: whether it names another answer is
        unknown. None if the first sentence is another answer in few words."""
        first, last = sentences(text)[:1], sentences(text)[-1:]
        is_short = first != last and len(first[0].split()) <= _FEW
        if is_short and self.compare(first[0], question)[0] != "right":
            return None
        return last[0] if last and self.compare(last[0], question)[0] == "right" else None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        return compare_words(question.answer, stated)


def compare_words(gold: str, stated: str) -> tuple[Grade, str]:
    """Whether `stated` says `gold` and, but for a frame or a clause after it, no more."""
    words, said = _normal(gold), _normal(stated)
    clause = _normal(_CLAUSE_END.split(without_latex_text(stated), maxsplit=1)[0])
    if words in (said, clause):
        return "right", "the same words"
    gold_latex = normal_latex(gold)
    if gold_latex == normal_latex(stated):
        return "right", "the same in LaTeX"
    items = _items(gold)
    if len(items) > 1 and sorted(items) == sorted(_items(stated)):
        return ("right", "the same list") if items == _items(stated) else ("unparsed", "the list in another order")
    if re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said):
        return ("unparsed", "more than the words") if _CLAUSES.search(stated) else _mentioned(words, said)
    if not said:
        return "unparsed", "no words"
    if _same_name(words, said) or _same_name(words, clause):
        return ("unparsed", "perhaps abbreviated") if words in _ALSO_WORDS else ("right", "the same name")
    if LATEX_SIGNS.search(without_latex_text(stated)) and not _FONT.fullmatch(gold):
        return compare_latex(gold, stated)
    if gold_latex == r"\emptyset" and not re.search("[0-9]", stated):
        return "unparsed", "perhaps no solution in other words"  # none, impossible
    return "wrong", "other words"


def _same_name(gold: str, said: str) -> bool:
    """Whether both are names of the same month or day of the week, as in "Tue" and "Tuesday"."""
    return full_name(gold) == full_name(said)


def _normal(text: str) -> str:
    """`text` in lower case, without punctuation around words and without articles before nouns."""
    text = bare(text)
    text = in_digits(text).lower() if ORDINAL.search(text) else text
    text = _REMAINDER.sub(" remainder ", text)
    text = re.sub(r"\.(?![0-9])", "", re.sub("[-,]", " ", text))
    return _FRAME.sub("", " ".join(text.split()), count=1)


def _items(text: str) -> list[str]:
    """The items of a list in words: "red, green and blue"."""
    return [item for part in _SEPARATOR.split(text) if (item := _normal(part))]


def _mentioned(gold: str, said: str) -> tuple[Grade, str]:
    """The grade of a statement that contains the gold answer: right if it ends with it, as in "the capital is Paris",
    and denies nothing."""
    rest = re.sub(rf"(?<!\w){re.escape(gold)}(?!\w)", "", said)
    if not _DENIAL.search(rest) and re.search(rf"{_SAID_LAST}{re.escape(gold)}\Z", said):
        return "right", "the same words at its end"
    return "unparsed", "more than the words"
