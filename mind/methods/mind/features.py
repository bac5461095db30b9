"""MetaNet's inputs: a frozen encoder's vectors of questions and rationales, computed once and cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mind.batches.bin_packing import bins_of
from mind.batches.packing import plain_pack
from mind.batches.trunk import pack_hidden
from mind.errors import MindError
from mind.files import replacing_file
from mind.records import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Encoder(Protocol):
    """Turns texts into vectors; `name` identifies it, weights included, in the cache."""

    name: str

    def encode(self, texts: Sequence[str], progress: Callable[[int], object]) -> Tensor:
        """Vectors (len(texts), F), float32, on the CPU; `progress` is told how many texts are done."""
        ...


class StudentEncoder:
    """The initial student's mean-pooled last hidden state."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pack_length: int) -> None:
        self.model, self.tokenizer, self.pack_length = model, tokenizer, pack_length
        self.name = f"student-{_fingerprint(model)}"

    @torch.no_grad()
    def encode(self, texts: Sequence[str], progress: Callable[[int], object]) -> Tensor:
        """See `Encoder`. A text is encoded on its own, packed with others."""
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        lengths = [len(sequence) for sequence in ids]
        vectors: dict[int, Tensor] = {}
        for chosen in bins_of(lengths, self.pack_length):
            hidden = pack_hidden(self.model, plain_pack([ids[item] for item in chosen]))
            for item, part in zip(chosen, hidden.split([lengths[item] for item in chosen]), strict=True):
                vectors[item] = part.float().mean(0).cpu()
            progress(len(chosen))
        return torch.stack([vectors[item] for item in range(len(ids))])


class SentenceEncoder:
    """A sentence-transformers model, by name or folder (extra `sentence-transformers`)."""

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MindError(
                f"metanet.encoder {name} needs sentence-transformers: pip install 'mind-kernels[sentence-transformers]'"
            ) from error
        try:
            self._model = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            raise MindError(f"metanet.encoder {name}: cannot be loaded: {error}") from error
        self.name = f"sentence-{_fingerprint(self._model)}"

    def encode(self, texts: Sequence[str], progress: Callable[[int], object]) -> Tensor:
        """See `Encoder`."""
        vectors = self._model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float().cpu()
        progress(len(texts))
        return vectors


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
    """The features of the questions, from `cache` where the same encoder has seen the same texts."""
    slots = {name: k for k, name in enumerate(perspectives)}
    texts = [question.question for question in questions]
    places = []
    for q, question in enumerate(questions):
        for rationale in question.rationales:
            places.append((q, slots[rationale.perspective]))
            texts.append(rationale.text)
    # "alone": older caches may hold states of students that saw other texts of the row.
    digest = hashlib.sha256("\0".join(["alone", encoder.name, *texts]).encode()).hexdigest()[:32]
    file = cache / "features" / f"{digest}.safetensors"
    if file.exists():
        vectors = load_file(file)["vectors"]
        progress(len(texts))
    else:
        vectors = encoder.encode(texts, progress)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(file) as partial:
            save_file({"vectors": vectors}, partial)
    rationales = torch.zeros(len(questions), len(perspectives), vectors.shape[1])
    if places:
        q, k = torch.tensor(places).T
        rationales[q, k] = vectors[len(questions) :]
    return Features(vectors[: len(questions)].clone(), rationales)


def _fingerprint(model: torch.nn.Module) -> str:
    """Identifies weights by the sums of each tensor: a full hash of billions of parameters would take minutes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.detach()
        sums = (values.sum(dtype=torch.float64), values.abs().sum(dtype=torch.float64))
        digest.update(f"{name}{tuple(values.shape)}{[float(s) for s in sums]}".encode())
    return digest.hexdigest()[:16]
