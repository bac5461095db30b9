"""Finds the rules of the most similar question in a knowledge base, for students of method nesycd.

Similarity is the cosine of TF-IDF vectors of words and pairs of words. The authors compare BM25 and dense retrievers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mind.errors import MissingError, require
from mind.methods.knowledge import after_rules
from mind.records import Question
from mind.student.tokenization import question_text


class KnowledgeBase:
    """Questions with rules, searchable by similarity."""

    def __init__(self, source: str, questions: Sequence[Question]) -> None:
        """Uses those of the `questions` of the file `source` that have rules.

        Raises MindError if none has, and without scikit-learn.
        """
        self._questions = [question for question in questions if question.knowledge]
        require(bool(self._questions), f'{source}: none of its {len(questions)} questions has "knowledge"')
        if importlib.util.find_spec("sklearn") is None:
            raise MissingError("a knowledge base needs the package scikit-learn: pip install 'mind-kernels[retrieval]'")

    def nearest(self, question: Question) -> Question | None:
        """The question of the base that is most similar to `question`, the first of several; None if it shares no word
        with any."""
        vectorizer, vectors = self._index
        likeness = (vectors @ vectorizer.transform([question_text(question)]).T).toarray().ravel()
        best = int(likeness.argmax())
        return self._questions[best] if likeness[best] > 0 else None

    def before(self, question: Question) -> str:
        """The words before `question` when the student is asked: the rules of the nearest question, or nothing."""
        found = self.nearest(question)
        return after_rules(()) if found is None else after_rules(found.knowledge)

    @cached_property
    def _index(self) -> tuple[Any, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
        return vectorizer, vectorizer.fit_transform(map(question_text, self._questions))
