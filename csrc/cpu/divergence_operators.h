// The operators that the CPU library has beyond those of operators.h: divergences of rows from a teacher.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace mind {

void define_divergence_operators(torch::stable::detail::StableLibrary& library);
void implement_divergence_operators(torch::stable::detail::StableLibrary& library);

}  // namespace mind
