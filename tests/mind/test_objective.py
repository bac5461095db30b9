"""Selection and weights: section 3 of the method and its edges."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mind.config import ObjectiveConfig
from mind.methods.mind.objective import select, student_loss
from mind.records import MicroBatch
from mind_kernels import Head


def test_selection_by_hand():
    scores = torch.tensor([[0.5, 0.41, 0.39], [0.2, 0.9, 0.8]])
    present = torch.tensor([[True, True, True], [True, False, True]])
    selected, alpha = select(scores, present, beta=0.8, tau_student=0.5)
    assert selected.tolist() == [[True, True, False], [False, False, True]]
    expected = torch.softmax(torch.tensor([0.5, 0.41]) / 0.5, 0)
    torch.testing.assert_close(alpha[0, :2], expected)
    assert alpha[0, 2] == 0 and alpha[1].tolist() == [0, 0, 1]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000), beta=st.floats(1e-3, 1.0), tau=st.floats(1e-2, 10.0), perspectives=st.integers(2, 32)
)
def test_the_argmax_is_selected_and_alpha_sums_to_one(seed, beta, tau, perspectives):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(4, perspectives, generator=generator).clamp(min=1e-6).requires_grad_()
    present = torch.rand(4, perspectives, generator=generator) > 0.5
    present[torch.arange(4), torch.randint(perspectives, (4,), generator=generator)] = True
    selected, alpha = select(scores, present, beta, tau)
    best = torch.where(present, scores, -1).argmax(1)
    assert selected[torch.arange(4), best].all()
    assert not selected[~present].any() and (alpha[~selected] == 0).all() and (alpha >= 0).all()
    torch.testing.assert_close(alpha.sum(1), torch.ones(4))
    assert not alpha.requires_grad


def test_the_first_row_may_be_an_answers():
    """Two questions with one pair of rationales each, at two positions and at one; the third rationale is missing."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (7, 11))
    batch = MicroBatch(
        ids=("first", "second"),
        packs=(),
        target=torch.arange(7),
        segment=torch.tensor([0, 0, 1, 1, 3, 4, 4]),
        tokens=torch.tensor([[2, 2, 0], [1, 2, 0]]),
        answer_rows=torch.tensor([[0, 2, -1], [1, 3, -1], [4, 6, -1]]),
        answer_question=torch.tensor([0, 0, 1]),
    )
    alpha = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    config = ObjectiveConfig(consistency_weight=2.0, backend="torch")
    sums = student_loss(hidden, Head(weight), batch, alpha, torch.full((7,), 0.1).double(), config).sums
    log_p = (hidden @ weight.T).log_softmax(-1)
    jsd = []
    for pair in ([0, 2], [1, 3], [4, 6]):
        mean = torch.logsumexp(log_p[pair], 0) - math.log(2)
        jsd.append((log_p[pair].exp() * (log_p[pair] - mean)).sum() / 2)
    assert int(sums["pairs"]) == 3
    torch.testing.assert_close(sums["jsd"].double(), sum(jsd))
    torch.testing.assert_close(sums["consistency"].double(), (0.25 * (jsd[0] + jsd[1]) / 2 + 0.1875 * jsd[2]) / 2)
