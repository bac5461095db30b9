// The operator of exact gradients that the CPU library has beyond those of operators.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace mind {

// Logits as the kernels write them, transposed: float32, contiguous, rows of whole cache lines, of at least the
// vocabulary up to a multiple of kBlock by the rows up to a multiple of 16.
void check_transposed(const char* name, const torch::stable::Tensor& logits, std::int64_t vocabulary,
                      std::int64_t rows);

void define_gradient_operators(torch::stable::detail::StableLibrary& library);
void implement_gradient_operators(torch::stable::detail::StableLibrary& library);

}  // namespace mind
