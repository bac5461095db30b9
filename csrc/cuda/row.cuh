// How a block reads a row of logits: vectors of 16 bytes, several in flight per thread, and softcap and temperature.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "math.cuh"

namespace mind::cuda {

// Vectors in flight per thread. 64 bytes x 1024 threads per multiprocessor are 64 KiB: to hide the latency of memory
// takes 4.3 TB/s x 0.7 us = 3 MB, 23 KiB on each of 132, and threads that compute have none in flight.
constexpr int kLoads = 4;
constexpr int kLoadsWithSoftcap = 2;  // tanh takes the registers, and more time than the loads

// Threads of a block that takes a row: one vector in flight each at least. 1024 threads for two-byte elements: then 132
// rows of 300 KB (V 151936) are under way at once, 40 MB, and the second read of a row finds much of it in the L2
// cache. Rows of float32 would not fit there; blocks of 512 then fill one another's pauses.
inline int row_threads(std::int64_t vocabulary, int vector) {
    const int most = vector == 8 ? 1024 : 512;
    int threads = kWarpSize;
    while (threads < most && threads * vector * kLoads < vocabulary) threads *= 2;
    return threads;
}

// Softcap and temperature as factors. z = capped x scale, where `capped` is tanh(x cap) with a softcap and x without;
// dz / dx = (1 - capped^2) slope, or slope: from z, 1 - capped^2 would lose digits where the softcap saturates.
struct HeadFactors {
    float cap, scale, slope;
};

inline HeadFactors head_factors(const Conditions& head) {
    const float slope = 1.0f / head.temperature;
    if (head.softcap == 0.0f) return {0.0f, slope, slope};
    return {1.0f / head.softcap, head.softcap / head.temperature, slope};
}

template <bool kSoftcap>
__device__ __forceinline__ float capped_of(float x, const HeadFactors& head) {
    return kSoftcap ? tanh_exact(x * head.cap) : x;
}

// The product is rounded by itself, never fused into a difference that follows: so all kernels see the same z.
__device__ __forceinline__ float logit_of(float capped, const HeadFactors& head) {
    return __fmul_rn(capped, head.scale);
}

template <bool kSoftcap>
__device__ __forceinline__ float slope_of(float capped, const HeadFactors& head) {
    return kSoftcap ? fmaf(-capped, capped, 1.0f) * head.slope : head.slope;
}

// A row as vectors that begin where memory is aligned, so the first and the last one may reach beyond it.
template <typename T>
struct Row {
    T* data;
    int vocabulary;
    int shift;  // elements of the first vector that lie before the row
    int vectors;

    __device__ __forceinline__ Row(T* start, int length) : data(start), vocabulary(length) {
        shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(start) / sizeof(T)) & (kVector<T> - 1);
        vectors = (length + shift + kVector<T> - 1) / kVector<T>;
    }

    __device__ __forceinline__ int column(int vector) const { return vector * kVector<T> - shift; }

    __device__ __forceinline__ bool has(int at) const { return at >= 0 && at < vocabulary; }

    __device__ __forceinline__ bool is_whole(int first) const { return first >= 0 && first + kVector<T> <= vocabulary; }

    // A vector, element by element where it is at an edge; 0 beyond the row.
    __device__ __forceinline__ uint4 load(int first) const {
        if (is_whole(first)) return load_vector(data + first);
        float x[kVector<T>];
#pragma unroll
        for (int k = 0; k < kVector<T>; ++k) x[k] = has(first + k) ? to_float(data[first + k]) : 0.0f;
        return pack<T>(x);
    }

    // Calls visit(column, capped, whole) for every vector, each on one thread of the block. `capped` is -inf beyond
    // the row, and `whole` is std::true_type if no entry is.
    template <bool kSoftcap, typename Visit>
    __device__ __forceinline__ void visit(const HeadFactors& head, Visit visit) const {
        constexpr int kInFlight = kSoftcap ? kLoadsWithSoftcap : kLoads;
        const int threads = blockDim.x, first_whole = shift > 0 ? 1 : 0;
        const int end_whole = vocabulary + shift < vectors * kVector<T> ? vectors - 1 : vectors;
        for (int start = first_whole + threadIdx.x; start < end_whole; start += kInFlight * threads) {
            uint4 raw[kInFlight];
#pragma unroll
            for (int u = 0; u < kInFlight; ++u) {
                if (start + u * threads < end_whole) raw[u] = load_vector(data + column(start + u * threads));
            }
#pragma unroll
            for (int u = 0; u < kInFlight; ++u) {
                if (start + u * threads >= end_whole) break;
                float x[kVector<T>];
                unpack<T>(raw[u], x);
#pragma unroll
                for (int k = 0; k < kVector<T>; ++k) x[k] = capped_of<kSoftcap>(x[k], head);
                visit(column(start + u * threads), x, std::true_type{});
            }
        }
        // The first vector, if it is not whole, by thread 0, and the last one by thread 1; they may be the same.
        const int edge = threadIdx.x == 0 ? 0 : vectors - 1;
        if (threadIdx.x == 0 ? shift > 0 : threadIdx.x == 1 && end_whole < vectors && edge >= first_whole) {
            float x[kVector<T>];
            unpack<T>(load(column(edge)), x);
#pragma unroll
            for (int k = 0; k < kVector<T>; ++k) {
                x[k] = has(column(edge) + k) ? capped_of<kSoftcap>(x[k], head) : -INFINITY;
            }
            visit(column(edge), x, std::false_type{});
        }
    }
};

}  // namespace mind::cuda
