"""Computes MetaNet's inputs, a frozen encoder's vectors of questions and rationales, and caches them on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mind import processes
from mind.batches.bin_packing import bins_of
from mind.batches.packing import plain_pack
from mind.batches.trunk import pack_hidden
from mind.display import describe, one_line
from mind.errors import MindError, MissingError, NotFiniteError
from mind.files import make_cache, replacing_file, saving
from mind.hub import find_model
from mind.records import Question
from mind.student.fingerprint import fingerprint
from mind.student.tokenization import Chat, embedding_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Encoder(Protocol):
    """Turns texts into vectors. `name` identifies it in the cache, weights included."""

    name: str
    parameters: int
    """Number of parameters of its model."""

    def encode(self, texts: Sequence[str], progress: Callable[[int], object]) -> Tensor:
        """Vectors (len(texts), F), float32, on the CPU; `progress` gets the number of finished texts."""
        ...

    def tokens(self, texts: Sequence[str]) -> int:
        """How many tokens it reads to encode the texts, without padding."""
        ...


class StudentEncoder:
    """Encodes by the mean-pooled last hidden states of the initial student."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pack_length: int) -> None:
        self.model, self.tokenizer, self.pack_length = model, tokenizer, pack_length
        self.name = f"student-{fingerprint(model.state_dict())}"
        self.parameters = sum(p.numel() for p in model.parameters())

    @torch.no_grad()
    def encode(self, texts: Sequence[str], progress: Callable[[int], object]) -> Tensor:
        """As in `Encoder`. Texts are packed into rows, but no text sees another."""
        ids = self._ids(texts)
        lengths = [len(sequence) for sequence in ids]
        vectors: dict[int, Tensor] = {}
        for chosen in bins_of(lengths, self.pack_length):
            hidden = pack_hidden(self.model, plain_pack([ids[item] for item in chosen]))
            for item, part in zip(chosen, hidden.split([lengths[item] for item in chosen]), strict=True):
                vectors[item] = part.float().mean(0).cpu()
            progress(len(chosen))
        return torch.stack([vectors[item] for item in range(len(ids))])

    def tokens(self, texts: Sequence[str]) -> int:
        """See `Encoder`."""
        return sum(map(len, self._ids(texts)))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        chat = Chat(self.tokenizer, embedding_rows(self.model))
        return [chat.text(text) for text in texts]


class SentenceEncoder:
    """A sentence-transformers model, by name or folder (extra `sentence-transformers`)."""

    def __init__(self, name: str, option: str = "metanet.encoder") -> None:
        """`option` is the option that named the model, for messages."""
        try:
            from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingError(
                f"{option} {name} needs sentence-transformers: pip install 'mind-kernels[sentence-transformers]'"
            ) from error
        try:
            self._model = SentenceTransformer(find_model(option, name), trust_remote_code=False)
        except MindError:
            raise
        except Exception as error:  # files of a stranger may raise anything
            raise MindError(f"{option} {name}: cannot be loaded: {one_line(describe(error), 400)}") from error
        self.name = f"sentence-{fingerprint(self._model.state_dict())}"
        self.parameters = sum(p.numel() for p in self._model.parameters())

    def encode(self, texts: Sequence[str], progress: Callable[[int], object]) -> Tensor:
        """See `Encoder`."""
        vectors = self._model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float().cpu()
        progress(len(texts))
        return vectors

    def tokens(self, texts: Sequence[str]) -> int:
        """See `Encoder`."""
        return sum(int(self._model.tokenize([text])["attention_mask"].sum()) for text in texts)


def encoder_of(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pack_length: int) -> Encoder:
    """The encoder that `metanet.encoder` names: "student", which is `model` in its present state, or a
    sentence-transformers model."""
    return StudentEncoder(model, tokenizer, pack_length) if source == "student" else SentenceEncoder(source)


def encoder_input(source: str, encoder: Encoder) -> dict[str, dict[str, str]]:
    """The entry in `Method.inputs` for the encoder that `metanet.encoder` names; empty if it is the student."""
    return {} if source == "student" else {"metanet.encoder": {"source": source, "sha256": encoder.name}}


@dataclass(frozen=True)
class Features:
    """Encoder vectors of Q questions, float32 on the CPU; zeros where a perspective is missing."""

    question: Tensor  # (Q, F)
    rationales: Tensor  # (Q, K, F)


def build_features(
    questions: Sequence[Question],
    perspectives: Sequence[str],
    encoder: Encoder,
    cache: Path,
    progress: Callable[[int], object] = lambda _: None,
) -> Features:
    """The features of the questions; texts that the same encoder has encoded before come from `cache`.

    Raises NotFiniteError for a text whose vector holds a nan or an infinity.
    """
    slots = {name: k for k, name in enumerate(perspectives)}
    places = [(q, slots[one.perspective]) for q, question in enumerate(questions) for one in question.rationales]
    vectors = vectors_of(texts_of(questions), encoder, cache, progress)
    rationales = torch.zeros(len(questions), len(perspectives), vectors.shape[1])
    if places:
        q, k = torch.tensor(places).T
        rationales[q, k] = vectors[len(questions) :]
    return Features(vectors[: len(questions)].clone(), rationales)


def texts_of(questions: Sequence[Question]) -> list[str]:
    """The texts that `build_features` encodes: the questions, and then the rationales of each."""
    rationales = [rationale.text for question in questions for rationale in question.rationales]
    return [*(question.question for question in questions), *rationales]


def vectors_of(
    texts: Sequence[str], encoder: Encoder, cache: Path, progress: Callable[[int], object] = lambda _: None
) -> Tensor:  # (len(texts), F)
    """The vectors of texts, float32 on the CPU; texts that the same encoder has encoded before come from `cache`.

    Several processes share the texts. Only the main one reads and writes the cache, so each machine may have its own.

    Raises NotFiniteError for a text whose vector holds a nan or an infinity.
    """
    texts = list(texts)
    # "alone" is a part of the key because older caches may hold states that were computed while texts of a row saw one
    # another.
    digest = hashlib.sha256("\0".join(["alone", encoder.name, *texts]).encode()).hexdigest()[:32]
    file = cache / "features" / f"{digest}.safetensors"
    known = processes.agreed(lambda: _cached(file, texts))
    if known is not None:
        progress(len(texts))
        return known
    processes.by_main(lambda: make_cache(file.parent))

    # NumPy arrays, because sending a row of a tensor would send the whole tensor.
    def encoded(some: Sequence[str]) -> list[np.ndarray]:
        share = len(texts) / len(some)
        return list(encoder.encode(some, lambda done: progress(round(done * share))).numpy())

    vectors = torch.from_numpy(np.stack(processes.spread(texts, encoded, [*map(len, texts)])))
    _check_finite(vectors, texts, "metanet.encoder")
    processes.by_main(lambda: _save(vectors, file))
    return vectors


def _cached(file: Path, texts: list[str]) -> Tensor | None:
    if not file.exists():
        return None
    try:
        vectors = load_file(file)["vectors"]
    except (SafetensorError, KeyError) as error:
        raise MindError(f"{file}: cannot be read: {error}; without it the vectors are computed again") from error
    _check_finite(vectors, texts, f"{file} (without it they are computed again)")
    return vectors


def _save(vectors: Tensor, file: Path) -> None:
    with saving(file), replacing_file(file) as partial:
        partial.write_bytes(save({"vectors": vectors}))


def _check_finite(vectors: Tensor, texts: list[str], source: str) -> None:
    if bad := (~vectors.isfinite()).any(1).nonzero().flatten().tolist():
        raise NotFiniteError(
            f"{source}: the vectors of {len(bad)} of {len(texts)} texts are not finite, first that of "
            f"{one_line(texts[bad[0]], 60)!r}"
        )
