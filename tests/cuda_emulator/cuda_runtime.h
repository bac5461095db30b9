// So much of CUDA as csrc/cuda uses, on a CPU: g++ compiles the .cu files as C++ against this header, and their kernels
// run here. Blocks run one after another, the threads of a block as fibers that take turns wherever they wait for one
// another: at __syncthreads, and in the functions of a warp, all of whose threads must call them. A launch that breaks
// a rule (a trap, a thread that left while others wait, a warp whose threads call different functions) ends there and
// then, and cudaGetLastError has what it was.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 64 << 10;

// A barrier of `size` threads that all do `what`.
struct Barrier {
    int size = 0, arrived = 0, left = 0;
    unsigned generation = 0;
    const char* what = nullptr;
    std::uint64_t values[2][kWarp] = {};  // what the threads of a warp show one another, by turns
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    dim3 thread;
    bool done = false;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* current;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline std::function<void()> body;
inline std::string error;
inline bool failed, progress;

inline int lane() { return threadIdx.x % kWarp; }
inline Barrier& own_warp() { return warp_barriers[threadIdx.x / kWarp]; }

// Ends the launch: its fibers are never resumed.
[[noreturn]] inline void fail(const std::string& reason) {
    if (!failed) error = reason + ", thread " + std::to_string(threadIdx.x) + " of block " + std::to_string(blockIdx.x);
    failed = true;
    setcontext(&scheduler);
    std::abort();
}

inline void wait(Barrier& barrier, const char* what) {
    if (barrier.left > 0) fail(std::string(what) + ": another thread has left");
    if (barrier.arrived > 0 && std::strcmp(barrier.what, what) != 0) {
        fail(std::string(what) + ": another thread is at " + barrier.what);
    }
    barrier.what = what;
    progress = true;
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) swapcontext(&current->context, &scheduler);
}

// What each thread of the warp shows; valid until this thread calls it again.
inline const std::uint64_t* exchange(std::uint64_t value, const char* what) {
    Barrier& warp = own_warp();
    std::uint64_t* values = warp.values[warp.generation % 2];
    values[lane()] = value;
    wait(warp, what);
    return values;
}

inline void run_fiber() {
    body();
    current->done = progress = true;
    for (Barrier* barrier : {&block_barrier, &own_warp()}) {
        ++barrier->left;
        if (barrier->arrived > 0) fail(std::string("this thread has left, others wait at ") + barrier->what);
    }
    setcontext(&scheduler);
}

inline void run_block(int threads) {
    block_barrier = Barrier();
    block_barrier.size = threads;
    warp_barriers.assign(threads / kWarp, Barrier());
    for (Barrier& warp : warp_barriers) warp.size = kWarp;
    fibers.resize(threads);
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
        fiber.thread = dim3(t);
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
        makecontext(&fiber.context, run_fiber, 0);
    }
    do {
        progress = false;
        for (Fiber& fiber : fibers) {
            if (fiber.done) continue;
            current = &fiber;
            threadIdx = fiber.thread;
            swapcontext(&scheduler, &fiber.context);
            if (failed) return;
        }
    } while (progress);
    for (const Fiber& fiber : fibers) {
        if (fiber.done) continue;
        failed = true;
        error = "the threads of a block wait for one another at different places";
    }
}

inline void run(dim3 grid, int threads, std::function<void()> kernel) {
    if (failed) return;  // as CUDA does after a trap
    body = std::move(kernel);
    gridDim = grid;
    blockDim = dim3(threads);
    if (threads % kWarp != 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.z > 65535) {
        failed = true;
        error = "invalid configuration argument";
        return;
    }
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(threads);
                if (failed) return;
            }
        }
    }
}

template <typename To, typename From>
To bits(From from) {
    To to{};
    std::memcpy(&to, &from, std::min(sizeof(To), sizeof(From)));
    return to;
}

}  // namespace emulator

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() {
    const bool failed = emulator::failed;
    emulator::failed = false;
    return failed;
}
inline const char* cudaGetErrorString(cudaError_t) { return emulator::error.c_str(); }

using std::max;
using std::min;

[[noreturn]] inline void __trap() { emulator::fail("trap"); }
inline void __syncthreads() { emulator::wait(emulator::block_barrier, "__syncthreads"); }

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
    return emulator::bits<T>(emulator::exchange(emulator::bits<std::uint64_t>(value), "__shfl_sync")[from % 32]);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    const int lane = emulator::lane();
    return emulator::bits<T>(emulator::exchange(emulator::bits<std::uint64_t>(value), "__shfl_xor_sync")[lane ^ mask]);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
    const int lane = emulator::lane();
    return emulator::bits<T>(
        emulator::exchange(emulator::bits<std::uint64_t>(value), "__shfl_up_sync")[lane < delta ? lane : lane - delta]);
}

inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits<float>(x); }
inline int __float_as_int(float x) { return emulator::bits<int>(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdividef(float a, float b) { return a / b; }
inline void __stwb(uint4* at, uint4 value) { *at = value; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }

struct __nv_bfloat16 {
    unsigned short bits;
};
struct __half {
    unsigned short bits;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
struct __half2 {
    __half x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned word = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {static_cast<unsigned short>((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}
inline __half __ushort_as_half(unsigned short x) { return {x}; }
inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    if (exponent == 31) size = mantissa == 0 ? INFINITY : NAN;
    return x.bits >> 15 ? -size : size;
}
inline __half __float2half_rn(float x) {
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (x != x) return {0x7fff};
    if (size >= 65520.0f) return {static_cast<unsigned short>(sign | 0x7c00)};
    // The exponent whose unit in the last place is 2^(exponent - 10), at least that of the denormal numbers.
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return {static_cast<unsigned short>(sign | (steps < 1024 ? steps : (exponent + 14) * 1024 + steps))};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
