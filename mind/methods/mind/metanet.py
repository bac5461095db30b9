"""MetaNet, the teaching assistant: predicts which of a question's rationales the student can learn from now.

Three stages, from the figure of arXiv 2601.03717: one shared MLP aligns the encoder's vectors of the question and its
rationales; multi-head self-attention over the K perspective vectors lets them see one another (synergy); one MLP per
perspective computes its score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MetaNet(nn.Module):
    """Scores s_k in (0, 1) for the rationales of each question.

    The sigmoid is ours: with negative scores the rule s_k >= beta * max_j s_j would select nothing.
    """

    def __init__(
        self, features: int, perspectives: int, width: int = 128, heads: int = 4, *, synergy: bool = True
    ) -> None:
        """`features` is the encoder's width F, `perspectives` is K, `width` is that of the aligned vectors. Without
        `synergy` each perspective's own vector replaces what it would see of the others, so that the shapes stay the
        same."""
        super().__init__()
        self._sees_others = synergy
        # Mean-pooled hidden states have a few coordinates hundreds of times larger than the rest.
        self.align = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, width), nn.GELU(), nn.Linear(width, width)
        )
        self.perspective = nn.Parameter(0.02 * torch.randn(perspectives, width))
        self.synergy = nn.MultiheadAttention(width, heads, batch_first=True)
        self.combine = nn.Sequential(nn.Linear(3 * width, width), nn.GELU())
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 1))
            for _ in range(perspectives)
        )

    def forward(self, question: Tensor, rationales: Tensor, present: Tensor) -> Tensor:
        """Scores (Q, K) from question (Q, F), rationales (Q, K, F) and present (Q, K) bool.

        A missing perspective neither attends nor is attended to, and scores 0. Each question needs at least one
        rationale.
        """
        # MetaNet stays in float32 if the student computes in bf16
        with torch.autocast(question.device.type, enabled=False):
            return self._scores(question.float(), rationales.float(), present)

    def _scores(self, question: Tensor, rationales: Tensor, present: Tensor) -> Tensor:
        aligned_question = self.align(question)[:, None].expand(-1, rationales.shape[1], -1)
        aligned = self.align(rationales) + self.perspective
        synergy = aligned
        if self._sees_others:
            synergy, _ = self.synergy(aligned, aligned, aligned, key_padding_mask=~present, need_weights=False)
        combined = self.combine(torch.cat([aligned_question, aligned, synergy], dim=-1))
        scores = torch.cat([head(combined[:, k]) for k, head in enumerate(self.scores)], dim=-1).sigmoid()
        return torch.where(present, scores, 0)
