"""linear_cross_entropy beside eager PyTorch on a CPU: time and peak extra memory of forward and backward.

    python -m bench.linear_cross_entropy [--rows 4096] [--repeats 5]

Extra memory counts the gradients. Writes bench/results/linear_cross_entropy.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import measure_time, peak_extra_mib, print_table, write_results
from bench.real_rows import LABEL, load_rows, real_rows
from mind_kernels import linear_cross_entropy
from mind_kernels.testing import assert_within_budget

COLUMNS = ("provider", "median_ms", "p20_ms", "p80_ms", "time_of_eager", "peak_extra_mib", "memory_of_eager",
           "d_hidden_error", "d_weight_error")


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, target)


def ours(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, target, backend="torch")


PROVIDERS = {"eager": eager, "mind_kernels torch": ours}


def build(provider: str, file: str) -> Callable[[], tuple[Tensor, ...]]:
    """Loads the rows and returns a forward and backward of one provider: (loss, dH, dW)."""
    inputs = load_rows(file)

    def step() -> tuple[Tensor, ...]:
        loss = PROVIDERS[provider](**inputs)
        return loss.detach(), *torch.autograd.grad(loss, (inputs["hidden"], inputs["weight"]))

    return step


def truth(file: str) -> tuple[Tensor, ...]:
    """The float64 gradients, in slices of rows: eager float64 would need 10 GiB."""
    inputs = {name: t.detach().double() if t.is_floating_point() else t for name, t in load_rows(file).items()}
    rows = len(inputs["target"])
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()
    total = 0.0
    for part in torch.arange(rows).split(256):
        loss = F.cross_entropy(hidden[part] @ weight.T, inputs["target"][part], reduction="sum") / rows
        loss.backward()
        total += loss.detach()
    return total, hidden.grad, weight.grad


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    file = str(real_rows(options.rows))
    expected = truth(file)
    errors: dict[str, list[float]] = {}

    def gate(results: dict[str, tuple[Tensor, ...]]) -> None:
        """The error budget: loss, dH and dW at most twice as far from float64 as eager's, plus the floor."""
        for name, result in results.items():
            errors[name] = [relative_error(a, b) for a, b in zip(result[1:], expected[1:], strict=True)]
            names = ("loss", "d_hidden", "d_weight")
            assert_within_budget(dict(zip(names, result, strict=True)), dict(zip(names, results["eager"], strict=True)),
                                 dict(zip(names, expected, strict=True)), torch.float32)

    memory = {name: peak_extra_mib("bench.linear_cross_entropy:build", {"provider": name, "file": file})
              for name in PROVIDERS}
    timings = measure_time({name: build(name, file) for name in PROVIDERS}, gate=gate, repeats=options.repeats,
                           warmup=1)
    base_ms, base_mib = timings["eager"].median_ms, memory["eager"]
    shape = load_rows(file)
    rows = [{"provider": name, "rows": options.rows, "vocabulary": shape["weight"].shape[0],
             "hidden_size": shape["weight"].shape[1], "dtype": "float32", "inputs": LABEL, **timing.row(),
             "time_of_eager": round(timing.median_ms / base_ms, 3), "peak_extra_mib": round(memory[name], 1),
             "memory_of_eager": round(memory[name] / base_mib, 3), "d_hidden_error": errors[name][0],
             "d_weight_error": errors[name][1]} for name, timing in timings.items()]
    print_table(rows, COLUMNS)
    write_results("linear_cross_entropy", rows)


if __name__ == "__main__":
    main()
