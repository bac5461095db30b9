// The operators on CPU tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace mind {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

void row_kernel_(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
                 double temperature, double label_smoothing, double z_loss, Tensor numbers, Tensor correct);
void count(Tensor logits, Tensor target, double softcap, double temperature, double label_smoothing, double z_loss,
           double log_threshold, Tensor numbers, Tensor correct, Tensor kept, Tensor kept_mass);
void entries(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
             double temperature, double label_smoothing, double z_loss, double log_threshold, Tensor numbers,
             Tensor offsets, Tensor columns, Tensor values, Tensor kept_sum);
void background(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                Tensor sample, Tensor weight, Tensor out);
void gather_rows(Tensor values, Tensor indices, Tensor offsets, Tensor matrix, Tensor left, Tensor right, Tensor out);
void pair_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor divergence, OptionalTensor gradient);
void mixture_divergences(Tensor logits, Tensor mixture_weight, Tensor mask, Tensor divergence, OptionalTensor gradient);

}  // namespace mind
