"""`python -m mind_kernels check`: a right backend passes, and a wrong or failing one is seen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from mind_kernels import Head, linear_cross_entropy, sparse_gradient
from mind_kernels.__main__ import main
from mind_kernels.availability import Availability
from mind_kernels.backend import BACKENDS
from mind_kernels.commands import check
from mind_kernels.linear_cross_entropy import backend_torch

WRONG = "tests.kernels.test_check_command:Wrong"


@pytest.fixture
def few(monkeypatch):
    """One small shape; of the sparse gradient the smallest, since it needs a large vocabulary."""
    for name, case in check.CASES.items():
        settings = case.settings[-1:] if case.form == "sparse" else (((9, 7, 31), 4.0, 0.7),)
        monkeypatch.setitem(check.CASES, name, replace(case, settings=settings))


class Wrong:
    """The kernels of backend torch, whose gradient of the first logit is off by a thousandth."""

    SPARSE_CHUNKS = backend_torch.SPARSE_CHUNKS
    STREAMED_CHUNKS = backend_torch.STREAMED_CHUNKS
    statistics = staticmethod(backend_torch.statistics)
    sparse_rows = staticmethod(backend_torch.sparse_rows)
    gather_rows = staticmethod(backend_torch.gather_rows)
    sort_entries = staticmethod(backend_torch.sort_entries)

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


def test_all_backends_agree(capsys):
    assert main(["check", "--device", "cpu", "--backend", "torch"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("all agree with the definition (")
    assert [line[:28].strip() for line in out.splitlines()[2:-1]] == [*check.CASES]


def test_a_wrong_backend_is_seen(capsys, few, monkeypatch):
    row = replace(BACKENDS["torch"], name="wrong", kernels={"linear_cross_entropy": WRONG})
    monkeypatch.setitem(BACKENDS, "wrong", row)
    assert main(["check", "--device", "cpu", "--backend", "torch", "wrong"]) == 1
    out = capsys.readouterr().out
    found = [line for line in out.splitlines() if line[28:46].strip() == "wrong"]
    assert [line[:28].strip() for line in found if "DIFFERS" in line] == [
        "cross-entropy",
        "all its options",
        "log-probability",
        "ids and lse",
    ]
    where = r"    wrong, float32: gradient of \w+ at N 9, D 7, V 31, softcap 4.0, temperature 0.7: .*error .*, allowed "
    assert re.search(where, out) and "    torch, " not in out


def test_a_failing_backend_is_seen(capsys, few, monkeypatch):
    kernels = {"linear_cross_entropy": WRONG.replace("Wrong", "Failing")}
    row = replace(BACKENDS["torch"], name="failing", kernels=kernels, float64=False)
    monkeypatch.setitem(BACKENDS, "failing", row)
    assert main(["check", "--device", "cpu", "--backend", "failing"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILS") == out.count("RuntimeError: no such instruction") == 4 * 3
    assert "12 of these differ from the definition or fail" in out.splitlines()[-1]


@pytest.mark.parametrize("operation", sorted({case.operation for case in check.CASES.values()}))
def test_a_wrong_number_of_any_operation_is_seen(operation, few, monkeypatch):
    """Each result of a case, a thousandth off, and one that is nan."""
    results = check.results
    for case in check.CASES.values():
        if case.operation != operation:
            continue
        given = check.inputs_of(*case.settings[0][0], torch.float32, "cpu")
        for name in results(case, given, *case.settings[0][1:], "torch"):
            for spoiled in (lambda value: value * (1 + 1e-3), lambda value: value * float("nan")):

                def spoil(case, inputs, softcap, temperature, backend, name=name, spoiled=spoiled):
                    found = results(case, inputs, softcap, temperature, backend)
                    return found | ({name: spoiled(found[name])} if backend == "torch" else {})

                monkeypatch.setattr(check, "results", spoil)
                cell, wrong = check.fault(case, "torch", torch.float32, "cpu")
                assert cell == "DIFFERS" and wrong.startswith(name), (cell, wrong)


def test_nothing_more_is_run_on_a_device_that_is_lost(capsys, few, monkeypatch):
    def lost(*arguments, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    monkeypatch.setattr(check, "fault", lambda *_: ("FAILS", "RuntimeError"))
    monkeypatch.setattr(torch, "ones", lost)
    assert main(["check", "--device", "cpu", "--backend", "torch"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the rest was not run: cpu cannot be used any more in this process: "
        "CUDA error: an illegal memory access was encountered"
    )


def test_the_sparse_settings_are_sparse_on_a_gpu_too(monkeypatch):
    """Where a backend falls back to the exact gradient it differs from the definition of the sparse one."""
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", sparse_gradient._DENSITY_LIMIT["cuda"])
    for shape, softcap, temperature in check.SPARSE:
        given = check.inputs_of(*shape, torch.float32, "cpu")
        head = Head(given["weight"], given["bias"], softcap, temperature)
        _, stats = linear_cross_entropy(
            check.SHARPER * given["hidden"],
            head,
            given["target"],
            gradient_threshold=check.THRESHOLD,
            return_stats=True,
            backend="torch",
        )
        assert 1 < stats.kept_entries.max() < shape[2] // 4


@pytest.mark.parametrize("name", ["triton", "nonsense"])
def test_a_backend_that_is_not_here_is_refused(name, capsys, monkeypatch):
    lacking = replace(BACKENDS["triton"], availability=lambda: Availability(False, "it is not here", "get it"))
    monkeypatch.setitem(BACKENDS, "triton", lacking)
    with pytest.raises(SystemExit) as end:
        main(["check", "--device", "cpu", "--backend", name])
    told = {
        "triton": "--backend triton: it is not here",
        "nonsense": "--backend is nonsense: expected reference, torch, ",
    }[name]
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_a_device_that_is_not_here_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", "--device", "nonsense"])
    assert end.value.code == 2 and "--device nonsense" in capsys.readouterr().err


def test_every_case_has_a_gradient_of_everything():
    for name, case in check.CASES.items():
        inputs = check.inputs_of(6, 8, 31, torch.float64, "cpu")
        found = check.results(case, inputs, 4.0, 0.7, "reference")
        gradients = [value for key, value in found.items() if key.startswith("gradient")]
        assert len(gradients) == (0 if name in ("statistics alone", "top k") else 3), name
        assert all(gradient.abs().sum() > 0 for gradient in gradients), name


def test_every_operation_of_a_backend_is_a_case():
    """Save those of a head that is split over processes, of which the command is one."""
    served = {operation for row in BACKENDS.values() for operation in row.kernels if not operation.endswith(", shards")}
    assert {case.operation for case in check.CASES.values()} == served
