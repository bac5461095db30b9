"""linear_mind_loss beside its parts: time, peak extra memory and gradient error of forward and backward.

    python -m bench.linear_mind_loss [--models SmolLM2-135M] [--rows 4096] [--groups 64] [--providers eager]
        [--dtype float32] [--device cpu] [--data svamp.jsonl] [--repeats 5] [--minutes 8] [--output folder]
        [--overwrite] [--draw]

The joint loss of a batch: the weighted cross-entropy of N rows, and the pairwise JSD of P groups of K = 8 answer rows
among them. "time_of_cross_entropy" is the time beside linear_cross_entropy alone on the same rows, with the same
gradient: the budget is 1.15 on a CPU and 1.05 on a GPU. Without options: on a CPU one model, about five minutes; on
CUDA a synthetic head of 151936 in bf16. Gate, roof, memory and results are those of bench.linear_cross_entropy; the
roof is the time of three products of the N rows. Writes linear_mind_loss.jsonl (CUDA: _cuda) and a picture.
"""

from __future__ import annotations

from bench.command import program
from bench.comparison.benchmark import Benchmark, Size
from bench.comparison.command import main
from bench.comparison.gate import Definition
from bench.linear_mind_loss.definition import (
    consistency_alone,
    dense,
    dense_consistency,
    dense_cross_entropy,
    some_rows,
)
from bench.linear_mind_loss.inputs import describe, load, on_meta
from bench.linear_mind_loss.providers import CPU, EAGER_CONSISTENCY, EAGER_CROSS_ENTROPY, PROVIDERS

DEFINITIONS = {
    "loss": Definition(dense, PROVIDERS["eager"]),
    "consistency": Definition(dense_consistency, EAGER_CONSISTENCY, view=consistency_alone, float32_logits=True),
    "cross-entropy": Definition(dense_cross_entropy, EAGER_CROSS_ENTROPY, view=some_rows),
}
BENCHMARK = Benchmark(
    name="linear_mind_loss",
    load=load,
    on_meta=on_meta,
    describe=describe,
    definitions=DEFINITIONS,
    providers=PROVIDERS,
    cpu=CPU,
    eager="eager",
    sizes={"rows": Size("N", cpu=[4096], cuda=[16384]), "groups": Size("P", cpu=[64], cuda=[128])},
    cuda_models=["budget"],
    columns=(
        "model",
        "N",
        "P",
        "provider",
        "median_ms",
        "predicted_ms",
        "times_predicted",
        "times_roof",
        "time_of_eager",
        "time_of_cross_entropy",
        "peak_extra_mib",
        "d_hidden_error",
        "d_weight_error",
        "note",
    ),
)

if __name__ == "__main__":
    program(BENCHMARK.name, lambda: main(BENCHMARK, __doc__ or ""))
