"""Writes the model card of a trained student, in the form that the Hub reads: what it is, how it is asked, what it
solved, and what it was made from.

A card is published with the model. So it names files without their folders, and holds neither commands nor texts of the
data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mind.answer_line import ANSWER_MARKER
from mind.display import code_block, code_span
from mind.provenance import without_folders
from mind.report.reading import value_at
from mind.report.tables import evaluation_table
from mind.run_folder import RunFolder

CARD = "README.md"
"""The file that the Hub shows as the card of a model."""
INTERNAL = ("options", "tokens", "settings")
"""Entries of inputs.json that say nothing to somebody without the run."""
LIMITS = (
    "Its answers may be wrong, and so may the steps that lead to a right one. An accuracy above is that of the "
    "questions it names, and says little about others.",
    "Facts, bias and personal data in the rationales that it was trained on were not checked.",
    "Its license follows from those of the student before training and of the data, which this card does not know.",
)


def student_card(folder: RunFolder, method: str, asks_with: str = "", *, adapter: bool = False) -> str:
    """The card, in Markdown with YAML front matter; every text from outside is in a code span.

    Args:
        folder: the run, with its configuration, evaluation, starts and inputs.
        method: the name of its method, as the report shows it.
        asks_with: the words that precede a question.
        adapter: whether the card is that of the LoRA adapter alone.

    Raises:
        MindError: names the file of the run, and the line, that is malformed.
    """
    model = str(value_at(folder.read_config(), "student", "model"))
    front: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and not os.path.exists(model):  # a name on the Hub
        front["base_model"] = model
    front["tags"] = ["mind", "distillation", "chain-of-thought"]
    lines = [f"# {code_span(folder.path.resolve().name)}", "", *_what(model, method, adapter)]
    lines += _section("How to ask it", _asked(asks_with, adapter))
    lines += _section("Results", _results(folder.read_evaluation()))
    lines += _section("What it was made from", _origin(folder.read_starts(), folder.read_inputs()))
    lines += _section("Limits", (f"- {limit}" for limit in LIMITS))
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _section(title: str, lines: Iterator[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _what(model: str, method: str, adapter: bool) -> Iterator[str]:
    what = "The LoRA adapter of a student" if adapter else "A student"
    yield f"{what} that was trained on step-by-step rationales by `mind train`:"
    yield ""
    yield f"- student before training: {_name(model)}"
    yield f"- method: {code_span(method)}"


def _name(source: str) -> str:
    """A code span of a name, or of a path's last part."""
    return code_span(Path(source).name if os.path.exists(source) else without_folders(source))


def _asked(asks_with: str, adapter: bool) -> Iterator[str]:
    yield f"The user's turn is {f'{code_span(asks_with)} and ' if asks_with else ''}the question, with a line such as"
    yield "`(A) red` for each of its choices, if it has any; those of a question of yes or no are `(yes) yes` and"
    yield f"`(no) no`. The answer is in the last line, behind `{ANSWER_MARKER}`."
    yield ""
    if adapter:
        yield "`peft.AutoPeftModelForCausalLM.from_pretrained` loads the adapter with the student before training. The"
        yield "folder `student` of the run has both in one, and the tokenizer."
        return
    yield from code_block(
        f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
turn = {{"role": "user", "content": {asks_with + "What is 2 + 3?"!r}}}
prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=200, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))""",
        "python",
    )


def _results(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for row in evaluation_table(evaluation, {}):
        if row.intervals is not None:
            before, after, _ = row.intervals
            yield f"- {code_span(row.what)}: {row.before} ({before}) before training, {row.after} ({after}) after"
        elif row.what.startswith("held-out NLL, nats"):
            yield f"- {code_span(row.what)}: {row.before} before training, {row.after} after"
    yield ""
    yield "Accuracies have 95 % intervals (Wilson). Held-out: the negative log-likelihood of rationales that were not"
    yield "trained on. Answers are greedy, and graded by `mind evaluate`."


def _origin(starts: list[dict[str, Any]], inputs: Mapping[str, Any]) -> Iterator[str]:
    versions = value_at(starts[-1], "versions") or {}
    yield f"- date: {code_span(value_at(starts[-1], 'date'))}"
    yield f"- versions: {', '.join(code_span(f'{name} {version}') for name, version in versions.items())}"
    for name in inputs:
        if name not in INTERNAL:
            source, digest = (str(value_at(inputs, name, part)) for part in ("source", "sha256"))
            yield f"- {code_span(name)}: {_name(source)}, start of its SHA-256 {code_span(digest)}"
