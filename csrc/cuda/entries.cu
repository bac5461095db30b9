// The kept entries of the rows of projected logits, in increasing column order, and their gradient. One block per row.
//
// Bytes: the row is read once; 8 bytes per entry are written. For 8192 rows of V 151936 in bfloat16, 2.5 GB: 0.6 ms on
// an H200 at 4.3 TB/s; float32 1.2 ms. At most 64 registers: four blocks share a multiprocessor.
#include "launch.cuh"
#include "statistics.cuh"

namespace mind::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// Which entries this lane keeps of the vectors that a warp reads at once: one bit for each.
template <typename T, bool kSoftcap>
__device__ __forceinline__ void find(const Row<T>& row, int first, int target, float cut, const HeadFactors& head,
                                     unsigned (&kept)[kLoads]) {
    uint4 raw[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) raw[u] = row.load(row.column(first + u * kWarpSize));
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
        const int column = row.column(first + u * kWarpSize);
        float x[kVector<T>];
        unpack<T>(raw[u], x);
        kept[u] = 0;
#pragma unroll
        for (int k = 0; k < kVector<T>; ++k) {
            const bool keep = is_kept(logit_of(capped_of<kSoftcap>(x[k], head), head), column + k, target, cut);
            if (keep && row.has(column + k)) kept[u] |= 1u << k;
        }
    }
}

__device__ __forceinline__ int sum_of_lower_lanes(int value) {
    const int lane = threadIdx.x % kWarpSize;
    int sum = value;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const int other = __shfl_up_sync(kFullWarp, sum, offset);
        if (lane >= offset) sum += other;
    }
    return sum - value;
}

template <typename T, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, 4) entries_kernel(const EntryArguments args, const HeadFactors head) {
    // Each warp's entries of this step, and, since a fast warp may be a step ahead, of the step before.
    __shared__ int found[2][kWarps];
    const std::int64_t r = blockIdx.x;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const Row<T> row = row_of<T>(args.rows.logits, r);
    const int target = target_of(args.rows, r, -1);
    const std::int64_t last = args.offsets[r + 1];
    std::int64_t base = args.offsets[r];
    require(base >= 0 && base <= last && last <= args.total);
    const StoredNumbers numbers{args.rows, r};
    const float maximum = numbers[kMaximum], log_total = numbers[kLogTotal];
    const float cut = numbers[kLseOthers] + args.log_threshold;
    const RowGradient gradient(args.rows, r, numbers);
    float kept_sum[1] = {0.0f};
    int parity = 0;
    for (int start = 0; start < row.vectors; start += kThreads * kLoads, parity ^= 1) {
        const int first = start + warp * kWarpSize * kLoads + lane;
        unsigned kept[kLoads];
        find<T, kSoftcap>(row, first, target, cut, head, kept);
        int own = 0;
#pragma unroll
        for (int u = 0; u < kLoads; ++u) own += __popc(kept[u]);
        const int in_warp = warp_reduce(own, Sum{});
        if (lane == 0) found[parity][warp] = in_warp;
        __syncthreads();
        std::int64_t position = base;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const int other = found[parity][w];
            if (w < warp) position += other;
            base += other;
        }
        if (in_warp == 0) continue;
#pragma unroll
        for (int u = 0; u < kLoads; ++u) {
            const int count = __popc(kept[u]);
            std::int64_t at = position + sum_of_lower_lanes(count);
            position += warp_reduce(count, Sum{});
            for (; kept[u] != 0; kept[u] &= kept[u] - 1, ++at) {
                const int column = row.column(first + u * kWarpSize) + __ffs(kept[u]) - 1;
                // Read again: a register cannot be chosen by an index.
                const float capped = capped_of<kSoftcap>(to_float(row.data[column]), head);
                const float log_p = (logit_of(capped, head) - maximum) - log_total;
                const float part = gradient.part(expf(log_p), log_p, args.rows.entropy_scale != nullptr);
                const float dz = column == target ? gradient.at_target : part;
                require(at < last);  // offsets of other statistics
                args.columns[at] = column;
                args.values[at] = dz * slope_of<kSoftcap>(capped, head);
                kept_sum[0] += dz;
            }
        }
    }
    require(base == last);
    block_reduce(kept_sum, 0.0f, Sum{});
    if (threadIdx.x == 0) args.kept_sum[r] = kept_sum[0];
}

template <typename T, bool kSoftcap>
void launch_entries(const EntryArguments& args, void* stream) {
    launch(entries_kernel<T, kSoftcap>, dim3(static_cast<unsigned>(args.rows.logits.rows)), kThreads, stream, args,
           head_factors(args.rows.head));
}

}  // namespace

void entries(const EntryArguments& args, void* stream) {
    if (args.rows.logits.rows == 0) return;
    for_type(args.rows.logits.type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (args.rows.head.softcap != 0.0f) return launch_entries<T, true>(args, stream);
        launch_entries<T, false>(args, stream);
    });
}

}  // namespace mind::cuda
