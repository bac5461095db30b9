// The operators on CUDA tensors: each is put on the current stream of their device and returns at once.
#include "../run.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "kernels.h"

namespace mind::run {

using torch::stable::Tensor;

namespace {

// Calls launch(stream) with the device of `like` as the current one. A failure of the kernel itself is
// reported by a later call.
template <typename Launch>
void on_device(const char* name, const Tensor& like, Launch launch) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    launch(stream);
    const char* error = cuda::launch_error();
    STD_TORCH_CHECK(error == nullptr, name, " could not be launched: ", error);
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

}  // namespace

// Rows are blocks of a launch, whose grid has at most 2^31 - 1; more columns would pass 2^31 in the kernels' loops.
const std::int64_t kMostRows = INT32_MAX, kMostColumns = std::int64_t{1} << 30;

void rows(const RowArguments& args, const Tensor& like) {
    on_device("row_kernel_", like, [&](void* stream) { cuda::rows(args, stream); });
}

void count(const CountArguments& args, const Tensor& like) {
    on_device("count", like, [&](void* stream) { cuda::count(args, stream); });
}

void entries(const EntryArguments& args, const Tensor& like) {
    on_device("entries", like, [&](void* stream) { cuda::entries(args, stream); });
}

void background(const BackgroundArguments& args, const Tensor& like) {
    on_device("background", like, [&](void* stream) { cuda::background(args, stream); });
}

void shard_sums(const ShardArguments& args, const Tensor& like) {
    on_device("shard_sums", like, [&](void* stream) { cuda::shard_sums(args, stream); });
}

void shard_gradient(const ShardArguments& args, const Tensor& like) {
    on_device("shard_gradient_", like, [&](void* stream) { cuda::shard_gradient(args, stream); });
}

void shard_count(const ShardCountArguments& args, const Tensor& like) {
    on_device("shard_count", like, [&](void* stream) { cuda::shard_count(args, stream); });
}

void gather(const GatherArguments& args, const Tensor& like) {
    on_device("gather_rows", like, [&](void* stream) { cuda::gather(args, stream); });
}

void pairs(const GroupArguments& args, const Tensor& like) {
    const Tensor workspace = torch::stable::new_empty(like, {cuda::pair_workspace(args)});
    on_device("pair_divergences", like, [&](void* stream) { cuda::pairs(args, floats(workspace), stream); });
}

void mixture(const GroupArguments& args, const Tensor& like) {
    const Tensor workspace = torch::stable::new_empty(like, {cuda::mixture_workspace(args)});
    on_device("mixture_divergences", like, [&](void* stream) { cuda::mixture(args, floats(workspace), stream); });
}

}  // namespace mind::run
