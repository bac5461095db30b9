// The operators' schemas, one list for both libraries: each defines them in a namespace of its own (mind_kernels_cpu,
// mind_kernels_cuda). mind_kernels/compiled.py allocates the results, calls them, and says what the arguments are.
#pragma once

#include <torch/csrc/stable/library.h>

namespace mind {

inline void define_operators(torch::stable::detail::StableLibrary& library) {
    library.def(
        "row_kernel_(Tensor(a!) logits, Tensor target, Tensor? scale, Tensor? entropy_scale, float softcap, "
        "float temperature, float label_smoothing, float z_loss, Tensor(b!) numbers, Tensor(c!) correct) -> ()");
    library.def(
        "count(Tensor logits, Tensor target, float softcap, float temperature, float label_smoothing, float z_loss, "
        "float log_threshold, Tensor(a!) numbers, Tensor(b!) correct, Tensor(c!) kept, Tensor(d!) kept_mass) -> ()");
    library.def(
        "entries(Tensor logits, Tensor target, Tensor? scale, Tensor? entropy_scale, float softcap, float temperature, "
        "float label_smoothing, float z_loss, float log_threshold, Tensor numbers, Tensor offsets, "
        "Tensor(a!) columns, Tensor(b!) values, Tensor(c!) kept_sum) -> ()");
    library.def(
        "background(Tensor logits, Tensor target, float softcap, float temperature, float log_threshold, "
        "Tensor numbers, Tensor sample, Tensor weight, Tensor(a!) out) -> ()");
    library.def(
        "gather_rows(Tensor values, Tensor indices, Tensor offsets, Tensor matrix, Tensor left, Tensor right, "
        "Tensor(a!) out) -> ()");
    library.def(
        "pair_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor(a!) divergence, "
        "Tensor(b!)? gradient) -> ()");
    library.def(
        "mixture_divergences(Tensor logits, Tensor mixture_weight, Tensor mask, Tensor(a!) divergence, "
        "Tensor(b!)? gradient) -> ()");
}

}  // namespace mind
