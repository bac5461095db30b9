// The operators of exact gradients that the CPU library has beyond those of operators.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <functional>

#include "../checks.h"
#include "kernels.h"

namespace mind {

// Logits as the kernels write them, transposed: float32, contiguous, rows of whole cache lines, of at least the
// vocabulary up to a multiple of kBlock by the rows up to a multiple of 16.
void check_transposed(const char* name, const torch::stable::Tensor& logits, std::int64_t vocabulary,
                      std::int64_t rows);

// The products of a work that is 0 but for these: checks them. (Which memory overlaps is for the operator to check.)
void set_products(ProductWork& work, const Tensor& logits, const Tensor& hidden, const Tensor& weight,
                  const OptionalTensor& of_hidden, const OptionalTensor& of_weight, bool add_weight,
                  const OptionalTensor& of_bias);
// `prepare` fills the coefficients of the rows; `gradient` does parts of the vocabulary.
void run_products(ProductWork& work, std::int64_t coefficients, const std::function<void()>& prepare,
                  const std::function<void(float* scratch, std::int64_t begin, std::int64_t end)>& gradient);

void define_gradient_operators(torch::stable::detail::StableLibrary& library);
void implement_gradient_operators(torch::stable::detail::StableLibrary& library);

}  // namespace mind
