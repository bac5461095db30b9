"""The scripts in examples/ run as a user calls them, and the loop's losses are those of plain PyTorch on logits."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.guide import ROOT
from tests.test_readme import jsd

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(file.stem for file in EXAMPLES.glob("*.py") if file.stem != "tiny_model")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_and_its_loss_falls(name):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--steps", "10"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    first, last = map(float, re.findall(r"(?:loss|cross-entropy|->) ([0-9.]+)", ended.stdout)[-2:])
    assert last < 0.8 * first, ended.stdout


def test_the_examples_are_short_and_in_their_list():
    assert len(SCRIPTS) == 3
    listed = (EXAMPLES / "README.md").read_text()
    for name in SCRIPTS:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert f"({name}.py)" in listed and f"python examples/{name}.py" in text
        assert text.count("\n") < 80


def test_the_losses_of_the_loop(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    rationales, tiny = (importlib.import_module(name) for name in ("rationales", "tiny_model"))
    model, tokenizer = tiny.load("")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # else all distributions are alike
    batch = rationales.batch_of(tokenizer, 5, 6)
    head = rationales.Head(model.get_output_embeddings().weight)
    nll, divergence = rationales.losses_of(model, head, batch)

    with torch.no_grad():
        log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().log_softmax(-1)
    own, answers = [], []
    end = tokenizer(" #### 11")["input_ids"] + [tokenizer.eos_token_id]
    for row, mask, p in zip(batch["input_ids"], batch["attention_mask"], log_p, strict=True):
        ids = row[: mask.sum()].tolist()
        assert ids[-len(end) :] == end
        prompt = len(tokenizer("What is 5 plus 6? ")["input_ids"])
        own += [p[position - 1, ids[position]] for position in range(prompt, len(ids))]
        answers.append(p[len(ids) - len(end) - 1 : len(ids) - 1].exp())
    pairs = [jsd(p, q).mean() for p, q in itertools.combinations(answers, 2)]
    torch.testing.assert_close(nll.double(), -torch.stack(own).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(divergence.double(), torch.stack(pairs).mean(), rtol=1e-5, atol=1e-6)
    assert len(pairs) == 6 and divergence > 0.01
