r"""Finds where a response states its answer: which part of it is the response itself, and the text after "####", in
\boxed{...}, or after "the answer is".

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mind.answer_line import ANSWER_MARKER

MAX_MARKS = 16
"""This many marks of a kind are examined, from the last one: a text with more repeats itself."""

# What ends the response

# `answer_part` has already cut the response at the tokens that end a turn.
_NEXT_TURN = re.compile(
    r"<start_of_turn>|\[/?INST\]"
    r"|(?:\A|\n)[ \t]*[#*]*[ \t]?(?:"
    r"(?:(?:next|new|another|follow-up|similar|bonus)\s)?"
    r"(?:question|problem|exercise|task|q|human|user|student|instruction|prompt)(?:\s?[0-9]+)?\s?:(?=[\s*])"
    r"|(?:(?:next|new|another|similar)\sexample|follow-up|bonus)\s?:(?=[\s*])"
    r"|(?:(?:next|new|another|similar)\s(?:question|problem|exercise|task|example)"
    r"|(?:question|problem|exercise|task|example)\s(?:[2-9]|[1-9][0-9]))[*_]*[ \t]*(?::|(?=\n))"
    r"|what\sif\b)",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:(?P<check>let me (?:re-?check|re-?do|re-?consider|correct))"
    r"|wait(?=\s?(?:[,.!:;\u2014-]|\Z)|\s(?:no|it|i|that|actually|let|a)\b)"
    r"|correction|oops|scratch that|on second thought"
    r"|i (?:made|see) (?:a|my|an) (?:mistake|error)|i apologi[sz]e|my mistake)\b"
    r"|(?:[,;(.]|\s-|\u2014)\s?(?:no,|(?:or rather|i mean|sorry|make that),?)\s(?:it(?:'s| is)\s)?"
    r"(?=\(?(?:[-$]?[0-9]|(?-i:[A-H])\b(?!')))"
    r"|\bchanged? (?:it|my (?:mind|answer))(?: from \S+)? to\b",
    re.IGNORECASE,
)
_BUT = r"(?:[,;:(\u2014]|\.\.\.|\s-|\b(?:but|although|though|which)\b)\s?(?:(?:but|although|though|which|yet)\s)?"
_REPLACEMENT = re.compile(
    rf"(?P<is_withdrawn>{_BUT}(?:that|this|it)(?:'s|\sis|\swas)\s(?:wrong|incorrect|false|not\s(?:right|correct)|a\smistake)\b"
    r"|\bbut\s(?:(?:it|this|that)\s)?(?:should|ought\sto)\s(?:\w+\s)?(?:be|have\sbeen)\b"
    rf"|{_BUT}(?:no,?\swait|wait(?=\s?[,.!:;\u2014-]|\s(?:no|it|i|that|actually|let)\b))\b)"
    rf"|{_BUT}(?:(?:it|this|that)\s)?(?:(?:should|ought\sto)\s(?:\w+\s)?(?:be|have\sbeen)\b"
    r"|(?:the\s)?(?:correct|right|true)\s(?:(?:answer|value|number|result|one|total|date|day)\s)?(?:is|was|would\sbe)\b"
    r"|(?:or\s)?rather\b(?!\sthan)|(?:no|nope|sorry)\b,|actually\b|i\smean\b|make\sthat\b)",
    re.IGNORECASE,
)
_WRONG = (
    r"(?:(?:the\s|an?\s)?(?:wrong|incorrect|false|invalid)|impossible|(?:rejected|ruled\sout)(?=\W*\Z)"
    r"|too\s(?:many|few|much|little|large|small|big|high|low)"
    r"|not\s(?:the\s|an?\s)?(?:right|correct|valid|true|answer|case|option|possible))\b"
)
_DENIED = re.compile(
    rf"\A(?:[^,;.:(\[\n]|[.:](?=\S)){{1,60}}\s(?:is|are|was|were|would\sbe|must\sbe)\s(?:clearly\s|obviously\s|therefore\s|also\s)?{_WRONG}(?!\s(?:by|to)\b)"
    rf"|(?:,\s|[(\[]\s?|\s-\s|\u2014\s?)(?:(?:which|that|this|it)\s(?:is|was)\s)?{_WRONG}(?=\s?(?:[)\].,;!]|\Z))"
    r"|\A\W*(?:not\s(?!.*\sbut\s)|(?:the\s|an?\s)?(?:wrong|incorrect)\sanswer\b|(?:any(?:thing)?|every(?:thing)?|all)\s(?:but|except)\s)"
    r"|\s(?:cannot|can't|can\snot|could\snot|couldn't)\sbe\s(?:right|correct|true|it|valid|the\s(?:right\s|correct\s)?answer)\b"
    r"|\bbut\s(?:really\s|actually\s|in\sfact\s)?(?:it|that)\s(?:is|was)\s(?=[-$]?[0-9])"
    r"|\s(?:does|do|did)\s?(?:not|n't)\s(?:work|check\sout|add\sup)\b"
    r"|\?\s?(?:no|wrong|incorrect|actually|rather)\b|[\u274c\u2717\u2718]",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"[\s(*_>-]*(?:\[[0-9]+\]\s*)?"
    r"(?:let me know|feel free|i hope|hope (?:this|that|it)|if you (?:have|need|would|want|'d)"
    r"|is there anything|(?:do you|would you) (?:have|need|want|like)|please (?:let|note|feel)|note\b|word count"
    r"|confidence|disclaimer|sources?:|thank(?:s| you)|happy to|i(?:'m| am) [0-9]{1,3}\s?%"
    r"|i(?:'m| am) (?:very |quite |fairly )?(?:confident|certain|sure)|have a|good luck"
    r"|generated (?:in|by|with)|(?:time|tokens) (?:taken|used|elapsed)|\Z)",
    re.IGNORECASE,
)
_SENTENCE_MARKS = (". ", "! ", "? ", ") ", "* ", "\n")

# What marks the answer

_HEADING = re.compile(
    r"[\s#*_]*(?:the\s)?(?:final|correct|overall|my|our)?\s?(?:answer|conclusion|solution|result|choice|summary|explanation"
    r"|verification|check|reasoning)s?\s?[:.*_]*\s*\Z|[\s#*_]*step\s?[0-9]+\b",
    re.IGNORECASE,
)
_ANSWER_HEADING = re.compile(
    r"(?:\A|\n)[ \t]*#{1,6}[ \t]*(?:the\s)?(?:final\s)?(?:answer|result)[ \t]*:?[ \t]*\n\s*", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?P<brace>\{)|\s(?P<bare>[^\s{}$]+))")
_SCALE = re.compile(r"\s*(?:\\text\s*\{\s*)?((?:hundred|thousand|million|billion|trillion|dozen)s?)\b", re.IGNORECASE)
"""Behind a box: \\boxed{12} thousand."""
_TAG = re.compile(
    r"<(?:final_?)?answer>([^<]*(?:<(?!/(?:final_?)?answer>)[^<]*)*)(?:</(?:final_?)?answer>|\Z)", re.IGNORECASE
)
_JSON = re.compile(
    r"[\"'](?:final[ _]?|correct[ _]?)?answer[\"']\s*:\s*(?:\"((?:[^\"\\\n]|\\.)*)\"|'([^'\n]*)'|([^\s,}\"']+))",
    re.IGNORECASE,
)
_WORD = r"(?:answers?|antwort|r\u00e9ponse|respuesta|risposta|resposta|\u043e\u0442\u0432\u0435\u0442|\u7b54\u6848)"
_IS = r"(?:is|are|was|would\sbe|should\sbe|must\sbe|will\sbe|has\sto\sbe|ist|est|es|\u00e8|\u00e9)\b"
# "To get the answer:" and a line break introduce a calculation.
_PHRASE = re.compile(
    rf"(?:\b|(?=\u7b54))(?:{_WORD}|(?:correct|right|best|final|my|chosen)\s(?:option|choice|letter))"
    rf"(?:\s(?:here|choice|option|to\s(?:the|this|your)\s(?:question|problem)))?[\"*_]*"
    rf"(?:\s+{_IS}[\s:*]*|(?<=\u7b54\u6848)\s*[\u662f\u4e3a\u70ba][\s:*]*|\s*(?:[:=]|-(?=\s))[:* \t]*(?=[^\s:*])"
    r"|(?<!the answer)(?<!this answer)(?<!that answer)(?<!our answer)(?<!your answer)(?<!same answer)\s*[:=][\s:*]*)",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\b(?:incorrect|wrong|other|false|possible|alternative|previous|first|given|hope|this|that|if|whether)"
    r"(?:\s(?:the|my|this|your))?\s\Z",
    re.IGNORECASE,
)
FORMULA = re.compile(r"\$\$[^$]+\$\$|\$(?:\\.|[^$\n\\])+\$(?![0-9])|\\\([^\n]{1,400}?\\\)|\\\[.{1,400}?\\\]", re.DOTALL)
# The "!" of "4! = 24" is a factorial, and so is that of "(2 + 2)! / 2".
_PHRASE_END = re.compile(
    r"(?<!\\)(?<!\bRs)(?<!\bsq)(?<!\bhr)(?<!\bft)(?<!\blb)(?:\.|(?<![0-9)])!|!(?!\s?[=\u2248+\u00d7\u00b7\u00f7/-])|\?(?!\s(?i:no|actually|rather)\b))"
    r"(?=[\s\"'*)]|\Z)|\n"
)


# Most texts have none of these, and need no further search.
_TURNING = ("_turn>", "inst]", "question", "problem", "exercise", "task", "example", "\nq", "human", "user", "student")
_TURNING += (
    "instruction",
    "prompt",
    "follow-up",
    "bonus",
    "what if",
)
_CORRECTING = (
    "no, ",
    "rather",
    "i mean",
    "sorry",
    "make that",
    "change",
    "wait",
    "correct",
    "oops",
    "scratch",
    "second thought",
    "let me",
    "mistake",
    "error",
    "apolog",
)
_ANSWERING = ("answer", "option", "choice", "letter", "result", "antwort", "r\u00e9ponse", "respuesta", "risposta")
_ANSWERING += ("resposta", "\u043e\u0442\u0432\u0435\u0442", "\u7b54\u6848")


class Replacement(NamedTuple):
    """What a statement says in place of the answer that it has stated before."""

    answer: str
    is_withdrawn: bool
    """Whether the first answer does not count any more, whatever the new one is."""


class Marked(NamedTuple):
    """A place where a response marks its answer."""

    statement: str
    below: str
    """The text after it, which has the answer if the statement is a heading."""
    is_whole: bool
    """Whether the mark shows where the statement ends (a line, a box or a tag, not a sentence)."""


def turns(response: str) -> Iterator[str]:
    """The part of `response` before it continues as another speaker, such as "Question: ...", and the parts that
    follow."""
    start = 0
    for match in [*(_NEXT_TURN.finditer(response) if _mentions(response, _TURNING) else ()), None]:
        turn = response[start : match.start() if match else len(response)]
        if turn.strip():
            yield turn.strip()
        start = match.end() if match else len(response)


def without_chatter(text: str) -> str:
    """`text` without sentences at its end that do not belong to a solution, such as "Let me know if you have more!"."""
    end = len(text)
    while True:
        start = max(text.rfind(mark, 0, end - 1) + len(mark) for mark in _SENTENCE_MARKS)
        if start <= max(map(len, _SENTENCE_MARKS)) or not _CHATTER.match(text, start, end):
            return text[:end]
        end = len(text[:start].rstrip())


def corrections(text: str) -> Iterator[tuple[str, bool]]:
    """The part of `text` after the last "Wait, ..." or "Correction: ...", if there is one, and `text` itself.

    Each comes with whether an answer in it counts without a mark: after "Let me recheck" anything may follow.
    """
    if _mentions(text, _CORRECTING):
        last = next(reversed(list(_CORRECTION.finditer(text))), None)
        if last is not None:
            yield text[last.end() :].lstrip(" ,.:;!-\u2014"), last["check"] is None
    yield text, True


def marks(text: str) -> Iterator[Marked]:
    r"""The marked statements of `text`, the most explicit first and the last of each kind: "#### ...", \boxed{...},
    <answer>...</answer>, {"answer": ...}, and a sentence with "the answer is ..." or a line with "Answer: ...".
    """
    yield from _behind_markers(text)
    yield from _boxed(text)
    for pattern in (_TAG, _JSON):
        for match in reversed(list(pattern.finditer(text))[-MAX_MARKS:]):
            yield Marked(next(filter(None, match.groups()), ""), text[match.end() :], True)
    yield from _behind_phrases(text)


def replacement(statement: str) -> Replacement | None:
    """What `statement` says last instead of its first answer, as in "12, but should be 13"; None without any."""
    last = next(reversed(list(_REPLACEMENT.finditer(statement))), None)
    return last and Replacement(statement[last.end() :].lstrip(" ,.:;-\u2014"), last["is_withdrawn"] is not None)


def is_denied(statement: str) -> bool:
    """Whether `statement` says that what it names is not the answer: "12 is wrong", "12 (incorrect)", "not 12"."""
    return _DENIED.search(statement) is not None


def is_heading(statement: str) -> bool:
    """Whether `statement` only announces an answer: "Final answer"."""
    return _HEADING.match(statement) is not None


def _mentions(text: str, words: Sequence[str]) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in words)


def _behind_markers(text: str) -> Iterator[Marked]:
    """The line after each "####", or below it if that line is empty."""
    end = len(text)
    for _ in range(MAX_MARKS):
        start = text.rfind(ANSWER_MARKER, 0, end)
        if start < 0:
            break
        line, _, below = text[start + len(ANSWER_MARKER) : end].lstrip("#").strip().partition("\n")
        within = next(_boxed(line), None) or next(_behind_phrases(line), None)
        yield Marked(within.statement if within else line, below, True)
        end = len(text[:start].rstrip("# \n"))


def _boxed(text: str) -> Iterator[Marked]:
    r"""The content of each \boxed{...}; one that is not closed has none."""
    for match in reversed(list(_BOX.finditer(text))[-MAX_MARKS:]):
        if match["bare"]:
            yield Marked(match["bare"], text[match.end() :], True)
            continue
        depth = 1
        for brace in re.finditer(r"[{}]", text[match.end() :]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                end = match.end() + brace.start()
                statement, below = text[match.end() : end], text[end + 1 :]
                line, _, _ = below.lstrip("$ )").partition("\n")
                scale = _SCALE.match(line)
                statement += f" {scale[1]}" if scale else line if _REPLACEMENT.match(line) else ""
                yield Marked(statement, below, True)
                break


def _behind_phrases(text: str) -> Iterator[Marked]:
    """The text after each "answer is" or "answer:": a formula between dollar signs, or the rest of the sentence."""
    if not _mentions(text, _ANSWERING):
        return
    places = [match.end() for match in _ANSWER_HEADING.finditer(text)]
    for match in _PHRASE.finditer(text):
        if not _OTHERS.search(text[max(match.start() - 24, 0) : match.start()]):
            places.append(match.end())
    for place in sorted(places, reverse=True)[:MAX_MARKS]:
        formula = FORMULA.match(text, place)
        end = _PHRASE_END.search(text, formula.end() if formula else place)
        statement = text[place : end.start() if end else len(text)].strip(" \t*")
        yield Marked(statement, "", False)
