// The operator that the CPU library has beyond those of operators.h: logits of rows in memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace mind {

void define_project_operators(torch::stable::detail::StableLibrary& library);
void implement_project_operators(torch::stable::detail::StableLibrary& library);

}  // namespace mind
