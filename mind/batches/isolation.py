"""Tests whether a model computes the sequences of a packed row as if each were alone. It probes the loaded model
instead of keeping a list of families.

Attention separates the sequences of a row by a mask. A recurrent state, a convolution or a model's own mask does not,
and learned positions may count from the start of the row. A few tokens show it: if nothing leaks, the gradient of a
sequence's states with respect to every other token of the row is exactly zero, in any dtype; and if the positions are
right, the states equal those of the sequence alone. An effect that begins beyond some number of tokens, such as a
window, needs a longer probe: the model's configuration says how long.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mind.batches.packing import document_pack, plain_pack
from mind.batches.rows import left_padded_inputs, padded_inputs, plain_inputs, shared_inputs
from mind.display import describe
from mind.errors import MindError
from mind.student.model import attention_of
from mind.student.probe import relative_error, tolerance, trunk_states, working_dtype
from mind_kernels.integrations.probe import probe_ids, probing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal["plain", "shared", "padded", "left"]
"""The layouts of rows: sequences one after another, documents with branches, or one row per sequence, padded on the
right or the left."""

_LENGTH = 9  # tokens of the probed sequence
# the last tokens, whose states are not differentiated, so that a state that depends on later tokens is found
_UNSEEN = 2
_PROMPT = 4  # the tokens of the prompt, in rows with shared prompts

# Settings with a length in tokens from which some layer computes differently: windows, chunks, keys that are compressed
# or selected, the positions that were trained.
_SPAN = re.compile(
    r"window(_(size|len|length))?$|att(entio)?n_chunk_(size|length)$|^local_attention|^compress_rate|"
    r"^index_(topk|block_size)$|^original_max_position"
)


@dataclass
class _Findings:
    spans: list[tuple[str, int]]
    faults: dict[tuple[Any, ...], dict[int, str | None]] = field(default_factory=dict)
    """(layout, attention, device and dtype) -> length of the probe in tokens -> fault, None if there is none."""
    told: bool = False


_findings: WeakKeyDictionary[nn.Module, _Findings] = WeakKeyDictionary()


def keeps_sequences_apart(model: PreTrainedModel, length: int) -> bool:
    """Whether sequences one after another in a row of `length` tokens are computed as if each were alone.

    If not, each needs a padded row of its own: a warning says so once, with the reason. Raises MindError if the model
    does not even compute padded rows like single sequences.
    """
    reason = fault(model, "plain", length)
    if reason is None:
        return True
    name = type(model).__name__
    if further := fault(model, "padded", length):
        raise MindError(
            f"{name} cannot be trained: in a row of several sequences it {reason}, "
            f"and in a row for each sequence, padded, it {further}"
        )
    found = _found(model)
    if not found.told:
        found.told = True
        warnings.warn(
            f"each sequence is computed in a row of its own, with padding: in a row of several, {name} {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def branch_fault(model: PreTrainedModel, longest: int, length: int) -> str | None:
    """Why the branches of shared prompts in a row of `length` tokens are not computed as if each were alone; None if
    they are.

    `longest` is the length in tokens of the longest prompt with a branch. The mask of shared prompts has no sliding
    window, which makes no difference if no sequence is longer than the window.
    """
    windows = [(name, span) for name, span in _found(model).spans if not name.startswith("original")]
    name, span = min(windows, key=lambda item: item[1], default=("", longest))
    if span < longest:
        return f"its {name} is {span} tokens, and the longest sequence has {longest}"
    reason = fault(model, "shared", length)
    return None if reason is None else f"in a row with shared prompts, {type(model).__name__} {reason}"


def fault(model: PreTrainedModel, layout: Layout, length: int) -> str | None:
    """What is wrong with the states of a sequence if the model computes rows of `length` tokens in this layout; None if
    nothing is.

    Probed once per attention, device and dtype of the model, with more tokens than any of its windows that is shorter
    than `length`.
    """
    weight: Any = model.get_input_embeddings().weight
    found = _found(model)
    way = (layout, attention_of(model), weight.device.type, working_dtype(weight))
    faults = found.faults.setdefault(way, {})
    longest = max((span for _, span in found.spans if _LENGTH <= span < length), default=0)
    if any(reach >= longest and reason is None for reach, reason in faults.items()):
        return None
    for reach in sorted({0, longest}):
        if reach not in faults:
            faults[reach] = _probed(model, layout, reach)
        if faults[reach] is not None:
            return faults[reach]
    return None


def _probed(model: PreTrainedModel, layout: Layout, reach: int) -> str | None:
    with probing(model):
        probe = _PROBES[layout](probe_ids(model, 60 + 3 * reach).tolist(), reach)
        try:
            return _difference(model, probe)
        # the model's own code may raise anything: the layout does not work, and the message has the reason
        except Exception as error:
            return f"raises {describe(error)}"


def _found(model: PreTrainedModel) -> _Findings:
    if model not in _findings:
        _findings[model] = _Findings(list(_spans(model)))
    return _findings[model]


def _spans(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """(name, tokens) of the settings with a length from which some layer computes differently."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in layers or (not layers and getattr(config, "use_sliding_window", True))
    for name, value in _numbers(config.to_dict(), ""):
        if _SPAN.search(name) and value > 0 and (slides or name != "sliding_window"):
            yield name, value


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """The integers of a configuration value with their names; numbers in a table are named after it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, name if _SPAN.search(name) else str(key))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


_Inputs = Callable[[Any], dict[str, Any]]
"""Layout -> function that builds the trunk's inputs."""


class _Probe(NamedTuple):
    """Rows, and the sequences in them to compare; the last of these is differentiated."""

    inputs: _Inputs
    sequences: Sequence[list[int]]
    places: Sequence[Tensor]  # (length,) each, of their tokens in the flattened rows


def _difference(model: PreTrainedModel, probe: _Probe) -> str | None:
    states, embeddings = _states_and_embeddings(model, probe.inputs(model))
    own = probe.places[-1].to(states.device)
    before = own[:-_UNSEEN]
    seen = states[before]
    weight = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)).to(seen)
    (gradient,) = torch.autograd.grad((seen * weight).sum(), embeddings, materialize_grads=True)
    reached = gradient.flatten(0, 1).ne(0).any(-1)
    if not reached[before].any():
        return "lets no gradient through to its embeddings"
    reached[before] = False
    later = bool(reached[own].any())
    reached[own] = False
    if reached.any():
        return "lets a sequence see the others"
    if later:
        return "lets a token see later ones of its sequence"
    for sequence, places in zip(probe.sequences, probe.places, strict=True):
        with torch.no_grad():
            alone = trunk_states(model, {"input_ids": torch.tensor([sequence], device=model.device)})[0]
        error = relative_error(states[places.to(states.device)], alone)
        if not error <= tolerance(working_dtype(states)):
            return f"gives a sequence other states than alone: they differ by {error:.2g} of their norm"
    return None


def _states_and_embeddings(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The states (B T, D) of rows, with a graph that ends at their embeddings (B, T, E), and these."""
    embedded: list[Tensor] = []

    def differentiable(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # the model may change its input in place

    handle = model.get_input_embeddings().register_forward_hook(differentiable)
    try:
        with torch.enable_grad():
            return trunk_states(model, inputs).flatten(0, 1), embedded
    finally:
        handle.remove()


def _plain(ids: list[int], reach: int) -> _Probe:
    rows = _sequences(ids, reach, first=11)
    starts = list(accumulate(map(len, rows), initial=0))
    return _whole_sequences(lambda model: plain_inputs(model, plain_pack(rows)), rows, starts)


def _padded(ids: list[int], reach: int) -> _Probe:
    rows = _sequences(ids, reach, first=11 + reach)
    starts = [row * len(rows[0]) for row in range(len(rows))]
    return _whole_sequences(lambda model: padded_inputs(model, [torch.tensor(row) for row in rows]), rows, starts)


def _left(ids: list[int], reach: int) -> _Probe:
    rows = _sequences(ids, reach, first=11 + reach)
    starts = [(number + 1) * len(rows[0]) - len(row) for number, row in enumerate(rows)]
    return _whole_sequences(lambda model: left_padded_inputs(model, [torch.tensor(row) for row in rows]), rows, starts)


def _shared(ids: list[int], reach: int) -> _Probe:
    """The probed sequence is the second of three branches in the second of three documents, more than `reach` tokens
    after its prompt."""
    prompt, branch, a, a1, a2, b1, b3, c = _cut(ids, [_PROMPT, _LENGTH - _PROMPT, 3, 4, 2, 3 + reach, 2, 4])
    pack = document_pack([(a, (a1, a2)), (prompt, (b1, branch, b3)), (c, ())])
    of_prompt = len(a + a1 + a2) + torch.arange(len(prompt))
    of_branch = len(a + a1 + a2 + prompt + b1) + torch.arange(len(branch))
    return _Probe(lambda model: shared_inputs(model, pack), [prompt + branch], [torch.cat([of_prompt, of_branch])])


_PROBES = {"plain": _plain, "shared": _shared, "padded": _padded, "left": _left}


def _sequences(ids: list[int], reach: int, first: int) -> list[list[int]]:
    """The first and the last sequence are there to disturb. The one before the last is longer than `reach`; if that is
    not 0, a short one is added, which must not depend on the row being longer."""
    long, before, after, *short = _cut(ids, [_LENGTH + reach, first, 5, *([_LENGTH] if reach else [])])
    return [before, *short, long, after]


def _whole_sequences(inputs: _Inputs, rows: list[list[int]], starts: list[int]) -> _Probe:
    places = [start + torch.arange(len(row)) for row, start in zip(rows, starts, strict=False)]
    return _Probe(inputs, rows[1:-1], places[1:-1])


def _cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    return [ids[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
