"""Plain records that the rooms of this package hand to one another: data, no behavior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Grade = Literal["right", "wrong", "unparsed"]
"""What comes of comparing a stated answer with the gold answer.

"unparsed": no answer was found, or it could not be compared.
"""


AnswerSpan = Literal["suffix", "answer", "all"]
"""The tokens at which distributions behind two rationales are compared: those of the suffix, of the answer within it,
or all that both have, counted from where the rationales begin."""


class Key(NamedTuple):
    """Names one answer of a teacher."""

    question: str
    """The question's id."""
    perspective: str
    sample: int
    """Which of the answers to the same prompt, from 0."""

    JSON_NAMES = {"question": "id"}
    """Fields that JSON calls otherwise (mind.typed_json)."""

    def __str__(self) -> str:
        return f"question {self.question}, perspective {self.perspective}, sample {self.sample}"


@dataclass(frozen=True)
class Rationale:
    """One teacher rationale: the name of its perspective and its text (without the answer suffix)."""

    perspective: str
    text: str
    source: str | None = None
    """The teacher that wrote it, by the name that its server gives; None if that is not known."""


@dataclass(frozen=True)
class WrongRationale:
    """A teacher rationale that led to a wrong answer."""

    perspective: str
    text: str
    """Without its answer line."""
    answer: str
    """The wrong answer that it states."""
    source: str | None = None
    """As for `Rationale`."""
    right: str | None = None
    """Its twin, the text of a right rationale that is like it but for the steps that decide: the one that it was made
    from, or that was made from it; None if it has none."""


@dataclass(frozen=True)
class Question:
    """A question, its gold answer and its rationales, at most one per perspective."""

    id: str
    question: str
    answer: str
    choices: Mapping[str, str] | None = None
    """Label ("A", "yes") -> text; `answer` is then one of the labels. None without choices."""
    rationales: tuple[Rationale, ...] = ()
    """Empty for questions that only serve evaluation."""
    wrong_rationales: tuple[WrongRationale, ...] = ()
    """Those that led to wrong answers, for the methods that learn from them; any number per perspective."""
    knowledge: tuple[str, ...] = ()
    """General rules that help to solve it, for the methods that learn from them: none tells of the question itself."""
    generated: Mapping[str, str] = field(default_factory=dict)
    """What its generator knows of it, by name, for analyses (mind.word_problems): nothing of it is trained on."""


@dataclass(frozen=True)
class Response:
    """A teacher's answer to one request, as responses.jsonl holds it."""

    key: Key
    request: str
    """Digest of what was sent: model, messages and sampling parameters."""
    model: str
    """The name that the server answered by."""
    text: str
    finish_reason: str
    """"stop", "length" for a text that was cut off, or what else the server says."""
    prompt_tokens: int | None
    completion_tokens: int | None
    """None if the server does not count."""
    attempts: int
    """Requests sent until this answer came."""
    seconds: float
    """Of the last attempt."""
    created: str
    """When it came, in UTC: 2026-11-21T19:00:00Z."""
    reasoning: str | None = None
    """What a reasoning model thought before `text`, if the server gives it."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response, as judged.jsonl holds it."""

    key: Key
    verdict: Grade
    extracted: str | None
    """The answer that the response states; None if it states none."""
    reason: str
    """A short phrase: why this verdict."""
    judge: str
    """"rules", or the name of the model that judged."""


@dataclass(frozen=True)
class Branch:
    """A training sequence: a prompt and what continues it, all of which is labeled."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """Its end included."""
    weights: tuple[float, ...] | None = None
    """Of each of the ids in the loss, beside the weight of the sequence; None: 1 each."""


@dataclass(frozen=True)
class TokenizedQuestion:
    """A question's token ids: each training sequence is prompt + rationale + suffix.

    The suffix ("\\n#### " + answer + end of turn) has the same ids after every rationale: that aligns the answer
    distributions of the perspectives. A line break that the tokenizer joins to what stands in front of it belongs to
    the rationales instead.
    """

    id: str
    prompt: tuple[int, ...]
    rationales: Mapping[int, tuple[int, ...]]
    """Perspective index k -> token ids; a missing perspective is absent."""
    suffix: tuple[int, ...]
    others: Mapping[int, Branch] = field(default_factory=dict)
    """Slot -> a sequence of another kind that a method makes of the question. Slots are the columns of a step's tables
    (Q, K): those of the rationales, and further ones."""
    answer: tuple[int, ...] = ()
    """Which of the suffix's tokens have a part of the answer, without the marker and the end of the turn; empty if
    nobody asked for them (`mind.student.tokenization.with_answers`)."""

    @classmethod
    def of_sequences(cls, name: str, sequences: Mapping[int, Branch]) -> TokenizedQuestion:
        """The question `name` with these sequences by slot, at least one, and without rationales."""
        prompt = next(iter(sequences.values())).prompt
        return cls(name, prompt, {}, (), sequences)

    @cached_property
    def branches(self) -> dict[int, Branch]:
        """All training sequences by slot, in its order."""
        every = {k: Branch(self.prompt, (*ids, *self.suffix)) for k, ids in self.rationales.items()}
        return dict(sorted((every | dict(self.others)).items()))


@dataclass(frozen=True)
class PackOptions:
    """How sequences become rows of the trunk."""

    length: int
    """Tokens of a row and of a micro-batch, at most: what a forward and backward holds in memory."""
    share_prompts: bool
    """Compute the prompt of a question once, with its rationales as branches, instead of once a rationale."""
    answer_span: AnswerSpan = "suffix"
    """The positions behind two rationales at which their distributions are compared."""


@dataclass(frozen=True)
class Pack:
    """A row of the trunk: documents one after another without padding; T tokens, int64 on the host.

    A document is a prompt and the branches that continue it. A token sees the prompt of its document and, up to itself,
    its own branch. A plain sequence is a document with one branch.
    """

    input_ids: Tensor  # (T,)
    position_ids: Tensor  # (T,), from 0 in each document, and from the prompt's end in each of its branches
    boundaries: Tensor  # (documents + 1,), cumulative lengths from 0 to T
    branch: Tensor  # (T,), 0 in a prompt, and 1, 2, ... in its branches
    rows: Tensor  # the labeled positions; the end of a prompt predicts the first token of each of its branches

    @property
    def branched(self) -> bool:
        """Whether a prompt has several branches: causal attention alone would let one see another."""
        return bool((self.branch > 1).any())


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch: some rationales of the Q questions of a step, packed; N labeled rows in the order of the packs.

    A question is whole in one micro-batch: all of its rationales that are trained on at all. int64, on the host.
    """

    ids: tuple[str, ...]  # (Q,), those of the whole step
    packs: tuple[Pack, ...]
    target: Tensor  # (N,), the token that each labeled row predicts
    segment: Tensor  # (N,), q K + k
    tokens: Tensor  # (Q, K), labeled rows of each rationale; 0 where it is missing or in another micro-batch
    answer_rows: Tensor  # (P, K), labeled rows of each position that is compared; -1 where a rationale has none
    answer_question: Tensor  # (P,), q of each of these positions
    token_weight: Tensor | None = None  # (N,) float64, of each labeled row in its sequence; None: 1 each

    @property
    def present(self) -> Tensor:
        """(Q, K) bool: which rationales are here."""
        return self.tokens > 0

    @property
    def total_tokens(self) -> int:
        """Tokens that the trunk computes, without the padding of a model that needs a row for each sequence."""
        return sum(pack.input_ids.numel() for pack in self.packs)
