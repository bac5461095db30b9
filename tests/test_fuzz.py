"""The fuzzer itself: each tier runs, finds a fault that is put there, and repeats it by the command that it prints."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import mind_kernels
from bench.measure import read_results
from mind.records import Question
from mind_kernels.integrations import trl
from tests.fuzz import __main__ as command
from tests.fuzz import parsers
from tests.fuzz.choices import Choices
from tests.fuzz.rounds import run
from tests.fuzz.tiers import TIERS

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = 5


@pytest.mark.parametrize(
    "name", ["public", "refusals", "parsers", "integrations", pytest.param("interpreter", marks=pytest.mark.nightly)]
)
def test_a_few_examples_of_each_name(name):
    tier = TIERS[name]()
    for each in tier.names:
        run(name, tier, each, round_seed=0, examples=EXAMPLES)
    called = {what.partition(" ")[0].rstrip(",") for what in tier.counts}
    assert called == set(tier.names) and sum(tier.counts.values()) >= EXAMPLES * len(tier.names)


def _case(error: Exception) -> list[str]:
    """The arguments of the command that repeats it."""
    (note,) = [note for note in error.__notes__ if note.startswith("again: ")]
    return note.removeprefix("again: python -m tests.fuzz ").split()


def test_a_wrong_result_is_found_made_small_and_repeated(monkeypatch, capsys):
    right = mind_kernels.linear_top_k

    def wrong(*arguments, backend, **options):
        found = right(*arguments, backend=backend, **options)
        is_wrong = backend == "torch" and found.lse.dim() == 2  # of three dimensions of hidden states
        return found._replace(lse=found.lse + 1e-3) if is_wrong and found.lse.numel() else found

    monkeypatch.setattr(mind_kernels, "linear_top_k", wrong)
    tier = TIERS["public"]()
    with pytest.raises(AssertionError, match="^backend torch: lse: error 1.0") as raised:
        run("public", tier, "linear_top_k", round_seed=0)
    arguments = _case(raised.value)
    with pytest.raises(AssertionError, match="^backend torch: lse: error 1.0"):
        command.main(arguments)
    monkeypatch.undo()
    command.main(arguments)
    assert capsys.readouterr().out == "nothing is wrong\n"


def test_a_wrong_loss_of_an_integration_is_found_and_repeated(monkeypatch):
    right = trl.linear_log_prob

    def wrong(hidden, head, *arguments, **options):
        found = right(hidden, head, *arguments, **options)
        off = found[0]._replace(log_prob=found[0].log_prob * 1.001)
        return (off, *found[1:]) if head.softcap is not None else found

    monkeypatch.setattr(trl, "linear_log_prob", wrong)
    with pytest.raises(AssertionError, match="^log_prob: error .*; d_hidden: error") as raised:
        run("integrations", TIERS["integrations"](), "log_prob", round_seed=0)
    with pytest.raises(AssertionError, match="^log_prob: error"):
        command.main(_case(raised.value))


def test_the_counts_are_added_to_a_file(tmp_path):
    file = tmp_path / "fuzz.jsonl"
    for seed in (3, 8):
        with pytest.raises(SystemExit) as ended:
            command.main(
                ["parsers", "--only", "retry_after", "--minutes", "0.001", "--seed", str(seed), "--output", str(file)]
            )
        assert ended.value.code == 0
    first, second = read_results(file)
    assert (first["tier"], first["first_seed"], second["first_seed"], first["findings"]) == ("parsers", 3, 8, 0)
    assert first["total"] == sum(first["calls"].values()) > 0 and first["sanitizer"] is None


def test_a_changed_input_is_found(monkeypatch):
    right = mind_kernels.linear_top_k

    def wrong(*arguments, hidden, **options):
        found = right(*arguments, hidden=hidden, **options)
        if hidden.numel():
            hidden.detach()[..., 0] += 1
        return found

    monkeypatch.setattr(mind_kernels, "linear_top_k", wrong)
    with pytest.raises(AssertionError, match="changed hidden"):
        run("public", TIERS["public"](), "linear_top_k", round_seed=0)


def test_a_backend_that_takes_what_others_refuse_is_found(monkeypatch):
    right = mind_kernels.linear_top_k

    def lenient(*arguments, backend, **options):
        try:
            return right(*arguments, backend=backend, **options)
        except ValueError:
            if backend == "torch":
                return None
            raise

    monkeypatch.setattr(mind_kernels, "linear_top_k", lenient)
    with pytest.raises(AssertionError, match="'torch': 'taken'"):
        run("refusals", TIERS["refusals"](), "linear_top_k", round_seed=0)


def test_another_exception_of_a_parser_is_found(monkeypatch):
    right = parsers.judge_text

    def fragile(response: str, question: Question):
        return right(response, question) if "{" not in response else {}["{"]

    monkeypatch.setattr(parsers, "judge_text", fragile)
    with pytest.raises(KeyError) as raised:
        run("parsers", TIERS["parsers"](), "grading", round_seed=0)
    with pytest.raises(KeyError):
        command.main(_case(raised.value))


def test_a_case_is_the_numbers_of_its_choices():
    first = Choices(lambda most: min(most, 2))
    values = [first.number(5), first.among("abc"), first.rarely(3)]
    again = Choices.repeated(first.code)
    assert [again.number(5), again.among("abc"), again.rarely(3)] == values == [2, "c", True]
    assert Choices.repeated("").number(9) == 0
    assert torch.equal(*(torch.rand(3, generator=Choices.repeated("5").generator()) for _ in range(2)))


def test_the_interpreter_can_still_be_chosen():
    """Triton reads TRITON_INTERPRET when it is imported."""
    code = "import sys, tests.fuzz.__main__; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_counts_and_findings_are_told(monkeypatch, capsys):
    def example(name: str, choices: Choices, counts: Counter[str]) -> None:
        counts[name] += 1
        if name == "bad" and choices.number(9) >= 5:
            raise AssertionError("too large")

    tier = command.Tier(["good", "bad"], example, examples=20)
    monkeypatch.setitem(TIERS, "parsers", lambda: tier)
    with pytest.raises(SystemExit) as ended:
        command.main(["parsers", "--minutes", "0.01", "--go-on"])
    out = capsys.readouterr().out
    assert ended.value.code == 1 and "too large\nagain: python -m tests.fuzz parsers --case bad:5\n" in out
    assert "findings in" in out and "  good: " in out
    with pytest.raises(SystemExit) as ended:
        command.main(["parsers", "--only", "bad"])
    assert ended.value.code == 1
