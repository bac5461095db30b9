// One pass over a row of logits: what the loss, the entropy and the gradient of the row need.
#pragma once

#include "row.cuh"

namespace mind::cuda {

// Maximum, sum of e^(z - maximum), and sum of e^(z - maximum) (z - maximum), of the logits seen so far.
struct OnlineSoftmax {
    float maximum = kFloor, total = 0.0f, entropy = 0.0f;

    __device__ __forceinline__ void raise(float to) {
        const float rise = fmaxf(maximum - to, kLowest), decay = exp_fast(rise);
        entropy = (entropy + total * rise) * decay;
        total *= decay;
        maximum = to;
    }

    // Logits of maximum `largest`.
    template <int kCount>
    __device__ __forceinline__ void add(const float (&z)[kCount], float largest) {
        raise(fmaxf(maximum, largest));
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            const float shifted = z[k] - maximum, exponential = exp_fast(shifted);
            total += exponential;
            entropy += exponential * fmaxf(shifted, kLowest);  // 0 at a logit of -inf
        }
    }
};

template <int kCount>
__device__ __forceinline__ float largest_of(const float (&z)[kCount]) {
    float largest = z[0];
#pragma unroll
    for (int k = 1; k < kCount; ++k) largest = fmaxf(largest, z[k]);
    return largest;
}

template <int kCount>
__device__ __forceinline__ void logits_of(const float (&capped)[kCount], const HeadFactors& head, float (&z)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) z[k] = logit_of(capped[k], head);
}

__device__ __forceinline__ float& number(const RowArguments& args, RowNumber which, std::int64_t r) {
    return args.numbers[which * args.logits.rows + r];
}

// Those of row `r` that an earlier kernel has left.
struct StoredNumbers {
    const RowArguments& args;
    std::int64_t r;

    __device__ __forceinline__ float operator[](RowNumber which) const { return number(args, which, r); }
};

struct RowNumbers {
    float values[kRowNumbers];
    bool correct;

    __device__ __forceinline__ float& operator[](RowNumber which) { return values[which]; }
    __device__ __forceinline__ float operator[](RowNumber which) const { return values[which]; }

    // As those of row `r`, by one thread.
    __device__ __forceinline__ void store(const RowArguments& args, std::int64_t r) const {
#pragma unroll
        for (int which = 0; which < kRowNumbers; ++which) {
            number(args, static_cast<RowNumber>(which), r) = values[which];
        }
        args.correct[r] = correct;
    }
};

// What a thread sees of a row: sums over all entries but the target, which may be less than a rounding beside it, and
// is left to `z_of_target`. note(column, z, largest) gets every vector before that, and the sums of those that came
// earlier.
template <typename T, bool kSoftcap, bool kSum, typename Note>
__device__ __forceinline__ void add_entries(const Row<T>& row, int target, const HeadFactors& head, Note note,
                                            OnlineSoftmax& softmax, float& z_sum, float& z_of_target) {
    row.template visit<kSoftcap>(head, [&](int column, const float (&capped)[kVector<T>], auto whole) {
        float z[kVector<T>];
        logits_of(capped, head, z);
        const float largest = largest_of(z);
        if constexpr (kSum) {
#pragma unroll
            for (int k = 0; k < kVector<T>; ++k) {
                if (whole.value || row.has(column + k)) z_sum += z[k];
            }
        }
        note(column, z, largest);
        if (column <= target && target < column + kVector<T>) {
#pragma unroll
            for (int k = 0; k < kVector<T>; ++k) {
                if (column + k == target) {
                    z_of_target = z[k];
                    z[k] = -INFINITY;
                }
            }
        }
        softmax.add(z, largest);
    });
}

// For every thread of the block. The argmax is the target if it is a maximum and no entry before it reaches it: so only
// whole vectors are compared with the target's column, and the entries of its own.
template <typename T, bool kSoftcap, bool kSmoothing>
__device__ __forceinline__ RowNumbers row_numbers(const Row<T>& row, int target, const HeadFactors& head,
                                                  float label_smoothing, float z_loss) {
    __shared__ float z_of_target;
    OnlineSoftmax softmax;
    float earlier = -INFINITY, z_sum = 0.0f;
    const auto note = [&](int column, const float (&z)[kVector<T>], float largest) {
        if (column + kVector<T> <= target) {
            earlier = fmaxf(earlier, largest);
        } else if (column <= target) {
#pragma unroll
            for (int k = 0; k < kVector<T>; ++k) {
                if (column + k < target) earlier = fmaxf(earlier, z[k]);
            }
        }
    };
    add_entries<T, kSoftcap, kSmoothing>(row, target, head, note, softmax, z_sum, z_of_target);
    float maxima[2] = {softmax.maximum, earlier};
    block_reduce(maxima, -INFINITY, Maximum{});
    softmax.raise(maxima[0]);
    float sums[3] = {softmax.total, softmax.entropy, z_sum};
    block_reduce(sums, 0.0f, Sum{});

    const float z_target = z_of_target, shifted = z_target - maxima[0], of_target = exp_fast(shifted);
    RowNumbers out;
    out[kMaximum] = maxima[0];
    out[kTotal] = sums[0] + of_target;
    out[kLogTotal] = shifted == 0.0f ? log1pf(sums[0]) : logf(out[kTotal]);
    out[kLse] = out[kLogTotal] + maxima[0];
    out[kMean] = (sums[1] + of_target * fmaxf(shifted, kLowest)) / out[kTotal];
    out[kEntropy] = out[kLogTotal] - out[kMean];
    out[kOthers] = sums[0] / out[kTotal];
    out[kLseOthers] = sums[0] > 0.0f ? maxima[0] + logf(sums[0]) : INFINITY;
    out[kNll] = out[kLogTotal] - shifted;
    out[kLoss] = out[kNll];
    if (kSmoothing && label_smoothing != 0.0f) {  // the mean may be infinite
        const float mean = sums[2] / static_cast<float>(row.vocabulary) - maxima[0];
        out[kLoss] = (1.0f - label_smoothing) * out[kNll] + label_smoothing * (out[kLogTotal] - mean);
    }
    out[kLoss] += z_loss * out[kLse] * out[kLse];
    out.correct = z_target == maxima[0] && maxima[1] < z_target;
    return out;
}

// The gradient with respect to z is p (a + b log p) - t [v = target] - uniform. At the target, p - t would cancel if
// p is near 1, and (1 - t) - others does not.
struct RowGradient {
    float a, b, uniform;
    float at_target;  // without `uniform`

    // `of`: RowNumbers or StoredNumbers.
    template <typename Numbers>
    __device__ __forceinline__ RowGradient(const RowArguments& args, std::int64_t r, const Numbers& of) {
        const float weight = args.scale[r], of_lse = 2.0f * args.z_loss * of[kLse];
        a = weight * (1.0f + of_lse);
        b = 0.0f;
        at_target = weight * ((args.label_smoothing - of[kOthers]) + of_lse * (1.0f - of[kOthers]));
        if (args.entropy_scale != nullptr) {
            b = -args.entropy_scale[r];
            at_target += b * (exp_fast(-of[kNll]) * (of[kEntropy] + fmaxf(-of[kNll], kLowest)));
            a += b * of[kEntropy];
        }
        uniform = weight * (args.label_smoothing / static_cast<float>(args.logits.columns));
    }

    __device__ __forceinline__ RowGradient(const WholeRows& of, std::int64_t r)
        : a(of.a[r]),
          b(of.b != nullptr ? of.b[r] : 0.0f),
          uniform(of.uniform != nullptr ? of.uniform[r] : 0.0f),
          at_target(of.at_target[r]) {}

    // p (a + b log p); 0 if p underflows, also at a logit of -inf.
    __device__ __forceinline__ float part(float p, float log_p, bool has_entropy) const {
        return has_entropy ? p * (a + b * fmaxf(log_p, kLeastLog)) : p * a;
    }
};

// p > threshold (1 - p of the target), or the target; `cut` is lse_others + log threshold. A kernel rounds cut and z as
// every other one does, so the same entries are kept in all of them.
__device__ __forceinline__ bool is_kept(float z, int column, int target, float cut) {
    return z > cut || column == target;
}

// The target of row r, which the device checks. `least` -1: another shard may have it.
template <typename Arguments>
__device__ __forceinline__ int target_of(const Arguments& args, std::int64_t r, int least = 0) {
    const std::int64_t target = args.target[r];
    require(target >= least && target < args.logits.columns);
    return static_cast<int>(target);
}

// The gradient of the projected logits, in their place. kOptions: there are b or uniform parts.
template <typename T, bool kSoftcap, bool kOptions>
__device__ __forceinline__ void write_gradient(const Row<T>& row, int target, const HeadFactors& head, float maximum,
                                               float log_total, const RowGradient& gradient) {
    row.template visit<kSoftcap>(head, [&](int column, const float (&capped)[kVector<T>], auto whole) {
        float dx[kVector<T>];
#pragma unroll
        for (int k = 0; k < kVector<T>; ++k) {
            const float z = logit_of(capped[k], head);
            const float log_p = (z - maximum) - log_total;
            dx[k] = gradient.part(exp_fast(log_p), log_p, kOptions);
        }
        if (column <= target && target < column + kVector<T>) {
#pragma unroll
            for (int k = 0; k < kVector<T>; ++k) dx[k] = column + k == target ? gradient.at_target : dx[k];
        }
#pragma unroll
        for (int k = 0; k < kVector<T>; ++k) {
            if constexpr (kOptions) dx[k] -= gradient.uniform;
            dx[k] *= slope_of<kSoftcap>(capped[k], head);
        }
        if constexpr (whole.value) {
            store_vector(row.data + column, pack<T>(dx));
        } else {
#pragma unroll
            for (int k = 0; k < kVector<T>; ++k) {
                if (row.has(column + k)) row.data[column + k] = from_float<T>(dx[k]);
            }
        }
    });
}

template <typename T>
__device__ __forceinline__ Row<T> row_of(const Matrix& logits, std::int64_t r) {
    return Row<T>(static_cast<T*>(logits.data) + r * logits.stride, static_cast<int>(logits.columns));
}

}  // namespace mind::cuda
