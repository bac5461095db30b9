"""Plain records that the folders of this package pass to one another: data without behavior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Grade = Literal["right", "wrong", "unparsed"]
"""The result of comparing a stated answer with the gold answer.

"unparsed": no answer was found, or it could not be compared.
"""


AnswerSpan = Literal["suffix", "answer", "all"]
"""The tokens at which the distributions after two rationales are compared: those of the suffix, of the answer within
it, or all positions that both rationales have, counted from their starts."""


class Key(NamedTuple):
    """Names one answer of a teacher."""

    question: str
    """The question's id."""
    perspective: str
    sample: int
    """The number of the answer among those to the same prompt, from 0."""

    JSON_NAMES = {"question": "id"}
    """Fields with another name in JSON (mind.typed_json)."""

    def __str__(self) -> str:
        return f"question {self.question}, perspective {self.perspective}, sample {self.sample}"


@dataclass(frozen=True)
class Rationale:
    """One teacher rationale: the name of its perspective and its text (without the answer suffix)."""

    perspective: str
    text: str
    source: str | None = None
    """The teacher that wrote it, by the name that its server gives; None if it is not known."""


@dataclass(frozen=True)
class WrongRationale:
    """A teacher rationale that led to a wrong answer."""

    perspective: str
    text: str
    """Without its answer line."""
    answer: str
    """The wrong answer that it states."""
    source: str | None = None
    """The teacher that wrote it, by the name that its server gives; None if it is not known."""
    right: str | None = None
    """Its twin: the text of a right rationale that differs only in the decisive steps, from which this one was made or
    the other way round; None if it has none."""


@dataclass(frozen=True)
class Question:
    """A question, its gold answer and its rationales, at most one per perspective."""

    id: str
    question: str
    answer: str
    choices: Mapping[str, str] | None = None
    """Label ("A", "yes") -> text; `answer` is then one of the labels. None for a question without choices."""
    rationales: tuple[Rationale, ...] = ()
    """Empty for questions that are only used for evaluation."""
    wrong_rationales: tuple[WrongRationale, ...] = ()
    """Rationales with wrong answers, for methods that learn from them; any number per perspective."""
    knowledge: tuple[str, ...] = ()
    """General rules that help to solve it, for methods that learn from them; they do not mention the question
    itself."""
    generated: Mapping[str, str] = field(default_factory=dict)
    """Facts recorded by its generator, by name, for analyses (mind.word_problems); never used in training."""


@dataclass(frozen=True)
class Response:
    """A teacher's answer to one request, as responses.jsonl holds it."""

    key: Key
    request: str
    """Digest of the request: model, messages and sampling parameters."""
    model: str
    """The name that the server gave the model in its answer."""
    text: str
    finish_reason: str
    """"stop", "length" for a text that was cut off, or another reason that the server gives."""
    prompt_tokens: int | None
    completion_tokens: int | None
    """None if the server does not count."""
    attempts: int
    """Number of requests sent until this answer came."""
    seconds: float
    """Duration of the last attempt."""
    created: str
    """The time at which it came, in UTC: 2026-11-21T19:00:00Z."""
    reasoning: str | None = None
    """The thoughts of a reasoning model before `text`, if the server returns them."""


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one response, as judged.jsonl holds it."""

    key: Key
    verdict: Grade
    extracted: str | None
    """The answer that the response states; None if it states none."""
    reason: str
    """A short phrase with the reason for the verdict."""
    judge: str
    """"rules", or the name of the model that judged."""


@dataclass(frozen=True)
class Branch:
    """A training sequence: a prompt and its continuation, all of which is labeled."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """The continuation, including its end."""
    weights: tuple[float, ...] | None = None
    """The weight of each id of the continuation in the loss, multiplied by the weight of the sequence; None: 1 each."""


@dataclass(frozen=True)
class TokenizedQuestion:
    """A question's token ids: each training sequence is prompt + rationale + suffix.

    The suffix ("\\n#### " + answer + end of turn) has the same ids after every rationale, which aligns the answer
    distributions of the perspectives. A line break that the tokenizer joins to the token before it belongs to the
    rationales instead.
    """

    id: str
    prompt: tuple[int, ...]
    rationales: Mapping[int, tuple[int, ...]]
    """Perspective index k -> token ids; missing perspectives are absent."""
    suffix: tuple[int, ...]
    others: Mapping[int, Branch] = field(default_factory=dict)
    """Slot -> another sequence that a method makes from the question. Slots are the columns of a step's tables (Q, K):
    the rationales, and further ones."""
    answer: tuple[int, ...] = ()
    """The indices of the suffix's tokens that contain a part of the answer, without the marker and the end of the turn;
    empty unless they were asked for (`mind.student.tokenization.with_answers`)."""

    @classmethod
    def of_sequences(cls, name: str, sequences: Mapping[int, Branch]) -> TokenizedQuestion:
        """The question `name` with these sequences by slot, at least one, and no rationales."""
        prompt = next(iter(sequences.values())).prompt
        return cls(name, prompt, {}, (), sequences)

    @cached_property
    def branches(self) -> dict[int, Branch]:
        """All training sequences by slot, in the order of the slots."""
        every = {k: Branch(self.prompt, (*ids, *self.suffix)) for k, ids in self.rationales.items()}
        return dict(sorted((every | dict(self.others)).items()))


@dataclass(frozen=True)
class PackOptions:
    """How sequences are packed into rows of the trunk."""

    length: int
    """Tokens per row and per micro-batch, at most: a forward and backward pass holds this much in memory."""
    share_prompts: bool
    """Compute the prompt of a question once, with its rationales as branches, instead of once per rationale."""
    answer_span: AnswerSpan = "suffix"
    """The positions at which the distributions after two rationales are compared."""


@dataclass(frozen=True)
class Pack:
    """A row of the trunk: documents one after another without padding; T tokens, int64 on the host.

    A document is a prompt and the branches that continue it. A token sees the prompt of its document, and its own
    branch up to itself. A plain sequence is a document with one branch.
    """

    input_ids: Tensor  # (T,)
    position_ids: Tensor  # (T,), from 0 in each document; each branch continues from the end of its prompt
    boundaries: Tensor  # (documents + 1,), cumulative lengths from 0 to T
    branch: Tensor  # (T,), 0 in a prompt, and 1, 2, ... in its branches
    rows: Tensor  # the labeled positions; the end of a prompt predicts the first token of each of its branches

    @property
    def branched(self) -> bool:
        """Whether a prompt has several branches: with plain causal attention one branch would see another."""
        return bool((self.branch > 1).any())


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch: some rationales of the Q questions of a step, packed; N labeled rows in the order of the packs.

    All trained rationales of a question are in the same micro-batch. Tensors are int64 and on the host.
    """

    ids: tuple[str, ...]  # (Q,), the ids of all questions of the step
    packs: tuple[Pack, ...]
    target: Tensor  # (N,), the token that each labeled row predicts
    segment: Tensor  # (N,), q K + k
    tokens: Tensor  # (Q, K), labeled rows of each rationale; 0 where it is missing or in another micro-batch
    answer_rows: Tensor  # (P, K), labeled rows of each compared position; -1 if a rationale does not have it
    answer_question: Tensor  # (P,), q of each of these positions
    token_weight: Tensor | None = None  # (N,) float64, of each labeled row in its sequence; None: 1 each

    @property
    def present(self) -> Tensor:
        """(Q, K) bool: which rationales are here."""
        return self.tokens > 0

    @property
    def total_tokens(self) -> int:
        """Number of tokens that the trunk computes, without padding (for models that need one row per sequence)."""
        return sum(pack.input_ids.numel() for pack in self.packs)
