// Divergences of a group's rows from their weighted mean, and their gradient, from float32 logits.
//
// Launches, memory and arithmetic as in pairs.cu: a lane takes one column of the vocabulary at a time, with the logits
// of all rows, and one logarithm. Let r be its largest row of nonzero weight. Then d_k = log(p_k / p_r) and lambda =
// log sum_k w_k e^(d_k) / sum_k w_k give log(p_k / m) = d_k - lambda. If rows nearly coincide, all of these are
// small, and are computed as such. An entry p_k log(p_k / m) - p_k + m is non-negative, so nothing cancels between
// them.
//
// For K 8, G 128, V 151936: 1.24 GB, 0.29 ms on an H200 at 4.3 TB/s; about 630 instructions per column, 0.43 ms. With
// the normalizer and the gradient (groups.cu), 1.0 ms. At most 128 registers.
#include "groups.cuh"

namespace mind::cuda {

namespace {

// Rows whose divergences a warp adds up, and whose logits of a column it holds at once. In larger groups it goes
// through all blocks for the mixture, so each block is read by the warps of all others too.
constexpr int kBlock = 8;

// What a row brings to its group, 16 bytes: its normalizer, its share of the mixture, and its weight times log 2.
struct alignas(16) Member {
    float offset, rest, share, weight;
};

__global__ void member_kernel(const GroupArguments args, const float* normalizer, Member* members) {
    const std::int64_t rows = args.groups * args.count;
    const std::int64_t r = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
    if (r >= rows) return;
    const std::int64_t first = r - r % args.count;
    float total = 0.0f;
    for (std::int64_t k = first; k < first + args.count; ++k) total += args.mask[k] ? args.weight[k] : 0.0f;
    const float weight = args.mask[r] ? args.weight[r] : 0.0f;
    members[r] = {normalizer[r], normalizer[rows + r], weight / (total > 0.0f ? total : 1.0f), weight * kLog2};
}

// 2^d and 2^d - 1 of min(d, 0); the polynomial for d > -1 errs by 9.4e-9 of it.
struct Power {
    float value, minus_1;

    __device__ __forceinline__ explicit Power(float d) {
        d = d > 0.0f ? 0.0f : d;  // nan stays
        value = exp2_fast(d);
        float q = 1.1458056542323902e-4f;
        q = q * d + 1.2907800264656544e-3f;
        q = q * d + 9.596276096999645e-3f;
        q = q * d + 5.549895390868187e-2f;
        q = q * d + 2.4022606015205383e-1f;
        q = q * d + 6.931471824645996e-1f;
        minus_1 = d > -1.0f ? d * q : value - 1.0f;
    }
};

// log2(1 + x) of -1 < x <= 0, total = 1 + x; the polynomial for x > -0.25 errs by 2.3e-9 of it.
__device__ __forceinline__ float log2_of_1_plus(float x, float total) {
    float q = 4.815361201763153e-1f;
    q = q * x - 1.29295215010643e-1f;
    q = q * x + 3.0906030535697937e-1f;
    q = q * x - 3.587893545627594e-1f;
    q = q * x + 4.8097944259643555e-1f;
    q = q * x - 7.213461995124817e-1f;
    q = q * x + 1.4426950216293335f;
    return x > -0.25f ? x * q : log2f(total);
}

// If no row with weight has any probability, the divergence of a row without weight is infinite. Then g is about
// 1e18, kInfinite stands for log 2, and a divergence above kLargest, which no logit above kLowest leads to, for
// infinity.
constexpr float kInfinite = 1e20f, kLargest = 1e19f;

// p log(p / m) - p + m from g = log2(p / m); the polynomial for |g| < 1 errs by 6.6e-9 of it.
__device__ __forceinline__ float entry(float g, float p, float m, float log_2) {
    float q = 1.325645257566066e-6f;
    q = q * g - 1.543120015412569e-5f;
    q = q * g + 1.5404152509290725e-4f;
    q = q * g - 1.3332668459042907e-3f;
    q = q * g + 9.618124924600124e-3f;
    q = q * g - 5.5504120886325836e-2f;
    q = q * g + 2.4022650718688965e-1f;
    return fabsf(g) < 1.0f ? p * (g * g * q) : p * (g * log_2 - 1.0f) + m;
}

// log2(p / p of the reference), the reference being the largest row of nonzero weight seen so far: at first one far
// below the logits of any row.
struct Reference {
    float high = kLowest * 10.0f, low = 0.0f;

    __device__ __forceinline__ float ratio(const LogProbability& row) const {
        return (row.high - high) * kLog2E + (row.low - low);
    }

    __device__ __forceinline__ void raise(const LogProbability& row, float share) {
        if (!(share > 0.0f && ratio(row) > 0.0f)) return;
        high = row.high;
        low = row.low;
    }
};

// The rows of one block at one column.
template <int kRows>
struct Rows {
    LogProbability log_p[kRows];
    Member members[kRows];

    __device__ __forceinline__ void load(const GroupArguments& args, const Member* of_group, std::int64_t start,
                                         int column) {
        const std::int64_t first = blockIdx.x * args.count + start;
        float z[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            members[k] = {kAbsent, 0.0f, 0.0f, 0.0f};
            if (start + k < args.count) members[k] = of_group[start + k];
            z[k] = members[k].offset != kAbsent ? args.logits[(first + k) * args.vocabulary + column] : kLowest;
        }
#pragma unroll
        for (int k = 0; k < kRows; ++k) log_p[k] = LogProbability(z[k], members[k].offset, members[k].rest);
    }
};

// The mixture of all rows at a column.
struct Mixture {
    Reference reference;
    float total = 0.0f, total_minus_1 = 0.0f, probability = 0.0f;

    template <int kRows>
    __device__ __forceinline__ void look_at(const Rows<kRows>& rows) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) reference.raise(rows.log_p[k], rows.members[k].share);
    }

    template <int kRows>
    __device__ __forceinline__ void add(const Rows<kRows>& rows) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const Power power(reference.ratio(rows.log_p[k]));
            const float share = rows.members[k].share;
            total += share * power.value;
            total_minus_1 += share * power.minus_1;
            probability += share * rows.log_p[k].probability();
        }
    }
};

// Blocks that a multiprocessor is to hold at once. With four of eight rows, nvcc 13.0 spills two registers for sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocksOfEight = 3;
#else
constexpr int kBlocksOfEight = 4;
#endif

// The mixture of all rows, and the divergences of a block of them: of all if kWhole.
template <int kRows, bool kWhole, bool kGradient>
__global__ void __launch_bounds__(kSpanWarps* kWarpSize, kRows == 8 ? kBlocksOfEight : 4)
    mixture_kernel(const GroupArguments args, const Member* members, float* parts, float* sums, int spans) {
    __shared__ Member staged[kWhole ? kRows : 1];
    const std::int64_t first = blockIdx.x * args.count, rows = args.groups * args.count;
    const std::int64_t own = kWhole ? 0 : blockIdx.z * static_cast<std::int64_t>(kRows);
    const Member* of_group = members + first;
    if constexpr (kWhole) {
        if (threadIdx.x < kRows) staged[threadIdx.x] = of_group[threadIdx.x];
        __syncthreads();
        of_group = staged;
    }
    const int span = own_span(), lane = threadIdx.x % kWarpSize;
    if (span >= spans) return;
    float divergence[kRows] = {}, weighted[kRows] = {}, mass[kRows] = {};
    const int end = min(static_cast<int>(args.vocabulary), (span + 1) * kSpan);
    for (int column = span * kSpan + lane; column < end; column += kWarpSize) {
        Rows<kRows> block;
        Mixture mixture;
        if constexpr (kWhole) {
            block.load(args, of_group, 0, column);
            mixture.look_at(block);
            mixture.add(block);
        } else {
            for (std::int64_t start = 0; start < args.count; start += kRows) {
                block.load(args, of_group, start, column);
                mixture.look_at(block);
            }
            for (std::int64_t start = 0; start < args.count; start += kRows) {
                block.load(args, of_group, start, column);
                mixture.add(block);
            }
            block.load(args, of_group, own, column);
        }
        const float rise = log2_of_1_plus(mixture.total_minus_1, mixture.total);
        const float log_2 = mixture.reference.high > 0.9f * kLowest ? kLog2 : kInfinite;
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const float g = mixture.reference.ratio(block.log_p[k]) - rise, p = block.log_p[k].probability();
            divergence[k] += entry(g, p, mixture.probability, log_2);
            if constexpr (kGradient) {
                const float derivative = block.members[k].weight * g;
                if (block.members[k].offset != kAbsent) {
                    args.gradient[(first + own + k) * args.vocabulary + column] = derivative;
                }
                weighted[k] += p * derivative;
                mass[k] += p;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
        const float row_divergence = warp_reduce(divergence[k], Sum{});
        const float row_weighted = warp_reduce(weighted[k], Sum{}), row_mass = warp_reduce(mass[k], Sum{});
        if (lane != 0 || own + k >= args.count) continue;
        const std::int64_t r = first + own + k;
        parts[span * rows + r] = row_divergence;
        if constexpr (kGradient) {
            sums[span * 2 * rows + r] = row_weighted;
            sums[(span * 2 + 1) * rows + r] = row_mass;
        }
    }
}

// divergence (G, K) from its parts (spans, G K): 0 of absent rows and in groups without weight.
__global__ void divergence_kernel(const GroupArguments args, const Member* members, const float* parts, int spans) {
    const std::int64_t rows = args.groups * args.count;
    const std::int64_t r = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
    if (r >= rows) return;
    const std::int64_t first = r - r % args.count;
    bool weighted = false;
    for (std::int64_t k = first; k < first + args.count; ++k) weighted = weighted || members[k].share != 0.0f;
    const float divergence = args.mask[r] && weighted ? sum_of_spans(parts, rows, r, spans) : 0.0f;
    args.divergence[r] = divergence > kLargest ? INFINITY : divergence;
}

template <int kRows, bool kWhole>
void launch_mixture(const GroupArguments& args, const Member* members, float* parts, float* sums, void* stream) {
    launch(args.gradient == nullptr ? mixture_kernel<kRows, kWhole, false> : mixture_kernel<kRows, kWhole, true>,
           span_grid(args, kWhole ? 1 : divide_up(args.count, kRows)), kSpanWarps * kWarpSize, stream, args, members,
           parts, sums, static_cast<int>(spans_of(args)));
}

template <int kRows = 1>
void launch_whole(const GroupArguments& args, const Member* members, float* parts, float* sums, void* stream) {
    if constexpr (kRows < kBlock) {
        if (args.count > kRows) return launch_whole<kRows + 1>(args, members, parts, sums, stream);
    }
    launch_mixture<kRows, true>(args, members, parts, sums, stream);
}

}  // namespace

// The members, the normalizer, the parts of the divergences, and the rows' sums if there is a gradient.
std::int64_t mixture_workspace(const GroupArguments& args) {
    return args.groups * args.count * (4 + 2 + spans_of(args) * (args.gradient == nullptr ? 1 : 3));
}

void mixture(const GroupArguments& args, float* workspace, void* stream) {
    const std::int64_t rows = args.groups * args.count, spans = spans_of(args);
    if (rows == 0) return;
    Member* members = reinterpret_cast<Member*>(workspace);
    float* normalizer = workspace + 4 * rows;
    float *parts = normalizer + 2 * rows, *sums = parts + spans * rows;
    const dim3 grid(static_cast<unsigned>(divide_up(rows, 256)));
    normalize(args, normalizer, stream);
    launch(member_kernel, grid, 256, stream, args, normalizer, members);
    if (args.count <= kBlock) {
        launch_whole(args, members, parts, sums, stream);
    } else {
        launch_mixture<kBlock, false>(args, members, parts, sums, stream);
    }
    if (args.gradient != nullptr) finish_gradient(args, normalizer, sums, stream);
    launch(divergence_kernel, grid, 256, stream, args, members, parts, static_cast<int>(spans));
}

}  // namespace mind::cuda
