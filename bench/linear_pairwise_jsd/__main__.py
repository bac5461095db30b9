"""linear_pairwise_jsd beside its peers: time, peak extra memory and gradient error of forward and backward.

    python -m bench.linear_pairwise_jsd [--models SmolLM2-135M] [--groups 64] [--providers "mind_kernels"]
        [--dtype float32] [--device cpu] [--data svamp.jsonl] [--repeats 5] [--minutes 8] [--output folder]
        [--overwrite] [--draw]

A group is an answer position with its K = 8 perspectives: 28 pairs, each with a weight of its own. Nobody else has the
loss, so the peers that know two distributions are called 28 times. Without options: on a CPU the answer spans of one
model, about five minutes; on CUDA two heads and every provider in bf16. Gate, roof, memory and results are those of
bench.linear_cross_entropy; the roof is the time of three products of the P K rows. Writes linear_pairwise_jsd.jsonl
(CUDA: _cuda) and a picture of its first case.
"""

from __future__ import annotations

from bench.command import program
from bench.comparison.benchmark import Benchmark, Size
from bench.comparison.command import main
from bench.comparison.gate import Definition
from bench.comparison.heads import REAL
from bench.linear_pairwise_jsd.definition import dense_mixture, dense_pairs
from bench.linear_pairwise_jsd.inputs import describe, load, on_meta
from bench.linear_pairwise_jsd.providers import CPU, EAGER, PROVIDERS, one_weight_a_pair

DEFINITIONS = {
    "loss": Definition(dense_pairs, PROVIDERS[EAGER], float32_logits=True),
    "one weight a pair": Definition(dense_pairs, PROVIDERS[EAGER], view=one_weight_a_pair, float32_logits=True),
    "mixture": Definition(dense_mixture, PROVIDERS["eager, mixture"], float32_logits=True),
}
BENCHMARK = Benchmark(
    name="linear_pairwise_jsd",
    load=load,
    on_meta=on_meta,
    describe=lambda inputs: describe(inputs.hidden, inputs.weight),
    definitions=DEFINITIONS,
    providers=PROVIDERS,
    cpu=CPU,
    eager=EAGER,
    sizes={"groups": Size("P", cpu=[64], cuda=[128])},
    cuda_models=["budget", REAL],
    columns=(
        "model",
        "P",
        "provider",
        "median_ms",
        "predicted_ms",
        "times_predicted",
        "times_roof",
        "time_of_eager",
        "peak_extra_mib",
        "loss_error",
        "d_hidden_error",
        "d_weight_error",
        "note",
    ),
)

if __name__ == "__main__":
    program(BENCHMARK.name, lambda: main(BENCHMARK, __doc__ or ""))
