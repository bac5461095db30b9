"""Every loss of a build for the Hub, forward and backward, against plain PyTorch in float64; run in fresh processes.

    python hub_losses.py FOLDER [--loader kernels] [--beside]

FOLDER is a build variant, or with --loader kernels a repository. Prints the operators' namespace and the backends that
agreed. Without --beside, importing mind_kernels is an error, so that a build that needs it fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

ROWS, SIZE, VOCABULARY, GROUPS, COUNT = 10, 9, 37, 2, 3


def load(folder: Path) -> Any:
    """As `kernels` imports a variant: by a name that is no package's, from its file."""
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def log_p(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    middle = torch.logaddexp(p, q) - math.log(2)
    return (kl(p, middle) + kl(q, middle)) / 2


def pairs(log_probs: Tensor, answer_rows: Tensor, pair_weight: Tensor) -> Tensor:
    """The weighted divergences of all pairs of rows of a group."""
    total = log_probs.new_zeros(())
    for group, weights in zip(answer_rows.tolist(), pair_weight, strict=True):
        for i in range(COUNT):
            for j in range(i + 1, COUNT):
                total = total + weights[i, j] * jsd(log_probs[group[i]], log_probs[group[j]])
    return total


def cases() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    """For each operation: how to call it, and its definition; both of hidden and weight."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    target = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    row_weight, upstream, wide = normal(ROWS), normal(ROWS), normal(ROWS, 5)
    teacher, teacher_weight = normal(ROWS, SIZE + 2), normal(VOCABULARY, SIZE + 2)
    answer_rows = torch.tensor([[0, 3, 5], [1, 2, 9]])
    pair_weight = normal(GROUPS, COUNT, COUNT)
    teacher_log_p = log_p(teacher.double(), teacher_weight.double())

    def nll(h: Tensor, w: Tensor) -> Tensor:
        return cross_entropy(h @ w.T, target, reduction="none")

    return {
        "linear_cross_entropy": (
            lambda m, h, w, b: m.linear_cross_entropy(h, w, target, backend=b),
            lambda h, w: nll(h, w).mean(),
        ),
        "linear_log_prob": (
            lambda m, h, w, b: (m.linear_log_prob(h, w, target, backend=b).log_prob * upstream).sum(),
            lambda h, w: (-nll(h, w) * upstream.double()).sum(),
        ),
        "linear_divergence": (
            lambda m, h, w, b: m.linear_divergence(h, w, teacher, teacher_weight, backend=b),
            lambda h, w: kl(teacher_log_p, log_p(h, w)).mean(),
        ),
        "linear_pairwise_jsd": (
            lambda m, h, w, b: m.linear_pairwise_jsd(h[answer_rows], w, pair_weight, backend=b),
            lambda h, w: pairs(log_p(h, w), answer_rows, pair_weight.double()),
        ),
        "linear_mind_loss": (
            lambda m, h, w, b: m.linear_mind_loss(h, w, target, row_weight, answer_rows, pair_weight, backend=b),
            lambda h, w: (
                (nll(h, w) * row_weight.double()).sum() + pairs(log_p(h, w), answer_rows, pair_weight.double())
            ),
        ),
        "linear_top_k": (
            lambda m, h, w, b: (m.linear_top_k(h, w, 5, backend=b).log_prob * wide).sum(),
            lambda h, w: (log_p(h, w).topk(5).values * wide.double()).sum().detach(),  # it has no gradient
        ),
    }


def with_gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [loss, *(torch.autograd.grad(loss, inputs) if loss.requires_grad else ())]


def agree(module: Any) -> list[str]:
    """The available backends of the module; AssertionError if a loss or gradient is not the definition's."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, SIZE, generator=generator)
    weight = torch.randn(VOCABULARY, SIZE, generator=generator)
    backends = [name for name, found in module.backends().items() if found.available]
    for operation, (call, definition) in cases().items():
        exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
        expected = with_gradients(definition(*exact), exact)
        served = [name for name in backends if module.backend.BACKENDS[name].serves(operation)]
        for backend in [*served, "auto"]:
            given = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
            found = with_gradients(call(module, *given, backend), given)
            close = [
                torch.allclose(tensor.double(), right, rtol=1e-5, atol=1e-5)
                for tensor, right in zip(found, expected, strict=True)
            ]
            assert all(close), f"{operation}, backend {backend}: loss and gradients agree: {close}"
    return backends


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--loader", choices=("file", "kernels"), default="file")
    parser.add_argument("--beside", action="store_true", help="of an imported mind_kernels")
    options = parser.parse_args()
    modules = []
    if options.beside:
        modules.append(importlib.import_module("mind_kernels"))
    else:
        sys.modules["mind_kernels"] = None  # type: ignore[assignment]
    if options.loader == "kernels":
        from kernels import get_local_kernel

        modules += [get_local_kernel(folder) for folder in options.folder]
    else:
        modules += [load(folder) for folder in options.folder]
    for module in modules:
        print(module.namespace.NAMESPACE, *agree(module))
    names = [module.namespace.NAMESPACE for module in modules]
    assert len(set(names)) == len(names), names
    for name in names:
        assert torch._C._dispatch_has_kernel(f"{name}::linear_cross_entropy"), name
    whole = torch.compile(modules[-1].linear_cross_entropy, fullgraph=True, backend="eager")
    hidden, weight, target = torch.randn(ROWS, SIZE), torch.randn(VOCABULARY, SIZE), torch.arange(ROWS)
    torch.testing.assert_close(whole(hidden, weight, target), cross_entropy(hidden @ weight.T, target))


if __name__ == "__main__":
    main()
