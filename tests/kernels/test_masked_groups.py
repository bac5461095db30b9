"""The contract of linear_pairwise_jsd's GroupKernels where logits are minus infinity, for every implementation."""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from kernel_cases import eager_groups, truth_and_peer_of_groups
from masked_cases import LOWEST, defined_groups, kept_columns, mask_all_but
from test_group_kernels import ALL, KINDS, make, run, wide_steps

from mind_kernels.testing import assert_within_budget

# Lanes that are not stored, and branches that are not taken, may overflow in Triton's interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.usefixtures(wide_steps.__name__),
]

each = functools.partial(implementations.each, of=ALL)


@each(KINDS, LOWEST, [(2, 3, 67), (1, 5, 128), (1, 9, 101), (2, 2, 7)], names="kind lowest shape")
def test_masked_columns(implementation, kind, lowest, shape):
    """In all rows: values and gradient are those of the vocabulary without them, whose gradient is 0."""
    logits, weight, mask = make(implementation, kind, *shape)
    kept = torch.arange(shape[2], device=logits.device) % 3 != 1
    truth, peer = truth_and_peer_of_groups(logits[..., kept], weight, mask)
    logits[..., ~kept] = lowest
    found = run(implementation, kind, logits, weight, mask)
    assert found["gradient"][..., ~kept].count_nonzero() == 0
    assert_within_budget({**found, "gradient": found["gradient"][..., kept]}, peer, truth, torch.float32)


@each(KINDS, LOWEST, [2, 5, 9], names="kind lowest count")
def test_columns_that_each_row_masks(implementation, kind, lowest, count):
    """Where one row has no probability, the others' terms stay: log 2 is all that a pair can be apart."""
    logits, weight, mask = make(implementation, kind, 2, count, 67)
    if kind == "mixture":
        weight += 0.1
    columns = kept_columns(2 * count, 67, 40).to(logits.device)
    logits = mask_all_but(logits.flatten(0, 1), columns, lowest).view(logits.shape)
    truth = defined_groups(logits, weight, mask)
    assert bool(torch.cat([value.flatten() for value in truth.values()]).isfinite().all())
    found = run(implementation, kind, logits, weight, mask)
    torch.testing.assert_close(found["values"].double(), truth["values"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(found["gradient"].double(), truth["gradient"], rtol=2e-5, atol=1e-7)
    assert found["gradient"][logits == lowest].count_nonzero() == 0


@each(KINDS, [-1e31, torch.finfo(torch.float32).min], names="kind height")
def test_rows_of_low_logits_that_mask_columns(implementation, kind, height):
    """A mask is lower than any number, even than those of a row whose logits are all as low as numbers can be."""
    logits, weight, mask = make(implementation, kind, 2, 3, 67, absent=0)
    weight = weight.abs() + 0.1
    logits[0] = logits[1, 1] = height
    logits[0, 0, ::2] = logits[0, 1, 1::3] = logits[1, 1, 20:] = -math.inf
    truth = defined_groups(logits, weight, mask)
    found = run(implementation, kind, logits, weight, mask)
    torch.testing.assert_close(found["values"].double(), truth["values"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(found["gradient"].double(), truth["gradient"], rtol=2e-5, atol=1e-7)


@each(KINDS, names="kind")
def test_rows_without_a_common_token(implementation, kind):
    logits, weight, mask = make(implementation, kind, 1, 2, 67, absent=0)
    weight[:] = 0.5
    logits[0, 0, ::2] = logits[0, 1, 1::2] = -math.inf
    found = run(implementation, kind, logits, weight, mask)
    apart = found["values"][0, 0, 1] if kind == "pairs" else found["values"].mean()
    torch.testing.assert_close(apart.cpu(), torch.tensor(math.log(2)))
    torch.testing.assert_close(found["gradient"], torch.zeros_like(logits), rtol=0, atol=1e-7)


@each([-math.inf], [3, 9], names="lowest count")
def test_a_mixture_without_probability_is_infinitely_far(implementation, lowest, count):
    """From a row of weight zero that has some: it alone shows that, and has no gradient."""
    logits, weight, mask = make(implementation, "mixture", 2, count, 67, absent=0)
    weight[:] = 0.5
    weight[0, 0] = weight[1, :2] = 0
    logits[0, 1:, 30:40] = lowest
    logits[0, :, 50:] = lowest  # no row has any probability there
    logits[1, 2:, 3] = lowest
    truth = defined_groups(logits, weight, mask)
    assert (truth["values"] == math.inf).sum(1).tolist() == [1, 2]
    found = run(implementation, "mixture", logits, weight, mask)
    torch.testing.assert_close(found["values"].double(), truth["values"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(found["gradient"].double(), truth["gradient"], rtol=2e-5, atol=1e-7)
    assert found["gradient"][weight == 0].count_nonzero() == 0


@each([-750.0, -2000.0, -1e9], [3, 9], names="low count")
def test_a_mixture_of_very_small_probabilities(implementation, low, count):
    """Of rows with weight, far below the smallest float64: the mixture is still their mean, not the largest of them."""
    logits, weight, mask = make(implementation, "mixture", 2, count, 67, absent=0)
    weight[:] = 1.0
    weight[:, 0] = 0
    logits[:, 1:, 20:30] = low + logits[:, 1:, 20:30]
    truth, peer = truth_and_peer_of_groups(logits, weight, mask)
    assert bool(truth["values"].isfinite().all())
    found = run(implementation, "mixture", logits, weight, mask)
    assert_within_budget(found, peer, truth, torch.float32)
    torch.testing.assert_close(found["values"].double(), truth["values"], rtol=1e-6, atol=0)


@each(KINDS, [math.nan, math.inf, -math.inf], names="kind value")
def test_a_row_that_is_nan_reaches_its_pairs_alone(implementation, kind, value):
    """A row of minus infinity alone is nan too. Of pairs, those of the other rows stay what they are."""
    logits, weight, mask = make(implementation, kind, 2, 4, 67, absent=0)
    weight = weight.abs() + 0.1
    expected = run(implementation, kind, logits, weight, mask)
    logits[0, 2] = value
    found = run(implementation, kind, logits, weight, mask)
    others = torch.tensor([0, 1, 3], device=logits.device)
    if kind == "pairs":
        assert bool(found["values"][0, 2, others].isnan().all()) and bool(found["values"][0, others, 2].isnan().all())
        of_others = found["values"][0, others][:, others]
        torch.testing.assert_close(of_others, expected["values"][0, others][:, others], rtol=1e-6, atol=1e-7)
    else:
        assert bool(found["values"][0].isnan().all())
    assert bool(found["gradient"][0].isnan().any(-1).all())
    assert torch.equal(found["values"][1], expected["values"][1])
    assert torch.equal(found["gradient"][1], expected["gradient"][1])


@each(KINDS, [67, 68, 131], names="kind vocabulary")
def test_equal_rows_of_a_masked_vocabulary_are_exactly_equal(implementation, kind, vocabulary):
    logits, weight, mask = make(implementation, kind, 2, 5, vocabulary, spread=0.0)
    logits[..., 5:25] = -math.inf
    found = run(implementation, kind, logits, weight, mask)
    assert found["values"].count_nonzero() == 0 and found["gradient"].count_nonzero() == 0


@each(KINDS, names="kind")
def test_float64_logits(implementation, kind):
    """Where there are any: to all their digits, and exactly 0 where masked."""
    if torch.float64 not in implementation.dtypes:
        pytest.skip("this backend has no float64")
    logits, weight, mask = make(implementation, kind, 2, 3, 67)
    logits, weight = logits.double(), weight.double()
    kept = torch.arange(67, device=logits.device) % 3 != 1
    truth = eager_groups(logits[..., kept], weight, mask)
    logits[..., ~kept] = -math.inf
    found = run(implementation, kind, logits, weight, mask)
    assert found["gradient"][..., ~kept].count_nonzero() == 0
    torch.testing.assert_close(found["values"], truth["values"], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found["gradient"][..., kept], truth["gradient"], rtol=1e-11, atol=1e-15)
