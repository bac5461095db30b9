// Functions that each library defines, for arguments whose shapes, dtypes and devices have been checked: see
// csrc/cpu/run_*.cpp and csrc/cuda/run.cpp. `like` is a tensor of the arguments' device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "arguments.h"

namespace mind::run {

// The limits of the numbers that the library's kernels can count.
extern const std::int64_t kMostRows, kMostColumns;

void rows(const RowArguments& args, const torch::stable::Tensor& like);
void count(const CountArguments& args, const torch::stable::Tensor& like);
void entries(const EntryArguments& args, const torch::stable::Tensor& like);
void background(const BackgroundArguments& args, const torch::stable::Tensor& like);
void shard_sums(const ShardArguments& args, const torch::stable::Tensor& like);
void shard_gradient(const ShardArguments& args, const torch::stable::Tensor& like);
void shard_count(const ShardCountArguments& args, const torch::stable::Tensor& like);
void gather(const GatherArguments& args, const torch::stable::Tensor& like);
void pairs(const GroupArguments& args, const torch::stable::Tensor& like);
void mixture(const GroupArguments& args, const torch::stable::Tensor& like);

}  // namespace mind::run
