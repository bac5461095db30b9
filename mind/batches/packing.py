"""Packs token ids into micro-batches: rows without padding, with labeled rows, segments and aligned answer rows.

The questions of a step are distributed over micro-batches by best fit. Each question is whole in one micro-batch, since
the consistency term compares its rationales. Within a micro-batch the rows of the trunk hold documents: a prompt with
as many of its branches as fit or, if prompts are not shared, a prompt with one. Everything runs on the host, so that
the loss needs no synchronization with a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mind.batches.bin_packing import bins_of
from mind.errors import MindError
from mind.records import AnswerSpan, MicroBatch, Pack, PackOptions, TokenizedQuestion


def micro_batches(
    questions: Sequence[TokenizedQuestion], perspectives: int, options: PackOptions, chosen: Tensor | None = None
) -> list[MicroBatch]:
    """The micro-batches of the `chosen` (Q, K) rationales of the questions; None: all rationales.

    `perspectives` is K. Rows and micro-batches have at most `options.length` tokens, except that a longer sequence has
    a row of its own, and a longer question a micro-batch of its own, of several rows.

    Raises MindError for a prompt that is longer than `options.length`.
    """
    documents = [_documents(q, question, _slots(question, q, chosen), options) for q, question in enumerate(questions)]
    present = [q for q, parts in enumerate(documents) if parts]
    totals = [sum(part.length for part in documents[q]) for q in present]
    return [
        _micro_batch(questions, perspectives, [part for i in members for part in documents[present[i]]], options)
        for members in bins_of(totals, options.length)
    ]


def present_rationales(questions: Sequence[TokenizedQuestion], perspectives: int) -> Tensor:  # (Q, K) bool
    """Which of the K = `perspectives` rationales each question has."""
    return torch.tensor([[k in question.rationales for k in range(perspectives)] for question in questions])


def present_sequences(questions: Sequence[TokenizedQuestion], slots: int) -> Tensor:  # (Q, slots) bool
    """Which of its slots each question fills, with a rationale or another sequence."""
    return torch.tensor([[k in question.branches for k in range(slots)] for question in questions])


def check_prompt(question: TokenizedQuestion, length: int) -> None:
    """Raises MindError for a prompt that is longer than a row."""
    for prompt in prompts_of(question):
        if len(prompt) > length:
            raise MindError(
                f"question {question.id}: its prompt alone has {len(prompt)} tokens; train.pack_length is {length}"
            )


def prompts_of(question: TokenizedQuestion) -> list[tuple[int, ...]]:
    """The distinct prompts that its sequences continue; its own prompt comes first."""
    return list(dict.fromkeys([question.prompt, *(branch.prompt for branch in question.branches.values())]))


def plain_pack(sequences: Sequence[Sequence[int]]) -> Pack:
    """A row of sequences without labels, such as texts to encode."""
    return document_pack([(ids, ()) for ids in sequences])


def document_pack(documents: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> Pack:
    """A row of documents, each a prompt and the branches that continue it."""
    return _row(
        [_Document(0, (), tuple(prompt), tuple(tuple(ids) for ids in branches)) for prompt, branches in documents]
    )


def sequence_lengths(question: TokenizedQuestion) -> list[int]:
    """Tokens of each of its training sequences: prompt, rationale and suffix."""
    return [len(branch.prompt) + len(branch.ids) for branch in question.branches.values()]


def naive_tokens(questions: Sequence[TokenizedQuestion]) -> tuple[int, int]:
    """(with padding, without): tokens of all sequences of the questions; padding extends each to the longest one's
    length."""
    lengths = [length for question in questions for length in sequence_lengths(question)]
    return len(lengths) * max(lengths), sum(lengths)


@dataclass(frozen=True)
class _Document:
    """A prompt of question q and its branches in the slots ks, mostly rationale and suffix."""

    q: int
    ks: tuple[int, ...]
    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(map(len, self.branches))


def _slots(question: TokenizedQuestion, q: int, chosen: Tensor | None) -> list[int]:
    return [k for k in question.branches if chosen is None or chosen[q, k]]


def _documents(q: int, question: TokenizedQuestion, ks: list[int], options: PackOptions) -> list[_Document]:
    """The documents of a question: branches of one prompt may share it; prompts are in the order of their first
    slots."""
    check_prompt(question, options.length)
    by_prompt: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for k in ks:
        branch = question.branches[k]
        by_prompt.setdefault(branch.prompt, []).append((k, branch.ids))
    documents = []
    for prompt, branches in by_prompt.items():
        alone = [[i] for i in range(len(branches))]
        room = options.length - len(prompt)
        groups = bins_of([len(ids) for _, ids in branches], room) if options.share_prompts else alone
        for group in groups:
            slots, ids = zip(*(branches[i] for i in group), strict=True)
            documents.append(_Document(q, slots, prompt, ids))
    return documents


def _micro_batch(
    questions: Sequence[TokenizedQuestion], perspectives: int, documents: list[_Document], options: PackOptions
) -> MicroBatch:
    rows = [[documents[i] for i in members] for members in bins_of([d.length for d in documents], options.length)]
    target: list[int] = []
    segment: list[int] = []
    weights: list[float] = []
    tokens = torch.zeros(len(questions), perspectives, dtype=torch.int64)
    last_row: dict[tuple[int, int], int] = {}  # (q, k) -> the position after its last labeled row
    for q, k, branch in _branches(rows):
        target.extend(branch)
        weights.extend(questions[q].branches[k].weights or [1.0] * len(branch))
        segment.extend([q * perspectives + k] * len(branch))
        tokens[q, k] = len(branch)
        last_row[q, k] = len(target)
    answer_rows, answer_question = _answer_rows(questions, perspectives, last_row, options.answer_span)
    return MicroBatch(
        ids=tuple(question.id for question in questions),
        packs=tuple(_row(row) for row in rows),
        target=torch.tensor(target, dtype=torch.int64),
        segment=torch.tensor(segment, dtype=torch.int64),
        tokens=tokens,
        answer_rows=answer_rows,
        answer_question=answer_question,
        token_weight=None if all(weight == 1 for weight in weights) else torch.tensor(weights, dtype=torch.float64),
    )


def _branches(rows: list[list[_Document]]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    for row in rows:
        for document in row:
            for k, branch in zip(document.ks, document.branches, strict=True):
                yield document.q, k, branch


def _row(documents: Sequence[_Document]) -> Pack:
    ids: list[int] = []
    positions, branch, rows, boundaries = [], [], [], [0]
    for document in documents:
        prompt = len(document.prompt)
        last = len(ids) + prompt - 1  # the end of the prompt predicts the first token of every branch
        ids.extend(document.prompt)
        positions.append(torch.arange(prompt))
        branch.append(torch.zeros(prompt, dtype=torch.int64))
        for number, tokens in enumerate(document.branches, start=1):
            # The last token of a branch predicts nothing.
            rows += [torch.tensor([last]), torch.arange(len(ids), len(ids) + len(tokens) - 1)]
            ids.extend(tokens)
            positions.append(torch.arange(prompt, prompt + len(tokens)))
            branch.append(torch.full((len(tokens),), number))
        boundaries.append(len(ids))
    return Pack(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        position_ids=torch.cat(positions),
        boundaries=torch.tensor(boundaries),
        branch=torch.cat(branch),
        rows=torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64),
    )


def _answer_rows(
    questions: Sequence[TokenizedQuestion],
    perspectives: int,
    last_row: dict[tuple[int, int], int],
    span: AnswerSpan,
) -> tuple[Tensor, Tensor]:
    """Rows (P, K) of the aligned positions of the span and the question (P,) of each, where at least two rationales
    have the position.

    With span "all", a position that only the longest rationale has is left out: there is nothing to compare it with.
    """
    blocks, owners = [], []
    for q, question in enumerate(questions):
        ends = {k: last_row[q, k] for k in question.rationales if (q, k) in last_row}
        if len(ends) < 2:
            continue
        if span == "all":
            lengths = {k: len(question.branches[k].ids) for k in ends}
            block = torch.full((sorted(lengths.values())[-2], perspectives), -1, dtype=torch.int64)
            for k, end in ends.items():
                rows = torch.arange(end - lengths[k], end)[: len(block)]
                block[: len(rows), k] = rows
        else:
            positions = torch.tensor(question.answer if span == "answer" else range(len(question.suffix)))
            block = torch.full((len(positions), perspectives), -1, dtype=torch.int64)
            for k, end in ends.items():
                block[:, k] = end - len(question.suffix) + positions
        blocks.append(block)
        owners.extend([q] * len(block))
    if not blocks:
        return torch.empty(0, perspectives, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    return torch.cat(blocks), torch.tensor(owners)
