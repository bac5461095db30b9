"""What a model does to its logits behind the LM head, read off the model itself.

Families scale their logits and bound them by settings of many names. Here the head is made to return known numbers, and
what comes out of the model tells softcap and temperature.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_KNOWN = (0.0, 2.0**-10, -(2.0**-10), 0.5, -2.0, 7.0, -31.0, 200.0, -3000.0, 1e5)  # exact in float32


class Condition(NamedTuple):
    """How logits z follow from what the LM head returns: z = softcap(x) / temperature, softcap(x) = c tanh(x / c)."""

    softcap: float | None
    """c > 0; None: no bound."""
    temperature: float
    """> 0."""

    @classmethod
    def of(cls, logits: Tensor) -> Condition:
        """From the logits (..., V) of a model whose head returns `KnownOutputs`.

        Raises ValueError if they are not z for any softcap and temperature; the message says which logits came out.
        """
        z = logits.detach().flatten(0, -2).double().cpu()
        if z.shape[-1] < len(_KNOWN):
            raise ValueError(f"a vocabulary of {z.shape[-1]}: expected at least {len(_KNOWN)} entries")
        x = _known(z.shape[-1], torch.float64, z.device)
        slope, bound = float(z[0, 1] / x[1]), float(z[0, len(_KNOWN) - 1])
        linear = abs(bound - slope * _KNOWN[-1]) <= 1e-5 * abs(bound)
        if not linear:  # a low bound bends even the smallest x
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
        """Of a head that is given `scale` > 0 times the hidden states."""
        softcap = None if self.softcap is None else _number(self.softcap / scale)
        return Condition(softcap, _number(self.temperature / scale))


class KnownOutputs:
    """Inside, the head returns known numbers in place of its outputs; `inputs` are what it was given, None so far."""

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
    """The known numbers (count,), again and again."""
    values = torch.tensor(_KNOWN, dtype=dtype, device=device)
    return values[torch.arange(count, device=device) % len(_KNOWN)]


def _number(value: float) -> float:
    """A setting that was read off float32 numbers: 30.0 for 29.999998."""
    return float(f"{value:.7g}")
