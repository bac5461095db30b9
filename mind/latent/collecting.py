"""Collects the vectors and answers of all students of an analysis, with one student in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mind.data.questions import question_row
from mind.latent.config import LatentConfig
from mind.latent.states import Reader
from mind.latent.store import Store, padded, unpadded
from mind.latent.students import Group, Run, Students
from mind.progress import Progress
from mind.provenance import text_digest

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class GroupVectors:
    """Vectors of the experts or of the null experts: float32 (E, K, N, D), nan if an answer has no text before its
    suffix."""

    own: np.ndarray
    """Mean over its own greedy answer (V1)."""
    teacher: np.ndarray
    """Mean over the teacher's rationale of its perspective (V2)."""
    prompt: np.ndarray
    """State at the last token of the prompt (V4)."""
    texts: np.ndarray
    """The answers (E, K, N), without their suffixes."""


@dataclass(frozen=True)
class Vectors:
    """All vectors from which the views are made."""

    experts: GroupVectors
    null: GroupVectors | None
    base_teacher: np.ndarray
    """(1, K, N, D) of the base student, over the teacher's rationales (V3)."""
    base_own: np.ndarray
    """(E, K, N, D) of the base student, over the experts' answers."""


class Collector:
    """Computes what the store does not hold. All students have the same tokenizer, so each prompt has the same tokens
    for all."""

    def __init__(self, students: Students, config: LatentConfig, store: Store) -> None:
        """Loads the base student for the prompts and rationales; raises MindError for those that are too long."""
        self._students, self._config, self._store = students, config, store
        questions, base = students.questions, Reader(students.base, config)
        self.prompts, self._rationales = base.prompts(questions), base.rationales(questions, students.perspectives)
        asked = [students.perspectives, [question_row(question) for question in questions], config.max_new_tokens]
        self._asked = json.dumps(asked)
        self.identities: dict[str, str] = {}
        """The identities of all students that were asked for, by name."""

    def collect(self) -> Vectors:
        """The vectors of all experts, null experts and the base student."""
        students = self._students
        experts = self._group("expert", students.experts)
        null = None if students.null is None else self._group("null", students.null)
        source = "".join(identity for name, identity in self.identities.items() if name.startswith("expert"))
        base = self.kept("base", students.experts.runs[0][0].weights + source, self._read_by_base)
        shape = (*experts.own.shape[:3], -1)
        return Vectors(experts, null, base["teacher"][None], base["own"].reshape(shape))

    def kept(self, name: str, source: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a student: from the store if they come from the same `source`, else computed now."""
        identity = self.identities[name] = text_digest(self._asked + source)
        found = self._store.get(name, identity)
        if found is None:
            found = compute()
            self._store.put(name, identity, found)
        return found

    def _group(self, kind: str, group: Group) -> GroupVectors:
        count = len(self.prompts)
        title = "experts" if kind == "expert" else "null experts"
        with Progress(f"vectors of {title}", count * len(group), "question") as bar:
            table = []
            for e, runs in enumerate(group.runs):
                table.append([])
                for k, run in enumerate(runs):
                    done = (e * len(runs) + k) * count
                    table[-1].append(self.kept(_name(kind, k, e), run.identity, self._reading(run, k, bar, done)))
                    bar.reach(done + count)
        names = ("own", "teacher", "prompt", "texts")
        return GroupVectors(*(np.array([[some[name] for some in row] for row in table]) for name in names))

    def _reading(self, run: Run, k: int, bar: Progress, done: int) -> Callable[[], Arrays]:
        """A function that computes the arrays of the expert of perspective k."""

        def read() -> Arrays:
            expert = Reader(run.student, self._config)
            answers = expert.answers(self.prompts, lambda count: bar.reach(done + count))
            return {
                "own": expert.branch_means(self.prompts, answers),
                "teacher": expert.branch_means(self.prompts, self._rationales[k]),
                "prompt": expert.prompt_ends(self.prompts),
                "texts": np.array([expert.text(ids) for ids in answers]),
                "ids": padded(answers),
            }

        return read

    def _read_by_base(self) -> Arrays:
        """The base student's vectors for the experts' answers, in the order of the table (E, K, N), and for the
        rationales (K, N)."""
        base, group = Reader(self._students.base, self._config), self._students.experts
        answers = []
        for e, runs in enumerate(group.runs):
            for k in range(len(runs)):
                kept = self._store.get(_name("expert", k, e), self.identities[_name("expert", k, e)])
                assert kept is not None, "it has been put there"
                answers += unpadded(kept["ids"])
        with Progress(
            "vectors of the base student", len(answers) + len(self.prompts) * len(self._rationales), "text"
        ) as bar:
            own = base.branch_means(self.prompts * len(group), answers, bar.update)
            rationales = [ids for some in self._rationales for ids in some]
            teacher = base.branch_means(self.prompts * len(self._rationales), rationales, bar.update)
        return {"own": own, "teacher": teacher.reshape(len(self._rationales), len(self.prompts), -1)}


def _name(kind: str, perspective: int, seed: int) -> str:
    return f"{kind}-{perspective}-{seed}"
