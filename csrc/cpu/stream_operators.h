// The operators that the CPU library has beyond those of operators.h: rows straight from hidden states.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace mind {

void define_stream_operators(torch::stable::detail::StableLibrary& library);
void implement_stream_operators(torch::stable::detail::StableLibrary& library);

}  // namespace mind
