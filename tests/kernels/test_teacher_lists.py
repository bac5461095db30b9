"""A teacher's lists with padding, and renormalized: every backend against the events written out, and TRL's losses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cases import usable
from divergence_cases import CASES, KINDS, assert_matches_float64, fit, listed_cases, make, name_of, published, run

from mind_kernels import backend as backends
from mind_kernels import linear_divergence, linear_top_k

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

LISTS = ["teacher_ids", "teacher_log_prob"]
TAILS = ["bucket", "renormalize"]
PADDING = [0, -1, 10**6]  # what the id of an entry of padding may be; 0 may be listed too
tails = pytest.mark.parametrize("tail", TAILS)


def padded(rows=9, size=8, vocabulary=31, listed=6, **options):
    """As `make`, rows of 0 to `listed` entries in no order, the others padding of each kind."""
    inputs = make(rows, size, vocabulary, form="list", listed=listed, list_dtype=torch.float64, **options)
    inputs["teacher_ids"][:, 1] = 0  # a real token whose id padding has too
    for row, ids in enumerate(inputs["teacher_ids"]):
        others = [token for token in ids.tolist() if token != 0]
        ids[2:] = torch.tensor(others + [token for token in range(1, vocabulary) if token not in others])[
            1 : listed - 1
        ]
        ids[0] = others[0]
        if row % 2:
            inputs["teacher_log_prob"][row] = inputs["teacher_log_prob"][row].flip(0)
    count = torch.arange(rows) % (listed + 1)
    order = torch.rand(rows, listed, generator=torch.Generator().manual_seed(1)).argsort(1)
    mask = order < count[:, None]
    filler = torch.tensor(PADDING).repeat(rows * listed)[: rows * listed].view(rows, listed)
    inputs["teacher_ids"] = torch.where(mask, inputs["teacher_ids"], filler)
    return inputs | {"teacher_mask": mask}


def defined(inputs, kind, tail, temperature=1.0, softcap=None):
    """Divergence and entropy of each row, float64, from the real entries alone, row by row."""
    z = inputs["hidden"] @ inputs["weight"].T
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    q = torch.softmax(z / temperature, -1)
    values = []
    for row, mask in enumerate(inputs["teacher_mask"]):
        ids, p = inputs["teacher_ids"][row, mask], inputs["teacher_log_prob"][row, mask].double().exp()
        of_listed = q[row, ids]
        others = [token for token in range(q.shape[1]) if token not in ids.tolist()]
        if tail == "bucket" and others:
            of_listed, p = torch.cat([of_listed, q[row, others].sum()[None]]), torch.cat([p, 1 - p.sum()[None]])
        of_listed, p = of_listed / of_listed.sum(), p / p.sum()
        some = of_listed.numel() > 0
        values.append(published(kind, of_listed.log()[None], p.log()[None])[0] if some else q[row].sum() * 0)
    return torch.stack(values), -(q * q.log()).sum(1)


@tails
@listed_cases("reference", *usable("linear_divergence"))
def test_padding_is_left_out(backend, kind, tail):
    inputs = padded()
    dtype = torch.float64 if backends.BACKENDS[backend].float64 else torch.float32
    found = run(inputs, dtype, backend, **kind, tail=tail, temperature=0.7, softcap=4.0, reduction="sum", weighted=True)
    leaves = {name: inputs[name].requires_grad_() for name in ("hidden", "weight")}
    value, entropy = defined(inputs | leaves, kind, tail, 0.7, 4.0)
    (inputs["row_weight"] * value).sum().mul(-1.0).backward()  # `run` has -1 as the upstream gradient of one number
    expected = {"divergence": value, "entropy": entropy}
    expected |= {"d_hidden": leaves["hidden"].grad, "d_weight": leaves["weight"].grad}
    for name, truth in expected.items():
        torch.testing.assert_close(
            found[name].double(), truth.detach(), rtol=1e-5, atol=1e-6 if dtype.itemsize < 8 else 1e-9
        )


@tails
@pytest.mark.parametrize("kind", KINDS[:4:3], ids=name_of)
@pytest.mark.parametrize(("backend", "dtype"), CASES)
def test_every_dtype(backend, dtype, kind, tail):
    inputs = padded(*fit(backend, 37, 33, 101), dtype=dtype, seed=5)
    assert_matches_float64(inputs, dtype, backend, **kind, tail=tail, reduction="none", biased=True)


@tails
@listed_cases("reference", *usable("linear_divergence"))
def test_a_row_of_padding_alone_has_none(backend, kind, tail):
    """Also if its student has no probability at some tokens, or only at those in the place of padding."""
    inputs = make(3, 8, 31, form="list", listed=4, dtype=torch.float32)
    inputs["teacher_ids"], inputs["teacher_log_prob"] = torch.zeros(3, 4).int(), torch.full((3, 4), -torch.inf)
    for kept in (slice(0, 31), slice(0, 4), slice(5, 31)):
        bias = torch.full((31,), -torch.inf)
        bias[kept] = 0
        hidden = inputs["hidden"].clone().requires_grad_()
        atol = 1e-6 if backend == "reference" else 0
        teacher = {name: inputs[name] for name in ("teacher_ids", "teacher_log_prob")}
        options = kind | {"tail": tail, "bias": bias, "backend": backend, "return_stats": True}
        loss, stats = linear_divergence(hidden, inputs["weight"], **teacher, **options)
        loss.backward()
        for nothing in (loss, stats.divergence, stats.target_entropy, hidden.grad):
            torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=atol)
        q = torch.softmax(inputs["hidden"].double() @ inputs["weight"].double().T + bias, 1)
        torch.testing.assert_close(stats.entropy.double(), torch.special.entr(q).sum(1), rtol=1e-5, atol=1e-6)


@tails
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_how_padding_is_told_changes_no_number(backend, tail):
    """By a mask, by minus infinity, or by fewer entries; in a leading shape and 32 bits."""
    inputs = padded(rows=6)
    inputs["teacher_mask"][:, :3], inputs["teacher_mask"][:, 3:] = True, False
    inputs["teacher_ids"][:, :3] = torch.tensor([3, 0, 30])
    log_prob, ids, mask = (inputs.pop(f"teacher_{name}") for name in ("log_prob", "ids", "mask"))
    noise = torch.where(mask, log_prob, torch.tensor([torch.nan, torch.inf, 7.0] * 2).double())
    forms = [
        {"teacher_ids": ids[:, :3], "teacher_log_prob": log_prob[:, :3]},
        {"teacher_ids": ids.int(), "teacher_log_prob": noise, "teacher_mask": mask},
        {"teacher_ids": ids, "teacher_log_prob": log_prob.masked_fill(~mask, -torch.inf)},
    ]
    few, *others = (run(inputs | form, torch.float64, backend, kind="jsd", tail=tail) for form in forms)
    for found in others:
        for name, value in found.items():
            torch.testing.assert_close(value, few[name], rtol=1e-12, atol=1e-14)
    shaped = {name: value.unflatten(0, (2, 3)) for name, value in (inputs | forms[1]).items() if name != "weight"}
    loss = linear_divergence(weight=inputs["weight"], **shaped, kind="jsd", tail=tail, backend=backend)
    torch.testing.assert_close(loss, linear_divergence(**inputs, **forms[0], kind="jsd", tail=tail, backend=backend))


@tails
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_as_many_entries_as_tokens(kind, tail):
    """Listed whole, two of them padding, one alone, and all but one padding."""
    inputs = make(4, 8, 7, form="list", listed=7, list_dtype=torch.float64)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1, 2:4] = mask[2, :6] = mask[3, 1:] = False
    for backend in ("reference", "torch"):
        found = run(inputs | {"teacher_mask": mask}, torch.float64, backend, **kind, tail=tail)["divergence"]
        torch.testing.assert_close(found, defined(inputs | {"teacher_mask": mask}, kind, tail)[0])


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_one_token_renormalized_has_no_divergence(kind):
    inputs = make(5, 8, 31, form="list", listed=1)
    out = run(inputs, torch.float64, "torch", **kind, tail="renormalize")
    assert out["divergence"].count_nonzero() == 0 and out["d_hidden"].count_nonzero() == 0


@listed_cases("torch")
def test_a_constant_of_a_renormalized_row_says_nothing(backend, kind):
    """Logits will do, and log-probabilities at another temperature that is divided into them."""
    inputs = padded()
    moved = inputs["teacher_log_prob"] + torch.linspace(-40, 40, 9).double()[:, None]
    runs = [
        run(inputs | change, torch.float64, backend, **kind, tail="renormalize")
        for change in ({}, {"teacher_log_prob": moved})
    ]
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value)


def test_lists_of_linear_top_k():
    """Renormalized, a teacher's k likeliest tokens are those of its head alone."""
    inputs = make(9, 8, 31)
    known = linear_top_k(inputs["teacher_hidden"], inputs["teacher_weight"], 5, temperature=2.0)
    student = {name: inputs[name] for name in ("hidden", "weight")}
    found = linear_divergence(**student, teacher_ids=known.ids, teacher_log_prob=known.log_prob, tail="renormalize")
    z, theirs = (h @ w.T for h, w in (student.values(), (inputs["teacher_hidden"], inputs["teacher_weight"])))
    q, p = (torch.log_softmax(logits.gather(1, known.ids), 1) for logits in (z, theirs / 2))
    torch.testing.assert_close(found, published({"kind": "forward_kl"}, q, p).mean())


@tails
@listed_cases("torch")
def test_lists_of_linear_top_k_through_float16(tmp_path, backend, kind, tail):
    """On disk, with ids of 32 bits: an error of the size that linear_top_k's README states, from the exact lists."""
    inputs = make(64, 8, 101)
    known = linear_top_k(inputs["teacher_hidden"], inputs["teacher_weight"], 16)
    on_disk = {"ids": known.ids.numpy().astype(np.int32), "log_prob": known.log_prob.numpy().astype(np.float16)}
    np.savez(tmp_path / "teacher.npz", **on_disk)
    read = np.load(tmp_path / "teacher.npz")
    hidden = inputs["hidden"].requires_grad_()
    found = linear_divergence(
        hidden,
        inputs["weight"],
        teacher_ids=torch.from_numpy(read["ids"]),
        teacher_log_prob=torch.from_numpy(read["log_prob"]).float(),
        **kind,
        tail=tail,
        backend=backend,
    )
    whole = inputs | {"teacher_ids": known.ids, "teacher_log_prob": known.log_prob}
    whole["teacher_mask"] = torch.ones_like(known.ids, dtype=torch.bool)
    expected = defined(whole, kind, tail)[0].mean()
    gradients = [torch.autograd.grad(loss, hidden)[0] for loss in (found, expected)]
    assert abs(found - expected) < 2e-4 * expected
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_no_rounding_of_float16_is_refused():
    """The sum that it puts furthest above 1, and below it, of equal probabilities above e^-8."""
    counts = torch.arange(2, 2900)
    exact = -counts.double().log()
    error = exact.half().double() - exact
    for count in (int(counts[error.argmax()]), int(counts[error.argmin()])):
        log_prob = torch.full((1, count), -math.log(count)).half().float()
        assert abs(log_prob.double().exp().sum() - 1) > 1.9e-3
        ids = torch.arange(count)[None]
        found = linear_divergence(torch.ones(1, 1), torch.zeros(count, 1), teacher_ids=ids, teacher_log_prob=log_prob)
        assert found < 1e-6


@pytest.fixture(scope="module")
def trl():
    """Two of the losses of TRL's trainers."""
    pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")
    from trl.experimental.async_distillation import async_distillation_trainer
    from trl.experimental.sdft import loss_utils

    return async_distillation_trainer._jsd_loss_chunk, loss_utils.compute_topk_self_distillation_loss


OF_TRL = {0.0: {"kind": "forward_kl"}, 1.0: {"kind": "reverse_kl"}, 0.3: {"kind": "jsd", "beta": 0.3}}


@pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning")
@tails
@pytest.mark.parametrize("beta", OF_TRL)
def test_trl_agrees_on_padded_lists(trl, beta, tail):
    """A server's top tokens, as its asynchronous and server trainers and IW-OPD take them."""
    inputs = padded()
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("hidden", "weight")}
    theirs = {name: tensor.detach().clone().requires_grad_() for name, tensor in leaves.items()}
    ids, log_prob, mask = (inputs[f"teacher_{name}"] for name in ("ids", "log_prob", "mask"))
    known = {"teacher_ids": ids, "teacher_log_prob": log_prob, "teacher_mask": mask}
    loss, stats = linear_divergence(
        **leaves, **known, **OF_TRL[beta], tail=tail, temperature=1.3, reduction="sum", return_stats=True
    )
    ids = torch.where(mask, ids, 0)
    arguments = (None, 1.0, None, ids, log_prob, mask, beta, 1.3, tail == "bucket", None, 0)
    expected, _, entropy, *_ = trl[0](*theirs.values(), *arguments)
    torch.testing.assert_close(loss.float(), expected.float())
    torch.testing.assert_close(stats.entropy.sum().float(), entropy.float())
    some = mask.any(1)  # TRL has nan as the gradient of a renormalized row without any entry
    if tail == "renormalize":
        arguments = (None, 1.0, None, ids[some], log_prob[some], mask[some], beta, 1.3, False, None, 0)
        expected, *_ = trl[0](theirs["hidden"][some], theirs["weight"], *arguments)
    loss.backward()
    expected.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, theirs[name].grad, rtol=1e-4, atol=1e-5)


@tails
@pytest.mark.parametrize("alpha", OF_TRL)
def test_trl_agrees_on_the_students_own_top_tokens(trl, alpha, tail):
    """Of SDFT and SDPO: the student's likeliest tokens, at which the teacher is asked."""
    inputs = make(9, 8, 31)
    ids = linear_top_k(inputs["hidden"], inputs["weight"], 5).ids
    log_p = torch.log_softmax(inputs["teacher_hidden"] @ inputs["teacher_weight"].T, -1)
    leaves, theirs = ({name: inputs[name].clone().requires_grad_() for name in ("hidden", "weight")} for _ in range(2))
    known = {"teacher_ids": ids, "teacher_log_prob": log_p.gather(1, ids)}
    loss = linear_divergence(**leaves, **known, **OF_TRL[alpha], tail=tail, reduction="none")
    options = {"distillation_topk": 5, "distillation_alpha": alpha, "distillation_add_tail": tail == "bucket"}
    expected = trl[1](theirs["hidden"] @ theirs["weight"].T, log_p, **options)
    torch.testing.assert_close(loss, expected)
    for each in (loss, expected):
        each.sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, theirs[name].grad)


LAYOUTS = {
    "rows apart": lambda tensor: torch.stack([tensor, tensor], 1)[:, 0],
    "entries apart": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "transposed": lambda tensor: tensor.T.contiguous().T,
}


@pytest.mark.parametrize("layouts", [*itertools.product(LAYOUTS, LAYOUTS)], ids="-".join)
@pytest.mark.parametrize(("backend", "dtype"), CASES)
def test_lists_in_any_memory_layout(backend, dtype, layouts):
    """Of ids and log-probabilities."""
    inputs = make(*fit(backend, 40, 8, 31), form="list", dtype=dtype)  # enough for products of their own
    inputs["teacher_ids"] = inputs["teacher_ids"].int()
    expected = run(inputs, dtype, backend, reduction="sum")
    lists = {name: LAYOUTS[of](inputs[name]) for name, of in zip(LISTS, layouts, strict=True)}
    found = run(inputs | lists, dtype, backend, reduction="sum")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
