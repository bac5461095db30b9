// The last steps of stream.h: combines the sums of all spans to each row's numbers or softmax, writes the kept entries
// to their places, and computes the gradient at them.
#pragma once

#include "shard.h"
#include "stream.h"

namespace mind::MIND_CAPABILITY {

// Adds the sums of a span of a row to those of the spans before it.
inline void add_span(const StreamWork& work, std::int64_t span, std::int64_t row, Statistics& found) {
    Statistics part{sums_of(work, span, row)};
    const std::int64_t before = span * work.span;
    const std::int64_t end = before + work.span < work.weight.rows ? before + work.span : work.weight.rows;
    if (part.maximum > found.maximum) {
        found.raise(part.maximum, before);
        found.block = part.block;
    } else {
        part.raise(found.maximum, end - before);
    }
    found.others += part.others;
    found.weighted += part.weighted;
    found.shifted += part.shifted;
}

// The sums of all spans of a row, and its target.
inline Statistics joined(const StreamWork& work, std::int64_t row) {
    const std::int64_t own = work.rows.target[row] / work.span;
    const TargetLogit of_target = work.targets[row];
    Statistics found;
    bool first = false;
    for (std::int64_t span = 0; span < work.spans; ++span) {
        if (span == own) first = of_target.z > of_target.before && (span == 0 || of_target.z > found.maximum);
        add_span(work, span, row, found);
    }
    found.correct = first && of_target.z == found.maximum;
    found.add_target(of_target.z);
    return found;
}

inline float cut_of(const StreamWork& work, std::int64_t row) {
    if (work.log_cuts == nullptr) return cut_of(work.rows, row, work.log_threshold);
    return number(work.rows, kLse, row) + work.log_cuts[row];
}

// Of the candidates, those that are kept; `dropped` (kStripRows,) loses their e^(z - maximum).
template <typename C>
inline void filter(const StreamWork& work, const Strip& strip, C condition, Candidates& found, double* dropped) {
    std::int64_t kept = 0;
    for (std::int64_t from = 0; from < found.size; from += kLanes) {
        const auto count = static_cast<int>(found.size - from < kLanes ? found.size - from : kLanes);
        Floats x{}, maximum{}, cut = splat(kInfinity);
        for (int i = 0; i < count; ++i) {
            const Candidate& candidate = found.data[from + i];
            x[i] = candidate.projected;
            maximum[i] = number(work.rows, kMaximum, strip.first + candidate.row);
            cut[i] = cut_of(work, strip.first + candidate.row);
        }
        const Floats z = condition(x).z, e = exp_negative(z - maximum);
        for (int i = 0; i < count; ++i) {
            if (!(z[i] > cut[i])) continue;
            const Candidate candidate = found.data[from + i];
            dropped[candidate.row] -= e[i];
            ++work.kept[strip.first + candidate.row];
            found.data[kept++] = candidate;
        }
    }
    found.size = kept;
}

// The softmax of all tokens of a row, or of those that are not listed.
inline void write_softmax(const StreamWork& work, std::int64_t row) {
    Statistics found;
    for (std::int64_t span = 0; span < work.spans; ++span) add_span(work, span, row, found);
    found.total = found.others;
    const bool none = found.total < 0.5;
    const double of_none = work.listed.ids == nullptr ? __builtin_nan("") : 0.0;
    const auto number = [&](SoftmaxNumber which) -> double& { return work.softmax[which * work.hidden.rows + row]; };
    number(kSoftmaxMaximum) = none ? -kInfinity : found.maximum;
    number(kSoftmaxLogTotal) = none ? of_none : __builtin_log(found.total);
    number(kSoftmaxMean) = none ? of_none : found.mean();
}

// The first of the largest logits of the block from `begin` on, of those that are kept.
template <typename C>
inline std::int64_t first_of_block(const StreamWork& work, C condition, std::int64_t begin, std::int64_t row) {
    const std::int64_t left = work.weight.rows - begin, end = begin + (left < kBlock ? left : kBlock);
    float largest = -kInfinity;
    std::int64_t first = begin;
    for (std::int64_t from = begin; from < end; from += kLanes) {
        const std::int64_t count = end - from < kLanes ? end - from : kLanes;
        Floats x{};
        for (int i = 0; i < count; ++i) x[i] = work.logits[(from + i) * work.logits_stride + row];
        const Floats z = condition(x).z;
        for (int i = 0; i < count; ++i) {
            if (!(z[i] > largest)) continue;
            largest = z[i];
            first = from + i;
        }
    }
    return first;
}

template <typename C>
inline void write_sums(const StreamWork& work, C condition, std::int64_t row) {
    const Statistics found = joined(work, row);
    const std::int64_t argmax = first_of_block(work, condition, found.block, row);
    write_sums(found, work.weight.rows, work.targets[row].z, argmax, work.shard, row);
}

// Of a span: filters its candidates and adds what they leave, as a share of each row's total.
template <typename C>
inline void drop_span(const StreamWork& work, const Strip& strip, C condition, std::int64_t span, const double* total) {
    double dropped[kStripRows];
    for (std::int64_t i = 0; i < strip.rows; ++i) {
        const RowSums& sums = sums_of(work, span, strip.first + i);
        const double below = static_cast<double>(sums.maximum) - number(work.rows, kMaximum, strip.first + i);
        dropped[i] = sums.others * __builtin_exp(below);
    }
    filter(work, strip, condition, work.candidates[span * work.strips + strip.index], dropped);
    for (std::int64_t i = 0; i < strip.rows; ++i) {
        const float mass = dropped[i] < 0.0 ? 0.0f : static_cast<float>(dropped[i] / total[i]);
        work.dropped_mass[strip.first + i] += mass;
        if (work.span_mass != nullptr) work.span_mass[(strip.first + i) * work.spans + span] = mass;
    }
}

inline void finish_stream(const StreamWork& work, std::int64_t begin, std::int64_t end) {
    if (work.softmax != nullptr) {
        for (std::int64_t s = begin; s < end; ++s) {
            const Strip strip(work, s);
            for (std::int64_t i = 0; i < strip.rows; ++i) write_softmax(work, strip.first + i);
        }
        return;
    }
    with_mode<float>(work.rows.head, [&]<typename C>(float*, C condition) {
        for (std::int64_t s = begin; s < end; ++s) {
            const Strip strip(work, s);
            if (work.shard.sums != nullptr) {
                for (std::int64_t i = 0; i < strip.rows; ++i) write_sums(work, condition, strip.first + i);
                continue;
            }
            double total[kStripRows];
            for (std::int64_t i = 0; i < strip.rows; ++i) {
                const Statistics found = joined(work, strip.first + i);
                write_numbers(found, work.targets[strip.first + i].z, work.rows, strip.first + i);
                total[i] = found.total;
                if (work.kept == nullptr) continue;
                work.kept[strip.first + i] = 1;
                work.dropped_mass[strip.first + i] = 0.0f;
            }
            if (work.kept == nullptr) continue;
            for (std::int64_t span = 0; span < work.spans; ++span) drop_span(work, strip, condition, span, total);
        }
    });
}

// The kept entries to their places, each row's target among them.
inline void write_kept(const StreamWork& work, std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
        const Strip strip(work, s);
        std::int64_t next[kStripRows];
        bool waiting[kStripRows];  // the target comes later
        for (std::int64_t i = 0; i < strip.rows; ++i) {
            next[i] = work.offsets[strip.first + i];
            waiting[i] = true;
        }
        const auto put = [&](std::int64_t i, std::int64_t column, float projected) {
            work.columns[next[i]] = static_cast<std::int32_t>(column);
            work.projected[next[i]++] = projected;
        };
        const auto put_target = [&](std::int64_t i) {
            put(i, work.rows.target[strip.first + i], work.targets[strip.first + i].projected);
            waiting[i] = false;
        };
        for (std::int64_t span = 0; span < work.spans; ++span) {
            const Candidates& found = work.candidates[span * work.strips + s];
            for (std::int64_t c = 0; c < found.size; ++c) {
                const Candidate& entry = found.data[c];
                if (waiting[entry.row] && entry.column > work.rows.target[strip.first + entry.row])
                    put_target(entry.row);
                put(entry.row, entry.column, entry.projected);
            }
        }
        for (std::int64_t i = 0; i < strip.rows; ++i) {
            if (waiting[i]) put_target(i);
        }
    }
}

// The gradient at the kept entries, from their projected logits in `logits` (one row for all, V columns in name).
inline void run_kept_values(const EntryArguments& args, std::int64_t begin, std::int64_t end) {
    with_mode<float>(args.rows.head, [&]<typename C>(float*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            const std::int64_t first = args.offsets[r], target = args.rows.target[r];
            Matrix entries = args.rows.logits;
            entries.data = static_cast<float*>(entries.data) + first;
            entries.columns = args.offsets[r + 1] - first;
            std::int64_t place = 0;
            while (place + 1 < entries.columns && args.columns[first + place] != target) ++place;
            const LogitsRow<float, C> row(entries, 0, condition);
            const RowGradient of(args.rows, r, number(args.rows, kMean, r), number(args.rows, kTotal, r),
                                 row.one(place).z[0]);
            float* out = args.values + first;
            const std::int64_t spans = (args.rows.logits.columns + kSpan - 1) / kSpan;
            float* small = args.small_sum == nullptr ? nullptr : args.small_sum + r * spans;
            for (std::int64_t s = 0; small != nullptr && s < spans; ++s) small[s] = 0.0f;
            std::int64_t end = kSpan;  // of the span of `small`
            double total = 0.0, of_small = 0.0;
            row.each(0, row.size, [&](Logit logit, std::int64_t i) {
                const Ints is_target =
                    lane_numbers() + static_cast<std::int32_t>(i) == static_cast<std::int32_t>(place);
                const Floats gradient = is_target ? splat(of.at_target) : of.part(logit.z);
                const Floats value = condition.to_projected(gradient, logit);
                const std::int64_t left = row.size - i < kLanes ? row.size - i : kLanes;
                for (std::int64_t lane = 0; lane < left; ++lane) total += gradient[lane];
                for (std::int64_t lane = 0; small != nullptr && lane < left; ++lane) {
                    for (; args.columns[first + i + lane] >= end; end += kSpan, of_small = 0.0) {
                        *small++ = static_cast<float>(of_small);
                    }
                    if (__builtin_fabsf(value[lane]) <= args.least) of_small += gradient[lane];
                }
                if (left == kLanes) {
                    store(out + i, value);
                } else {
                    store_first(out + i, value, left);
                }
            });
            if (small != nullptr) *small = static_cast<float>(of_small);
            args.kept_sum[r] = static_cast<float>(total);
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
