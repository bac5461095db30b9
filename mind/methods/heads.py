"""LM heads for distillation: at another temperature, and as constants."""

from __future__ import annotations

from dataclasses import replace

from mind_kernels import Head


def at_temperature(head: Head, temperature: float) -> Head:
    """The head with its logits divided by `temperature`, in addition to the temperature that it already has."""
    return replace(head, temperature=head.temperature * temperature)


def constant(head: Head, entries: int | None = None) -> Head:
    """The head without a graph, cut to its first `entries` tokens; None: all of them."""
    bias = None if head.bias is None else head.bias.detach()[:entries]
    return replace(head, weight=head.weight.detach()[:entries], bias=bias)
