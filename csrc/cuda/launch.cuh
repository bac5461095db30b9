// Launches, and the choice of a kernel by the type of its elements. If the compiler is not nvcc, cuda_runtime.h is
// the tests' emulator, which runs a kernel on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels.h"

namespace mind::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, void* stream, Arguments... arguments) {
#ifdef __CUDACC__
    kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
#else
    (void)stream;
    emulator::run(grid, threads, [=] { kernel(arguments...); });
#endif
}

template <typename T>
struct Tag {
    using type = T;
};

// call(Tag<T>{}) for the type of a matrix.
template <typename Call>
void for_type(Type type, Call call) {
    if (type == Type::kFloat) return call(Tag<float>{});
    if (type == Type::kHalf) return call(Tag<__half>{});
    return call(Tag<__nv_bfloat16>{});
}

constexpr std::int64_t divide_up(std::int64_t size, std::int64_t part) { return (size + part - 1) / part; }

// Whether rows of this matrix begin at multiples of 16 bytes, and consist of whole vectors of 16 bytes.
inline bool is_aligned(const Matrix& matrix) {
    const std::int64_t vector = matrix.type == Type::kFloat ? 4 : 8;
    return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && matrix.columns % vector == 0 &&
           (matrix.stride % vector == 0 || matrix.rows <= 1);
}

}  // namespace mind::cuda
