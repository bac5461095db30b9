"""A tiny causal language model with random settings, adapters, history and input, fused and as transformers has it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mind_kernels.integrations.fused_head import IGNORED
from mind_kernels.integrations.probe import lm_head, unwrapped, without_cache
from mind_kernels.integrations.transformers import fuse
from tests.fuzz.choices import Choices
from tests.fuzz.model_changes import ADAPTERS, FAMILIES, VOCABULARY, Change, adapted, base, changes_of
from tests.fuzz.public import Tensors
from tests.fuzz.replaced import Case

WIDTH = 32  # of the hidden states


@dataclass
class FusedModel:
    """One random case."""

    family: str
    tied: bool
    held: torch.dtype
    """In which its weights are."""
    dtype: torch.dtype
    """In which it computes: with autocast another one."""
    adapter: str
    adapted_first: bool
    changes: list[Change]
    sharper: float
    """A factor of the logits."""
    options: dict[str, Any]
    """Of `fuse`."""
    given: dict[str, Any]
    of_fused: dict[str, Any]
    """What the fused model is given beside that, or in another way."""
    upstream: float
    training: bool
    steps: int

    def described(self) -> str:
        changes = ", ".join(change.__name__ for change in self.changes) or "nothing"
        inputs = "\n".join(f"  {name}: {value}" for name, value in (self.given | self.of_fused).items())
        return (
            f"{self.family}, tied {self.tied}, {self.held} computing in {self.dtype}, adapter {self.adapter} "
            f"({'before' if self.adapted_first else 'after'} fuse), then {changes}; logits times {self.sharper}, "
            f"training {self.training}, options {self.options}, upstream {self.upstream}, {self.steps} steps\n{inputs}"
        )

    def case(self) -> Case:
        found = self._fused()
        logit = float(found["nll"].abs().max())  # the largest that makes a difference
        largest = max([0.0, *(float(value.abs().max()) for name, value in found.items() if name.startswith("d_"))])
        sizes = {"": 1 + logit + math.log(VOCABULARY), "d_": largest}
        return Case(found, self._stock, self.dtype, sizes, self.described())

    def _made(self, *, fused: bool) -> Any:
        model = copy.deepcopy(base(self.family, self.tied)).to(self.held)
        with torch.no_grad():
            lm_head(model).weight.mul_(self.sharper)
        if fused and not self.adapted_first:
            fuse(model, **self.options)
        model = adapted(model, self.adapter)
        if fused and self.adapted_first:
            fuse(model, **self.options)
        for change in self.changes:
            model = change(model)
        return model.train(self.training)

    @property
    def _keeps_logits(self) -> bool:
        skip = self.of_fused.get("skip_logits")
        return (not self.training and self.options["eval_logits"]) if skip is None else not skip

    def _fused(self) -> Tensors:
        """Loss, gradients, statistics per row and, unless they are left out, logits."""
        model = self._made(fused=True)
        found = self._run(model, self.given | self.of_fused)
        shape = tuple(found["logits"].shape)
        assert bool(shape[-2]) == self._keeps_logits, f"logits {shape}\n{self.described()}"
        stats = unwrapped(model).last_row_stats
        return self._kept(found) | {"nll": stats.nll, "entropy": stats.entropy}

    def _stock(self, wide: torch.dtype | None, off: int) -> Tensors:
        """The same of transformers' model, by its own loss unless `fuse` has options for another one."""
        model = self._made(fused=False)
        if off:
            generator, eps = torch.Generator().manual_seed(off), torch.finfo(self.dtype).eps
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + eps * torch.randn(parameter.shape, generator=generator))
        if wide or self.options["label_smoothing"] or self.options["z_loss"]:
            unwrapped(model).loss_function = _loss(self.options["label_smoothing"], self.options["z_loss"])
        found = self._run(model.to(wide or self.held), self.given)
        target = _shifted(**self.given)
        rows, z = target != IGNORED, found["logits"].double() if wide else found["logits"].float()
        log_p = z.log_softmax(-1)
        nll = -log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        return self._kept(found) | {"nll": nll * rows, "entropy": entropy * rows}

    def _kept(self, found: Tensors) -> Tensors:
        return {name: value for name, value in found.items() if name != "logits" or self._keeps_logits}

    def _run(self, model: Any, given: dict[str, Any]) -> Tensors:
        held = next(model.parameters()).dtype
        if "inputs_embeds" in given:
            given = given | {"inputs_embeds": given["inputs_embeds"].to(held)}
        is_autocast = self.held != self.dtype and held == self.held
        for _ in range(self.steps):
            with torch.autocast("cpu", dtype=self.dtype, enabled=is_autocast):
                output = model(**given, **without_cache(model))
            if output.loss.requires_grad:
                (output.loss * self.upstream).backward()
        gradients = {f"d_{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": output.loss.detach(), "logits": output.logits.detach(), **gradients}


def _shifted(labels: Tensor, shift_labels: Tensor | None = None, **_: Any) -> Tensor:
    """The token that each position predicts."""
    shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()
    return shifted if shift_labels is None else shift_labels


def _loss(label_smoothing: float, z_loss: float) -> Callable[..., Tensor]:
    """What transformers' loss is in float64, or with the terms that `fuse` can add to it."""

    def loss(logits: Tensor, labels: Tensor, *_: Any, num_items_in_batch: Any = None, **options: Any) -> Tensor:
        target = _shifted(labels, **options)
        rows = target != IGNORED
        z = logits[rows] if logits.dtype == torch.float64 else logits[rows].float()
        every = nn.functional.cross_entropy(z, target[rows], label_smoothing=label_smoothing, reduction="none")
        every = every + z_loss * z.logsumexp(-1).square()
        return every.mean() if num_items_in_batch is None else every.sum() / num_items_in_batch

    return loss


def fused_model(choices: Choices) -> FusedModel:
    held, dtype = choices.among([(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
    adapter = choices.among(list(ADAPTERS)) if choices.rarely(2) else "none"
    given = _inputs(choices)
    labels, in_other_ways = given["labels"], {}
    if choices.rarely():
        in_other_ways["skip_logits"] = choices.among((None, True, False))
    if choices.rarely():
        in_other_ways["labels"] = choices.among((labels.int(), labels.t().contiguous().t()))
    return FusedModel(
        family=choices.among(list(FAMILIES)),
        tied=choices.rarely(),
        held=held,
        dtype=dtype,
        adapter=adapter,
        adapted_first=choices.rarely(2),
        changes=[choices.among(changes_of(adapter)) for _ in range(choices.number(3))],
        sharper=choices.among((1.0, 0.0, 20.0)),
        options={
            "label_smoothing": choices.among((0.0, 0.1)),
            "z_loss": choices.among((0.0, 0.01)),
            "backend": choices.among(("auto", "torch", "reference")),
            "eval_logits": not choices.rarely(),
        },
        given=given,
        of_fused=in_other_ways,
        upstream=choices.among((1.0, -2.5, 0.0, 1e-4, 1e4)),
        training=not choices.rarely(),
        steps=1 + choices.rarely(),
    )


def _inputs(choices: Choices) -> dict[str, Any]:
    """Tokens or embeddings; labels of some or no positions, shifted or not; padding, or packed sequences."""
    rows, width, generator = 1 + choices.number(2), 1 + choices.number(8), choices.generator()
    ids = torch.randint(3, 90, (rows, width), generator=generator)
    place, some = torch.arange(width), torch.rand(rows, width, generator=generator) < 0.5
    ignored = choices.among((some & False, place < width // 2, some, place > 1, some | True))
    given: dict[str, Any] = {"labels": ids.masked_fill(ignored, IGNORED)}
    if choices.rarely():
        given["shift_labels"] = _shifted(given["labels"].roll(1, 0))
    if choices.rarely(2):
        given["num_items_in_batch"] = choices.among((7, 3.5, torch.tensor(5), torch.tensor([2.0])))
        if bool((_shifted(**given) == IGNORED).all()) and choices.rarely(2):
            given["num_items_in_batch"] = torch.tensor(0)  # which the Trainer then counts
    length = 1 + choices.number(width - 1)
    masks = place < length, place >= width - length, torch.arange(rows)[:, None] > 0
    mask = choices.among((None, *masks, "packed"))
    if mask == "packed":
        given["position_ids"] = (place % length).expand(rows, width)
    elif mask is not None:
        given["attention_mask"] = mask.long().expand(rows, width)
    if choices.rarely(6):
        return given | {"inputs_embeds": torch.randn(rows, width, WIDTH, generator=generator)}
    return given | {"input_ids": ids}
