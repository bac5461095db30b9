"""Leaks in scripts without spaces between words, and in other languages than English: found, and not found."""

from __future__ import annotations

import dataclasses
import time

import pytest

from mind.curation.leak_phrases import ANSWER_WORDS
from mind.curation.leaks import leaks_answer
from mind.data.overlap import leaks, words_of
from mind.records import Question
from mind.similarity import ngram_sets, similarities
from mind.words import is_letter_alone, with_seams, words

NUMBER = Question("n", "小明有5个苹果，又买了7个。他一共有多少个苹果？", "12")
UNIT = dataclasses.replace(NUMBER, answer="12个")
CHOICE = Question("c", "旋转门在哪里？", "B", {"A": "书店", "B": "银行", "C": "商店"})
CITY = Question("w", "日本の首都はどこですか。", "東京")
KOREAN = Question("k", "민수는 사과가 5개 있고 7개를 더 샀다. 모두 몇 개인가?", "12")


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("答案是12。因为5+7=12。", NUMBER),
        ("答案是12个。先算5+7。", UNIT),
        ("正确答案：12个苹果", NUMBER),
        ("所以，最终答案为 12 。我们来验证。", NUMBER),
        ("这道题的答案应该是**12**，理由如下。", NUMBER),
        ("首先，這題的答案應該是12。", NUMBER),
        ("答：12个。", NUMBER),
        ("12就是正确答案，因为5加7等于12。", NUMBER),
        ("一共有12个。要得到这个答案，把5和7相加。", NUMBER),
        ("题目给出的答案要求相加。", NUMBER),
        ("5加7得12，与参考答案一致。", NUMBER),
        ("我们已经知道正确答案，所以只需验证。", NUMBER),
        ("因为答案是12，所以要相加。", NUMBER),
        ("根據答案可知，要把兩數相加。", NUMBER),
        ("答案是B。银行需要安全。", CHOICE),
        ("答案是选项B，因为银行需要安全。", CHOICE),
        ("正确答案是银行，因为需要安全。", CHOICE),
        ("B是正确答案，银行有旋转门。", CHOICE),
        ("银行就是正确答案，因为需要安全。", CHOICE),
        ("答えは12です。5と7を足します。", NUMBER),
        ("よって、この問題の答えは、12個です。", NUMBER),
        ("正解：12", NUMBER),
        ("答えは「B」です。", CHOICE),
        ("12が答えです。5+7だからです。", NUMBER),
        ("合計は12個です。この答えを求めるには、足します。", NUMBER),
        ("与えられた答えと一致します。", NUMBER),
        ("5に7を足す。模範解答の通りである。", NUMBER),
        ("答えが12であることから、足し算をします。", NUMBER),
        ("答えは東京です。首都だからです。", CITY),
        ("東京が正解です。首都だからです。", CITY),
        ("정답은 12입니다. 5와 7을 더합니다.", KOREAN),
        ("답: 12개", KOREAN),
        ("12가 정답입니다. 더하면 됩니다.", KOREAN),
        ("더하면 주어진 정답과 같다.", KOREAN),
        ("La respuesta es 12. Se suman.", NUMBER),
        ("Die Antwort lautet: 12, denn 5 und 7 sind 12.", NUMBER),
        ("La réponse est 12.", NUMBER),
        ("Ответ: 12. Складываем.", NUMBER),
        ("Ответ – 12. Складываем.", NUMBER),
    ],
)
def test_an_answer_that_is_given_away(text, question):
    assert leaks_answer(text, question)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("5+7=12。答案是12。", NUMBER),
        ("5加7等于12，所以答案是12。", NUMBER),
        ("答案是120，还是12？", NUMBER),
        ("答案是12吗？我们来算。", NUMBER),
        ("答案是112个。", NUMBER),
        ("答案必须是整数。5加7是12。", NUMBER),
        ("已知答案是整数，5加7是12。", NUMBER),
        ("我们给出的答案是5+7=12。", NUMBER),
        ("题目给出的答案选项有三个，银行最合适。", CHOICE),
        ("在给定的答案选项中，银行合适。", CHOICE),
        ("答案是书店？不，是银行。", CHOICE),
        ("答案是银行家俱乐部，不对。", CHOICE),
        ("一共有5个。要得到这个答案，看题目。", NUMBER),
        ("答えは5と7の和、つまり12です。", NUMBER),
        ("5と7を足すと12なので、答えは12です。", NUMBER),
        ("答えは120です。いや、12です。", NUMBER),
        ("与えられた数を足すと12になる。", NUMBER),
        ("与えられた答えの選択肢から選ぶ。", CHOICE),
        ("答えは東京都です。", CITY),
        ("5와 7을 더하면 12이므로 정답은 12입니다.", KOREAN),
        ("정답은 120입니다.", KOREAN),
        ("주어진 답 선택지를 보면 은행이다.", CHOICE),
        ("La respuesta es la suma de 5 y 7, que es 12.", NUMBER),
        ("Die Antwort ist 120.", NUMBER),
        ("A resposta não é 12.", NUMBER),
    ],
)
def test_a_derivation_gives_nothing_away(text, question):
    assert not leaks_answer(text, question)


@pytest.mark.parametrize(
    "piece", [*ANSWER_WORDS, "答案是", "答えは", "所以", "已给", "정답이 ", "답은 1", "因为答案是12", "、", "有1"]
)
def test_no_text_takes_long(piece):
    start = time.process_time()
    for question in (NUMBER, UNIT, CHOICE, CITY):
        leaks_answer(piece * (20_000 // len(piece)), question)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("有12个苹果", ["有", "12", "个", "苹", "果"]),
        ("Tシャツは3枚", ["T", "シ", "ャ", "ツ", "は", "3", "枚"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("ที่นี่ ๑๒", ["ที่", "นี่", "๑๒"]),
        ("사과는 열두 개다", ["사과는", "열두", "개다"]),
        ("cafe\u0301 x_1, naïve!", ["cafe\u0301", "x_1", "naïve"]),
        ("עֲבָר עַרַבِيّ", ["עֲבָר", "עַרַבِيّ"]),
    ],
)
def test_words_in_any_script(text, found):
    assert words(text) == found


def test_letters_of_scripts_without_spaces_are_less_than_a_word():
    assert [word for word in words("有T恤ที่ 개 x ア") if is_letter_alone(word)] == ["有", "恤", "ที่", "ア"]


def test_a_digit_and_a_letter_of_another_script_are_two_words():
    assert (
        with_seams("她有12个,选-5元,50%的B项。정답은 12입니다") == "她有 12 个,选 -5 元,50% 的 B 项。정답은 12 입니다"
    )
    assert with_seams("H2O, 3rd, 12 個") == "H2O, 3rd, 12 個"


LONG = "小明有三个红色的梨子，住在隔壁的小红有的绿苹果是他的两倍那么多。"
"""Thirty letters."""


@pytest.mark.parametrize(
    ("training", "test", "found"),
    [
        (LONG, f"请看：{LONG}一共多少？", True),
        (LONG[:28], LONG, True),  # 26 letters, and the comma and one more
        (LONG[:20], LONG, False),
        (LONG.replace("住", "坐"), LONG, False),
        (LONG[-28:], LONG, True),
        ("3加4等于几？", "3加4等于几", True),  # a short one as a whole
        ("3加4等于几？", "3加5等于几？", False),
        (
            "小明有12个苹果，他又买了5个，吃了3个，现在还有几个苹果？",
            "小明有12个苹果，他又买了6个，吃了3个，现在还有几个苹果？",
            False,
        ),
        ("मोहन के पास तीन आम हैं और राम के पास पाँच आम हैं।", "सीता के पास तीन आम हैं और राम के पास पाँच केले हैं।", False),
    ],
)
def test_questions_without_spaces_are_found_again(training, test, found):
    given = leaks([Question("t", training, "1")], [Question("q", test, "1")])
    assert (given.training, given.test) == ((("t",), ("q",)) if found else ((), ()))


def test_thirteen_words_are_twenty_six_letters():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 40)))
    for shared, found in ((25, False), (26, True)):
        given = leaks([Question("t", text[:shared] + "口口", "1")], [Question("q", text, "1")])
        assert bool(given.training) is found
    assert len(words_of(text)) == 40


def test_rationales_without_spaces_are_compared_by_their_letters():
    one, same, other = (
        "先把五和七相加，得到十二个苹果。",
        "先把五和七相加，得到十二个苹果！",
        "画一条线，从五开始数七格。",
    )
    table = similarities(ngram_sets([one, same, other, one.replace("先", "我们先")], 3))
    assert table[0][1] == 1 and table[0][2] < 0.1
    assert 0.7 < table[0][3] < 1
