"""Which rows a model computes as if each sequence were alone: a probe of the very model, not a list of families.

Attention keeps the sequences of a row apart by a mask; a recurrent state, a convolution or a mask of a model's own
does not, and learned positions may count from the start of the row. A few tokens show it: the gradient of a sequence's
states with respect to every other token of the row is exactly zero if nothing leaks, in any dtype, and the states are
those of the sequence on its own if its positions are right.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mind.batches.packing import document_pack, plain_pack
from mind.batches.rows import padded_inputs, plain_inputs, shared_inputs
from mind.errors import MindError
from mind.student.model import attention_of
from mind.student.probe import (
    describe,
    probe_ids,
    probing,
    relative_error,
    tolerance,
    trunk_states,
    working_dtype,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Layout = Literal["plain", "shared", "padded"]

# Of the probed sequence: its prompt in rows with shared prompts, its length, and the tokens whose states are
# differentiated, so that a state that sees later tokens is found, too.
_PROMPT, _LENGTH, _SEEN = 4, 9, 7


@dataclass
class _Findings:
    """By the way in which the model computes: attention, device and dtype."""

    faults: dict[tuple[Any, ...], str | None] = field(default_factory=dict)
    alone: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    told: bool = False


_findings: WeakKeyDictionary[nn.Module, _Findings] = WeakKeyDictionary()


def keeps_sequences_apart(model: PreTrainedModel) -> bool:
    """Whether sequences one after another in a row are computed as on their own.

    If not, each needs a row of its own, padded: a warning says so once, with the reason. Raises MindError if the model
    does not compute that like sequences on their own either.
    """
    reason = fault(model, "plain")
    if reason is None:
        return True
    name = type(model).__name__
    if further := fault(model, "padded"):
        raise MindError(
            f"{name} cannot be trained: in a row of several sequences {reason}, "
            f"and in a row for each sequence, padded, {further}"
        )
    found = _findings[model]
    if not found.told:
        found.told = True
        warnings.warn(
            f"each sequence is computed in a row of its own, with padding: in a row of several, {name} {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def branch_fault(model: PreTrainedModel, longest: int) -> str | None:
    """Why the branches of a shared prompt are not computed like sequences on their own; None if they are.

    `longest` is the length in tokens of the longest prompt with a branch: a window that no sequence fills is none.
    """
    window = min(_windows(model.config.get_text_config()), default=longest)
    if window < longest:
        return f"the model attends to the last {window} tokens only, and the longest sequence has {longest}"
    reason = fault(model, "shared")
    return None if reason is None else f"in a row with shared prompts, {type(model).__name__} {reason}"


def _windows(config: PreTrainedConfig) -> Iterator[int]:
    """The lengths in tokens, of any name, beyond which some of the layers do not look: the mask of shared prompts knows
    none of them, and the probe's sequences are shorter."""
    layers = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in layers or (not layers and getattr(config, "use_sliding_window", True))
    for name, value in config.to_dict().items():
        is_window = re.search(r"(window|chunk)(_size)?$", name) and (slides or name != "sliding_window")
        if is_window and isinstance(value, int) and value > 0:
            yield value


def fault(model: PreTrainedModel, layout: Layout) -> str | None:
    """What is wrong with the states of a sequence if the model computes rows in this layout; None if nothing is.

    Probed once for each attention, device and dtype that the model computes with.
    """
    weight: Any = model.get_input_embeddings().weight
    way = (attention_of(model), weight.device.type, working_dtype(weight))
    found = _findings.setdefault(model, _Findings())
    if (layout, *way) not in found.faults:
        ids = probe_ids(model, 60)
        sequence, others = ids[:_LENGTH], ids[_LENGTH:].tolist()
        with probing(model):
            if way not in found.alone:
                with torch.no_grad():
                    found.alone[way] = trunk_states(model, {"input_ids": sequence[None].to(model.device)})[0]
            found.faults[layout, *way] = _probed(model, layout, sequence.tolist(), others, found.alone[way])
    return found.faults[layout, *way]


def _probed(
    model: PreTrainedModel, layout: Layout, sequence: list[int], others: list[int], alone: Tensor
) -> str | None:
    try:
        inputs, own = _ROWS[layout](model, sequence, others)
        return _difference(model, inputs, own.to(model.device), alone)
    except Exception as error:  # of the model's own code: the layout does not work, and whoever is told reads why
        return f"raises {describe(error)}"


def _difference(model: PreTrainedModel, inputs: dict[str, Any], own: Tensor, alone: Tensor) -> str | None:
    """Compares the states at the places `own` (L,) of the flattened rows with those of the sequence alone, (L, D)."""
    embedded: list[Tensor] = []

    def differentiable(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # which the model may change in place

    handle = model.get_input_embeddings().register_forward_hook(differentiable)
    try:
        with torch.enable_grad():
            states = trunk_states(model, inputs).flatten(0, 1)
    finally:
        handle.remove()
    seen = states[own[:_SEEN]]
    weight = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)).to(seen)
    (gradient,) = torch.autograd.grad((seen * weight).sum(), embedded)
    reached = gradient.flatten(0, 1).ne(0).any(-1)
    if not reached[own[:_SEEN]].any():
        return "lets no gradient through to its embeddings"
    reached[own[:_SEEN]] = False
    later = bool(reached[own].any())
    reached[own] = False
    if reached.any():
        return "lets a sequence see the others"
    if later:
        return "lets a token see later ones of its sequence"
    error = relative_error(states[own], alone)
    if not error <= tolerance(working_dtype(states)):
        return f"gives a sequence other states than alone: they differ by {error:.2g} of their norm"
    return None


def _plain(model: PreTrainedModel, sequence: list[int], others: list[int]) -> tuple[dict[str, Any], Tensor]:
    pack = plain_pack([others[:11], sequence, others[11:16]])
    return plain_inputs(model, pack), torch.arange(11, 11 + _LENGTH)


def _shared(model: PreTrainedModel, sequence: list[int], others: list[int]) -> tuple[dict[str, Any], Tensor]:
    prompt, branch = sequence[:_PROMPT], sequence[_PROMPT:]
    pack = document_pack(
        [(others[:3], (others[3:7], others[7:9])), (prompt, (others[9:12], branch, others[12:14])), (others[14:18], ())]
    )
    return shared_inputs(model, pack), torch.cat([torch.arange(9, 13), torch.arange(16, 16 + len(branch))])


def _padded(model: PreTrainedModel, sequence: list[int], others: list[int]) -> tuple[dict[str, Any], Tensor]:
    rows = [torch.tensor(ids) for ids in (others[:11], sequence, others[11:16])]
    return padded_inputs(model, rows), torch.arange(11, 11 + _LENGTH)


_ROWS: dict[Layout, Callable[[Any, list[int], list[int]], tuple[dict[str, Any], Tensor]]] = {
    "plain": _plain,
    "shared": _shared,
    "padded": _padded,
}
