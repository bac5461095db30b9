"""No id and no perspective of the data names a file, and the umask decides who may read what is written."""

from __future__ import annotations

import json
import os

import pytest
from sample_records import make_response

from mind.answer_line import suffix
from mind.cli import main
from mind.data.questions import save_questions
from mind.data.sources import SourceConfig
from mind.records import Question
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import Journal
from mind.typed_json import save_json

OUTPUTS = {"judged.jsonl", "out.jsonl", "out.report.html", "out.card.json", "out.card.md", "out.dropped.jsonl"}


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil-of-mind", "..", "--output", "x" * 300, "a\0b"], ids=repr)
def test_names_in_the_data_name_no_file(tmp_path, name):
    names = DatasetFolder(tmp_path / "within" / "data")
    names.path.mkdir(parents=True)
    save_questions([Question(name, "What is 5 + 7?", "12")], names.questions)
    perspectives = (name, "planning") if name.isprintable() else ("socratic", "planning")
    texts = ("Five and seven join.", "Count onwards from ten.")
    with Journal(names.responses) as journal:
        answers = zip(perspectives, texts, strict=True)
        journal.append(make_response(name, way, 0, text=text + suffix("12")) for way, text in answers)
    teacher = ModelConfig("m", base_url="http://127.0.0.1:9/v1")
    save_json(GenerateConfig(str(names.path), SourceConfig("gone.jsonl"), teacher, perspectives), names.config)
    names.prompts.write_text(json.dumps({way: f"Be {way}." for way in perspectives}))
    former = os.umask(0o077)
    try:
        before = set(tmp_path.rglob("*"))
        assert main(["data", "judge", str(names.path)]) == 0
        output = names.path / "out.jsonl"
        assert main(["data", "filter", str(names.path), "--output", str(output)]) == 0
    finally:
        os.umask(former)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [name]
    new = set(tmp_path.rglob("*")) - before
    assert {path.name for path in new} == OUTPUTS and {path.parent for path in new} == {names.path}
    assert not any(path.stat().st_mode & 0o077 for path in new)
    assert not os.path.lexists("/tmp/evil-of-mind")
