"""`python -m mind_kernels check`: a right backend passes, and a wrong or failing one is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mind_kernels.__main__ import main
from mind_kernels.backend import BACKENDS
from mind_kernels.commands import check
from mind_kernels.linear_cross_entropy import backend_torch

WRONG = "tests.kernels.test_check_command:Wrong"


@pytest.fixture
def few(monkeypatch):
    """One shape, and the backends that take no time."""
    monkeypatch.setattr(check, "SHAPES", ((6, 8, 31),))
    for name in [*BACKENDS]:
        if name not in ("reference", "torch"):
            monkeypatch.delitem(BACKENDS, name)


class Wrong:
    """The kernels of backend torch, whose gradient of the first logit is off by a thousandth."""

    SPARSE_CHUNKS = backend_torch.SPARSE_CHUNKS
    statistics = staticmethod(backend_torch.statistics)

    @staticmethod
    def row_kernel_(logits, target, weights, spec):
        values = backend_torch.row_kernel_(logits, target, weights, spec)
        logits[:, 0] += 1e-3
        return values


class Failing(Wrong):
    """Kernels of another compiler than this machine's, say."""

    @staticmethod
    def row_kernel_(logits, target, weights, spec):
        raise RuntimeError("no such instruction")


def test_all_backends_agree(capsys, few):
    assert main(["check", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all agree with the definition\n")
    assert [line[:20].strip() for line in out.splitlines()[1:-1]] == [*check.CASES]


def test_a_wrong_backend_is_seen(capsys, few, monkeypatch):
    row = replace(BACKENDS["torch"], name="wrong", kernels={"linear_cross_entropy": WRONG})
    monkeypatch.setitem(BACKENDS, "wrong", row)
    assert main(["check", "--device", "cpu"]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line[20:38].strip() == "wrong"]
    assert len(found) == 3 and all(line.count("DIFFERS") >= 2 for line in found)


def test_a_failing_backend_is_seen(capsys, few, monkeypatch):
    kernels = {"linear_cross_entropy": WRONG.replace("Wrong", "Failing")}
    row = replace(BACKENDS["torch"], name="wrong", kernels=kernels, float64=False)
    monkeypatch.setitem(BACKENDS, "wrong", row)
    assert main(["check", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILS: RuntimeError: no such instruction") == 3 * 3 and out.endswith(
        "9 of these differ from the definition or fail\n"
    )


def test_a_device_that_is_not_here_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", "--device", "nonsense"])
    assert end.value.code == 2 and "--device nonsense" in capsys.readouterr().err


def test_every_case_has_a_gradient_of_everything():
    inputs = check.inputs_of(6, 8, 31, torch.float64, "cpu")
    for name, case in check.CASES.items():
        _, *gradients = check.results(case, inputs, 4.0, 0.7, "reference")
        assert all(gradient.abs().sum() > 0 for gradient in gradients), name
