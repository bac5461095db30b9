// Code that all divergences of a group's rows share: log-probabilities in two parts, the normalizer before them, and
// the row gradient after them.
// Rows may be nearly equal while their log-probabilities are far from zero: a log p of -12 in float32 is rounded by up
// to 5e-7, so that a log-ratio of 1e-6 would have no digit left. The coarse parts of a column are subtracted from one
// another first, which is exact, and then the fine parts, which are small. Logarithms are to base 2, since 2^x is one
// instruction; the weights carry the factor log 2.
#pragma once

#include "launch.cuh"
#include "math.cuh"

namespace mind::cuda {

// Adding 3 x 2^12 rounds a number of up to 4096 to a multiple of 2^-10, and subtracting it again is exact. Larger ones
// get a coarser grid, or keep all their digits, and the subtraction stays exact up to 2^36.
constexpr float kGrid = 12288.0f;
constexpr float kLog2 = 0.6931471805599453f;

// A warp takes a span of the vocabulary, a lane one column of all rows at a time; every sum of a span goes to memory.
constexpr int kSpan = 64 * kWarpSize;
constexpr int kSpanWarps = 4;  // of a block, each with a span of its own

inline std::int64_t spans_of(const GroupArguments& args) { return divide_up(args.vocabulary, kSpan); }

inline dim3 span_grid(const GroupArguments& args, std::int64_t blocks = 1) {
    return dim3(static_cast<unsigned>(args.groups), static_cast<unsigned>(divide_up(spans_of(args), kSpanWarps)),
                static_cast<unsigned>(blocks));
}

// This warp's span of the vocabulary.
__device__ __forceinline__ int own_span() {
    return static_cast<int>(blockIdx.y) * kSpanWarps + static_cast<int>(threadIdx.x) / kWarpSize;
}

struct LogProbability {
    float high, low;  // log2 p is high kLog2E + low: high is exact, low about 1e-3 or less

    LogProbability() = default;
    // A log p below kLowest counts as that. Minus infinity has no fine part: kLowest replaces the nan. It may replace
    // another one, but then `rest` is nan.
    __device__ __forceinline__ LogProbability(float z, float offset, float rest) {
        const float shifted = z + kGrid;
        high = fmaxf(shifted - offset, kLowest);
        low = fmaxf(z - (shifted - kGrid), kLowest) * kLog2E - rest;
    }

    __device__ __forceinline__ float probability() const { return exp2_fast(high * kLog2E + low); }
};

// normalizer (2, G K): offset and rest of each row. The offset of an absent row puts its logits 1e18 below their
// log-sum-exp, so that its p is 0.
constexpr float kAbsent = -kLowest;
void normalize(const GroupArguments& args, float* normalizer, void* stream);

// p (F' - S) of every row in place of its F' in args.gradient, S = sum p F' / sum p; zero if a row is absent. `sums`
// (spans, 2, G K) are parts of sum p F' and of sum p.
void finish_gradient(const GroupArguments& args, const float* normalizer, const float* sums, void* stream);

// The sum over spans of parts (spans, size) at `index`, in a fixed order.
__device__ __forceinline__ float sum_of_spans(const float* parts, std::int64_t size, std::int64_t index, int spans) {
    float sum = 0.0f;
    for (int span = 0; span < spans; ++span) sum += parts[span * size + index];
    return sum;
}

}  // namespace mind::cuda
