"""Makes training records from several samples of one teacher that have no perspective names."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mind.answer_line import rationale_of
from mind.curation.knowledge import with_knowledge
from mind.data.fields import whole_text
from mind.data.problems import Problems
from mind.data.questions import knowledge, load_questions, read_questions
from mind.errors import require
from mind.grading.answers import is_correct, judge_text
from mind.grading.plain_text import plain_text
from mind.perspectives import KNOWLEDGE
from mind.records import Question, Rationale, WrongRationale
from mind.summary import Summary
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import load_responses
from mind.typed_json import described


@dataclass(frozen=True)
class ImportReport(Summary):
    """Counts, of questions and of rationales, what `import_rationales` read, kept and dropped, and why.

    Each count of what was read equals the sum of the counts that follow it.
    """

    questions_read: int = 0
    questions_kept: int = 0
    questions_dropped_too_few: int = 0
    questions_given_knowledge: int = 0
    """Those of the kept questions for which a teacher's folder has rules."""
    rationales_read: int = 0
    rationales_kept: int = 0
    rationales_empty: int = 0
    rationales_duplicate: int = 0
    rationales_no_answer: int = 0
    rationales_wrong_answer: int = 0
    rationales_kept_as_wrong: int = 0
    """Those of them that are kept as wrong rationales."""
    rationales_over_the_limit: int = 0
    rationales_of_dropped_questions: int = 0
    """Right rationales of questions that had too few of them."""


def import_perspectives(keep: int = 8) -> tuple[str, ...]:
    """The names that `import_rationales` gives to rationales without one: "path-1" to "path-<keep>"."""
    return tuple(f"path-{number}" for number in range(1, keep + 1))


def import_rationales(
    path: str | os.PathLike[str],
    *,
    keep: int = 8,
    minimum: int = 2,
    keep_wrong: int = 0,
    knowledge_folder: str | os.PathLike[str] | None = None,
) -> tuple[list[Question], ImportReport]:
    """Questions with named rationales from rows whose "rationales" are plain strings, and what became of the rows.

    The first `keep` right rationales of a question get names in their order. Dropped are empty ones, copies of an
    earlier one up to spaces, those without an answer or with a wrong one, and questions with fewer than `minimum` right
    ones. The first `keep_wrong` with a wrong answer are kept separately. Answer suffixes are cut off. Whether a
    rationale is right is judged from its text alone (`mind.grading.answers.judge_text`), so an oddly worded right one
    may be dropped. "knowledge" is kept as it is, except for questions that have rules in `knowledge_folder`, which
    `mind data generate --knowledge` filled.

    Raises MindError as `load_questions` does, for rationales that are not strings, unless 1 <= minimum <= keep, and for
    a folder that has rules for none of the questions, or asks one of them in other words.
    """
    require(1 <= minimum <= keep, f"minimum {minimum} and keep {keep}: expected 1 <= minimum <= keep")
    names = import_perspectives(keep)
    questions = []
    counts: Counter[str] = Counter()
    problems = Problems(path)
    for where, row, question in read_questions(path, problems):
        texts = row.get("rationales")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            problems.note(where, f"{_not_texts(texts)}: there is nothing to import")
            continue
        rules = problems.attempt(where, knowledge, where, row.get("knowledge"))
        whole = problems.attempt(where, _whole, where, texts)
        if rules is None or whole is None:
            continue
        counts["questions_read"] += 1
        counts["rationales_read"] += len(texts)
        right, wrong = _judged_rationales(texts, question, counts)
        if len(right) < minimum:
            counts["questions_dropped_too_few"] += 1
            counts["rationales_of_dropped_questions"] += len(right)
            continue
        counts["questions_kept"] += 1
        counts["rationales_kept"] += min(len(right), keep)
        counts["rationales_over_the_limit"] += max(len(right) - keep, 0)
        rationales = tuple(Rationale(name, text) for name, text in zip(names, right, strict=False))
        counts["rationales_kept_as_wrong"] += min(len(wrong), keep_wrong)
        others = tuple(
            WrongRationale(f"path-{number}", text, answer)
            for number, (text, answer) in enumerate(wrong[:keep_wrong], start=1)
        )
        questions.append(dataclasses.replace(question, rationales=rationales, wrong_rationales=others, knowledge=rules))
    problems.check(questions)
    if knowledge_folder is not None:
        questions, counts["questions_given_knowledge"] = _with_rules_of(knowledge_folder, questions)
    return questions, ImportReport(**counts)


def _whole(where: str, texts: Sequence[str]) -> list[str]:
    return [whole_text(where, f"rationales[{index}]", text) for index, text in enumerate(texts)]


def _not_texts(rationales: object) -> str:
    """What is wrong with the "rationales" of a row, which should be a list of strings."""
    if rationales is None:
        return '"rationales" is missing'
    is_list = isinstance(rationales, list)
    item = next((one for one in rationales if not isinstance(one, str)), None) if is_list else rationales
    if isinstance(item, dict) and {"perspective", "text"} <= item.keys():
        return '"rationales" have perspectives already, and can be trained on as they are'
    return f'"rationales" {"holds" if is_list else "is"} {described(item)}, and a list of strings is expected'


def _with_rules_of(path: str | os.PathLike[str], questions: Sequence[Question]) -> tuple[list[Question], int]:
    """The questions, with the rules that the teacher in the folder states for some of them, and the number of these."""
    folder = DatasetFolder(Path(path))
    asked = {question.id: question for question in load_questions(folder.questions)}
    for question in questions:
        there = asked.get(question.id, question)
        require(
            (there.question, there.answer, there.choices) == (question.question, question.answer, question.choices),
            f"{path}: question {question.id} is another one there",
        )
    bare = [dataclasses.replace(question, knowledge=()) for question in questions]
    stated = with_knowledge(bare, [one for one in load_responses(folder.responses) if one.key.perspective == KNOWLEDGE])
    count = sum(bool(question.knowledge) for question in stated)
    require(count > 0, f"{path}: it has rules for none of the {len(questions)} questions")
    return [new if new.knowledge else old for new, old in zip(stated, questions, strict=True)], count


def _judged_rationales(
    texts: Sequence[str], question: Question, counts: Counter[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The right ones of `texts`, and the wrong ones with their answers, each once and without its answer suffix; counts
    all but the right ones in `counts` by reason."""
    seen = set()
    right, wrong = [], []
    for text in texts:
        rationale = rationale_of(text, lambda stated: is_correct(stated, question))
        normal = " ".join(rationale.split())
        if not normal:
            counts["rationales_empty"] += 1
        elif normal in seen:
            counts["rationales_duplicate"] += 1
        else:
            judgement = judge_text(text, question)
            if judgement.verdict == "right":
                right.append(rationale)
            elif judgement.extracted is None:
                counts["rationales_no_answer"] += 1
            else:
                counts["rationales_wrong_answer"] += 1
                stated = judgement.extracted
                wrong.append((rationale_of(text, lambda answer, stated=stated: plain_text(answer) == stated), stated))
        seen.add(normal)
    return right, [(text, answer) for text, answer in wrong if text.strip()]
