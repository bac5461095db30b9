"""Selection and weights: section 3 of the method and its edges."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mind.methods.mind.objective import select


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
