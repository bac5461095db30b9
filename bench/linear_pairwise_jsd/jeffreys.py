"""The symmetric KL of pairs in one pass, beside the two calls of linear_divergence that have its gradient.

    python -m bench.linear_pairwise_jsd.jeffreys [--pairs 16] [--vocabulary 49152] [--size 576] [--turns 7]

One thread, float32, forward and backward; all ways take turns in one process, and the table has the least processor
time of each, which a busy machine stretches less than wall time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from bench.measure import print_table
from mind_kernels import linear_divergence, linear_pairwise_jsd

Loss = Callable[[Tensor, Tensor], Tensor]


def one_pass(backend: str) -> Loss:
    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_pairwise_jsd(hidden, weight, torch.ones(len(hidden), 2, 2), kind="jeffreys", backend=backend)

    return loss


def two_calls(backend: str) -> Loss:
    """Each side a student once and a teacher once: the gradient of the pairs' sum, and twice its value."""

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        rows, partners = hidden.transpose(0, 1).flatten(0, 1), hidden.flip(1).transpose(0, 1).flatten(0, 1)
        teacher = partners.detach(), weight.detach()
        kinds = ("forward_kl", "reverse_kl")
        parts = [linear_divergence(rows, weight, *teacher, kind=k, reduction="sum", backend=backend) for k in kinds]
        return torch.stack(parts).sum()

    return loss


def eager(hidden: Tensor, weight: Tensor) -> Tensor:
    one, other = torch.log_softmax(hidden @ weight.T, -1).unbind(1)
    return kl_div(one, other, reduction="sum", log_target=True) + kl_div(other, one, reduction="sum", log_target=True)


WAYS: dict[str, Loss] = {
    "eager": eager,
    **{f"two calls, {name}": two_calls(name) for name in ("torch", "cpp")},
    **{f"one pass, {name}": one_pass(name) for name in ("torch", "cpp")},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 16), ("vocabulary", 49152), ("size", 576), ("turns", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(options.pairs, 2, options.size, requires_grad=True)
    weight = (torch.randn(options.vocabulary, options.size) / options.size**0.5).requires_grad_()
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.turns + 1):  # the first turn loads and warms up
        for name, way in WAYS.items():
            start = time.process_time()
            torch.autograd.grad(way(hidden, weight), (hidden, weight))
            spent[name].append(time.process_time() - start)
    least = {name: min(found[1:]) for name, found in spent.items()}
    of_eager = {name: round(seconds / least["eager"], 3) for name, seconds in least.items()}
    rows = [{"way": name, "ms": round(1e3 * least[name], 1), "of eager": of_eager[name]} for name in WAYS]
    print_table(rows, ("way", "ms", "of eager"))


if __name__ == "__main__":
    main()
