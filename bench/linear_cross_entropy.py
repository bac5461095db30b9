"""linear_cross_entropy beside eager PyTorch: time and peak extra memory of forward and backward.

    python -m bench.linear_cross_entropy [--rows 4096] [--repeats 5] [--device cpu]

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


def build(provider: str, file: str, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Loads the rows and returns a forward and backward of one provider: (loss, dH, dW)."""
    inputs = load_rows(file, device)

    def step() -> tuple[Tensor, ...]:
        loss = PROVIDERS[provider](**inputs)
        return loss.detach(), *torch.autograd.grad(loss, (inputs["hidden"], inputs["weight"]))

    return step


def truth(file: str) -> tuple[Tensor, ...]:
    """The float64 loss and gradients on the CPU, in slices of rows: eager float64 would need 10 GiB."""
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


def error_gate(expected: tuple[Tensor, ...], errors: dict[str, list[float]]) -> Callable[[dict], None]:
    """The error budget: loss, dH and dW at most twice as far from float64 as eager's, plus the floor.

    The gate fills `errors` with each provider's relative errors of dH and dW.
    """
    names = ("loss", "d_hidden", "d_weight")

    def gate(results: dict[str, tuple[Tensor, ...]]) -> None:
        results = {name: tuple(tensor.cpu() for tensor in result) for name, result in results.items()}
        for name, result in results.items():
            errors[name] = [relative_error(a, b) for a, b in zip(result[1:], expected[1:], strict=True)]
            found, peer, truth = (dict(zip(names, side, strict=True)) for side in (result, results["eager"], expected))
            assert_within_budget(found, peer, truth, torch.float32)

    return gate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    arguments = {"file": str(real_rows(options.rows)), "device": options.device}
    errors: dict[str, list[float]] = {}
    memory = {name: peak_extra_mib("bench.linear_cross_entropy:build", {"provider": name, **arguments},
                                   device=options.device) for name in PROVIDERS}
    timings = measure_time({name: build(name, **arguments) for name in PROVIDERS}, repeats=options.repeats, warmup=1,
                           gate=error_gate(truth(arguments["file"]), errors))
    vocabulary, size = load_rows(arguments["file"])["weight"].shape
    rows = [{"provider": name, "rows": options.rows, "vocabulary": vocabulary, "hidden_size": size, "dtype": "float32",
             "inputs": LABEL, **timing.row(),
             "time_of_eager": round(timing.median_ms / timings["eager"].median_ms, 3),
             "peak_extra_mib": round(memory[name], 1), "memory_of_eager": round(memory[name] / memory["eager"], 3),
             "d_hidden_error": errors[name][0], "d_weight_error": errors[name][1]}
            for name, timing in timings.items()]
    print_table(rows, COLUMNS)
    write_results("linear_cross_entropy" + ("" if options.device == "cpu" else "_cuda"), rows)


if __name__ == "__main__":
    main()
