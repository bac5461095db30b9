"""Which questions of evaluation files are asked, and the names under which results of files and students are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mind.errors import require
from mind.files import check_name
from mind.progress import tell
from mind.records import Question


def evaluation_labels(files: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """{label: file}; a label is the file's name without its ending, and that of a file of responses.

    Raises MindError for a file that appears twice or whose label another file has, or that is `taken`, and for a name
    that is too long for a file of responses.
    """
    labels: dict[str, str] = dict.fromkeys(taken, "the built-in questions")
    for file in files:
        label = Path(file).stem
        check_name(Path(f"{label}.jsonl"))  # of its responses
        require(
            label not in labels,
            f"{file} and {labels.get(label)} are both named {label}: results need different names, so rename a file",
        )
        labels[label] = file
    return {label: labels[label] for label in labels if label not in set(taken)}


def asked_questions(label: str, questions: Sequence[Question], most: int | None) -> list[Question]:
    """The first `most` of the questions, None: all. It tells how many are left out."""
    asked = list(questions[:most])
    if len(asked) < len(questions):
        tell(
            f"evaluation {label}: its first {len(asked):,} of {len(questions):,} questions are asked "
            "(--evaluation.questions)",
            of_results=True,
        )
    return asked


def student_labels(students: Sequence[str]) -> dict[str, str]:
    """{label: folder or name} of students, given as such or as LABEL=FOLDER.

    Without a label that is the last part of the name, for the student of a run the name of the run. Raises MindError
    for two with one label, and for a label that cannot be the name of a folder.
    """
    labels: dict[str, str] = {}
    for given in students:
        label, assigned, name = given.partition("=")
        if not assigned or "/" in label:
            path = Path(given)
            label, name = path.parent.name if path.name == "student" and path.parent.name else path.name, given
        require(
            bool(label.strip(".") and name) and "/" not in label, f"--students {given}: expected FOLDER or LABEL=FOLDER"
        )
        check_name(Path(label))
        require(
            label not in labels,
            f"{given} and {labels.get(label)} are both named {label}: LABEL=FOLDER gives a name of its own",
        )
        labels[label] = name
    return labels
