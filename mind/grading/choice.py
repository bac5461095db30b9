"""Multiple choice: the answer is a label, and may also be stated by its text."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeVar

from mind.grading.answer_type import AnswerType
from mind.grading.plain_text import bare, plain_text, sentences, without_latex_text
from mind.grading.quantity import number_value, quantities
from mind.grading.yes_no import marked_yes, unmarked_yes
from mind.records import Grade, Question
from mind.words import ends_word

T = TypeVar("T")

MAX_MENTIONS = 100
"""A sentence that names more choices is repetitive, and asserts none."""

_ARTICLE = re.compile(r"\A(?:an?|the)\s", re.IGNORECASE)
_AFTER_LABEL = r"(?!['’\w]|\s(?!(?:is|as|because|since|would|must|fits|seems|or|and|nor|not|over|but)\b)[a-z])"
"""Words that distinguish the label in "A is the answer" from the article in "A bank is the answer"."""
_AFTER_PRONOUN = _AFTER_LABEL.replace("would|must|", "")
"""The same for the label I: "I would pick E" begins with a pronoun."""
_KIND = r"(?:option|choice|answer|letter|alternative)\s"

# In these patterns a mention is one character, and the text between mentions shows which of them are asserted.
_MENTION = "\ue000"
_LIST = re.compile(f"{_MENTION}(?:,?\\s?{_MENTION})*,?\\s(?:and|or|nor|&)\\s{_MENTION}")
_ONE = re.compile(_MENTION)
_CONSIDERED = re.compile(r"\b(?:considered?|considering|comparing|compare)\s(?:(?:an?|the)\s)?\Z", re.IGNORECASE)
_LISTED = re.compile(r",?\s?(?:and|or|nor|&)?\s?")
_WEIGHED = re.compile(r"\b(?:between|among|of|considered?|comparing|compare)\s\Z", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[,;:\u2014]\s?|\s-\s|\s?[()]\s?"
    r"|(?<!anything)(?<!everything)(?<!all)(?<!any)\s(?=but\b)|\s(?=(?:while|whereas|although|though|yet|because|since|as|so|therefore|thus|hence|leaving|leaves)\b)"
    r"|\sand\s(?=\w|not\b)",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\s*(?:because|since|as|for|although|though|while|whereas|unlike|if)\b|[^,;]*\b(?:might|may|could)\s(?:seem|look|appear)\b",
    re.IGNORECASE,
)
_UNMET = re.compile(r"\W*if\s(?:it(?:'s|\sis|\swas|\swere)?\s?(?:n't|\snot)?|not|neither)\s(?=.{0,40},)", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"\s*(?:so|therefore|thus|hence|but|leaving|leaves|that leaves|instead)\b"
    r"|\b(?:correct|right|answer|best|better|only|must be|choose|chose|pick|select|go with|left with|yes)\b",
    re.IGNORECASE,
)
_NO = r"(?:not|n't|cannot|never|no|none|neither|nor|nobody|nothing|hardly|without)"
_NOT_THIS = re.compile(  # directly before a mention
    rf"(?:\b(?:not|rather\sthan|instead\sof|over|than|unlike|except|all\sbut|any(?:thing)?\sbut|neither|nor|excludes?|reject"
    rf"|dismiss|rul(?:e|es|ed|ing)\sout|eliminat(?:e|es|ed|ing)|avoid)|n't)\s(?:(?:an?|the|be|also|{_KIND.strip()})\s)*\Z",
    re.IGNORECASE,
)
_DENIED = re.compile(
    rf"\b{_NO}\b|n't\b|\b(?:wrong|incorrect|false|out|ruled\sout|eliminated|excluded|rejected|unlikely|unsafe|unsuitable|unrelated|unable|far\sfrom\s(?:right|correct|true)|doubt|doubtful|implausible"
    r"|impossible|irrelevant|tempting|distractors?)\b",
    re.IGNORECASE,
)


class Mention(NamedTuple):
    """A place where a text names a choice."""

    start: int
    end: int
    label: str


class Choice(AnswerType):
    """Compared by label or by text, both in any case."""

    name = "choice"
    request = "the label of the right choice"
    reads_denials = True

    def fits(self, question: Question) -> bool:
        return question.choices is not None

    def marked(self, statement: str, question: Question) -> str | None:
        """The choice that `statement` is or begins with, else as `unmarked`."""
        return marked_label(statement, choices_of(question))

    def unmarked(self, text: str, question: Question) -> str | None:
        """The choice that `text` or its first line is, else the choice asserted by the last sentence that asserts any.

        An example is "(B) is right, and (A) is not".
        """
        choices = choices_of(question)
        names = _names(tuple(choices.items()))
        first, _, rest = text.strip().partition("\n")
        if label := names.whole(text):
            return label
        if not names.whole(first):  # "A) dry palms. Wet palms have less friction."
            first, *others = sentences(text.strip()) or [""]
            is_more = not first.endswith("?") and bare(first).upper() not in choices
            first, rest = first if is_more else "", "\n".join(others)
        if label := names.whole(first):
            conclusions = "\n".join(filter(_CONCLUSION.search, sentences(rest)))
            return label if asserted_label(conclusions, choices) in (None, label) else None
        return asserted_label(text, choices)

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        label = self.marked(stated, question)
        if label is None:
            return "unparsed", "none of the choices"
        if label == question.answer:
            return "right", f"choice {label}"
        return "wrong", f"choice {label}, not {question.answer}"

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        """By its label, or by its text with or without an article before it."""
        if re.match(re.escape(question.answer) + _AFTER_LABEL, statement):
            return True
        described, text = statement.lower(), _gold_text(question)
        if article := _ARTICLE.match(described):
            described = described[article.end() :]
        return described.startswith(text) and ends_word(described, len(text))

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """By its text alone."""
        return _gold_text(question) in sentence.lower()


def choices_of(question: Question) -> Mapping[str, str]:
    """The choices of a question, which must have some."""
    assert question.choices is not None
    return question.choices


def marked_label(statement: str, choices: Mapping[str, str]) -> str | None:
    """The label of the choice that `statement` is or begins with, else of the one that it asserts; None if there is
    none."""
    names = _names(tuple(choices.items()))
    if label := names.whole(statement):
        return label
    if words := _yes_and_no(choices):
        label = marked_label(statement, _labels_alone(choices))
        beside = _WORD_BESIDE.search(statement) if label else None
        if beside and words.get(beside[1].lower() in ("yes", "true")) != label:
            return None  # "A) No" if A is yes
        return label or words.get(marked_yes(statement))
    statement = without_latex_text(statement)
    first = next(names.mentions(statement, at_start=True), None)
    if (
        first
        and first.start <= _start(statement)
        and not _joined(statement, first, names)
        and not _rejected(statement, first)
    ):
        return first.label
    return asserted_label(statement, choices)


def asserted_label(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of the one choice asserted by the last sentence that asserts any; None if there is no single one."""
    if words := _yes_and_no(choices):
        return words.get(unmarked_yes(text)) or asserted_label(text, _labels_alone(choices))
    names = _names(tuple(choices.items()))
    denied: set[str] = set()
    for sentence in reversed(sentences(without_latex_text(text))):
        asserts = not sentence.endswith("?") and not _UNMET.match(sentence)
        mentions = [] if not asserts else list(islice(names.mentions(sentence), MAX_MENTIONS + 1))
        if len(mentions) > MAX_MENTIONS:
            return None
        asserted, others = _asserted(sentence, mentions)
        denied |= others
        if asserted:
            label = asserted.pop()
            return None if asserted or label in denied else label
    return None


def _yes_and_no(choices: Mapping[str, str]) -> dict[bool | None, str]:
    """The labels of yes (or true) and of no (or false), if these are the texts of the choices."""
    labels = {text.strip().lower(): label for label, text in choices.items()}
    if labels.keys() not in ({"yes", "no"}, {"true", "false"}):
        return {}
    return {text in ("yes", "true"): label for text, label in labels.items()}


def _labels_alone(choices: Mapping[str, str]) -> dict[str, str]:
    return {label: label for label in choices}


def _labels_of_one(names: Mapping[str, T]) -> dict[T, str]:
    """The label of each name (its text or value) that a single choice has."""
    counts = Counter(names.values())
    return {name: label for label, name in names.items() if name not in (None, "") and counts[name] == 1}


class _Names:
    """How a text can name the choices of a question."""

    def __init__(self, choices: Mapping[str, str]):
        self._labels = {label.lower(): label for label in choices}
        self._exact = _labels_of_one({label: text.strip().lower() for label, text in choices.items()})
        self._texts = _labels_of_one({label: _ARTICLE.sub("", bare(plain_text(t))) for label, t in choices.items()})
        self._numbers = _labels_of_one({label: number_value(plain_text(text)) for label, text in choices.items()})
        self._has_percents = any("%" in text for text in choices.values())
        self._values = self._numbers if len(self._numbers) == len(choices) else {}
        # "(B)" counts in any case, but a bare label only in its own case: "a." ends many sentences that do not choose
        # "A". Only ASCII letters, because "ſ" is an "s" in any case, but not in lower case.
        label, letters = "|".join(map(re.escape, choices)), [label for label in choices if label.isalpha()]
        self._both = re.compile(rf"[\W_]*({label})\s?[).:\u2014-]+[\s*_]*(.+?)(?:\s\([^()]*\))?[\s.*_]*", re.DOTALL)
        behind = {"A": _AFTER_LABEL, "a": _AFTER_LABEL, "I": _AFTER_PRONOUN}
        letter = "|".join(re.escape(label) + behind.get(label, "") for label in letters) or "(?!)"
        self._label = re.compile(
            rf"(?ai:[(\[<{{\"']\s?({label})\s?[)\]>}}\"'])|\b(?ai:{_KIND}({label}))(?![\w']){_AFTER_LABEL}"
            rf"|(?<![\w'.])({label})(?=[):](?!\w))|(?<![-\w'.])({letter})(?![\w']|-\w)"
        )
        self._first = re.compile(rf"(?ai:({label}))(?=\s*(?:[.,](?![0-9])|[):;(\-\u2014]|\Z)|\s(?:because|as|since)\b)")
        # "book store" is not also a mention of "store".
        # A number counts by its value, and is none in "5 + 3".
        texts = [] if self._values else sorted(self._texts, key=len, reverse=True)
        longest_first = "|".join(map(re.escape, texts))
        self._text = re.compile(rf"(?<!\w)({longest_first})(?:s|es)?(?!\w)" if longest_first else r"(?!)()")

    def whole(self, statement: str) -> str | None:
        """The label of the choice that makes up the whole `statement`."""
        if statement.strip() in self._labels.values():
            return statement.strip()
        if label := self._exact.get(statement.strip().lower()):
            return label
        if both := self._both.fullmatch(statement):  # "A) dry palms"
            same = self._texts.get(_plain_name(both[2])), self._numbers and self._numbers.get(number_value(both[2]))
            if both[1] in same:
                return both[1]
        name = _plain_name(statement)
        is_number = self._numbers and (self._has_percents or "%" not in statement) and not _CONCLUSION.search(statement)
        value = number_value(statement) if is_number else None
        return (
            self._labels.get(name) or self._texts.get(name) or (value is not None and self._numbers.get(value)) or None
        )

    def mentions(self, text: str, at_start: bool = False) -> Iterator[Mention]:
        """The mentions in `text`, none within another; with `at_start` a bare label at the start counts in any case."""
        found = []
        if at_start and (first := self._first.match(text, _start(text))):
            found.append(Mention(*first.span(), self._labels[first[1].lower()]))
        for match in self._label.finditer(text):
            found.append(Mention(*match.span(), self._labels[match[match.lastindex or 0].lower()]))
        lowered = text.lower()
        if len(lowered) == len(text):
            found += [Mention(*match.span(), self._texts[match[1]]) for match in self._text.finditer(lowered)]
        if self._values:
            numbers = (number for number in quantities(text) if number.value in self._values)
            numbers = (number for number in numbers if self._has_percents or not number.percent)
            found += [Mention(number.start, number.end, self._values[number.value]) for number in numbers]
        end = -1
        for mention in sorted(found, key=lambda mention: (mention.start, -mention.end)):
            if mention.start >= end:
                yield mention
                end = mention.end


def _plain_name(text: str) -> str:
    return re.sub(rf"\A{_KIND}|{_ARTICLE.pattern}", "", bare(text))


@functools.lru_cache(maxsize=1024)
def _names(choices: tuple[tuple[str, str], ...]) -> _Names:
    return _Names(dict(choices))


_START = re.compile(rf"[\s\"'*_(\[{{<]*(?:(?:an?|the)\s)?(?:{_KIND})?[\s\"'*_(\[{{<:]*", re.IGNORECASE)
_JOINT = re.compile(
    r"\s?(?:[,;/&+\u2192]|->|\b(?:or|and|nor|vs|versus)\b\.?)\s?(?:or\s|and\s)?(?:maybe\s|perhaps\s|possibly\s|even\s|also\s)?"
)
_BESIDE = re.compile(r"[):.]?\s?\(?")
_WORD_BESIDE = re.compile(r"\A\W*\w{1,9}\W{1,4}(yes|no|true|false)\W*\Z", re.IGNORECASE)
_REJECTED = re.compile(r"\W{0,2}(?:\?|\s?(?:is|are|was|were|cannot|can't|can|could)(?:n't)?\b[^,;.]*)", re.IGNORECASE)
_VERB = re.compile(r"\s(?:is|are|was|were|can|cannot|do|does|fit|fits|seems?|would|might|could)\b")
_PREDICATE = re.compile(
    r"\s*(?:(?:is|are|was|were|do|does|did|can|cannot|could|would|has|have)(?:n't)?|no|yes|true|false|right|wrong|correct"
    r"|incorrect)\b",
    re.IGNORECASE,
)
_REFUTATION = re.compile(
    r"\s*(?:but\s|however\s)?(?:it|this|that|which)\s.*\b(?:wrong|incorrect|false|not\s(?:right|correct|true|the\sanswer))\b",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"\b(?:wrong|incorrect|false|out|eliminated|excluded|rejected)\b"
    r"|(?:\bnot|n't|\bcannot)\s(?:be\s)?(?:right|correct|true|it|the\s(?:right\s|correct\s)?(?:answer|choice|one))\b",
    re.IGNORECASE,
)
_NO_DOUBT = re.compile(r"\b(?:no|(?:without|beyond)(?:\sa(?:ny)?)?)\s(?:doubt|question)\b", re.IGNORECASE)


def _start(statement: str) -> int:
    match = _START.match(statement)
    return match.end() if match else 0


def _rejected(statement: str, first: Mention) -> bool:
    """Whether `statement` denies its first choice: "A? No", "(A) is wrong"."""
    behind = _REJECTED.match(statement, first.end)
    return behind is not None and (behind[0].endswith("?") or _NO_ANSWER.search(behind[0]) is not None)


def _joined(statement: str, first: Mention, names: _Names) -> bool:
    """Whether another choice follows `first` as an equal: "A or B", "A, B"."""
    others = (mention for mention in names.mentions(statement) if mention.start >= first.end)
    second = next((mention for mention in others if mention.label != first.label), None)
    if second is None:
        return False
    if _BESIDE.fullmatch(statement, first.end, second.start):
        return True
    if not _JOINT.fullmatch(statement, first.end, second.start):
        return False
    return not _VERB.match(statement, second.end)


def _asserted(sentence: str, mentions: list[Mention]) -> tuple[set[str], set[str]]:
    """The labels that `sentence` asserts (only those in its weightiest clauses), and those that it denies."""
    shadow, labels = _shadow(sentence, mentions)
    asserted: dict[int, set[str]] = {}
    denied: set[str] = set()
    for clause, names in _clauses(shadow, labels):
        rank = 0 if _REASON.match(clause) else 2 if _CONCLUSION.search(clause) else 1
        for label, is_denied in zip(names, _denials(clause), strict=True):
            if is_denied:
                denied.add(label)
            else:
                asserted.setdefault(rank, set()).add(label)
    if not asserted:
        return set(), denied
    best = asserted[max(asserted)]
    return best - denied, denied


def _shadow(sentence: str, mentions: list[Mention]) -> tuple[str, list[str]]:
    """`sentence` with a sign instead of each mention, and the labels of the mentions, without those that are only
    compared."""
    pieces, labels, end = [], [], 0
    for mention in mentions:
        pieces += [sentence[end : mention.start].replace(_MENTION, " "), _MENTION]
        labels.append(mention.label)
        end = mention.end
    shadow = "".join([*pieces, sentence[end:].replace(_MENTION, " ")])
    for pattern, before in ((_LIST, _WEIGHED), (_ONE, _CONSIDERED)):
        for match in reversed(list(pattern.finditer(shadow))):
            if before.search(shadow[: match.start()]):
                first = shadow[: match.start()].count(_MENTION)
                del labels[first : first + match[0].count(_MENTION)]
                shadow = shadow[: match.start()] + shadow[match.end() :]
    return shadow, labels


def _clauses(shadow: str, labels: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The clauses of `shadow` that have mentions, with what is said about these after a comma, and their labels."""
    lists = [match.span() for match in _LIST.finditer(shadow)]
    ends = [match for match in _CLAUSE.finditer(shadow) if not any(a <= match.start() < b for a, b in lists)]
    clauses: list[str] = []
    start = 0
    for match in [*ends, None]:
        clause = shadow[start : match.start() if match else len(shadow)]
        if clauses and _MENTION not in clause and (_PREDICATE.match(clause) or _REFUTATION.match(clause)):
            clauses[-1] += clause
        elif _MENTION in clause:
            clauses.append(clause)
        start = match.end() if match else len(shadow)
    rest = iter(labels)
    for clause in clauses:
        yield clause, [next(rest) for _ in range(clause.count(_MENTION))]


def _denials(clause: str) -> list[bool]:
    """For each mention in `clause`, whether it is denied."""
    pieces = _NO_DOUBT.sub("", clause).split(_MENTION)
    directly: list[bool] = []
    for piece in pieces[:-1]:
        directly.append(
            _NOT_THIS.search(piece) is not None or (directly[-1:] == [True] and _LISTED.fullmatch(piece) is not None)
        )
    others = " ".join(_NOT_THIS.sub(" ", piece) for piece in pieces[:-1]) + pieces[-1]
    rest = _DENIED.search(others) is not None
    return [direct or rest for direct in directly]


def _gold_text(question: Question) -> str:
    return plain_text(choices_of(question)[question.answer]).strip().lower()
