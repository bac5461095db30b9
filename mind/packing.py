"""Questions -> token ids -> padding-free packs with labelled rows, segments and aligned answer rows.

All of it runs on the host, so that the loss needs no synchronisation with a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mind.answers import suffix
from mind.bin_packing import best_fit
from mind.errors import MindError
from mind.records import Pack, PackedBatch, Question, TokenizedQuestion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def question_text(question: Question) -> str:
    """What the user's turn says: the question, and a line for each choice where there are any."""
    if not question.choices:
        return question.question
    return "\n".join([question.question, *(f"({label}) {text}" for label, text in question.choices.items())])


def prompt_ids(question: Question, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the chat template's user turn, up to where the assistant begins."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": question_text(question)}], tokenize=False,
                                         add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn in the chat template.

    Raises MindError for a tokenizer without a chat template, or one whose template does not end the turn.
    """
    if not tokenizer.chat_template:
        raise MindError(f"{tokenizer.name_or_path}: its tokenizer has no chat template; MIND trains chat models")
    mark = "ANSWER"
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": mark}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text.rpartition(mark)[2].lstrip(), add_special_tokens=False)["input_ids"]
    if not ids:
        raise MindError(f"{tokenizer.name_or_path}: its chat template writes nothing after the assistant's turn")
    return ids[0]


def tokenize(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    perspectives: Sequence[str],
    max_length: int,
) -> list[TokenizedQuestion]:
    """Token ids of every training sequence.

    Raises MindError for a perspective that is not among `perspectives` or a sequence longer than `max_length`.
    """
    slots = {name: k for k, name in enumerate(perspectives)}
    end = end_of_turn_id(tokenizer)
    tokenized = []
    for question in questions:
        prompt = prompt_ids(question, tokenizer)
        ending = [*tokenizer(suffix(question.answer), add_special_tokens=False)["input_ids"], end]
        rationales = {}
        for rationale in question.rationales:
            if rationale.perspective not in slots:
                raise MindError(f"question {question.id}: unknown perspective {rationale.perspective!r}; "
                                f"the configuration names {', '.join(perspectives)}")
            ids = tokenizer(rationale.text, add_special_tokens=False)["input_ids"]
            length = len(prompt) + len(ids) + len(ending)
            if length > max_length:
                raise MindError(f"question {question.id}: its {rationale.perspective} rationale makes a sequence of "
                                f"{length} tokens; student.max_length is {max_length}")
            rationales[slots[rationale.perspective]] = tuple(ids)
        tokenized.append(TokenizedQuestion(question.id, tuple(prompt), rationales, tuple(ending)))
    return tokenized


def pack(questions: Sequence[TokenizedQuestion], perspectives: int, pack_length: int) -> PackedBatch:
    """Packs every rationale of the questions by best fit into packs of at most `pack_length` tokens.

    A single sequence that is longer gets a pack of its own length. `perspectives` is K.
    """
    items = [(q, k) for q, question in enumerate(questions) for k in sorted(question.rationales)]
    sequences = [(*questions[q].prompt, *questions[q].rationales[k], *questions[q].suffix) for q, k in items]
    lengths = [len(sequence) for sequence in sequences]
    bins = best_fit(lengths, max(pack_length, *lengths))
    members: dict[int, list[int]] = {}
    for item, number in enumerate(bins):
        members.setdefault(int(number), []).append(item)

    packs, target, segment = [], [], []
    tokens = torch.zeros(len(questions), perspectives, dtype=torch.int64)
    last_row: dict[tuple[int, int], int] = {}  # (q, k) -> one past its last labelled row
    for number in sorted(members):
        chosen = members[number]
        packs.append(_concatenate([sequences[i] for i in chosen], [len(questions[items[i][0]].prompt) for i in chosen]))
        for item in chosen:
            q, k = items[item]
            labels = sequences[item][len(questions[q].prompt):]
            target.extend(labels)
            segment.extend([q * perspectives + k] * len(labels))
            tokens[q, k] = len(labels)
            last_row[q, k] = len(target)
    answer_rows, answer_question = _answer_rows(questions, perspectives, last_row)
    return PackedBatch(
        ids=tuple(question.id for question in questions),
        packs=tuple(packs),
        target=torch.tensor(target, dtype=torch.int64),
        segment=torch.tensor(segment, dtype=torch.int64),
        tokens=tokens,
        answer_rows=answer_rows,
        answer_question=answer_question,
        answer_lengths=torch.tensor([len(question.suffix) for question in questions], dtype=torch.int64),
    )


def _concatenate(sequences: list[tuple[int, ...]], prompts: list[int]) -> Pack:
    lengths = torch.tensor([0, *map(len, sequences)])
    boundaries = lengths.cumsum(0)
    starts = boundaries[:-1].tolist()
    # The last prompt token predicts the first token of the rationale; the last token of a sequence predicts nothing.
    rows = [torch.arange(start + prompt - 1, start + len(sequence) - 1)
            for start, prompt, sequence in zip(starts, prompts, sequences, strict=True)]
    return Pack(
        input_ids=torch.tensor([token for sequence in sequences for token in sequence]),
        position_ids=torch.cat([torch.arange(len(sequence)) for sequence in sequences]),
        boundaries=boundaries,
        rows=torch.cat(rows),
    )


def _answer_rows(
    questions: Sequence[TokenizedQuestion], perspectives: int, last_row: dict[tuple[int, int], int]
) -> tuple[Tensor, Tensor]:
    """Rows (P, K) of the aligned suffix positions and the question (P,) of each."""
    blocks = []
    for q, question in enumerate(questions):
        block = torch.full((len(question.suffix), perspectives), -1, dtype=torch.int64)
        for k in question.rationales:
            end = last_row[q, k]
            block[:, k] = torch.arange(end - len(question.suffix), end)
        blocks.append(block)
    counts = torch.tensor([len(block) for block in blocks])
    return torch.cat(blocks), torch.arange(len(questions)).repeat_interleave(counts)
