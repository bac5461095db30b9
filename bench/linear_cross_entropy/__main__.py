"""linear_cross_entropy beside its peers: time, peak extra memory and gradient error of forward and backward.

    python -m bench.linear_cross_entropy [--models SmolLM2-135M] [--rows 4096] [--providers eager "mind_kernels exact"]
        [--dtype float32] [--device cpu] [--data svamp.jsonl] [--repeats 5] [--minutes 8] [--output folder]
        [--overwrite] [--draw]

Without options: on a CPU one model and every peer that runs there, about seven minutes, nine with --dtype bfloat16; on
CUDA every model, row count and provider in bf16. Every result passes the gate of bench/comparison/gate.py before it is
timed; peers that are absent or wrong are listed with the reason. Scoring is a forward pass without a gradient. The roof
is the time of the three dense products at the rate measured on the spot. Extra memory counts the gradients. Writes
linear_cross_entropy.jsonl (CUDA: _cuda; another dtype: its name) and a picture of its first case.
"""

from __future__ import annotations

from bench.command import program
from bench.comparison.benchmark import Benchmark, Size
from bench.comparison.command import main
from bench.comparison.gate import Definition
from bench.comparison.heads import HEADS
from bench.linear_cross_entropy.definition import dense
from bench.linear_cross_entropy.inputs import describe, load, on_meta
from bench.linear_cross_entropy.providers import CPU, PROVIDERS

BENCHMARK = Benchmark(
    name="linear_cross_entropy",
    load=load,
    on_meta=on_meta,
    describe=describe,
    definitions={"loss": Definition(dense, PROVIDERS["eager"])},
    providers=PROVIDERS,
    cpu=CPU,
    eager="eager",
    sizes={"rows": Size("N", cpu=[4096], cuda=[8192, 16384, 4096, 1024])},
    cuda_models=list(HEADS),
    columns=(
        "model",
        "N",
        "provider",
        "median_ms",
        "predicted_ms",
        "times_predicted",
        "times_roof",
        "time_of_eager",
        "time_of_peer",
        "peak_extra_mib",
        "d_hidden_error",
        "d_weight_error",
        "note",
    ),
)

if __name__ == "__main__":
    program(BENCHMARK.name, lambda: main(BENCHMARK, __doc__ or ""))
