// Jensen-Shannon divergences of all pairs of a group's rows, and F' of their weighted sum.
//
// A tile of columns holds log p, p and 1 / p of all rows in L1, so that a pair costs no exponential and no division.
// Count a pair and vector: 50 instructions with F', of which 24 multiply and 29 load; two of either a cycle make 15,
// and 15.3 were measured on tiles that stay (AVX2, Zen 3, 2.55 GHz). With the rows' share (three exponentials a row and
// vector) and the memory, all passes take 34 at K 8, V 49152: 19 ms of one processor for 8 groups.
#pragma once

#include "groups.h"

namespace mind::MIND_CAPABILITY {

// log(p / m), log(q / m) and p log(p / m) + q log(q / m) of m = (p + q) / 2.
struct PairTerms {
    Floats first, second, entry;
};

// Every entry is non-negative and relatively accurate, so nothing cancels between entries. With t = log(q / p),
//     log m = log p + t / 2 + log cosh(t / 2)     near, |t| < 1
//           = max(log p, log q) - log 2 + log(1 + x), x = e^-|t|     far.
MIND_INLINE inline PairTerms pair_terms(const Cell& a, const Cell& b) {
    const Floats t = b.log_p - a.log_p, square = t * t;
    const Ints near = square < 1.0f;
    // log cosh(t / 2) = t^2 r(t^2), to 1.2e-7 of it.
    Floats r = square * -2.2538655685e-5f + 3.4492980922e-4f;
    r = r * square - 5.2078836598e-3f;
    r = r * square + 1.2499998510e-1f;
    const Floats log_m_near = (r * t + 0.5f) * t + a.log_p;
    // log(1 + x) = x s(x), to 7e-9.
    const Floats x = min(a.p * b.inverse, b.p * a.inverse);
    Floats s = x * -6.3705086708e-2f + 1.5902252495e-1f;
    s = s * x - 2.4106995761e-1f;
    s = s * x + 3.3230546117e-1f;
    s = s * x - 4.9994447827e-1f;
    s = s * x + 9.9999898672e-1f;
    const Floats log_m_far = s * x + (max(a.log_p, b.log_p) - 6.9314718056e-1f);
    const Floats log_m = near ? log_m_near : log_m_far;
    const Floats first = a.log_p - log_m, second = b.log_p - log_m;
    // Near, per p + q: t / 2 tanh(t / 2) - log cosh(t / 2) = t^2 e(t^2), to 5e-8 of it.
    Floats e = square * 1.4984208065e-5f - 1.8093983817e-4f;
    e = e * square + 1.7348804977e-3f;
    e = e * square - 1.5624847263e-2f;
    e = e * square + 1.25e-1f;
    return {first, second, near ? (a.p + b.p) * (e * square) : a.p * first + b.p * second};
}

// The terms that a pair adds to its divergence and to the derivatives of its rows, from their cells.
struct Jsd {
    static constexpr float kPart = 0.5f;  // of the sum of the entries that is the divergence
    static constexpr bool kTimesP = false;
    static constexpr float kLeast = kFarBelow;

    MIND_INLINE static PairTerms terms(const Cell& a, const Cell& b) { return pair_terms(a, b); }
};

// The sum of the entries of a pair over a tile; weight is that of an entry.
template <bool kGradient, typename Divergence>
inline float add_pair(Cell* a, Cell* b, std::int64_t vectors, float weight) {
    Floats total{};
    for (std::int64_t v = 0; v < vectors; ++v) {
        const PairTerms terms = Divergence::terms(a[v], b[v]);
        total += terms.entry;
        if constexpr (kGradient) {
            a[v].derivative += weight * terms.first;
            b[v].derivative += weight * terms.second;
        }
    }
    return sum(total);
}

template <bool kGradient, typename Divergence>
inline void pairs_of_span(const GroupWork& a, float* scratch, std::int64_t item) {
    const std::int64_t group = item / a.spans, first = item % a.spans * a.span, count = a.count;
    const std::int64_t end = smaller(first + a.span, a.vocabulary), pairs = count * (count - 1) / 2;
    const float* weight = a.weight + group * count * count;
    const bool* mask = a.mask + group * count;
    double* parts = a.parts + item * pairs;
    double* sums = a.sums + item * 2 * count;
    for (std::int64_t i = 0; i < pairs; ++i) parts[i] = 0.0;
    if constexpr (kGradient) {
        for (std::int64_t i = 0; i < 2 * count; ++i) sums[i] = 0.0;
    }
    for (std::int64_t column = first; column < end; column += a.tile) {
        const Tile tile =
            load_tile(a, scratch, group, column, smaller(a.tile, end - column), nullptr, Divergence::kLeast);
        double* part = parts;
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t j = i + 1; j < count; ++j, ++part) {
                if (!mask[i] || !mask[j]) continue;
                const float of_pair = weight[i * count + j];
                const float found = add_pair<kGradient, Divergence>(tile.row(i), tile.row(j), tile.vectors,
                                                                    Divergence::kPart * of_pair);
                *part += found;
                if constexpr (kGradient) {
                    if (found == kInfinity && of_pair != 0.0f) sums[2 * i] = sums[2 * j] = __builtin_nan("");
                }
            }
        }
        if constexpr (kGradient) store_derivatives<Divergence::kTimesP>(a, tile, sums);
    }
}

template <typename Divergence>
inline void run_pairs(const GroupWork& a, float* scratch, std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
        if (a.gradient == nullptr) {
            pairs_of_span<false, Divergence>(a, scratch, item);
        } else {
            pairs_of_span<true, Divergence>(a, scratch, item);
        }
    }
}

}  // namespace mind::MIND_CAPABILITY
