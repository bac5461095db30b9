// Divergences of a group's rows from their weighted mean m, and F' of their weighted sum.
//
// Let r be the largest p of a column among the rows with weight. Then d_k = log(p_k / r) and
// lambda = log sum_k share_k e^(d_k) give log(p_k / m) = d_k - lambda. If rows are nearly equal all of these are small,
// and keep their relative accuracy. An entry p_k log(p_k / m) - p_k + m is non-negative, so nothing cancels between
// entries. Two exponentials and three polynomials per row and vector: 16 ms where pairs of K 8 take 19, and linear in
// K.
#pragma once

#include "groups.h"

namespace mind::MIND_CAPABILITY {

// e^d - 1 of -1 < d <= 0: d q(d), to 1.4e-8 of it.
MIND_INLINE inline Floats expm1_near(Floats d) {
    Floats q = d * 1.2838072143e-4f + 1.2986637885e-3f;
    q = q * d + 8.2730958238e-3f;
    q = q * d + 4.1645579040e-2f;
    q = q * d + 1.6666309536e-1f;
    q = q * d + 4.9999976158e-1f;
    q = q * d + 1.0f;
    return q * d;
}

// log(1 + x) of -0.25 < x <= 0: x q(x), to 5e-9 of it.
MIND_INLINE inline Floats log1p_near(Floats x) {
    Floats q = x * 3.3377522230e-1f - 8.9620746672e-2f;
    q = q * x + 2.1422424912e-1f;
    q = q * x - 2.4869383872e-1f;
    q = q * x + 3.3338955045e-1f;
    q = q * x - 4.9999910593e-1f;
    q = q * x + 1.0f;
    return q * x;
}

// g - 1 + e^-g of |g| < 1: g^2 q(g), to 1e-8 of it.
MIND_INLINE inline Floats entry_near(Floats g) {
    Floats q = g * -2.7722828690e-6f + 2.5354829631e-5f;
    q = q * g - 1.9844023336e-4f;
    q = q * g + 1.3885451481e-3f;
    q = q * g - 8.3333104849e-3f;
    q = q * g + 4.1666734964e-2f;
    q = q * g - 1.6666667163e-1f;
    q = q * g + 5.0e-1f;
    return q * (g * g);
}

// The mixture with which the rows of a column are compared.
struct Mixture {
    Floats reference;  // log r
    Floats rise;       // log(m / r)
    Floats m;
};

MIND_INLINE inline Mixture mixture_of(const Tile& tile, const bool* mask, const float* share, std::int64_t count,
                                      std::int64_t v) {
    Floats reference = splat(kLowest), largest_p{};
    for (std::int64_t k = 0; k < count; ++k) {
        if (!(share[k] > 0.0f)) continue;
        const Cell& cell = tile.row(k)[v];
        reference = max(cell.log_p, reference);
        largest_p = max(cell.p, largest_p);
    }
    Floats total{}, total_1{};  // sums of share e^d and share (e^d - 1)
    for (std::int64_t k = 0; k < count; ++k) {
        if (!mask[k]) continue;
        const Floats d = min(Floats{}, tile.row(k)[v].log_p - reference);  // above 0 only without weight
        const Floats power = exp(d);
        total += share[k] * power;
        total_1 += share[k] * (d > -1.0f ? expm1_near(d) : power - 1.0f);
    }
    const Floats far = log(max(splat(kSmallestP), total));
    const Floats rise = total_1 > -0.25f ? log1p_near(total_1) : (total == total ? far : total);
    return {reference, rise, largest_p * total};
}

template <bool kGradient>
inline void mixture_of_tile(const GroupWork& a, const Tile& tile, const float* share, double* parts) {
    const bool* mask = a.mask + tile.first_row;
    for (std::int64_t v = 0; v < tile.vectors; ++v) {
        const Mixture mixture = mixture_of(tile, mask, share, a.count, v);
        for (std::int64_t k = 0; k < a.count; ++k) {
            if (!mask[k]) continue;
            Cell& cell = tile.row(k)[v];
            const Floats g = (cell.log_p - mixture.reference) - mixture.rise;
            const Ints near = (g > -1.0f) & (g < 1.0f);
            cell.inverse = near ? cell.p * entry_near(g) : cell.p * (g - 1.0f) + mixture.m;
            if constexpr (kGradient) cell.derivative = a.weight[tile.first_row + k] * g;
        }
    }
    for (std::int64_t k = 0; k < a.count; ++k) {
        if (!mask[k]) continue;
        Floats total{};
        for (std::int64_t v = 0; v < tile.vectors; ++v) total += tile.row(k)[v].inverse;
        parts[k] += sum(total);
    }
}

// The rows' parts of the weight of their group, 0 for absent ones; false where the group has no weight.
inline bool shares_of(const GroupWork& a, std::int64_t group, float* share) {
    const float* weight = a.weight + group * a.count;
    const bool* mask = a.mask + group * a.count;
    double total = 0.0;
    for (std::int64_t k = 0; k < a.count; ++k) total += mask[k] ? weight[k] : 0.0f;
    for (std::int64_t k = 0; k < a.count; ++k) {
        share[k] = mask[k] && total > 0.0 ? static_cast<float>(weight[k] / total) : 0.0f;
    }
    return total > 0.0;
}

template <bool kGradient>
inline void mixture_of_span(const GroupWork& a, float* scratch, std::int64_t item) {
    const std::int64_t group = item / a.spans, first = item % a.spans * a.span, count = a.count;
    const std::int64_t end = smaller(first + a.span, a.vocabulary);
    float* share = scratch + (4 * count + 1) * a.tile;
    double* parts = a.parts + item * count;
    double* sums = a.sums + item * 2 * count;
    for (std::int64_t i = 0; i < count; ++i) parts[i] = 0.0;
    if constexpr (kGradient) {
        for (std::int64_t i = 0; i < 2 * count; ++i) sums[i] = 0.0;
    }
    const bool weighted = shares_of(a, group, share);
    if (!weighted && !kGradient) return;
    for (std::int64_t column = first; column < end; column += a.tile) {
        const std::int64_t columns = smaller(a.tile, end - column);
        const Tile tile = load_tile(a, scratch, group, column, columns, weighted ? share : nullptr);
        if (weighted) mixture_of_tile<kGradient>(a, tile, share, parts);
        if constexpr (kGradient) store_derivatives<false>(a, tile, sums);
    }
}

inline void run_mixture(const GroupWork& a, float* scratch, std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
        if (a.gradient == nullptr) {
            mixture_of_span<false>(a, scratch, item);
        } else {
            mixture_of_span<true>(a, scratch, item);
        }
    }
}

}  // namespace mind::MIND_CAPABILITY
