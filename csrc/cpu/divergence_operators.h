// The operators that the CPU library has beyond those of operators.h: divergences of rows from a teacher, and Jeffreys
// divergences of pairs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "../arguments.h"

namespace mind {

namespace run {
void jeffreys(const GroupArguments& args);
}

void define_divergence_operators(torch::stable::detail::StableLibrary& library);
void implement_divergence_operators(torch::stable::detail::StableLibrary& library);
void define_divergence_products(torch::stable::detail::StableLibrary& library);
void implement_divergence_products(torch::stable::detail::StableLibrary& library);

}  // namespace mind
