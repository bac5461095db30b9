// Code that the kernels share: elements of 16-byte vectors, functions of one number, sums over a warp and a block. All
// arithmetic is float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mind::cuda {

// Used instead of -inf if 0 times it has to be 0: e^(kLowest - z) is 0. Its square is finite.
constexpr float kLowest = -1e18f;
// Used instead of a lower logarithm of a probability: e^-1000 is 0, and the product with a weight is finite.
constexpr float kLeastLog = -1000.0f;
// The lowest finite number, the start value of a maximum: if all logits are -inf, the sum is 0 and the results are nan.
constexpr float kFloor = -3.4028234663852886e38f;
constexpr float kLog2E = 1.4426950408889634f;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// An assertion on the device: indices and targets lie in its memory, where the host cannot check them without waiting.
// The launch fails, and every later call of CUDA reports it.
__device__ __forceinline__ void require(bool condition) {
    if (!condition) __trap();
}

// 2^x in one instruction, to two units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return exp2f(x);
#endif
}

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * kLog2E); }

// tanh to two units in the last place, also for small x, where 1 - 2 / (e^2x + 1) cancels.
__device__ __forceinline__ float tanh_exact(float x) {
    const float size = fminf(fabsf(x), 10.0f);  // tanh(10) is 1; keeps x^10 finite
    const float square = size * size;
    // tanh(x) / x = 1 + x^2 q(x^2); q is the polynomial of least relative error (2.6e-9) on |x| <= 0.6.
    float q = -5.905868485569954e-3f;
    q = q * square + 2.080538496375084e-2f;
    q = q * square - 5.378668382763863e-2f;
    q = q * square + 1.3331958651542664e-1f;
    q = q * square - 3.333329856395721e-1f;
    const float result =
        size < 0.6f ? size + size * (square * q) : 1.0f - __fdividef(2.0f, exp_fast(2.0f * size) + 1.0f);
    return x != x ? x : copysignf(result, x);  // fminf took a nan for 10
}

// Elements of a type by two, as they lie in a word.
template <typename T>
struct Words;

template <>
struct Words<float> {
    static constexpr int kElements = 1;
    static __device__ __forceinline__ float get(unsigned word, int) { return __uint_as_float(word); }
    static __device__ __forceinline__ unsigned put(const float* x) { return __float_as_uint(x[0]); }
};

template <>
struct Words<const float> : Words<float> {};

template <>
struct Words<__nv_bfloat16> {
    static constexpr int kElements = 2;
    static __device__ __forceinline__ float get(unsigned word, int k) {
        return __uint_as_float(k == 0 ? word << 16 : word & 0xffff0000u);
    }
    static __device__ __forceinline__ unsigned put(const float* x) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0], x[1]);
        return reinterpret_cast<const unsigned&>(pair);
    }
};

template <>
struct Words<__half> {
    static constexpr int kElements = 2;
    static __device__ __forceinline__ float get(unsigned word, int k) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(k == 0 ? word : word >> 16)));
    }
    static __device__ __forceinline__ unsigned put(const float* x) {
        const __half2 pair = __floats2half2_rn(x[0], x[1]);
        return reinterpret_cast<const unsigned&>(pair);
    }
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

// Elements of a vector of 16 bytes.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <typename T>
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[kVector<T>]) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
    constexpr int kElements = Words<T>::kElements;
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) x[k] = Words<T>::get(words[k / kElements], k % kElements);
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float* x) {
    constexpr int kElements = Words<T>::kElements;
    return {Words<T>::put(x), Words<T>::put(x + kElements), Words<T>::put(x + 2 * kElements),
            Words<T>::put(x + 3 * kElements)};
}

__device__ __forceinline__ uint4 load_vector(const void* at) { return *static_cast<const uint4*>(at); }
// Not an assignment, which the compiler may split into four stores.
__device__ __forceinline__ void store_vector(void* at, const uint4& raw) { __stwb(static_cast<uint4*>(at), raw); }

struct Sum {
    template <typename V>
    __device__ __forceinline__ V operator()(V a, V b) const {
        return a + b;
    }
};

struct Maximum {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Minimum {
    __device__ __forceinline__ int operator()(int a, int b) const { return a < b ? a : b; }
};

// For every thread of the warp, which all call it.
template <typename Combine, typename V>
__device__ __forceinline__ V warp_reduce(V value, Combine combine) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(kFullWarp, value, offset));
    }
    return value;
}

// The same of each of `values` for every thread of the block, of whole warps, which all call it.
template <int kCount, typename Combine, typename V>
__device__ __forceinline__ void block_reduce(V (&values)[kCount], V identity, Combine combine) {
    __shared__ V parts[kCount][kWarpSize];
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    __syncthreads();  // an earlier call may still be read
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
        const V value = warp_reduce(values[k], combine);
        if (lane == 0) parts[k][warp] = value;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
        const V value = lane < static_cast<int>(blockDim.x) / kWarpSize ? parts[k][lane] : identity;
        values[k] = warp_reduce(value, combine);
    }
}

}  // namespace mind::cuda
