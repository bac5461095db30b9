// What the operators of rows and of groups share on their way from tensors to pointers and a stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../checks.h"
#include "kernels.h"

namespace mind::cuda {

// More columns would pass 2^31 in the kernels' loops.
inline void check_vocabulary(std::int64_t vocabulary) {
    STD_TORCH_CHECK(vocabulary >= 1 && vocabulary <= (std::int64_t{1} << 30), "logits have ", vocabulary,
                    " columns: expected 1 to 2^30");
}

// Rows that are blocks of a launch: a grid has at most 2^31 - 1.
inline void check_rows(const char* name, std::int64_t rows) {
    STD_TORCH_CHECK(rows <= INT32_MAX, name, " has ", rows, " rows: expected fewer than 2^31");
}

inline Matrix matrix_of(const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    const Type name = type == ScalarType::Float  ? Type::kFloat
                      : type == ScalarType::Half ? Type::kHalf
                                                 : Type::kBFloat16;
    return {tensor.data_ptr(), name, tensor.size(0), tensor.size(1), tensor.stride(0)};
}

// The device of a tensor made current, and its current stream.
class Launch {
public:
    explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
    }

    void* stream() const { return stream_; }

    // Raises what the launches have failed of; what a kernel fails of later, a later call reports.
    void check(const char* name) const {
        const char* error = launch_error();
        STD_TORCH_CHECK(error == nullptr, name, " could not be launched: ", error);
    }

private:
    torch::stable::accelerator::DeviceGuard guard_;
    void* stream_ = nullptr;
};

}  // namespace mind::cuda
