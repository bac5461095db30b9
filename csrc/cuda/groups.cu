// The normalizer of a group's rows, and the gradient from F' and the rows' sums.
//
// Bytes for G 128, K 8, V 151936, 0.62 GB of logits, on an H200 at 4.3 TB/s: 0.15 ms for the normalizer (read), 0.43 ms
// for the gradient (logits and F' are read, F' is overwritten). At most 58 registers.
#include "groups.cuh"
#include "statistics.cuh"

namespace mind::cuda {

namespace {

// log 2 as a multiple of 2^-10, whose multiples are exact, and the rest.
constexpr float kLog2Coarse = 0.693359375f;
constexpr float kLog2Rest = -2.1219444005469057e-4f;
// The bits of 2^-0.5, where the exponent of a mantissa in [2^-0.5, 2^0.5) begins.
constexpr int kSmallestMantissa = 0x3F3504F3;
// Columns of a row that a block of `gradient_kernel` takes: five blocks per row at V 151936, enough to spread 1024 rows
// evenly over 132 multiprocessors.
constexpr int kRowSpan = 1 << 15;
constexpr int kThreads = 256;

// maximum + log(total) as offset - kGrid, a multiple of 2^-10, and the rest, to base 2; the sum errs by 3e-8. In one
// float32, log(total) alone would err by 5e-7 at 12, and the log-sum-exp by 5e-4 at logits of 1e4.
__device__ __forceinline__ void store_normalizer(float maximum, float total, float* offset_at, float* rest_at) {
    const int bits = __float_as_int(total), power = (bits - kSmallestMantissa) >> 23;
    // 0, infinity and nan have mantissas too.
    const bool is_sum = total > 0.0f && total < INFINITY;
    const float log_mantissa = is_sum ? logf(__int_as_float(bits - power * (1 << 23))) : NAN;
    const float coarse_maximum = (maximum + kGrid) - kGrid, fine_maximum = maximum - coarse_maximum;
    const float coarse_mantissa = (log_mantissa + kGrid) - kGrid, fine_mantissa = log_mantissa - coarse_mantissa;
    const float coarse_log = __fadd_rn(coarse_mantissa, __fmul_rn(static_cast<float>(power), kLog2Coarse));
    const float offset = (coarse_maximum + coarse_log) + kGrid;
    const float rounding = ((offset - kGrid) - coarse_maximum) - coarse_log;
    *offset_at = offset;
    *rest_at = ((fine_maximum + fine_mantissa) + (static_cast<float>(power) * kLog2Rest - rounding)) * kLog2E;
}

template <int kWidth>
struct alignas(kWidth * sizeof(float)) Columns {
    float values[kWidth];
};

// Sums every row in the same order, whether it begins at a multiple of 16 bytes or not: equal rows are exactly equal.
template <int kWidth>
__global__ void __launch_bounds__(512) normalizer_kernel(const GroupArguments args, float* normalizer) {
    constexpr int kVectors = 4, kCount = kVectors * kWidth;  // loads in flight per thread, and their elements
    const std::int64_t r = blockIdx.x, rows = gridDim.x;
    if (!args.mask[r]) {
        if (threadIdx.x == 0) {
            normalizer[r] = kAbsent;
            normalizer[rows + r] = 0.0f;
        }
        return;
    }
    using Vector = Columns<kWidth>;
    const Vector* from = reinterpret_cast<const Vector*>(args.logits + r * args.vocabulary);
    const int threads = blockDim.x, vectors = static_cast<int>(args.vocabulary / kWidth);
    OnlineSoftmax softmax;
    for (int start = threadIdx.x; start < vectors; start += kVectors * threads) {
        float z[kCount];
#pragma unroll
        for (int u = 0; u < kVectors; ++u) {
            const bool inside = start + u * threads < vectors;
            const Vector vector = inside ? from[start + u * threads] : Vector{};
#pragma unroll
            for (int k = 0; k < kWidth; ++k) z[u * kWidth + k] = inside ? vector.values[k] : -INFINITY;
        }
#pragma unroll
        for (int k = 0; k < kCount; k += 4) {
            const float four[4] = {z[k], z[k + 1], z[k + 2], z[k + 3]};
            softmax.add(four, largest_of(four));
        }
    }
    float maximum[1] = {softmax.maximum};
    block_reduce(maximum, -INFINITY, Maximum{});
    softmax.raise(maximum[0]);
    float total[1] = {softmax.total};
    block_reduce(total, 0.0f, Sum{});
    if (threadIdx.x == 0) store_normalizer(maximum[0], total[0], normalizer + r, normalizer + rows + r);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const GroupArguments args, const float* normalizer, const float* sums, int spans) {
    constexpr int kSteps = 4;  // accesses in flight per thread, to each of both tensors
    const std::int64_t r = blockIdx.x, rows = gridDim.x;
    const float offset = normalizer[r], rest = normalizer[rows + r];
    const bool present = offset != kAbsent;
    float of_row[2] = {0.0f, 0.0f};
    for (int span = threadIdx.x; present && span < spans; span += kThreads) {
        of_row[0] += sums[span * 2 * rows + r];
        of_row[1] += sums[(span * 2 + 1) * rows + r];
    }
    block_reduce(of_row, 0.0f, Sum{});
    const float scalar = of_row[0] / of_row[1];

    using Vector = Columns<kWidth>;
    const int first = blockIdx.y * kRowSpan;
    const int last = min(static_cast<int>(args.vocabulary), first + kRowSpan);
    const Vector* from = reinterpret_cast<const Vector*>(args.logits + r * args.vocabulary);
    Vector* to = reinterpret_cast<Vector*>(args.gradient + r * args.vocabulary);
    for (int start = first / kWidth + threadIdx.x; start < last / kWidth; start += kSteps * kThreads) {
        Vector z[kSteps], derivative[kSteps];
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            if (!present || start + u * kThreads >= last / kWidth) break;
            z[u] = from[start + u * kThreads];
            derivative[u] = to[start + u * kThreads];
        }
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            if (start + u * kThreads >= last / kWidth) break;
            Vector out;
#pragma unroll
            for (int k = 0; k < kWidth; ++k) {
                out.values[k] = 0.0f;
                if (!present) continue;
                const float p = LogProbability(z[u].values[k], offset, rest).probability();
                out.values[k] = p * (derivative[u].values[k] - scalar);
            }
            to[start + u * kThreads] = out;
        }
    }
}

Matrix logits_of(const GroupArguments& args) {
    return {const_cast<float*>(args.logits), Type::kFloat, args.groups * args.count, args.vocabulary, args.vocabulary};
}

}  // namespace

void normalize(const GroupArguments& args, float* normalizer, void* stream) {
    launch(is_aligned(logits_of(args)) ? normalizer_kernel<4> : normalizer_kernel<1>,
           dim3(static_cast<unsigned>(args.groups * args.count)), row_threads(args.vocabulary, 4), stream, args,
           normalizer);
}

void finish_gradient(const GroupArguments& args, const float* normalizer, const float* sums, void* stream) {
    const Matrix logits = logits_of(args);
    Matrix gradient = logits;
    gradient.data = args.gradient;
    launch(is_aligned(logits) && is_aligned(gradient) ? gradient_kernel<4> : gradient_kernel<1>,
           dim3(static_cast<unsigned>(logits.rows), static_cast<unsigned>(divide_up(args.vocabulary, kRowSpan))),
           kThreads, stream, args, normalizer, sums, static_cast<int>(spans_of(args)));
}

}  // namespace mind::cuda
