// Code that all divergences of a group's rows share: the normalizer before them, tiles of log-probabilities, and the
// row gradient p (F' - S), S = sum p F' / sum p, after them.
// Log-probabilities are stored as two parts, since rows may be nearly equal while their log-probabilities are far from
// zero: a log p of -12 in float32 is rounded by up to 5e-7, so that a log-ratio of 1e-6 would have no correct digit.
// The coarse parts of a column are subtracted from the largest of them first, which is exact, and then the fine parts,
// which are small, are added. What is lost is 6e-8 of a row's distance from the largest one of the column.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace mind::MIND_CAPABILITY {

// Adding 3 x 2^12 rounds a number of up to 4096 to a multiple of 2^-10, and subtracting it again is exact. Larger ones
// get a coarser grid, or keep all their digits.
constexpr float kGrid = 12288.0f;
// The largest logit of a row up to which the grid is as fine as that.
constexpr float kFineGrid = 4096.0f;
// What a lower logit counts as, after the shift: 0 times it is 0.
constexpr float kLowest = -3e38f;
// A row's log-probability in a column counts as at most this far below the largest one, if only p matters: p is 0 there
// in any case.
constexpr float kFarBelow = -200.0f;
constexpr float kSmallestP = 1e-37f;
// Vectors of probabilities that are added up in float32 before double takes over.
constexpr std::int64_t kVectorsPerSum = 32;

// A log-sum-exp as shift + (offset - kGrid) + rest. The shift is subtracted from the logits first: it is a row's
// largest logit if the grid would be coarse there, else 0, which changes no digit. Beside 1e17, log 2 would be lost in
// a double.
struct Normalizer {
    float shift, offset, rest;
};

MIND_INLINE inline Normalizer normalizer_of(float shift, double lse) {
    const float offset = static_cast<float>(lse) + kGrid;
    return {shift, offset, static_cast<float>(lse - (offset - kGrid))};
}

inline Normalizer load_normalizer(const GroupWork& a, std::int64_t row) {
    const float* parts = a.normalizer + GroupWork::kNormalizer * row;
    return {parts[0], parts[1], parts[2]};
}

// log p = high + low: high is exact, low about 1e-3 or less.
struct LogProbability {
    Floats high, low;
};

MIND_INLINE inline LogProbability log_probability(Floats logits, Normalizer normalizer) {
    const Floats z = max(splat(kLowest), logits - normalizer.shift);  // nan is the second argument: it stays
    const Floats shifted = z + kGrid;
    return {shifted - normalizer.offset, (z - (shifted - kGrid)) - normalizer.rest};
}

MIND_INLINE inline Floats probability(LogProbability log_p) { return exp_of_sum(log_p.high, log_p.low); }

// `left` columns of a row are there from here on, `fill` stands for the others.
MIND_INLINE inline Floats load_columns(const float* from, std::int64_t left, float fill) {
    return left >= kLanes ? load(from) : load_first(from, left, fill);
}

MIND_INLINE inline void store_columns(float* to, Floats v, std::int64_t left) {
    if (left >= kLanes) {
        store(to, v);
    } else {
        store_first(to, v, left);
    }
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// The second sweep over the row finds it in the cache.
inline Normalizer normalizer_of_row(const float* row, std::int64_t vocabulary) {
    Floats maxima = splat(-kInfinity);
    for (std::int64_t c = 0; c < vocabulary; c += kLanes) {
        maxima = max(maxima, load_columns(row + c, vocabulary - c, -kInfinity));
    }
    const float maximum = largest(maxima);  // a nan may have got lost: it is in the sum
    if (maximum == -kInfinity) return {0.0f, __builtin_nanf(""), __builtin_nanf("")};
    const float shift = maximum > kFineGrid || maximum < -kFineGrid ? maximum : 0.0f;
    const Normalizer of_maximum = normalizer_of(shift, maximum - shift);
    double total = 0.0;
    for (std::int64_t start = 0; start < vocabulary; start += kVectorsPerSum * kLanes) {
        const std::int64_t end = smaller(start + kVectorsPerSum * kLanes, vocabulary);
        Floats part{};
        for (std::int64_t c = start; c < end; c += kLanes) {
            part += probability(log_probability(load_columns(row + c, vocabulary - c, -kInfinity), of_maximum));
        }
        total += sum(part);
    }
    return normalizer_of(shift, (maximum - shift) + __builtin_log(total));
}

inline void run_group_normalizer(const GroupWork& a, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        const Normalizer normalizer =
            a.mask[row] ? normalizer_of_row(a.logits + row * a.vocabulary, a.vocabulary) : Normalizer{};
        float* parts = a.normalizer + GroupWork::kNormalizer * row;
        parts[0] = normalizer.shift;
        parts[1] = normalizer.offset;
        parts[2] = normalizer.rest;
    }
}

// A vector of columns of one row.
struct Cell {
    Floats log_p;  // up to a term common to the column's rows
    Floats p;
    Floats inverse;     // of p, finite; a mixture keeps its entries here
    Floats derivative;  // F', or p F' + d
};

// Columns of all rows of a group; absent rows hold nothing. The lanes beyond the last column hold p = log p = 0.
struct Tile {
    std::int64_t first_row;        // of the group
    std::int64_t column, columns;  // which columns of the vocabulary
    std::int64_t vectors, stride;  // cells of a row that are in use, and that there is room for
    Cell* cells;
    Floats* highest;  // the largest coarse part of each column

    Cell* row(std::int64_t k) const { return cells + k * stride; }
};

// Only rows k with share[k] > 0 count for `highest`; all of them where share is null. No log p is below `least`.
inline Tile load_tile(const GroupWork& a, float* scratch, std::int64_t group, std::int64_t column, std::int64_t columns,
                      const float* share, float least = kFarBelow) {
    const std::int64_t stride = a.tile / kLanes;
    Cell* cells = reinterpret_cast<Cell*>(scratch);
    const Tile tile{group * a.count,
                    column,
                    columns,
                    (columns + kLanes - 1) / kLanes,
                    stride,
                    cells,
                    reinterpret_cast<Floats*>(cells + a.count * stride)};
    for (std::int64_t v = 0; v < tile.vectors; ++v) tile.highest[v] = splat(kLowest);
    for (std::int64_t k = 0; k < a.count; ++k) {
        const std::int64_t row = tile.first_row + k;
        if (!a.mask[row]) continue;
        const float* source = a.logits + row * a.vocabulary + column;
        const Normalizer normalizer = load_normalizer(a, row);
        const bool counts = share == nullptr || share[k] > 0.0f;
        for (std::int64_t v = 0; v < tile.vectors; ++v) {
            const Floats z = load_columns(source + v * kLanes, columns - v * kLanes, 0.0f);
            const LogProbability log_p = log_probability(z, normalizer);
            tile.row(k)[v].log_p = log_p.high;
            tile.row(k)[v].p = log_p.low;
            if (counts) tile.highest[v] = max(log_p.high, tile.highest[v]);
        }
        // Rows are often a multiple of 4096 bytes apart. Then their lines compete for few places in the caches, and
        // what the processor fetches ahead is lost: without these, V 49152 takes 1.25 times as long.
        const int bytes = static_cast<int>(a.tile * sizeof(float));
        prefetch(source + a.tile, bytes);
        if (a.gradient != nullptr) prefetch(a.gradient + row * a.vocabulary + column, bytes);
    }
    for (std::int64_t k = 0; k < a.count; ++k) {
        if (!a.mask[tile.first_row + k]) continue;
        for (std::int64_t v = 0; v < tile.vectors; ++v) {
            Cell& cell = tile.row(k)[v];
            const LogProbability log_p{cell.log_p, cell.p};
            cell.log_p = max(splat(least), (log_p.high - tile.highest[v]) + log_p.low);
            cell.p = probability(log_p);
            cell.inverse = 1.0f / max(splat(kSmallestP), cell.p);
            cell.derivative = Floats{};
        }
        if (columns < tile.vectors * kLanes) {
            const Ints inside = lane_numbers() < static_cast<std::int32_t>(columns % kLanes);
            Cell& last = tile.row(k)[tile.vectors - 1];
            last.log_p = inside ? last.log_p : Floats{};
            last.p = inside ? last.p : Floats{};
        }
    }
    return tile;
}

// Writes the derivatives, and adds what S needs, in double: where p is nearly 1 in one column, F' - S is far smaller
// than either. Sums in float32 made the gradient's error of such rows 200 times as large.
template <bool kTimesP>
inline void store_derivatives(const GroupWork& a, const Tile& tile, double* sums) {
    for (std::int64_t k = 0; k < a.count; ++k) {
        if (!a.mask[tile.first_row + k]) continue;
        float* out = a.gradient + (tile.first_row + k) * a.vocabulary + tile.column;
        Doubles weighted{}, mass{};
        for (std::int64_t v = 0; v < tile.vectors; ++v) {
            const Cell& cell = tile.row(k)[v];
            const float* of_p = reinterpret_cast<const float*>(&cell.p);
            const float* of_derivative = reinterpret_cast<const float*>(&cell.derivative);
            for (int half = 0; half < kLanes; half += kLanes / 2) {
                const Doubles p = load_doubles(of_p + half);
                const Doubles derivative = load_doubles(of_derivative + half);
                weighted += kTimesP ? derivative : p * derivative;
                mass += p;
            }
            store_columns(out + v * kLanes, cell.derivative, tile.columns - v * kLanes);
        }
        sums[2 * k] += sum(weighted);
        sums[2 * k + 1] += sum(mass);
    }
}

// S goes in as two parts.
template <bool kTimesP>
inline void finish_row(const float* logits, float* gradient, std::int64_t columns, Normalizer normalizer,
                       double scalar) {
    const float high = static_cast<float>(scalar), low = static_cast<float>(scalar - high);
    for (std::int64_t c = 0; c < columns; c += kLanes) {
        const Floats z = load_columns(logits + c, columns - c, 0.0f);
        const Floats derivative = load_columns(gradient + c, columns - c, 0.0f);
        const Floats p = without_tiny(probability(log_probability(z, normalizer)));
        const Floats of_z = kTimesP ? (derivative - p * high) - p * low : p * ((derivative - high) - low);
        store_columns(gradient + c, of_z, columns - c);
    }
}

inline void run_group_gradient(const GroupWork& a, std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t group = item / a.spans, first = item % a.spans * a.span;
        const std::int64_t columns = smaller(a.span, a.vocabulary - first);
        for (std::int64_t k = 0; k < a.count; ++k) {
            const std::int64_t row = group * a.count + k;
            float* gradient = a.gradient + row * a.vocabulary + first;
            if (!a.mask[row]) {
                std::memset(gradient, 0, columns * sizeof(float));
                continue;
            }
            double weighted = 0.0, mass = 0.0;
            for (std::int64_t s = 0; s < a.spans; ++s) {
                const double* sums = a.sums + 2 * ((group * a.spans + s) * a.count + k);
                weighted += sums[0];
                mass += sums[1];
            }
            const auto finish = a.times_p ? finish_row<true> : finish_row<false>;
            finish(a.logits + row * a.vocabulary + first, gradient, columns, load_normalizer(a, row), weighted / mass);
        }
    }
}

}  // namespace mind::MIND_CAPABILITY
