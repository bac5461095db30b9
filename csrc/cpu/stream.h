// Statistics and kept entries of rows, computed from hidden states: logits exist only for one block of vocabulary
// entries and one strip of rows, in the L1 cache. For an exact gradient (gradient.h) they are also written to memory.
// The rows are the lanes, so that no maximum or sum crosses lanes. Statistics are those of cross_entropy.h, block by
// block: sums of a block in float32, those of a row in float64. If only a softmax is computed, its normalizer has to
// distinguish a probability near 1 from 1, so a block's sum is split in two. Which entries are above the threshold is
// known only at the end; until then, all entries above the bound from the sums so far are candidates.
#pragma once

#include "cross_entropy.h"
#include "product.h"

namespace mind::MIND_CAPABILITY {

// A float32 above it is a multiple of 2^-17, and so a number in [0, 1] becomes one by its addition and subtraction.
constexpr float kSplit = 96.0f;
static_assert(kBlock <= 128, "a block's sum of such multiples is exact in float32");

struct Strip {
    std::int64_t index, first, rows;

    Strip(const StreamWork& work, std::int64_t index) : index(index), first(index * kStripRows) {
        const std::int64_t left = work.hidden.rows - first;
        rows = left < kStripRows ? left : kStripRows;
    }
    const float* packed(const StreamWork& work) const { return work.packed + first * work.hidden.columns; }
};

// Vocabulary entries [begin, begin + count) of a span for the rows of one vector, `width` floats from entry to entry.
struct StripBlock {
    std::int64_t span, begin, count;
    std::int64_t first, rows;  // of the vector
    std::int64_t lane, width;  // the first row's place in its strip, and the strip's width
    const float* projected;    // logits before softcap and temperature
    float* z;                  // and after, which may be the same
};

inline RowSums& sums_of(const StreamWork& work, std::int64_t span, std::int64_t row) {
    return work.sums[span * work.hidden.rows + row];
}

inline Floats maximum_of(const StripBlock& block) {
    Floats high[2] = {splat(-kInfinity), splat(-kInfinity)};
    std::int64_t i = 0;
    for (; i + 2 <= block.count; i += 2) {
        for (int k = 0; k < 2; ++k) high[k] = max(load(block.z + (i + k) * block.width), high[k]);
    }
    if (i < block.count) high[0] = max(load(block.z + i * block.width), high[0]);
    return max(high[0], high[1]);  // of those that are numbers
}

// Notes the target's logit, and takes it out of the block.
inline void take_target(const StreamWork& work, const StripBlock& block, std::int64_t row, float before) {
    const std::int64_t place = work.rows.target[row] - block.begin;
    if (place < 0 || place >= block.count) return;
    const std::int64_t at = place * block.width + row - block.first;
    for (std::int64_t i = row - block.first; i < at; i += block.width)
        before = before < block.z[i] ? block.z[i] : before;
    work.targets[row] = {block.projected[at], block.z[at], before};
    block.z[at] = -kInfinity;
}

inline bool given_up(const StreamWork& work) { return __atomic_load_n(work.collected, __ATOMIC_RELAXED) > work.most; }

// Adds the entries above `cut` to the strip's candidates.
inline void collect(const StreamWork& work, const StripBlock& block, Floats cut, Candidates& found) {
    const std::int64_t before = found.size;
    for (std::int64_t i = 0; i < block.count; ++i) {
        std::uint32_t bits = bits_above(load(block.z + i * block.width), cut);
        if (bits == 0) continue;
        if (found.size + kLanes > found.capacity) work.grow(found);
        for (; bits != 0; bits &= bits - 1) {
            const int lane = __builtin_ctz(bits);
            found.data[found.size++] = {static_cast<std::int32_t>(block.begin + i),
                                        static_cast<std::int32_t>(block.lane + lane),
                                        block.projected[i * block.width + lane]};
        }
    }
    __atomic_fetch_add(work.collected, found.size - before, __ATOMIC_RELAXED);
}

// The largest logits (kLanes,) before the block, and the sums raised to those of the block.
inline Floats raise_sums(const StreamWork& work, const StripBlock& block, Floats high, float* before) {
    const std::int64_t columns = block.begin - block.span * work.span;
    float maximum[kLanes] = {}, highest[kLanes];
    store(highest, high);
    for (std::int64_t lane = 0; lane < block.rows; ++lane) {
        RowSums& sums = sums_of(work, block.span, block.first + lane);
        before[lane] = columns == 0 ? -kInfinity : sums.maximum;
        if (highest[lane] > sums.maximum) {
            Statistics raised{sums};
            raised.raise(highest[lane], columns);
            sums = raised;
            sums.block = block.begin;
        }
        maximum[lane] = sums.maximum;
    }
    return load(maximum);
}

// What the cut above which entries are kept will be at least.
inline Floats least_cut(const StreamWork& work, const StripBlock& block, Floats maximum) {
    float others[kLanes], known[kLanes], from[kLanes];  // the last: from the log-sum-exp to the cut
    store(others, splat(kInfinity));                    // no candidates beyond the last row
    store(known, splat(-kInfinity));
    store(from, splat(work.log_threshold));
    for (std::int64_t lane = 0; lane < block.rows; ++lane) {
        const std::int64_t row = block.first + lane;
        others[lane] = static_cast<float>(sums_of(work, block.span, row).others);
        if (work.bounds != nullptr) known[lane] = work.bounds[row];
        if (work.log_cuts == nullptr) continue;
        known[lane] = known[lane] < work.floors[row] ? work.floors[row] : known[lane];
        from[lane] = work.log_cuts[row];
    }
    const Floats sum = load(others);
    const Floats here = sum < 1e-30f ? splat(-kInfinity) : (sum == kInfinity ? sum : maximum + log(sum));
    return max(here, load(known)) + load(from);
}

// What the passes over a block know of a vector's rows.
struct VectorState {
    Floats high;     // largest logits of the block
    Floats maximum;  // and of all so far
    Floats shifted{}, total{}, weighted{};
    Floats low{};  // of a total that is split: what is left of its terms below the multiples of 2^-17
};

inline VectorState begin_vector(const StreamWork& work, const StripBlock& block) {
    VectorState state;
    float before[kLanes];
    state.high = maximum_of(block);
    state.maximum = raise_sums(work, block, state.high, before);
    if (work.rows.label_smoothing != 0.0f || work.shard.adds_logits) {
        for (std::int64_t i = 0; i < block.count; ++i) {
            state.shifted += load(block.z + i * block.width) - state.maximum;
        }
    }
    if (work.softmax != nullptr) return state;
    for (std::int64_t lane = 0; lane < block.rows; ++lane) take_target(work, block, block.first + lane, before[lane]);
    return state;
}

// The exponentials of kTogether vectors, the first of them `block`. Where logits are kept they are written here: at the
// pace of the exponentials, while at the end of a tile each would be waited for. With kSplitTotal small terms keep
// their digits beside a large one: beside 1, those of 1e-7 would be rounded by as much.
template <int kTogether, bool kKeep, bool kSplitTotal>
inline void sum_exponentials(const StreamWork& work, const StripBlock& block, VectorState* states) {
    // Two rows at a time: sums that do not wait for one another, and the same ones for any kTogether.
    Floats totals[2][kTogether] = {}, weights[2][kTogether] = {}, lows[2][kTogether] = {};
    // Copies: a store might change what they point to, as far as the compiler knows.
    const float *z = block.z, *projected = block.projected;
    const std::int64_t width = block.width, stride = work.logits_stride;
    float* kept = kKeep ? work.logits + block.begin * stride + block.first : nullptr;
    Floats maxima[kTogether];
    for (int v = 0; v < kTogether; ++v) maxima[v] = states[v].maximum;
    const auto add = [&](std::int64_t i, int row, int v) MIND_INLINE {
        const std::int64_t at = i * width + v * kLanes;
        const Floats d = load(z + at) - maxima[v], e = exp_negative_at_least(d);
        const Floats high = kSplitTotal ? (e + kSplit) - kSplit : e;
        totals[row][v] += high;
        if constexpr (kSplitTotal) lows[row][v] += e - high;
        weights[row][v] += e * max(splat(kLowestExponent), d);
        if constexpr (kKeep) store_past_cache(kept + i * stride + v * kLanes, load(projected + at));
    };
    const std::int64_t pairs = block.count / 2 * 2;
    for (std::int64_t i = 0; i < pairs; i += 2) {
#pragma GCC unroll 2
        for (int row = 0; row < 2; ++row) {
#pragma GCC unroll 2
            for (int v = 0; v < kTogether; ++v) add(i + row, row, v);
        }
    }
    if (pairs < block.count) {
        for (int v = 0; v < kTogether; ++v) add(pairs, 0, v);
    }
    for (int v = 0; v < kTogether; ++v) {
        states[v].total = totals[0][v] + totals[1][v];
        states[v].weighted = weights[0][v] + weights[1][v];
        states[v].low = lows[0][v] + lows[1][v];
    }
}

// The targets' logits, which `take_target` may have taken out.
inline void keep_targets(const StreamWork& work, const StripBlock& block, std::int64_t rows) {
    for (std::int64_t row = block.first; row < block.first + rows; ++row) {
        const std::int64_t target = work.rows.target[row], place = target - block.begin;
        if (place < 0 || place >= block.count) continue;
        work.logits[target * work.logits_stride + row] = work.targets[row].projected;
    }
}

inline void end_vector(const StreamWork& work, const StripBlock& block, const VectorState& state,
                       Candidates* candidates) {
    float sums[4][kLanes];
    store(sums[0], state.total);
    store(sums[1], state.weighted);
    store(sums[2], state.shifted);
    store(sums[3], state.low);
    for (std::int64_t lane = 0; lane < block.rows; ++lane) {
        RowSums& row = sums_of(work, block.span, block.first + lane);
        row.others += static_cast<double>(sums[0][lane]) + sums[3][lane];
        row.weighted += sums[1][lane];
        row.shifted += sums[2][lane];
    }
    if (candidates == nullptr || given_up(work)) return;
    // Lower than it may become by roundings, which grow with the logits: what is kept is decided in the end.
    const Floats slack = splat(0.01f) + max(state.maximum, -state.maximum) * 0x1p-22f;
    const Floats cut = least_cut(work, block, state.maximum) - slack;
    if (bits_above(state.high, cut) != 0) collect(work, block, cut, *candidates);
}

// Notes the logits of the tokens that the strip's rows list, and takes them out of the block.
template <std::int64_t kWidth>
inline void take_listed(const StreamWork& work, const Strip& strip, std::int64_t begin, float* z) {
    const ListedTokens& listed = work.listed;
    const std::int64_t block = begin / kBlock;
    for (std::int64_t i = listed.starts[block]; i < listed.starts[block + 1]; ++i) {
        const std::int64_t place = listed.places[i], lane = place / listed.count - strip.first;
        if (lane < 0 || lane >= strip.rows) continue;
        float& at = z[(listed.ids[place] - begin) * kWidth + lane];
        work.listed_z[place] = at;
        at = -kInfinity;
    }
}

// What the rows of a strip have found in this span becomes a bound for the next.
inline void raise_bounds(const StreamWork& work, const Strip& strip, std::int64_t span) {
    for (std::int64_t row = strip.first; row < strip.first + strip.rows; ++row) {
        const RowSums& sums = sums_of(work, span, row);
        if (!(sums.others > 1e-30)) continue;
        const double here = sums.maximum + __builtin_log(sums.others), before = work.bounds[row];
        const double high = here > before ? here : before, low = here > before ? before : here;
        work.bounds[row] = static_cast<float>(high + __builtin_log1p(__builtin_exp(low - high)));
    }
}

// Where there is something to do between the product and z, a pass of its own, so that z is rounded in one place.
template <int kVectors, typename T, typename C>
inline float* condition_block(const StreamWork& work, const Strip& strip, std::int64_t begin, std::int64_t count,
                              C condition, float* projected, float* z) {
    if (C::kPlain && work.bias == nullptr && work.temperatures == nullptr) return projected;
    constexpr std::int64_t width = kVectors * kLanes;
    const T* bias = work.bias == nullptr ? nullptr : static_cast<const T*>(work.bias) + begin;
    float temperatures[width];  // of the strip's rows
    for (std::int64_t i = 0; i < width; ++i) {
        temperatures[i] = work.temperatures != nullptr && i < strip.rows ? work.temperatures[strip.first + i] : 1.0f;
    }
    for (std::int64_t i = 0; i < count; ++i) {
        const Floats added = splat(bias == nullptr ? 0.0f : load_one(bias + i));
        for (std::int64_t j = 0; j < width; j += kLanes) {
            const Floats x = load(projected + i * width + j) + added;
            store(projected + i * width + j, x);
            const Floats logit = condition(x).z;
            store(z + i * width + j, work.temperatures == nullptr ? logit : logit / load(temperatures + j));
        }
    }
    return z;
}

template <int kVectors, typename T, typename C>
inline void stream_block(const StreamWork& work, C condition, const Strip& strip, std::int64_t span, std::int64_t begin,
                         std::int64_t count, const Elements& rows, Ahead ahead, float* scratch) {
    constexpr std::int64_t kWidth = kVectors * kLanes;
    float* projected = scratch;
    multiply_block<kVectors>(rows, count, {strip.packed(work), kWidth}, work.hidden.columns, {projected, kWidth, false},
                             ahead);
    float* z = condition_block<kVectors, T>(work, strip, begin, count, condition, projected, scratch + kBlock * kWidth);
    if (work.listed.ids != nullptr) take_listed<kWidth>(work, strip, begin, z);
    const float* kept = work.conditioned ? z : projected;
    const auto block = [&](int v) {
        const std::int64_t lane = v * kLanes, left = strip.rows - lane;
        return StripBlock{span,   begin,       count,   strip.first + lane, left < kLanes ? left : kLanes, lane,
                          kWidth, kept + lane, z + lane};
    };
    VectorState states[kVectors];
    for (int v = 0; v < kVectors; ++v) states[v] = begin_vector(work, block(v));
    // As many as fill a cache line: half of one would not reach memory past the caches.
    constexpr int kTogether = kLanes == 16 ? 1 : kVectors;
    for (int v = 0; v < kVectors; v += kTogether) {
        if (work.logits == nullptr) {
            sum_exponentials<kTogether, false, false>(work, block(v), states + v);
        } else if (work.softmax == nullptr) {
            sum_exponentials<kTogether, true, false>(work, block(v), states + v);
        } else {
            sum_exponentials<kTogether, true, true>(work, block(v), states + v);
        }
    }
    if (work.logits != nullptr && work.softmax == nullptr) keep_targets(work, block(0), strip.rows);
    Candidates* found = work.candidates == nullptr ? nullptr : work.candidates + span * work.strips + strip.index;
    for (int v = 0; v < kVectors; ++v) end_vector(work, block(v), states[v], found);
}

inline std::int64_t stream_scratch(std::int64_t size) { return kBlock * (2 * kStripRows + size); }

template <typename T, typename C>
inline void stream_group(const StreamWork& work, C condition, std::int64_t span, std::int64_t from, std::int64_t to,
                         float* scratch) {
    const std::int64_t begin = span * work.span, vocabulary = work.weight.rows;
    const std::int64_t last = begin + work.span < vocabulary ? begin + work.span : vocabulary;
    const auto add = [&](std::int64_t s, std::int64_t v, std::int64_t count, const Elements& rows, Ahead ahead) {
        const Strip strip(work, s);
        with_vectors(vectors_of(strip.rows), [&]<int kVectors>() {
            stream_block<kVectors, T>(work, condition, strip, span, v, count, rows, ahead, scratch);
        });
    };
    each_block<T>(work.weight, begin, last, from, to, scratch + 2 * kBlock * kStripRows, add);
}

inline void run_stream(const StreamWork& work, float* scratch, std::int64_t span, std::int64_t begin,
                       std::int64_t end) {
    const std::int64_t group = strips_of_group(work.hidden.columns);
    with_row_type(work.hidden, work.rows.head, [&]<typename T, typename C>(T*, C condition) {
        for (std::int64_t from = begin; from < end; from += group) {
            stream_group<T>(work, condition, span, from, from + group < end ? from + group : end, scratch);
        }
    });
    finish_past_cache();
    if (work.bounds == nullptr) return;
    for (std::int64_t s = begin; s < end; ++s) raise_bounds(work, Strip(work, s), span);
}

}  // namespace mind::MIND_CAPABILITY
