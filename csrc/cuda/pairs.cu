// Jensen-Shannon divergences of all pairs of a group's rows, and their gradient, from float32 logits.
//
// Launches: normalizer (read), pairs (read, F' is written), gradient in place of F' (read both, write). A lane takes
// one column of the vocabulary at a time: the logits of all rows, then every pair of them once. Every entry of a
// divergence is non-negative and relatively accurate, so nothing cancels between entries; see `pair_terms`.
//
// For K 8, G 128, V 151936 (19.4 million columns) the pairs move 1.24 GB, 0.29 ms on an H200 at 4.3 TB/s; but a column
// takes about 1190 instructions, 41 per pair, the rows' share included: 0.8 ms for 132 multiprocessors of 4 warp
// instructions per cycle at 1.7 GHz. With the normalizer and the gradient (groups.cu), 1.4 ms. 168 registers for 8
// rows.
#include "groups.cuh"

namespace mind::cuda {

namespace {

// Rows of a block. The sums of 28 pairs and 8 rows, and a column's 8 x 3 numbers, take up to 168 registers, so 12 warps
// share a multiprocessor: enough, since the pairs of a column do not wait for one another. Larger groups need a launch
// per block, and one for any two halves of different blocks.
constexpr int kBlock = 8;
constexpr int kHalf = 4;
// The square of a log-ratio (base 2) below which two probabilities are near.
constexpr float kNear = 2.0f;

struct PairTerms {
    float own, theirs, entry;
};

// log2(p / m), log2(q / m) and p log2(p / m) + q log2(q / m), m = (p + q) / 2; log_p and log_q are to base 2, up to a
// common term. With t = log2(q / p), the larger of the two is log2(1 + tanh(|t| log(2) / 2)), and the other |t| less.
__device__ __forceinline__ PairTerms pair_terms(float log_p, float log_q, float p, float q) {
    const float t = log_q - log_p, size = fabsf(t), square = t * t;
    const bool near = square < kNear;
    // Polynomials of least error. Near: log2 cosh(t log(2) / 2) = t^2 r(t^2), to 1.4e-8 of `larger`.
    float r = -1.7074378320103278e-6f;
    r = r * square + 5.509141192305833e-5f;
    r = r * square - 1.7342446371912956e-3f;
    r = r * square + 8.664336055517197e-2f;
    // Far: log2(1 + x) = x s(x), x = 2^-|t|, to 1.3e-8 of `larger`. log2f is 20 instructions, and the one that the
    // hardware has errs by 2.4e-7.
    const float x = exp2_fast(-size);
    float s = -8.875416219234467e-2f;
    s = s * x + 2.2606812417507172e-1f;
    s = s * x - 3.464643955230713e-1f;
    s = s * x + 4.7917741537094116e-1f;
    s = s * x - 7.212487459182739e-1f;
    s = s * x + 1.4426931142807007f;
    const float larger = near ? size * 0.5f - square * r : 1.0f - x * s;
    const float own = larger + fminf(-t, 0.0f), theirs = larger + fminf(t, 0.0f);
    // Near, per p + q: t / 2 tanh(t log(2) / 2) - log2 cosh(t log(2) / 2) = t^2 e(t^2), to 2.1e-8 of it.
    float e = 5.586585416494927e-7f;
    e = e * square - 1.3928284715802874e-5f;
    e = e * square + 2.7760618831962347e-4f;
    e = e * square - 5.203466396778822e-3f;
    e = e * square + 8.664339780807495e-2f;
    return {own, theirs, near ? (p + q) * (square * e) : p * own + q * theirs};
}

// Rows left, left + 1, ... with one another, or kLeft of them with kRight rows from `right` on.
template <int kLeft, int kRight>
struct Block {
    static constexpr int kRows = kLeft + kRight;
    static constexpr int kPairs = kRight > 0 ? kLeft * kRight : kLeft * (kLeft - 1) / 2;
    float offset[kRows], rest[kRows], weight[kPairs];
    int length[kRows];  // columns: none if a row is absent

    static __device__ __forceinline__ constexpr bool is_pair(int i, int j) {
        return i < kLeft && (kRight > 0 ? j >= kLeft : j > i);
    }
    static __device__ __forceinline__ constexpr int pair(int i, int j) {
        return kRight > 0 ? i * kRight + j - kLeft : i * (2 * kLeft - i - 1) / 2 + j - i - 1;
    }

    static __device__ __forceinline__ int row(int k, int left, int right) {
        return k < kLeft ? left + k : right + k - kLeft;
    }

    // By the threads of a block; the weights carry log(2) / 2.
    __device__ __forceinline__ void load(const GroupArguments& args, const float* normalizer, int left, int right) {
        const std::int64_t first = blockIdx.x * args.count, rows = args.groups * args.count;
        for (int k = threadIdx.x; k < kRows; k += blockDim.x) {
            const int n = row(k, left, right);
            const bool present = n < args.count && args.mask[first + n];
            offset[k] = present ? normalizer[first + n] : kAbsent;
            rest[k] = present ? normalizer[rows + first + n] : 0.0f;
            length[k] = present ? static_cast<int>(args.vocabulary) : 0;
        }
        for (int i = 0; i < kLeft; ++i) {
            for (int j = 0; j < kRows; ++j) {
                if (!is_pair(i, j) || static_cast<int>(threadIdx.x) != pair(i, j)) continue;
                const std::int64_t n = row(i, left, right), m = row(j, left, right);
                const bool both = m < args.count && args.mask[first + n] && args.mask[first + m];
                weight[pair(i, j)] = both ? args.weight[(first + n) * args.count + m] * (kLog2 / 2.0f) : 0.0f;
            }
        }
    }
};

// Keeps the compiler from carrying an address for each row through the loop, where they would take 32 registers.
__device__ __forceinline__ void forget([[maybe_unused]] std::int64_t& value) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+l"(value));
#endif
}

template <int kLeft, int kRight, bool kGradient>
__global__ void __launch_bounds__(kSpanWarps* kWarpSize, 3)
    pair_kernel(const GroupArguments args, const float* normalizer, float* parts, float* sums, int spans, int left,
                int right) {
    using B = Block<kLeft, kRight>;
    constexpr int kRows = B::kRows;
    __shared__ B block;
    block.load(args, normalizer, left, right);
    __syncthreads();
    const int span = own_span(), lane = threadIdx.x % kWarpSize, vocabulary = static_cast<int>(args.vocabulary);
    if (span >= spans) return;
    const std::int64_t first = blockIdx.x * args.count;
    // Read for each column again: no register is left for them.
    const volatile float *weights = block.weight, *offset = block.offset, *rest = block.rest;
    const volatile int* length = block.length;
    float divergence[B::kPairs] = {}, weighted[kRows] = {}, mass[kRows] = {};
    const int end = min(vocabulary, (span + 1) * kSpan);
    for (int column = span * kSpan + lane; column < end; column += kWarpSize) {
        std::int64_t start = (first + left) * vocabulary + column;
        forget(start);
        const std::int64_t jump = (right - left - kLeft) * args.vocabulary;
        const auto at = [&](int k) { return start + k * args.vocabulary + (k < kLeft ? 0 : jump); };
        LogProbability two_parts[kRows];
        float log_p[kRows], p[kRows], derivative[kRows], largest = kLowest;
#pragma unroll
        for (int k = 0; k < kRows; ++k) log_p[k] = column < length[k] ? args.logits[at(k)] : kLowest;
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            two_parts[k] = LogProbability(log_p[k], offset[k], rest[k]);
            largest = fmaxf(largest, two_parts[k].high);
        }
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            log_p[k] = (two_parts[k].high - largest) * kLog2E + two_parts[k].low;
            p[k] = two_parts[k].probability();
            derivative[k] = 0.0f;
            // Halves of blocks add to the F' of earlier launches.
            if (kGradient && kRight > 0 && column < length[k]) derivative[k] = args.gradient[at(k)];
        }
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
#pragma unroll
            for (int j = 0; j < kRows; ++j) {
                if (!B::is_pair(i, j)) continue;
                const PairTerms terms = pair_terms(log_p[i], log_p[j], p[i], p[j]);
                divergence[B::pair(i, j)] += terms.entry;
                if constexpr (kGradient) {
                    const float weight = weights[B::pair(i, j)];
                    derivative[i] += weight * terms.own;
                    derivative[j] += weight * terms.theirs;
                }
            }
        }
#pragma unroll
        for (int k = 0; kGradient && k < kRows; ++k) {
            if (column < length[k]) args.gradient[at(k)] = derivative[k];
            weighted[k] += p[k] * derivative[k];
            mass[k] += p[k];
        }
    }
    const std::int64_t rows = args.groups * args.count;
#pragma unroll
    for (int k = 0; kGradient && k < kRows; ++k) {
        const float row_weighted = warp_reduce(weighted[k], Sum{}), row_mass = warp_reduce(mass[k], Sum{});
        if (lane != 0 || block.length[k] == 0) continue;
        const std::int64_t r = first + B::row(k, left, right);
        sums[span * 2 * rows + r] = row_weighted;
        sums[(span * 2 + 1) * rows + r] = row_mass;
    }
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
            if (!B::is_pair(i, j)) continue;
            const float sum = warp_reduce(divergence[B::pair(i, j)], Sum{});
            const int n = B::row(i, left, right), m = B::row(j, left, right);
            if (lane == 0 && m < args.count) parts[(span * rows + first + n) * args.count + m] = sum;
        }
    }
}

// divergence (G, K, K) from the parts (spans, G, K, K) of its upper triangle.
__global__ void divergence_kernel(const GroupArguments args, const float* parts, int spans) {
    const std::int64_t rows = args.groups * args.count;
    const std::int64_t index = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
    if (index >= rows * args.count) return;
    const std::int64_t r = index / args.count, m = index % args.count, first = r - r % args.count, n = r - first;
    float value = 0.0f;
    if (n != m && args.mask[r] && args.mask[first + m]) {
        const std::int64_t upper = (first + (n < m ? n : m)) * args.count + (n < m ? m : n);
        value = sum_of_spans(parts, rows * args.count, upper, spans) * (kLog2 / 2.0f);
    }
    args.divergence[index] = value;
}

template <int kLeft, int kRight>
void launch_pairs(const GroupArguments& args, float* workspace, void* stream, std::int64_t left, std::int64_t right) {
    const std::int64_t rows = args.groups * args.count, spans = spans_of(args);
    float* sums = workspace + 2 * rows;
    float* parts = sums + (args.gradient == nullptr ? 0 : spans * 2 * rows);
    launch(args.gradient == nullptr ? pair_kernel<kLeft, kRight, false> : pair_kernel<kLeft, kRight, true>,
           span_grid(args), kSpanWarps * kWarpSize, stream, args, workspace, parts, sums, static_cast<int>(spans),
           static_cast<int>(left), static_cast<int>(right));
}

// A block of `size` rows from `left` on by itself.
template <int kSize = 2>
void launch_block(const GroupArguments& args, float* workspace, void* stream, std::int64_t left, std::int64_t size) {
    if constexpr (kSize < kBlock) {
        if (size > kSize) return launch_block<kSize + 1>(args, workspace, stream, left, size);
    }
    launch_pairs<kSize, 0>(args, workspace, stream, left, left);
}

}  // namespace

// The normalizer, the rows' sums if there is a gradient, and the parts of the divergences.
std::int64_t pair_workspace(const GroupArguments& args) {
    const std::int64_t rows = args.groups * args.count;
    return rows * (2 + spans_of(args) * (args.count + (args.gradient == nullptr ? 0 : 2)));
}

void pairs(const GroupArguments& args, float* workspace, void* stream) {
    const std::int64_t rows = args.groups * args.count, spans = spans_of(args);
    if (rows == 0) return;
    normalize(args, workspace, stream);
    for (std::int64_t left = 0; left < args.count; left += kBlock) {
        launch_block(args, workspace, stream, left, args.count - left < kBlock ? args.count - left : kBlock);
    }
    for (std::int64_t left = 0; left < args.count; left += kHalf) {
        for (std::int64_t right = left / kBlock * kBlock + kBlock; right < args.count; right += kHalf) {
            launch_pairs<kHalf, kHalf>(args, workspace, stream, left, right);
        }
    }
    const float* sums = workspace + 2 * rows;
    if (args.gradient != nullptr) finish_gradient(args, workspace, sums, stream);
    launch(divergence_kernel, dim3(static_cast<unsigned>(divide_up(rows * args.count, 256))), 256, stream, args,
           sums + (args.gradient == nullptr ? 0 : spans * 2 * rows), static_cast<int>(spans));
}

}  // namespace mind::cuda
