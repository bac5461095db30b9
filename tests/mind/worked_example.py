"""One question in float64 whose losses are known by hand: V = 6 and the head the identity, so hidden states are logits.

    z[r, v] = ((3 r + 5 v + r v) mod 7) / 4

Three right rationales (rows 0-3, 4-6, 7-11), a wrong one (12-15), a label (16-17), an explanation (18-20).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mind.records import Branch, MicroBatch, TokenizedQuestion
from mind_kernels import Head

V = 6
_ROWS, _COLUMNS = torch.arange(21)[:, None], torch.arange(V)[None]
Z = ((3 * _ROWS + 5 * _COLUMNS + _ROWS * _COLUMNS) % 7).double() / 4
ZT = ((2 * _ROWS + 3 * _COLUMNS + _ROWS * _COLUMNS + 1) % 5).double() / 2
"""A teacher's logits."""
SEQUENCES = {0: (1, 2, 4, 5), 1: (3, 4, 5), 2: (2, 0, 1, 4, 5)}
FIRST_ROWS = {0: 0, 1: 4, 2: 7}
SUFFIX = (4, 5)

QUESTION = TokenizedQuestion("example", (0, 3), {k: tokens[: -len(SUFFIX)] for k, tokens in SEQUENCES.items()}, SUFFIX)


def head() -> Head:
    return Head(torch.eye(V, dtype=torch.float64))


def hidden_of(batch: MicroBatch, first_rows: Mapping[int, int] = FIRST_ROWS, logits: torch.Tensor = Z) -> torch.Tensor:
    """(N, V) the logits of the batch's labeled rows; row i of the sequence in slot k is row first_rows[k] + i."""
    seen: dict[int, int] = {}
    rows = []
    for segment in batch.segment.tolist():
        rows.append(first_rows[segment] + seen.get(segment, 0))
        seen[segment] = seen.get(segment, 0) + 1
    return logits[rows].clone().requires_grad_()


def losses_of(question: TokenizedQuestion) -> torch.Tensor:
    """(1, K) the mean NLL of each rationale."""
    log_p = torch.log_softmax(Z, 1)
    means = [
        -log_p[FIRST_ROWS[k] + torch.arange(len(tokens)), torch.tensor(tokens)].mean()
        for k, tokens in SEQUENCES.items()
    ]
    return torch.stack(means)[None]


RIGHT = Branch(QUESTION.prompt, SEQUENCES[0])
WRONG = Branch(QUESTION.prompt, (1, 3, 0, 5))
LABEL, EXPLAIN = Branch((1, 3), (4, 5)), Branch((2, 3), (1, 2, 5))
WRONG_ROW, LABEL_ROW, EXPLAIN_ROW = 12, 16, 18
"""The first of their rows in Z."""
