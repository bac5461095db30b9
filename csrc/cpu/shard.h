// Row kernels for a shard of the vocabulary: the sums of a row that processes exchange, and the shard's part of the
// gradient, from the numbers of the whole row. Passes and sums are those of cross_entropy.h.
#pragma once

#include "cross_entropy.h"

namespace mind::MIND_CAPABILITY {

// Of the statistics of `columns` entries; z_target is minus infinity if another shard has the target.
inline void write_sums(const Statistics& found, std::int64_t columns, float z_target, std::int64_t argmax,
                       const ShardArguments& args, std::int64_t r) {
    const auto sum = [&](ShardSum which) -> float& { return args.sums[which * args.logits.rows + r]; };
    const double logits = columns == 0 ? 0.0 : found.shifted + found.maximum * static_cast<double>(columns);
    sum(kShardMaximum) = found.maximum;
    sum(kShardOthers) = static_cast<float>(found.others);
    sum(kShardMoment) = static_cast<float>(found.moment());
    // The target's own logit may be beside the maximum by a rounding, see `first_of`: whole rows tell by equality.
    sum(kShardAtTarget) = args.target[r] < 0 ? 0.0f : args.target[r] == argmax ? found.maximum : z_target;
    sum(kShardTotal) = args.adds_logits ? static_cast<float>(logits) : 0.0f;
    args.argmax[r] = argmax;
}

template <typename Row>
inline void sum_shard(const Row& row, const ShardArguments& args, std::int64_t r) {
    const float z_target = z_of(row, args.target[r]);
    const Statistics found = statistics_of<false>(row, args.target[r], z_target, args.adds_logits, nullptr);
    const std::int64_t end = found.block + kRowBlock < row.size ? found.block + kRowBlock : row.size;
    const std::int64_t first = first_of(row, found.block, end, found.maximum);
    write_sums(found, row.size, z_target, first < end ? first : 0, args, r);
}

inline void run_shard_sums(const ShardArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.logits, args.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) sum_shard(LogitsRow<T, C>(args.logits, r, condition), args, r);
    });
}

inline void run_shard_gradient(const ShardArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.logits, args.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            const LogitsRow<T, C> row(args.logits, r, condition);
            const std::int64_t target = args.target[r];
            write_gradient(row, RowGradient(args.whole, r), target, target < 0 ? Logit{} : row.one(target));
        }
    });
}

inline void run_shard_count(const ShardCountArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.rows.logits, args.rows.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            const LogitsRow<T, C> row(args.rows.logits, r, condition);
            const float cut = cut_of(args.rows, r, args.log_threshold);
            const Kept kept = kept_of(row, args.rows.target[r], cut, number(args.rows, kMaximum, r));
            args.kept[r] = kept.count;
            args.kept_mass[r] = static_cast<float>(kept.sum / number(args.rows, kTotal, r));
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
