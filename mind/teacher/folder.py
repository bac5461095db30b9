"""Names the files in the folder of a data set that the teacher's and the judge's jobs write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DatasetFolder:
    """What `mind data generate` and `mind data judge` write. Each property is the path of a file."""

    path: Path

    @property
    def questions(self) -> Path:
        """The questions that were asked, without rationales (mind.data.questions)."""
        return self.path / "questions.jsonl"

    @property
    def config(self) -> Path:
        """The GenerateConfig of the last start."""
        return self.path / "generate.json"

    @property
    def prompts(self) -> Path:
        """{perspective: prompt}."""
        return self.path / "prompts.json"

    @property
    def responses(self) -> Path:
        """The teacher's answers (mind.records.Response), a journal."""
        return self.path / "responses.jsonl"

    @property
    def failures(self) -> Path:
        """Requests of the last start that got no answer (mind.teacher.requests.Failure)."""
        return self.path / "failures.jsonl"

    @property
    def wasted(self) -> Path:
        """Tokens that the teacher's attempts without an answer used (mind.teacher.requests.Wasted), a journal."""
        return self.path / "wasted.jsonl"

    @property
    def verdicts(self) -> Path:
        """A mind.records.Verdict on each response, in the order of `responses`."""
        return self.path / "judged.jsonl"

    @property
    def replies(self) -> Path:
        """Replies of a model that judges (mind.records.Response), a journal."""
        return self.path / "judge-replies.jsonl"

    @property
    def judge_failures(self) -> Path:
        """Requests of the last judging that got no reply (mind.teacher.requests.Failure)."""
        return self.path / "judge-failures.jsonl"

    @property
    def judge_wasted(self) -> Path:
        """Tokens that the judge's attempts without a reply used (mind.teacher.requests.Wasted), a journal."""
        return self.path / "judge-wasted.jsonl"
