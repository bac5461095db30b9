"""float16 under a GradScaler: gradients keep their digits at every scale, and a model trains as in eager mode.

float16 holds 6e-8 to 65504. The truth is float64; eager mode is the definition in plain PyTorch with the same autocast.
"""

from __future__ import annotations

import pytest
import torch
from cases import interpreted
from losses import LOSSES, make_constants, with_backends

from mind_kernels import Head, linear_cross_entropy, linear_divergence, linear_pairwise_jsd

ROWS, SIZE, VOCABULARY = 60, 16, 101
SCALES = (1.0, 1024.0, 32768.0, 65536.0, 2.0**20)


def make_model(seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, SIZE, generator=generator, dtype=torch.float64)
    return hidden, 0.5 * torch.randn(VOCABULARY, SIZE, generator=generator, dtype=torch.float64)


def gradients(loss, hidden, weight, constants, scale, backend, dtype=torch.float32, autocast=True):
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        value = loss(*leaves, constants, backend=backend)
    (value * scale).backward()
    return [leaf.grad.double() / scale for leaf in leaves]


def relative_error(found, truth):
    return float((found - truth).norm() / truth.norm())


@with_backends(interpreter=True)
def test_gradients_keep_their_digits_at_every_scale(loss, backend):
    rows = 12 if interpreted(backend) else ROWS
    (hidden, weight), constants = make_model(rows=rows), make_constants(rows, VOCABULARY)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in constants.items()}
    truth = gradients(loss, hidden, weight, exact, 1.0, "reference", torch.float64, autocast=False)
    for scale in SCALES[-2:-1] if interpreted(backend) else SCALES:
        eager = gradients(loss, hidden, weight, constants, scale, "reference")
        found = gradients(loss, hidden, weight, constants, scale, backend)
        for mine, peer, value in zip(found, eager, truth, strict=True):
            assert relative_error(mine, value) <= 1.5 * relative_error(peer, value) + 2.0**-12, (scale, loss.name)


@with_backends()
def test_leaves_in_float16(loss, backend):
    """Rounded once: to float16, where the scaled gradient is in its range."""
    (hidden, weight), constants = make_model(), make_constants(ROWS, VOCABULARY)
    hidden, weight = hidden.half(), weight.half()
    exact = {name: value.double() if value.is_floating_point() else value for name, value in constants.items()}
    truth = gradients(loss, hidden, weight, exact, 1.0, "reference", torch.float64, autocast=False)
    found = gradients(loss, hidden, weight, constants, 4096.0, backend, torch.float16, autocast=False)
    for mine, value in zip(found, truth, strict=True):
        assert relative_error(mine, value) <= 1.5e-3


@pytest.mark.parametrize("power", [-40, -20, 20, 40])
@with_backends(losses=[loss for loss in LOSSES if loss.name != "mean"])
def test_the_size_of_the_weights_is_of_no_consequence(loss, backend, power):
    """A power of two that moves from the weights to the upstream gradient changes no bit."""
    (hidden, weight), constants = make_model(), make_constants(ROWS, VOCABULARY)
    scaled = {name: value * 2.0**power if name.endswith("_weight") else value for name, value in constants.items()}
    scaled["teacher_weight"] = constants["teacher_weight"]
    plain = gradients(loss, hidden, weight, constants, 1024.0, backend)
    moved = gradients(loss, hidden, weight, scaled, 1024.0 * 2.0**-power, backend)
    for before, after in zip(plain, moved, strict=True):
        torch.testing.assert_close(after * 2.0**-power, before, rtol=0, atol=0)


@pytest.mark.parametrize(("z_loss", "temperature"), [(-0.1, 0.05), (4.0, 1.0)])
@with_backends(losses=[loss for loss in LOSSES if loss.name in ("cross_entropy", "mean", "sparse", "none")])
def test_a_large_z_loss_does_not_overflow(loss, backend, z_loss, temperature):
    """A token's large logit, which z_loss multiplies: the gradients are numbers of float16, and those of the logits
    too."""
    rows = 12
    (hidden, weight), constants = make_model(rows=rows), make_constants(rows, VOCABULARY)
    hidden, weight, bias = hidden.half(), weight.half(), torch.zeros(VOCABULARY).half()
    bias[1] = 800.0
    exact = {name: value.double() if value.is_floating_point() else value for name, value in constants.items()}
    options = {"z_loss": z_loss, "temperature": temperature}

    def found(dtype, constants, backend):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
        loss(*leaves, constants, bias=bias.to(dtype), **options, backend=backend).backward()
        return [leaf.grad.double() for leaf in leaves]

    truth = found(torch.float64, exact, "reference")
    for mine, value in zip(found(torch.float16, constants, backend), truth, strict=True):
        assert relative_error(mine, value) <= 1.5e-3 and value.abs().max() < 65504


@pytest.mark.parametrize("size", [2.0**-24, 1.0, 2.0**20])
@with_backends(losses=[loss for loss in LOSSES if "row_weight" in loss.constants])
def test_an_infinite_weight_spoils_its_own_row_alone(loss, backend, size):
    """Beside finite weights whose gradients float16 holds in no unit but their own."""
    (hidden, weight), constants = make_model(), make_constants(ROWS, VOCABULARY)
    constants["row_weight"] *= size
    constants["answer_weight"] = constants["answer_weight"] * size
    expected = gradients(loss, hidden, weight, constants, 1 / size, backend)[0]
    constants["row_weight"][7] = float("inf")
    found = gradients(loss, hidden, weight, constants, 1 / size, backend)[0]
    spoilt = torch.arange(ROWS) == 7
    assert not found[spoilt].isfinite().any()
    assert relative_error(found[~spoilt], expected[~spoilt]) <= 1e-3


def train(loss, backend, dtype=torch.float32, scale=None, steps=12):
    """The losses of a tiny model; with a scale, under autocast to float16 and a GradScaler."""
    constants = make_constants(ROWS, VOCABULARY)
    if dtype == torch.float64:
        constants = {name: value.double() if value.is_floating_point() else value for name, value in constants.items()}
    hidden, weight = make_model()
    trunk = torch.nn.Linear(SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        trunk.weight.copy_(torch.eye(SIZE))
        trunk.bias.zero_()
    trunk, hidden = trunk.to(dtype), hidden.to(dtype)
    weight = torch.nn.Parameter(weight.to(dtype))
    optimizer = torch.optim.Adam([*trunk.parameters(), weight], lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=scale is not None):
            value = loss(trunk(hidden), weight, constants, backend=backend)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(value.item())
    return torch.tensor(losses, dtype=torch.float64), scaler.get_scale()


@with_backends()
def test_a_model_trains_as_in_eager_mode(loss, backend):
    truth, _ = train(loss, "reference", torch.float64)
    eager, eager_scale = train(loss, "reference", scale=65536.0)
    found, scale = train(loss, backend, scale=65536.0)
    assert scale == eager_scale == 65536.0  # no step was left out
    assert (found - truth).abs().max() <= 2 * (eager - truth).abs().max() + 2.0**-11 * truth.abs().max()
    assert truth[-1] < 0.95 * truth[0]


@with_backends(losses=[loss for loss in LOSSES if loss.name in ("cross_entropy", "pairs", "forward_kl", "joint")])
def test_the_scaler_backs_off_from_a_scale_that_is_too_large(loss, backend):
    """Gradients that float16 cannot hold are infinite, those steps are left out, and then it trains."""
    found, scale = train(loss, backend, scale=2.0**40, steps=30)
    assert 65536.0 <= scale < 2.0**40
    assert found[-1] < 0.95 * found[0]


def extreme_cases():
    many = torch.ones(1, 40, 40)
    target = torch.zeros(6, dtype=torch.int64)
    far = torch.tensor([[0.0, -400.0]]).expand(6, 2)  # a log-ratio of 400 nats
    return {
        "z-loss 1 at logits of 100": lambda hidden, weight, **options: linear_cross_entropy(
            hidden[:6] * 25, weight, target, z_loss=1.0, **options
        ),
        "40 rows in a group": lambda hidden, weight, **options: linear_pairwise_jsd(
            hidden[None], weight, many, **options
        ),
        "a teacher without probability": lambda hidden, weight, **options: linear_divergence(
            hidden[:6],
            weight,
            teacher_ids=torch.tensor([[0, 1]]).expand(6, 2),
            teacher_log_prob=far.log_softmax(1) - 1.0,
            kind="reverse_kl",
            **options,
        ),
        "temperature 0.01": lambda hidden, weight, **options: linear_cross_entropy(
            hidden[:6], weight, target, temperature=0.01, **options
        ),
    }


@pytest.mark.parametrize("name", extreme_cases())
def test_what_multiplies_a_weight_leaves_the_range(name):
    """Large derivatives, which the unit has room for: as in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 8, generator=generator, dtype=torch.float64).half()
    weight = torch.randn(31, 8, generator=generator, dtype=torch.float64).half()
    results = []
    for dtype, scale in ((torch.float64, 1.0), (torch.float16, 2.0**-8)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, weight)]
        backend = "torch" if dtype == torch.float16 else "reference"
        (extreme_cases()[name](*leaves, backend=backend) * scale).backward()
        results.append([leaf.grad.double() / scale for leaf in leaves])
    for truth, found in zip(*results, strict=True):
        assert relative_error(found, truth) <= 1e-2


def test_no_more_digits_are_lost_at_many_rows():
    """2048 rows of 20000 entries: a gradient of the logits is 2e-8, below float16's range."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 32, generator=generator)
    weight = 0.3 * torch.randn(20000, 32, generator=generator)
    target = torch.randint(0, 20000, (2048,), generator=generator)
    leaves = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].T, target).backward()
    low = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(low[0], Head(low[1]), target)
    (loss * 32768.0).backward()
    for found, truth in zip(low, leaves, strict=True):
        assert relative_error(found.grad.double() / 32768.0, truth.grad) <= 5e-4


@pytest.mark.parametrize("retain", [False, True])
def test_the_upstream_gradient_is_not_rounded_to_bfloat16(retain):
    """3 + 2^-8 has more digits than bfloat16: the gradients are those of the exact product, rounded once."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 8, generator=generator).bfloat16()
    weight = torch.randn(31, 8, generator=generator).bfloat16()
    target = torch.randint(0, 31, (12,), generator=generator)
    upstream = 3 + 2.0**-8
    results = []
    for factor in (1.0, upstream):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        (linear_cross_entropy(*leaves, target) * factor).backward(retain_graph=retain)
        results.append([leaf.grad for leaf in leaves])
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(scaled, (plain.float() * upstream).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_retained_graph_gives_the_same_gradients_again(dtype):
    hidden, weight = make_model()
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight)]
    loss = linear_cross_entropy(*leaves, make_constants(ROWS, VOCABULARY)["target"]) * 3.00390625
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for again in (torch.autograd.grad(loss, leaves, retain_graph=True), torch.autograd.grad(loss, leaves)):
        for one, other in zip(first, again, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=0)
