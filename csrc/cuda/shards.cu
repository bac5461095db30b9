// For the rows of a shard of the vocabulary: the sums that its process exchanges with those of the other shards; and
// the gradient in place, from the numbers of the whole rows. One block per row.
//
// Bytes: both read the row once, and the second writes it: as rows.cu, whose second read comes mostly from the L2
// cache, while between these there is an exchange. For 8192 rows of V 151936 in bfloat16 on 8 GPUs, 0.3 GB each: 0.07
// and 0.15 ms on an H200 at 4.3 TB/s. At most 64 registers.
#include "launch.cuh"
#include "statistics.cuh"

namespace mind::cuda {

namespace {

constexpr int kNowhere = 0x7fffffff;

// The first entry of the vector from `column` on that is as large as any of it.
template <typename T, bool kSoftcap>
__device__ __forceinline__ int first_of(const Row<T>& row, int column, const HeadFactors& head) {
    float x[kVector<T>];
    unpack<T>(row.load(column), x);
    float largest = -INFINITY;
    int first = 0;
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) {
        const float z = logit_of(capped_of<kSoftcap>(x[k], head), head);
        if (!row.has(column + k) || !(z > largest)) continue;
        largest = z;
        first = column + k;
    }
    return first;
}

template <typename T, bool kSoftcap, bool kSum>
__global__ void __launch_bounds__(1024) shard_sums_kernel(const ShardArguments args, const HeadFactors head) {
    __shared__ float z_of_target;
    const std::int64_t r = blockIdx.x;
    const Row<T> row = row_of<T>(args.logits, r);
    const int target = target_of(args, r, -1);
    OnlineSoftmax softmax;
    float z_sum = 0.0f;
    int first = kNowhere;  // where the vector begins that has the thread's maximum
    const auto note = [&](int column, const float (&)[kVector<T>], float largest) {
        if (largest > softmax.maximum || (largest == softmax.maximum && column < first)) first = column;
    };
    add_entries<T, kSoftcap, kSum>(row, target, head, note, softmax, z_sum, z_of_target);
    float maximum[1] = {softmax.maximum};
    block_reduce(maximum, -INFINITY, Maximum{});
    int vector[1] = {softmax.maximum == maximum[0] ? first : kNowhere};
    block_reduce(vector, kNowhere, Minimum{});
    softmax.raise(maximum[0]);
    float sums[3] = {softmax.total, softmax.entropy, z_sum};
    block_reduce(sums, 0.0f, Sum{});
    if (threadIdx.x != 0) return;

    const float z_target = target < 0 ? -INFINITY : z_of_target, shifted = z_target - maximum[0];
    const float of_target = exp_fast(shifted),
                all[kShardSums] = {
                    sums[0] + of_target < 0.5f ? -INFINITY : maximum[0],  // no entry is near the maximum: all are -inf
                    sums[0], sums[1] + of_target * fmaxf(shifted, kLowest), target < 0 ? 0.0f : z_target, sums[2]};
#pragma unroll
    for (int which = 0; which < kShardSums; ++which) args.sums[which * args.logits.rows + r] = all[which];
    args.argmax[r] = vector[0] == kNowhere ? 0 : first_of<T, kSoftcap>(row, vector[0], head);
}

template <typename T, bool kSoftcap, bool kOptions>
__global__ void __launch_bounds__(1024) shard_gradient_kernel(const ShardArguments args, const HeadFactors head) {
    const std::int64_t r = blockIdx.x;
    write_gradient<T, kSoftcap, kOptions>(row_of<T>(args.logits, r), target_of(args, r, -1), head,
                                          args.whole.maximum[r], args.whole.log_total[r], RowGradient(args.whole, r));
}

// A kernel of rows: plain and with its option, without and with softcap.
template <typename T, typename Kernel>
void launch_rows(Kernel plain, Kernel with_option, bool option, const ShardArguments& args, void* stream) {
    launch(option ? with_option : plain, dim3(static_cast<unsigned>(args.logits.rows)),
           row_threads(args.logits.columns, kVector<T>), stream, args, head_factors(args.head));
}

template <typename T, bool kSoftcap>
void launch_sums(const ShardArguments& args, void* stream) {
    launch_rows<T>(shard_sums_kernel<T, kSoftcap, false>, shard_sums_kernel<T, kSoftcap, true>, args.adds_logits, args,
                   stream);
}

template <typename T, bool kSoftcap>
void launch_gradient(const ShardArguments& args, void* stream) {
    launch_rows<T>(shard_gradient_kernel<T, kSoftcap, false>, shard_gradient_kernel<T, kSoftcap, true>,
                   args.whole.b != nullptr || args.whole.uniform != nullptr, args, stream);
}

}  // namespace

void shard_sums(const ShardArguments& args, void* stream) {
    if (args.logits.rows == 0) return;
    for_type(args.logits.type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (args.head.softcap != 0.0f) return launch_sums<T, true>(args, stream);
        launch_sums<T, false>(args, stream);
    });
}

void shard_gradient(const ShardArguments& args, void* stream) {
    if (args.logits.rows == 0) return;
    for_type(args.logits.type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (args.head.softcap != 0.0f) return launch_gradient<T, true>(args, stream);
        launch_gradient<T, false>(args, stream);
    });
}

}  // namespace mind::cuda
