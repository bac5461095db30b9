"""Determines the softcap and temperature that a model applies to its logits, by running the model.

Model families have settings with many different names for this. Here the head is made to return known numbers, and
softcap and temperature are computed from the logits that the model then returns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_KNOWN = (0.0, 2.0**-10, -(2.0**-10), 0.5, -2.0, 7.0, -31.0, 200.0, -3000.0, 1e5)  # exact in float32


class Condition(NamedTuple):
    """How the logits z depend on the output x of the LM head: z = softcap(x) / temperature, softcap(x) = c tanh(x /
    c)."""

    softcap: float | None
    """c > 0; None: no bound."""
    temperature: float
    """> 0."""

    @classmethod
    def of(cls, logits: Tensor) -> Condition:
        """Computed from the logits (..., V) of a model whose head returns `KnownOutputs`.

        Raises ValueError if no softcap and temperature explain them; the message says which logits the model returned.
        """
        z = logits.detach().flatten(0, -2).double().cpu()
        if z.shape[-1] < len(_KNOWN):
            raise ValueError(f"a vocabulary of {z.shape[-1]}: expected at least {len(_KNOWN)} entries")
        x = _known(z.shape[-1], torch.float64, z.device)
        slope, bound = float(z[0, 1] / x[1]), float(z[0, len(_KNOWN) - 1])
        linear = abs(bound - slope * _KNOWN[-1]) <= 1e-5 * abs(bound)
        if not linear:  # a low softcap changes even the smallest x
            slope = float(bound * torch.atanh(z[0, 1] / bound) / x[1])
        expected = slope * x if linear else bound * torch.tanh(slope * x / bound)
        if not slope > 0 or not torch.allclose(z, expected.expand(z.shape), rtol=2e-3, atol=1e-6):
            worst = int((z - expected).abs().nan_to_num(torch.inf).flatten().argmax())
            raise ValueError(
                "the model turns outputs x of its LM head into something else than b tanh(s x / b): "
                f"{float(x[worst % len(x)]):g} into {float(z.flatten()[worst]):g}"
            )
        return cls(None if linear else _number(bound / slope), _number(1 / slope))

    def behind(self, scale: float) -> Condition:
        """The condition for a head whose input is `scale` > 0 times the hidden states."""
        softcap = None if self.softcap is None else _number(self.softcap / scale)
        return Condition(softcap, _number(self.temperature / scale))


class KnownOutputs:
    """A context in which the head returns known numbers; `inputs` are its latest inputs, None before the first call."""

    def __init__(self, head: nn.Module) -> None:
        self._head = head
        self.inputs: Tensor | None = None

    def __enter__(self) -> KnownOutputs:
        self._handle = self._head.register_forward_hook(self._replace)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _replace(self, head: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        self.inputs = inputs[0]
        return _known(output.shape[-1], torch.float32, output.device).expand(output.shape).clone()


def _known(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count,) numbers: the known ones, repeated."""
    values = torch.tensor(_KNOWN, dtype=dtype, device=device)
    return values[torch.arange(count, device=device) % len(_KNOWN)]


def _number(value: float) -> float:
    """A setting, rounded after it was computed from float32 numbers: 30.0 for 29.999998."""
    return float(f"{value:.7g}")
