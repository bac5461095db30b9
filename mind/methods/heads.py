"""LM heads as distillation needs them: at another temperature, and as a constant."""

from __future__ import annotations

from dataclasses import replace

from mind_kernels import Head


def at_temperature(head: Head, temperature: float) -> Head:
    """The head with its logits divided by `temperature`, beside the temperature that it has."""
    return replace(head, temperature=head.temperature * temperature)


def constant(head: Head, entries: int | None = None) -> Head:
    """The head without a graph, of its first `entries` tokens; None stands for all."""
    bias = None if head.bias is None else head.bias.detach()[:entries]
    return replace(head, weight=head.weight.detach()[:entries], bias=bias)
