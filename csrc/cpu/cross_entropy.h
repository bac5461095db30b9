// Row kernels of linear cross-entropy: statistics, the gradient in place, and the kept entries of the sparse gradient.
// A row of logits is read from memory once: its statistics are computed block by block (maximum, then exponentials,
// from the L1 cache), and later passes find the row in the L2 cache. A vector takes about 21 instructions for the
// statistics, and 3 more for the gradient if that is a multiple of the exponentials, which then replace the logits.
// Sums of a block are in float32 lanes, those of a row in float64.
#pragma once

#include "logits_row.h"

namespace mind::MIND_CAPABILITY {

// Elements whose maximum is known before their exponentials are taken: 8 KiB of float32.
constexpr std::int64_t kRowBlock = 2048;
// Blocks of a row whose exponentials can be kept in its place: two million vocabulary entries.
constexpr std::int64_t kMaxRowBlocks = 1024;
// Elements that are skipped together if their maximum is not above the threshold.
constexpr std::int64_t kTile = 8 * kLanes;

// The target's own exponential is added last: in a block's float32 lanes, the others would lose their digits beside it.
struct Statistics : RowSums {
    // Sum of d e^d. Exponentials are at least 1e-38, so that a million of those that should be 0 are told from a sum.
    double moment() const { return __builtin_fabs(weighted) < 1e-30 * total ? 0.0 : weighted; }
    // Mean of d.
    double mean() const { return moment() / total; }

    // `count` elements came before.
    void raise(float larger, std::int64_t count) {
        const double down = static_cast<double>(maximum) - larger, factor = __builtin_exp(down);
        weighted = others == 0.0 ? weighted : (weighted + down * others) * factor;
        others *= factor;
        shifted += count == 0 ? 0.0 : down * static_cast<double>(count);
        maximum = larger;
    }

    // At last; minus infinity stands for a target that is not among the elements.
    void add_target(float z) {
        const double d = static_cast<double>(z) - maximum, e = __builtin_exp(d);
        if (others < 1e-30) others = 0.0;  // of exponentials that should be 0 alone
        total = others + e;
        weighted += e == 0.0 ? 0.0 : e * d;
        if (total < 0.5) {  // no element is near the maximum: all are minus infinity, and the row is to be nan
            maximum = -kInfinity;
            others = total = weighted = 0.0;
        }
    }
};

// The first element of the block [start, end) that equals the block's maximum. Elements come in the vectors of
// `maximum`: the compiler may round a logit of a softcap otherwise where it is computed alone.
template <typename Row>
inline std::int64_t first_of(const Row& row, std::int64_t start, std::int64_t end, float maximum) {
    std::int64_t found = end;
    for (std::int64_t i = start; found == end && i < end; i += kLanes) {
        row.each(i, i + kLanes < end ? i + kLanes : end, [&](Logit logit, std::int64_t) {
            if (!any(logit.z == maximum)) return;
            for (int lane = kLanes - 1; lane >= 0; --lane) found = logit.z[lane] == maximum ? i + lane : found;
        });
    }
    return found;
}

// Of the elements [start, end) below `maximum`. With kStore, e^(z - maximum) takes their place.
template <bool kStore, typename Row>
inline void add_block(Row row, std::int64_t start, std::int64_t end, float maximum, Statistics& found) {
    Floats totals[2] = {}, weights[2] = {};
    // Below, e is next to nothing, and at minus infinity the product would be nan.
    const auto at_least = [](Floats d) MIND_INLINE { return max(splat(kLowestExponent), d); };
    const auto exponential = [](Floats d) MIND_INLINE { return kStore ? exp_negative(d) : exp_negative_at_least(d); };
    const auto add = [&](std::int64_t i, Floats& total, Floats& weighted) MIND_INLINE {
        const Floats d = row.at(i).z - maximum, e = exponential(d);
        total += e;
        weighted += e * at_least(d);
        if constexpr (kStore) store(row.data + i, e);
    };
    std::int64_t i = start;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
        prefetch(row.data + i + kRowBlock, 2 * kLanes * sizeof(*row.data));  // the block after this one
        for (int k = 0; k < 2; ++k) add(i + k * kLanes, totals[k], weights[k]);
    }
    if (i + kLanes <= end) {
        add(i, totals[0], weights[0]);
        i += kLanes;
    }
    Floats total = totals[0] + totals[1], weighted = weights[0] + weights[1];
    if (i < end) {
        row.each(i, end, [&](Logit last, std::int64_t) {
            const Ints inside = lane_numbers() < static_cast<std::int32_t>(end - i);
            const Floats d = inside ? last.z - maximum : Floats{}, e = exponential(d);
            total += inside ? e : Floats{};
            weighted += e * at_least(d);
            if constexpr (kStore) store_first(row.data + i, e, end - i);
        });
    }
    found.others += sum(total);
    found.weighted += sum(weighted);
}

// A lane adds few numbers of like size before they are added in double: all its roundings may go the same way.
template <typename Row>
inline double sum_below(const Row& row, std::int64_t start, std::int64_t end, float maximum) {
    double total = 0.0;
    for (; start < end; start += kTile) {
        const std::int64_t last = start + kTile < end ? start + kTile : end;
        Floats part{};
        row.each(start, last, [&](Logit logit, std::int64_t i) {
            part += lane_numbers() < static_cast<std::int32_t>(last - i) ? logit.z - maximum : Floats{};
        });
        total += sum(part);
    }
    return total;
}

// With kStore, e^(z - block_maxima[block]) takes the place of every element but the target.
template <bool kStore, typename Row>
inline Statistics statistics_of(const Row& row, std::int64_t target, float z_target, bool smoothing,
                                float* block_maxima) {
    Statistics found;
    for (std::int64_t start = 0, block = 0; start < row.size; start += kRowBlock, ++block) {
        const std::int64_t end = start + kRowBlock < row.size ? start + kRowBlock : row.size;
        const float block_maximum = largest(row.maximum(start, end));
        if (block_maximum > found.maximum) {
            found.raise(block_maximum, start);
            found.block = start;
            found.correct = target >= start && target < end && first_of(row, start, end, block_maximum) == target;
        }
        if (smoothing) found.shifted += sum_below(row, start, end, found.maximum);
        if constexpr (kStore) block_maxima[block] = found.maximum;
        const bool holds_target = target >= start && target < end;
        add_block<kStore>(row, start, holds_target ? target : end, found.maximum, found);
        if (holds_target) add_block<kStore>(row, target + 1, end, found.maximum, found);
    }
    found.add_target(z_target);
    return found;
}

// z of the target, or minus infinity if another shard has it.
template <typename Row>
inline float z_of(const Row& row, std::int64_t target) {
    return target < 0 ? -kInfinity : row.one(target).z[0];
}

inline float& number(const RowArguments& args, RowNumber which, std::int64_t r) {
    return args.numbers[which * args.logits.rows + r];
}

// Coefficients of the gradient with respect to z: e^d (a + b d) - t 1[v = target] - u, d = z - maximum. The entropy's
// part, entropy + log p, is computed as d minus its mean, so that the log of the total, which would round both, is not
// needed. At the target, p - t would cancel if p is near 1, and (1 - t) - others does not.
struct RowGradient {
    float maximum;
    float a, b, u;
    float at_target;  // without u

    RowGradient(const RowArguments& args, std::int64_t r, double mean, double total, float z_target) {
        const double scale = args.scale[r], of_lse = 2.0 * args.z_loss * number(args, kLse, r);
        maximum = number(args, kMaximum, r);
        const double entropy_scale = args.entropy_scale != nullptr ? args.entropy_scale[r] : 0.0;
        const double of_entropy = entropy_scale != 0.0 ? entropy_scale * mean : 0.0;
        a = static_cast<float>((scale * (1.0 + of_lse) + of_entropy) / total);
        b = static_cast<float>(-entropy_scale / total);
        u = static_cast<float>(scale * args.label_smoothing / static_cast<double>(args.logits.columns));
        const double others = number(args, kOthers, r);
        double gradient = scale * ((args.label_smoothing - others) + of_lse * (1.0 - others));
        const double d = static_cast<double>(z_target) - maximum, e = __builtin_exp(d);
        if (entropy_scale != 0.0 && e != 0.0) gradient -= entropy_scale * e / total * (d - mean);
        at_target = static_cast<float>(gradient);
    }

    RowGradient(const WholeRows& of, std::int64_t r) {
        const double log_total = of.log_total[r], total = __builtin_exp(log_total);
        const double of_log = of.b != nullptr ? of.b[r] : 0.0;
        maximum = of.maximum[r];
        a = static_cast<float>((of.a[r] - of_log * log_total) / total);
        b = static_cast<float>(of_log / total);
        u = of.uniform != nullptr ? of.uniform[r] : 0.0f;
        at_target = of.at_target[r];
    }

    // e^d (a + b d), which is 0 where p is, also at a logit of minus infinity.
    MIND_INLINE Floats part(Floats z) const {
        const Floats d = z - maximum, e = exp_negative(d);
        if (b == 0.0f) return e * a;
        return e == 0.0f ? e : e * (d * b + a);
    }
};

inline void write_numbers(const Statistics& found, float z_target, const RowArguments& args, std::int64_t r) {
    // Where the target has most of the probability, the logarithm of the total would lose the digits of the others.
    // (It may be beside the maximum by a rounding, see `is_first`.)
    const double d = static_cast<double>(z_target) - found.maximum, e = __builtin_exp(d);
    const double of_others = __builtin_log1p(found.others / e), of_total = __builtin_log(found.total);
    const double exact = e > 0.5 ? of_others + d : of_total;
    const float nll = static_cast<float>(e > 0.5 ? of_others : of_total - d);
    const float log_total = static_cast<float>(exact), lse = found.maximum + log_total;
    float loss = nll;
    if (args.label_smoothing != 0.0f) {
        const float mean = static_cast<float>(found.shifted / static_cast<double>(args.logits.columns));
        loss = (1.0f - args.label_smoothing) * nll + args.label_smoothing * (log_total - mean);
    }
    if (args.z_loss != 0.0f) loss += args.z_loss * (lse * lse);
    number(args, kLoss, r) = loss;
    number(args, kNll, r) = nll;
    number(args, kLse, r) = lse;
    number(args, kEntropy, r) = static_cast<float>(exact - found.mean());
    number(args, kMean, r) = static_cast<float>(found.mean());
    number(args, kMaximum, r) = found.maximum;
    number(args, kLogTotal, r) = log_total;
    number(args, kTotal, r) = static_cast<float>(found.total);
    number(args, kOthers, r) = static_cast<float>(found.others / found.total);
    number(args, kLseOthers, r) =
        found.others > 0.0 ? static_cast<float>(found.maximum + __builtin_log(found.others)) : kInfinity;
    args.correct[r] = found.correct;
}

template <typename Row>
inline float gradient_at_target(const Row& row, const RowGradient& of, Logit at_target) {
    return row.condition.to_projected(splat(of.at_target - of.u), at_target)[0];
}

// From the logits. By value: what a store might alias would be loaded again for every vector.
template <typename Row>
inline void write_gradient(Row row, RowGradient of, std::int64_t target, Logit at_target) {
    row.update(0, row.size, [&](Logit logit, std::int64_t) MIND_INLINE {
        return row.condition.to_projected(of.part(logit.z) - of.u, logit);
    });
    if (target >= 0) store_one(row.data + target, gradient_at_target(row, of, at_target));
}

// From the exponentials that `statistics_of` has left, where the gradient is a multiple of them: a third of the
// instructions.
template <typename Row>
inline void scale_exponentials(Row row, RowGradient of, std::int64_t target, Logit at_target,
                               const float* block_maxima) {
    for (std::int64_t start = 0, block = 0; start < row.size; start += kRowBlock, ++block) {
        const double share = __builtin_exp(static_cast<double>(block_maxima[block]) - of.maximum);
        const float factor = row.condition.to_projected(splat(static_cast<float>(share * of.a)), at_target)[0];
        const float uniform = row.condition.to_projected(splat(of.u), at_target)[0];
        const std::int64_t end = start + kRowBlock < row.size ? start + kRowBlock : row.size;
        std::int64_t i = start;
        for (; i + kLanes <= end; i += kLanes) store(row.data + i, load(row.data + i) * factor - uniform);
        for (; i < end; ++i) row.data[i] = row.data[i] * factor - uniform;
    }
    row.data[target] = gradient_at_target(row, of, at_target);
}

template <typename T, typename C>
inline void run_row(const LogitsRow<T, C>& row, const RowArguments& args, std::int64_t r) {
    const std::int64_t target = args.target[r];
    const Logit at_target = row.one(target);
    const float z_target = at_target.z[0];
    const bool smoothing = args.label_smoothing != 0.0f;
    if constexpr (sizeof(T) == sizeof(float) && !C::kSlopeVaries) {
        if (args.scale != nullptr && args.entropy_scale == nullptr && row.size <= kRowBlock * kMaxRowBlocks) {
            float block_maxima[kMaxRowBlocks];
            const Statistics found = statistics_of<true>(row, target, z_target, smoothing, block_maxima);
            write_numbers(found, z_target, args, r);
            scale_exponentials(row, RowGradient(args, r, 0.0, found.total, z_target), target, at_target, block_maxima);
            return;
        }
    }
    const Statistics found = statistics_of<false>(row, target, z_target, smoothing, nullptr);
    write_numbers(found, z_target, args, r);
    if (args.scale == nullptr) return;
    write_gradient(row, RowGradient(args, r, found.mean(), found.total, z_target), target, at_target);
}

inline void run_rows(const RowArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.logits, args.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) run_row(LogitsRow<T, C>(args.logits, r, condition), args, r);
    });
}

// Logits above this cut are kept. Every kernel rounds it in the same way, and so keeps the same logits.
inline float cut_of(const RowArguments& args, std::int64_t r, float log_threshold) {
    return number(args, kLseOthers, r) + log_threshold;
}

// f(start, end) for the tiles that hold an entry above `cut`, or `also`.
template <typename Row, typename F>
inline void each_kept_tile(const Row& row, float cut, std::int64_t also, F f) {
    for (std::int64_t start = 0; start < row.size; start += kTile) {
        const std::int64_t end = start + kTile < row.size ? start + kTile : row.size;
        const bool holds_also = also >= start && also < end;
        if (holds_also || any(row.maximum(start, end) > cut)) f(start, end);
    }
}

// How many entries are kept, and the sum of e^(z - maximum) over all of them but the target.
struct Kept {
    std::int64_t count;
    double sum;
};

template <typename Row>
inline Kept kept_of(const Row& row, std::int64_t target, float cut, float maximum) {
    Kept found{target >= 0, 0.0};
    const auto add = [&](Logit logit, std::int64_t i) {
        const Ints is_target = lane_numbers() + static_cast<std::int32_t>(i) == static_cast<std::int32_t>(target);
        const Ints keep = (logit.z > cut) & ~is_target;
        found.sum += sum(keep ? exp_negative(logit.z - maximum) : Floats{});
        for (int lane = 0; lane < kLanes; ++lane) found.count -= keep[lane];
    };
    each_kept_tile(row, cut, target, [&](std::int64_t from, std::int64_t to) { row.each(from, to, add); });
    return found;
}

inline void run_count(const CountArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.rows.logits, args.rows.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            const LogitsRow<T, C> row(args.rows.logits, r, condition);
            const std::int64_t target = args.rows.target[r];
            const float z_target = row.one(target).z[0];
            const bool smoothing = args.rows.label_smoothing != 0.0f;
            const Statistics found = statistics_of<false>(row, target, z_target, smoothing, nullptr);
            write_numbers(found, z_target, args.rows, r);
            const Kept kept = kept_of(row, target, cut_of(args.rows, r, args.log_threshold), found.maximum);
            const double dropped = found.others - kept.sum;
            args.kept[r] = kept.count;
            args.dropped_mass[r] = dropped < 0.0 ? 0.0f : static_cast<float>(dropped / found.total);
        }
    });
}

template <typename Row>
inline void write_entries(const Row& row, const EntryArguments& args, std::int64_t r) {
    const std::int64_t target = args.rows.target[r], last = args.offsets[r + 1];
    const RowGradient of(args.rows, r, number(args.rows, kMean, r), number(args.rows, kTotal, r), z_of(row, target));
    const float cut = cut_of(args.rows, r, args.log_threshold);
    std::int64_t next = args.offsets[r];
    double total = 0.0;
    const auto add = [&](Logit logit, std::int64_t i) {
        const Ints is_target = lane_numbers() + static_cast<std::int32_t>(i) == static_cast<std::int32_t>(target);
        const Floats gradient = is_target ? splat(of.at_target) : of.part(logit.z);
        const Floats value = row.condition.to_projected(gradient, logit);
        for (int lane = 0; lane < kLanes && next < last; ++lane) {
            if (!(logit.z[lane] > cut) && i + lane != target) continue;
            args.columns[next] = static_cast<std::int32_t>(i + lane);
            args.values[next++] = value[lane];
            total += gradient[lane];
        }
    };
    each_kept_tile(row, cut, target, [&](std::int64_t from, std::int64_t to) { row.each(from, to, add); });
    for (; next < last; ++next) {  // offsets that are not those of `count`: entries without an effect
        args.columns[next] = 0;
        args.values[next] = 0.0f;
    }
    args.kept_sum[r] = static_cast<float>(total);
}

inline void run_entries(const EntryArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.rows.logits, args.rows.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            write_entries(LogitsRow<T, C>(args.rows.logits, r, condition), args, r);
        }
    });
}

// Columns [begin, end) of the background, block by block, so that the sums of a block stay in the cache.
inline void run_background(const BackgroundArguments& args, std::int64_t begin, std::int64_t end) {
    with_row_type(args.rows.logits, args.rows.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t v = begin; v < end; ++v) args.out[v] = 0.0f;
        for (std::int64_t start = begin; start < end; start += kRowBlock) {
            const std::int64_t stop = start + kRowBlock < end ? start + kRowBlock : end;
            for (std::int64_t s = 0; s < args.count; ++s) {
                const std::int64_t r = args.sample[s];
                const LogitsRow<T, C> row(args.rows.logits, r, condition);
                const auto target = static_cast<std::int32_t>(args.rows.target[r]);
                const float maximum = number(args.rows, kMaximum, r), cut = cut_of(args.rows, r, args.log_threshold);
                const float weight = args.weight[s] / number(args.rows, kTotal, r);
                row.each(start, stop, [&](Logit logit, std::int64_t i) {
                    const Ints keep = (logit.z > cut) | (lane_numbers() + static_cast<std::int32_t>(i) == target);
                    const Floats part = condition.to_projected(exp_negative(logit.z - maximum) * weight, logit);
                    const Floats dropped = keep ? Floats{} : part;
                    if (i + kLanes <= stop) {
                        store(args.out + i, load(args.out + i) + dropped);
                    } else {
                        store_first(args.out + i, load_first(args.out + i, stop - i, 0.0f) + dropped, stop - i);
                    }
                });
            }
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
