// Jeffreys divergences of all pairs of a group's rows, sum (p - q) log(p / q), and p F' + d of their weighted sum:
//     dz_i = p_i (F'_i - S_i) + d_i,   F'_i = sum_j w_ij log(p_i / p_j),   d_i = sum_j w_ij (p_i - p_j).
// With tiles as in pairs.h; an entry is non-negative and relatively accurate, so nothing cancels between entries.
#pragma once

#include "mixture.h"
#include "pairs.h"

namespace mind::MIND_CAPABILITY {

struct Jeffreys {
    static constexpr float kPart = 1.0f;
    static constexpr bool kTimesP = true;
    static constexpr float kLeast = -3.4e38f;  // the log-ratio counts where p is 0 too

    MIND_INLINE static PairTerms terms(const Cell& a, const Cell& b) {
        const Floats t = a.log_p - b.log_p;
        const Ints near = (t > -1.0f) & (t < 1.0f), above = t > 0.0f;
        const Floats small = expm1_near(above ? -t : t);
        const Floats difference = near ? (above ? -a.p * small : b.p * small) : a.p - b.p;
        // Of a token that one of the two rows alone rules out; not of a nan. Beyond 1e18 `divergence_of` is infinite.
        const Ints infinite = ((t > kRuledOut) | (t < -kRuledOut)) & (difference != 0.0f);
        return {a.p * t + difference, -(b.p * t + difference), infinite ? splat(kInfinity) : difference * t};
    }

private:
    static constexpr float kRuledOut = 1e18f;
};

}  // namespace mind::MIND_CAPABILITY
