// The operators of both libraries: their schemas and the functions that implement them. Each registers them in a
// namespace of its own, torch.ops.mind_kernels_cpp and torch.ops.mind_kernels_cuda. The Python side, which allocates
// the results, is compiled_rows.py (linear_cross_entropy) and compiled_groups.py (linear_pairwise_jsd) in mind_kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "arguments.h"
#include "checks.h"

namespace mind {

void row_kernel_(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
                 double temperature, double label_smoothing, double z_loss, Tensor numbers, Tensor correct);
void count(Tensor logits, Tensor target, double softcap, double temperature, double label_smoothing, double z_loss,
           double log_threshold, Tensor numbers, Tensor correct, Tensor kept, Tensor dropped_mass);
void entries(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
             double temperature, double label_smoothing, double z_loss, double log_threshold, Tensor numbers,
             Tensor offsets, Tensor columns, Tensor values, Tensor kept_sum);
void background(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                Tensor sample, Tensor weight, Tensor out);
void shard_sums(Tensor logits, Tensor target, double softcap, double temperature, bool adds_logits, Tensor sums,
                Tensor argmax);
void shard_gradient_(Tensor logits, Tensor target, double softcap, double temperature, Tensor maximum, Tensor log_total,
                     Tensor a, OptionalTensor b, Tensor at_target, OptionalTensor uniform);
void shard_count(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                 Tensor kept, Tensor kept_mass);
void gather_rows(Tensor values, Tensor indices, Tensor offsets, Tensor matrix, Tensor left, Tensor right, Tensor out);
void pair_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor divergence, OptionalTensor gradient);
void mixture_divergences(Tensor logits, Tensor mixture_weight, Tensor mask, Tensor divergence, OptionalTensor gradient);

// Checked, on the device of `like`.
WholeRows whole_rows(std::int64_t rows, const Tensor& maximum, const Tensor& log_total, const Tensor& a,
                     const OptionalTensor& b, const Tensor& at_target, const OptionalTensor& uniform,
                     const Tensor& like);

// Checked; the weight is (G, K, K) of pairs, (G, K) of a mixture, and the divergence has its shape.
GroupArguments group_arguments(const Tensor& logits, const char* weight_name, const Tensor& weight, const Tensor& mask,
                               const Tensor& divergence, const OptionalTensor& gradient, bool of_pairs);

inline void define_operators(torch::stable::detail::StableLibrary& library) {
    library.def(
        "row_kernel_(Tensor(a!) logits, Tensor target, Tensor? scale, Tensor? entropy_scale, float softcap, "
        "float temperature, float label_smoothing, float z_loss, Tensor(b!) numbers, Tensor(c!) correct) -> ()");
    library.def(
        "count(Tensor logits, Tensor target, float softcap, float temperature, float label_smoothing, float z_loss, "
        "float log_threshold, Tensor(a!) numbers, Tensor(b!) correct, Tensor(c!) kept, Tensor(d!) dropped_mass) -> ()");
    library.def(
        "entries(Tensor logits, Tensor target, Tensor? scale, Tensor? entropy_scale, float softcap, float temperature, "
        "float label_smoothing, float z_loss, float log_threshold, Tensor numbers, Tensor offsets, "
        "Tensor(a!) columns, Tensor(b!) values, Tensor(c!) kept_sum) -> ()");
    library.def(
        "background(Tensor logits, Tensor target, float softcap, float temperature, float log_threshold, "
        "Tensor numbers, Tensor sample, Tensor weight, Tensor(a!) out) -> ()");
    library.def(
        "shard_sums(Tensor logits, Tensor target, float softcap, float temperature, bool adds_logits, Tensor(a!) sums, "
        "Tensor(b!) argmax) -> ()");
    library.def(
        "shard_gradient_(Tensor(a!) logits, Tensor target, float softcap, float temperature, Tensor maximum, "
        "Tensor log_total, Tensor a, Tensor? b, Tensor at_target, Tensor? uniform) -> ()");
    library.def(
        "shard_count(Tensor logits, Tensor target, float softcap, float temperature, float log_threshold, "
        "Tensor numbers, Tensor(a!) kept, Tensor(b!) kept_mass) -> ()");
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

inline void implement_operators(torch::stable::detail::StableLibrary& library) {
    library.impl("row_kernel_", TORCH_BOX(&row_kernel_));
    library.impl("count", TORCH_BOX(&count));
    library.impl("entries", TORCH_BOX(&entries));
    library.impl("background", TORCH_BOX(&background));
    library.impl("shard_sums", TORCH_BOX(&shard_sums));
    library.impl("shard_gradient_", TORCH_BOX(&shard_gradient_));
    library.impl("shard_count", TORCH_BOX(&shard_count));
    library.impl("gather_rows", TORCH_BOX(&gather_rows));
    library.impl("pair_divergences", TORCH_BOX(&pair_divergences));
    library.impl("mixture_divergences", TORCH_BOX(&mixture_divergences));
}

}  // namespace mind

// Registers the operators of a library in a namespace, for tensors of a dispatch key. A second macro expands the
// namespace first, since it may be a macro itself: a build for the Hub has its own (build_tools/hub.py).
#define MIND_REGISTER(space, key, define, implement) MIND_REGISTER_IN(space, key, define, implement)
#define MIND_REGISTER_IN(space, key, define, implement)       \
    STABLE_TORCH_LIBRARY(space, library) { define(library); } \
    STABLE_TORCH_LIBRARY_IMPL(space, key, library) { implement(library); }
