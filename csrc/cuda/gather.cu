// Weighted sums of gathered rows of a matrix, by which sparse matrix products are computed. One warp per bag and slab
// of columns; bags of many entries use all warps of a block.
//
// Bytes: every entry reads a row of the matrix, every bag writes one. For 573,000 entries (16384 rows x 35), D 3584,
// bfloat16: 4.1 GB are gathered, mostly from the L2 cache (dW: slabs of 1 KiB of 16384 hidden states are 16.8 MB, and
// blocks of one slab run together; dH: the frequent rows of the head), and 1.1 GB (dW, V 151936) or 0.1 GB (dH) are
// written. On an H200 0.25 ms for the writing of dW at 4.3 TB/s, and 0.7 ms for 4.1 GB at about 6 TB/s of the L2 cache.
// At most 80 registers.
#include <type_traits>

#include "launch.cuh"
#include "math.cuh"

namespace mind::cuda {

namespace {

// Three blocks share a multiprocessor, 80 registers per thread: the bags of dW are short (4 entries), so how many of
// them are under way at once hides the latency of their lists and rows.
constexpr int kWarps = 8;
constexpr int kEntries = 4;  // rows in flight per warp, 1 KiB of each
// Bags of more entries are shared by the warps of a block. With 0.7 us for kEntries entries of a warp, a bag of 16384
// entries takes 0.36 ms, and one of 128 by a single warp 22 us.
constexpr int kLongBag = 128;

// Elements per access, and accesses per lane: slabs of 1 KiB if rows are aligned, else of 128 elements.
template <typename T, bool kAligned>
struct Slab {
    static constexpr int kWidth = kAligned ? kVector<T> : 1;
    static constexpr int kPieces = kAligned ? 2 : 4;
    static constexpr int kStep = kWarpSize * kWidth;
    static constexpr int kColumns = kStep * kPieces;
};

// x[k] += factor row[k]
template <typename T, int kWidth>
__device__ __forceinline__ void add(float factor, const uint4& raw, float (&sum)[kWidth]) {
    if constexpr (kWidth == 1) {
        sum[0] += factor * __uint_as_float(raw.x);
    } else {
        float x[kWidth];
        unpack<T>(raw, x);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum[k] += factor * x[k];
    }
}

template <typename T, int kWidth>
__device__ __forceinline__ uint4 load(const T* at) {
    if constexpr (kWidth == 1) return {__float_as_uint(to_float(*at)), 0, 0, 0};
    return load_vector(at);
}

// The warp's columns of one bag: first_column + 32 kWidth p + kWidth lane.
template <typename T, bool kAligned>
struct Accumulator {
    using S = Slab<T, kAligned>;
    float sums[S::kPieces][S::kWidth];
    int column;

    __device__ __forceinline__ explicit Accumulator(int first_column)
        : column(first_column + static_cast<int>(threadIdx.x % kWarpSize) * S::kWidth) {
#pragma unroll
        for (int p = 0; p < S::kPieces; ++p) {
#pragma unroll
            for (int k = 0; k < S::kWidth; ++k) sums[p][k] = 0.0f;
        }
    }

    __device__ __forceinline__ int at(int piece) const { return column + piece * S::kStep; }

    __device__ __forceinline__ void add_row(const Matrix& matrix, std::int64_t row, float factor) {
        const T* start = static_cast<const T*>(matrix.data) + row * matrix.stride;
#pragma unroll
        for (int p = 0; p < S::kPieces; ++p) {
            if (at(p) < matrix.columns) add<T, S::kWidth>(factor, load<T, S::kWidth>(start + at(p)), sums[p]);
        }
    }

    // The lanes load 32 values and indices, and hand them on.
    __device__ __forceinline__ void add_entries(const Matrix& matrix, const float* values, const std::int32_t* indices,
                                                int count) {
        const T* start = static_cast<const T*>(matrix.data) + column;
        for (int lane = threadIdx.x % kWarpSize; count > 0; count -= kWarpSize) {
            const int listed = min(count, kWarpSize);
            const int own_index = lane < listed ? *indices : 0;
            const float own_value = lane < listed ? *values : 0.0f;
            require(own_index >= 0 && own_index < matrix.rows);
            indices += kWarpSize;
            values += kWarpSize;
#pragma unroll 1
            for (int i = 0; i < listed; i += kEntries) {
                uint4 raw[kEntries][S::kPieces];
#pragma unroll
                for (int e = 0; e < kEntries; ++e) {
                    const bool is_listed = i + e < listed;
                    const std::int64_t row = __shfl_sync(kFullWarp, own_index, i + e);
                    const T* from = start + row * matrix.stride;
#pragma unroll
                    for (int p = 0; p < S::kPieces; ++p) {
                        raw[e][p] = {0, 0, 0, 0};
                        if (is_listed && at(p) < matrix.columns) raw[e][p] = load<T, S::kWidth>(from + p * S::kStep);
                    }
                }
#pragma unroll
                for (int e = 0; e < kEntries; ++e) {
                    const float value = __shfl_sync(kFullWarp, own_value, i + e);  // 0 beyond the list
#pragma unroll
                    for (int p = 0; p < S::kPieces; ++p) add<T, S::kWidth>(value, raw[e][p], sums[p]);
                }
            }
        }
    }

    __device__ __forceinline__ void add_product(const GatherArguments& args, std::int64_t bag) {
#pragma unroll 1
        for (std::int64_t k = 0; k < args.right.rows; ++k) {
            add_row(args.right, k, args.left[bag * args.left_stride + k * args.left_column_stride]);
        }
    }

    __device__ __forceinline__ void store(const Matrix& out, std::int64_t bag) const {
        if (out.type == Type::kFloat) {
            store_as<float>(out, bag);
        } else if constexpr (!std::is_same_v<T, float>) {
            store_as<T>(out, bag);
        }
    }

    template <typename Out>
    __device__ __forceinline__ void store_as(const Matrix& out, std::int64_t bag) const {
        Out* start = static_cast<Out*>(out.data) + bag * out.stride;
#pragma unroll
        for (int p = 0; p < S::kPieces; ++p) {
            if (at(p) >= out.columns) continue;
            if constexpr (kAligned) {
#pragma unroll
                for (int k = 0; k < S::kWidth; k += kVector<Out>) {
                    store_vector(start + at(p) + k, pack<Out>(sums[p] + k));
                }
            } else {
                start[at(p)] = from_float<Out>(sums[p][0]);
            }
        }
    }
};

// The bags of a block are far apart: long ones are those of frequent tokens, whose numbers are neighbors.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kWarps* kWarpSize, 3) gather_kernel(const GatherArguments args) {
    using S = Slab<T, kAligned>;
    __shared__ float parts[kWarps][S::kPieces][S::kWidth][kWarpSize];
    __shared__ std::int64_t starts[kWarps];
    __shared__ int counts[kWarps];
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int first_column = blockIdx.y * S::kColumns;
    const auto bag_of = [](int w) { return blockIdx.x + static_cast<std::int64_t>(w) * gridDim.x; };
    // All of them at once, so that no warp waits for one after another.
    if (threadIdx.x < kWarps && bag_of(threadIdx.x) < args.out.rows) {
        const std::int64_t first = args.offsets[bag_of(threadIdx.x)], last = args.offsets[bag_of(threadIdx.x) + 1];
        require(first >= 0 && first <= last && last <= args.total && last - first <= INT32_MAX);
        starts[threadIdx.x] = first;
        counts[threadIdx.x] = static_cast<int>(last - first);
    }
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) {
        const std::int64_t bag = bag_of(w);
        if (bag >= args.out.rows) break;
        const std::int64_t first = starts[w];
        const int count = counts[w];
        const bool is_long = count > kLongBag;
        if (!is_long && w != warp) continue;
        Accumulator<T, kAligned> sum(first_column);
        const int share = is_long ? count / kWarps + 1 : count;
        const int begin = is_long ? min(warp * share, count) : 0;
        sum.add_entries(args.matrix, args.values + first + begin + lane, args.indices + first + begin + lane,
                        min(share, count - begin));
        if (is_long) {
#pragma unroll
            for (int p = 0; p < S::kPieces; ++p) {
#pragma unroll
                for (int k = 0; k < S::kWidth; ++k) parts[warp][p][k][lane] = sum.sums[p][k];
            }
            __syncthreads();
            if (warp == w) {
#pragma unroll 1
                for (int other = 0; other < kWarps; ++other) {
#pragma unroll
                    for (int p = 0; p < S::kPieces; ++p) {
#pragma unroll
                        for (int k = 0; k < S::kWidth; ++k) {
                            sum.sums[p][k] = (other == 0 ? 0.0f : sum.sums[p][k]) + parts[other][p][k][lane];
                        }
                    }
                }
            }
            __syncthreads();
        }
        if (w == warp) {
            sum.add_product(args, bag);
            sum.store(args.out, bag);
        }
    }
}

template <typename T, bool kAligned>
void launch_gather(const GatherArguments& args, void* stream) {
    const dim3 grid(static_cast<unsigned>(divide_up(args.out.rows, kWarps)),
                    static_cast<unsigned>(divide_up(args.out.columns, Slab<T, kAligned>::kColumns)));
    launch(gather_kernel<T, kAligned>, grid, kWarps * kWarpSize, stream, args);
}

}  // namespace

void gather(const GatherArguments& args, void* stream) {
    if (args.out.rows == 0 || args.out.columns == 0) return;
    const bool aligned =
        is_aligned(args.matrix) && is_aligned(args.out) && (args.right.rows == 0 || is_aligned(args.right));
    for_type(args.matrix.type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (aligned) return launch_gather<T, true>(args, stream);
        launch_gather<T, false>(args, stream);
    });
}

}  // namespace mind::cuda
