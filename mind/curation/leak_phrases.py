"""The phrases by which a rationale gives away that it started from the answer, by language.

They are read in texts of `mind.grading.plain_text.plain_text`, which writes ASCII punctuation, and a space between a
digit and a Chinese, Japanese or Korean letter. Each pattern takes time linear in the length of its text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

NEVER = r"(?!)"


@dataclass(frozen=True)
class Phrases:
    """Regular expressions of one language; NEVER where it has none."""

    words: tuple[str, ...] = ()
    """A text that admits something has one of these, in lower case."""
    told: str = NEVER
    """Words that admit that the answer was given."""
    supposed: str = NEVER
    """Words that are an admission if the gold answer follows."""
    opening: str = NEVER
    """The start of a text that opens with an answer, which follows."""
    is_the_answer: str = NEVER
    """Words after an answer that make a first sentence an opening."""
    this_answer: str = NEVER
    """The start of a second sentence that derives what the first one stated."""


_ANSWER = r"(?:correct\s|right\s|final\s|true\s|exact\s)?answer"
_GIVEN = r"(?:given|provided|supplied)"
_BE = r"(?:is|was|must\sbe|should\sbe|has\sto\sbe|needs\sto\sbe|equals)"
_BEFOREHAND = r"(?:to\s(?:us|me)|above|beforehand|in\s(?:the|this)\s(?:prompt|problem|question|instructions?))\b"
_ENGLISH = Phrases(
    words=("answer",),
    # "We are told the answer must be an integer" is a condition, and "the given answer choices" are no answer.
    told=rf"\b(?:the|this|your)\s(?:correct\s)?(?:{_GIVEN}|reference|gold|official)\s{_ANSWER}\b(?!\s(?:choice|option))"
    rf"|\banswer\s(?:is|was|has\sbeen)\s(?:already\s)?{_GIVEN}\s(?:as\b|{_BEFOREHAND})"
    rf"|\banswer\s{_GIVEN}\s(?:is\b|was\b|{_BEFOREHAND})"
    rf"|\b(?:we|I)(?:\sare|\swere|\sam|\swas|['’]re|['’]m)\s(?:already\s)?(?:told|given)\s(?:that\s)?the\s{_ANSWER}\b"
    rf"(?!\s(?:choice|option|{_BE}))"
    rf"|\balready\sknow\sthe\s{_ANSWER}\b"
    r"|\b(?:as|per|to|from|in|with)\s(?:the|your)\sanswer\skey\b|\banswer\skey\s(?:says|states|gives|shows|lists)\b",
    supposed=r"\b(?:since|because|(?:since|because|as)\swe\s(?:already\s)?know|knowing|given|told|says|states|tells\sus)"
    rf"\s(?:that\s)?the\s{_ANSWER}\s{_BE}\s",
    opening=rf"\W*+(?:\w{{1,12}},\s)?(?:(?:the|our|my)\s)?{_ANSWER}(?:\sto\s[^.:?!\n]{{1,100}}?)?[*_]*\s?"
    rf"(?:{_BE}\b|:|=)",
    is_the_answer=rf"\b(?:is|are|must\sbe|would\sbe)\s(?:the|our|my)\s{_ANSWER}\b",
    this_answer=r"To\s(?:get|find|obtain|reach|determine|calculate|arrive\sat|get\sto|come\sto)\sthis\sanswer\b",
)

_ZH_ANSWER = r"(?:正[确確]|最[终終]|最[后後])?的?答案"
_ZH_OPTIONS = r"(?:[选選][项項]|[选選][择擇]|中的?|之中?|格式|[范範][围圍])"
_ZH_GIVEN = r"(?:[给給]定|[给給]出|[给給]|提供|告知)"
_ZH_IS = r"(?:就是|[应應][该該]?是|必[须須]是|是|[应應]?[为為]|即)"
_CHINESE = Phrases(
    words=("答",),
    # "Our answer" is also "the answer that we give" in Chinese: only what the question gives is an admission.
    told=rf"(?:[题題]目|[题題]中|[题題]干|[问問][题題]|提示|[上前]面|上述|事先|已[经經]?|[你您])(?:中|[里裡])?(?:已[经經]?)?所?{_ZH_GIVEN}"
    rf"了?{_ZH_ANSWER}(?!{_ZH_OPTIONS})"
    rf"|(?:[给給]定的?|所[给給]的?|[参參]考|[标標][准準]){_ZH_ANSWER}(?!{_ZH_OPTIONS})"
    rf"|被告知了?{_ZH_ANSWER}(?!{_ZH_OPTIONS}|必[须須]|[应應])"
    rf"|(?:已[经經]?|早就?|事先)知道?了?{_ZH_ANSWER}(?!{_ZH_OPTIONS}|必[须須]|[应應]|是|[为為])"
    rf"|答案(?:已[经經]?被?|事先)(?:{_ZH_GIVEN}|知道|已知)|根[据據]答案(?:可知|可得|,)",
    supposed=r"(?:因[为為]|由[于於]|既然|已知|(?:[已早][经經就]?)知道?|告[诉訴](?:我[们們]|了)|[题題]目[说說])"
    rf"{_ZH_ANSWER}{_ZH_IS}\s?",
    opening=r"\W*+(?:(?:所以|因此|那[么麼]|首先|好的?|[这這本该該此][道]?[题題]|[问問][题題])的?[,\s]{0,2}){0,3}"
    rf"(?:{_ZH_ANSWER}|答)[*_]*\s?(?:{_ZH_IS}|:|=)",
    is_the_answer=rf"(?:就|便|即|才)?是{_ZH_ANSWER}(?!{_ZH_OPTIONS})",
    this_answer=r"(?:要想?|[为為]了)?(?:得到|求出|算出|得出|找到|求得|[计計]算出?)(?:[这這][个個一]|[该該此])答案",
)

_JA_ANSWER = r"(?:正しい\s?|最終的な\s?|最終)?(?:答え|解答|正解|回答)"
_JA_OPTIONS = r"(?:の?選択肢|の?候補|の形|の範囲|欄)"
_JAPANESE = Phrases(
    words=("答え", "解答", "正解", "回答"),
    told=rf"(?:与えられた|提示された|示された|教えられた|模範){_JA_ANSWER}(?!{_JA_OPTIONS})|模範解答"
    rf"|{_JA_ANSWER}[はが](?:すでに|既に|あらかじめ)?(?:与えられ|提示され|示され|分かって|わかって|知らされ)"
    rf"|{_JA_ANSWER}を(?:すでに|既に|あらかじめ)?(?:知って|知らされ|教えられ|教わっ)",
    supposed=rf"{_JA_ANSWER}[はが]\s?(?=[^.!?\n]{{1,40}}?(?:なので|だから|ですから|であるため|である以上|であること"
    r"|だと(?:分かって|わかって|知って)))",
    opening=r"\W*+(?:(?:よって|したがって|つまり|では|まず)[,\s]{0,2})?(?:(?:この|その|本)?(?:問題|問い|問)の)?"
    rf"{_JA_ANSWER}[*_]*\s?(?:は|:|=)[,\s]{{0,2}}",
    is_the_answer=rf"が\s?{_JA_ANSWER}\s?(?:です|だ|である|になる|となる|に|と)",
    this_answer=r"(?:この|その|上の)(?:答え|解答|結果)を(?:得る|求める|出す|導く|見つける|確かめる)",
)

_KO_ANSWER = r"(?:최종\s?|올바른\s)?(?:정답|해답|답)"
_KOREAN = Phrases(
    words=("답",),
    told=rf"(?:주어진|제시된|제공된|알려진)\s{_KO_ANSWER}(?!\s?(?:선택지|보기|후보|안))"
    rf"|{_KO_ANSWER}[이은]\s(?:이미\s)?(?:주어져|주어졌|제시되|알려져)|{_KO_ANSWER}을\s(?:이미\s)?알고",
    supposed=rf"{_KO_ANSWER}[이은]\s(?=[^.!?\n]{{1,40}}?(?:이므로|이기\s?때문|이라는\s것을\s알|라고\s(?:했|주어)))",
    opening=rf"\W*+(?:따라서,?\s)?(?:이\s)?(?:문제의\s)?{_KO_ANSWER}[*_]*\s?(?:은|는|:|=)",
    is_the_answer=rf"[가이]\s?{_KO_ANSWER}\s?(?:입니다|이다|이에요|이며|인)",
    this_answer=r"이\s?(?:답|정답)을\s(?:얻|구하|찾)",
)

_EUROPEAN = Phrases(
    opening=r"\W*+(?:(?:die|la|le|a|l['’])\s?)?(?:antwort|réponse|respuesta|risposta|resposta|ответ)"
    r"(?:\s(?:correcta|correta|corretta|final|finale|correcte))?[*_]*(?:\s(?:ist|lautet|est|es|è|é|[-—])(?=[\s:])|\s?[:=])",
)

_LANGUAGES = (_ENGLISH, _CHINESE, _JAPANESE, _KOREAN, _EUROPEAN)

ANSWER_WORDS = tuple(word for language in _LANGUAGES for word in language.words)
TOLD, SUPPOSED, OPENING, IS_THE_ANSWER, THIS_ANSWER = (
    re.compile("|".join(getattr(language, field.name) for language in _LANGUAGES), re.IGNORECASE)
    for field in fields(Phrases)
    if field.name != "words"
)
"""The phrases of all languages."""
