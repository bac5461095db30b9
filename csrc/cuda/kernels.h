// The CUDA kernels as plain functions of pointers and sizes, without PyTorch: each puts its launches on a stream and
// returns. Pointers are to a GPU's memory. Deterministic: no atomics.
#pragma once

#include <cstdint>

#include "../arguments.h"

namespace mind::cuda {

void rows(const RowArguments& args, void* stream);
void count(const CountArguments& args, void* stream);
void entries(const EntryArguments& args, void* stream);
void background(const BackgroundArguments& args, void* stream);
void shard_sums(const ShardArguments& args, void* stream);
void shard_gradient(const ShardArguments& args, void* stream);
void shard_count(const ShardCountArguments& args, void* stream);
void gather(const GatherArguments& args, void* stream);

// The number of floats, of any contents, in which the kernels of groups keep sums over parts of the vocabulary.
std::int64_t pair_workspace(const GroupArguments& args);
std::int64_t mixture_workspace(const GroupArguments& args);
void pairs(const GroupArguments& args, float* workspace, void* stream);
void mixture(const GroupArguments& args, float* workspace, void* stream);

// Why the last launch of this thread failed, or null.
const char* launch_error();

}  // namespace mind::cuda
