// The gradients of hidden states, weight and bias for a divergence, from the logits of both sides that stream.h has
// stored.
// All data are stored transposed, so that the rows are the lanes and no sum crosses lanes. For a mixture of 0
// (forward_kl), the gradient q - p needs only the two normalizers: each block of it is computed from both logits, and
// its entries of the divergence along with it. For the others, the gradient is q (F' - S): an earlier pass replaces the
// teacher's logits by F' and computes its sums. For a teacher's list, it is a multiple of the softmax of the tokens
// that are not listed (stream.h leaves the listed ones out), and the caller's numbers at the listed ones.
#pragma once

#include "divergence.h"
#include "gradient.h"

namespace mind::MIND_CAPABILITY {

inline void prepare_divergence(const DivergenceWork& work) {
    __builtin_memset(work.coefficients, 0, kDivergenceCoefficients * work.stride * sizeof(float));
    const std::int64_t rows = work.hidden.rows;
    for (std::int64_t r = 0; r < rows; ++r) {
        const double own = work.softmax[kSoftmaxLogTotal * rows + r];
        const double their = work.teacher_softmax[kSoftmaxLogTotal * rows + r];
        const auto put = [&](int which, double x) { coefficient(work, which)[r] = static_cast<float>(x); };
        put(kOwnMaximum, work.softmax[kSoftmaxMaximum * rows + r]);
        put(kOwnLogTotal, own);
        put(kTheirMaximum, work.teacher_softmax[kSoftmaxMaximum * rows + r]);
        put(kTheirLogTotal, their);
        put(kLogRatio, own - their);
        put(kScale, part_of(work) * work.scale[r]);
    }
}

MIND_INLINE inline Floats coefficients_of(const ProductWork& work, int which, std::int64_t r) {
    return load(coefficient(work, which) + r);
}

MIND_INLINE inline Pair<Floats> pair_of(const DivergenceWork& work, std::int64_t r) {
    return {coefficients_of(work, kOwnLogTotal, r),
            coefficients_of(work, kTheirLogTotal, r),
            coefficients_of(work, kLogRatio, r),
            work.mixture,
            work.rest,
            work.teacher_part,
            work.student_part,
            work.difference_part};
}

// The entries of the divergence and their derivatives, of a block and the rows of one vector.
template <Kind kKind, typename C, typename F>
MIND_INLINE inline void each_pair(const DivergenceWork& work, C condition, std::int64_t begin, std::int64_t count,
                                  std::int64_t r, F f) {
    const Pair<Floats> pair = pair_of(work, r);
    const Floats maximum = coefficients_of(work, kOwnMaximum, r), their = coefficients_of(work, kTheirMaximum, r);
    const std::int64_t stride = work.logits_stride;
    const float* logits = work.logits + begin * stride + r;
    float* teacher = work.teacher + begin * stride + r;
    Floats value{};
    for (std::int64_t i = 0; i < count; ++i) {
        const Logit logit = condition(load(logits + i * stride));
        const DivergenceTerms terms = terms_of<kKind>(logit.z - maximum, load(teacher + i * stride) - their, pair);
        value += terms.value;
        f(i, logit, terms, teacher + i * stride);
    }
    store(work.values + begin / kBlock * work.stride + r, value);
}

// F' of a block in the place of the teacher's logits, and the sums of its rows.
template <Kind kKind, typename C>
inline void differ_block(const DivergenceWork& work, C condition, std::int64_t begin, std::int64_t count) {
    constexpr int kHalf = kLanes / 2;
    for (std::int64_t r = 0; r < work.hidden.rows; r += kLanes) {
        Doubles weighted[2] = {}, mass[2] = {};
        const auto add = [&](std::int64_t, Logit, const DivergenceTerms& terms, float* teacher) MIND_INLINE {
            float q[kLanes];
            store(q, terms.q);
            store(teacher, terms.derivative);
            for (int half = 0; half < 2; ++half) {
                const Doubles of_half = load_doubles(q + half * kHalf);
                mass[half] += of_half;
                weighted[half] += of_half * load_doubles(teacher + half * kHalf);
            }
        };
        each_pair<kKind>(work, condition, begin, count, r, add);
        const std::int64_t at = begin / kBlock * work.stride + r;
        __builtin_memcpy(work.weighted + at, weighted, sizeof weighted);
        __builtin_memcpy(work.mass + at, mass, sizeof mass);
    }
}

inline void run_divergence_slopes(const DivergenceWork& work, std::int64_t begin, std::int64_t end) {
    with_mode<float>(work.head, [&]<typename C>(float*, C condition) {
        for (std::int64_t b = begin; b < end; ++b) {
            const std::int64_t first = b * kBlock, left = work.weight.rows - first;
            const std::int64_t count = left < kBlock ? left : kBlock;
            if (kind_of(work) == Kind::kReverse) {
                differ_block<Kind::kReverse>(work, condition, first, count);
            } else {
                differ_block<Kind::kMixed>(work, condition, first, count);
            }
        }
    });
}

inline void find_shares(const DivergenceWork& work) {
    for (std::int64_t r = 0; r < work.hidden.rows; ++r) {
        double weighted = 0.0, mass = 0.0;
        for (std::int64_t b = 0; b < work.blocks; ++b) {
            weighted += work.weighted[b * work.stride + r];
            mass += work.mass[b * work.stride + r];
        }
        const double share = weighted / mass;
        const float high = static_cast<float>(share);
        coefficient(work, kShareHigh)[r] = high;
        coefficient(work, kShareLow)[r] = static_cast<float>(share - high);
    }
}

// The gradient q - p, and the block's entries of the divergence.
template <typename C>
inline void differentiate_forward(const DivergenceWork& work, C condition, std::int64_t begin, std::int64_t count,
                                  float* out) {
    for (std::int64_t r = 0; r < work.hidden.rows; r += kLanes) {
        const Floats scale = coefficients_of(work, kScale, r);
        const auto write = [&](std::int64_t i, Logit logit, const DivergenceTerms& terms, float*) MIND_INLINE {
            const Floats gradient = without_tiny(terms.derivative) * scale;
            store(out + i * work.stride + r, condition.to_projected(gradient, logit));
        };
        each_pair<Kind::kForward>(work, condition, begin, count, r, write);
    }
}

// The gradient q (F' - S), from the F' in the place of the teacher's logits.
template <typename C>
inline void differentiate_slopes(const DivergenceWork& work, C condition, std::int64_t begin, std::int64_t count,
                                 float* out) {
    const std::int64_t stride = work.logits_stride;
    for (std::int64_t r = 0; r < work.hidden.rows; r += kLanes) {
        const Floats maximum = coefficients_of(work, kOwnMaximum, r), total = coefficients_of(work, kOwnLogTotal, r);
        const Floats high = coefficients_of(work, kShareHigh, r), low = coefficients_of(work, kShareLow, r);
        const Floats scale = coefficients_of(work, kScale, r);
        const float *logits = work.logits + begin * stride + r, *slopes = work.teacher + begin * stride + r;
        for (std::int64_t i = 0; i < count; ++i) {
            const Logit logit = condition(load(logits + i * stride));
            const Floats q = exp((logit.z - maximum) - total);
            const Floats gradient = without_tiny(q * ((load(slopes + i * stride) - high) - low)) * scale;
            store(out + i * work.stride + r, condition.to_projected(gradient, logit));
        }
    }
}

inline void run_divergence_gradient(const DivergenceWork& work, float* scratch, std::int64_t begin, std::int64_t end) {
    with_mode<float>(work.head, [&]<typename C>(float*, C condition) {
        multiply_parts(work, scratch, begin, end, [&](std::int64_t first, std::int64_t count, float* out) {
            if (kind_of(work) == Kind::kForward) {
                differentiate_forward(work, condition, first, count, out);
            } else {
                differentiate_slopes(work, condition, first, count, out);
            }
        });
    });
}

inline void join_divergence(const DivergenceWork& work) {
    const float part = part_of(work);
    for (std::int64_t r = 0; r < work.hidden.rows; ++r) {
        double value = 0.0;
        for (std::int64_t b = 0; b < work.blocks; ++b) value += work.values[b * work.stride + r];
        work.divergence[r] = value < 0.0 ? 0.0f : static_cast<float>(part * value);
    }
}

inline void prepare_listed(const ListedWork& work) {
    __builtin_memset(work.coefficients, 0, kListedCoefficients * work.stride * sizeof(float));
    const std::int64_t rows = work.hidden.rows;
    for (std::int64_t r = 0; r < rows; ++r) {
        const auto maximum = static_cast<float>(work.softmax[kSoftmaxMaximum * rows + r]);
        coefficient(work, kOthersMaximum)[r] = maximum == -kInfinity ? 0.0f : maximum;
        coefficient(work, kOthersLogTotal)[r] = static_cast<float>(work.softmax[kSoftmaxLogTotal * rows + r]);
        coefficient(work, kOthersWeight)[r] = work.weight_of_others[r];
    }
}

template <typename C>
inline void differentiate_listed(const ListedWork& work, C condition, std::int64_t begin, std::int64_t count,
                                 float* out) {
    for (std::int64_t r = 0; r < work.hidden.rows; r += kLanes) {
        const Floats maximum = coefficients_of(work, kOthersMaximum, r);
        const Floats total = coefficients_of(work, kOthersLogTotal, r);
        const Floats weight = coefficients_of(work, kOthersWeight, r);
        const float* logits = work.logits + begin * work.logits_stride + r;
        for (std::int64_t i = 0; i < count; ++i) {
            const Logit logit = condition(load(logits + i * work.logits_stride));
            const Floats p = without_tiny(exp_negative((logit.z - maximum) - total));
            store(out + i * work.stride + r, condition.to_projected(p * weight, logit));
        }
    }
    const ListedTokens& listed = work.listed;
    for (std::int64_t i = listed.starts[begin / kBlock]; i < listed.starts[begin / kBlock + 1]; ++i) {
        const std::int64_t place = listed.places[i];
        out[(listed.ids[place] - begin) * work.stride + place / listed.count] = work.at_listed[place];
    }
}

inline void run_listed_gradient(const ListedWork& work, float* scratch, std::int64_t begin, std::int64_t end) {
    with_mode<float>(work.head, [&]<typename C>(float*, C condition) {
        multiply_parts(work, scratch, begin, end, [&](std::int64_t first, std::int64_t count, float* out) {
            differentiate_listed(work, condition, first, count, out);
        });
    });
}

}  // namespace mind::MIND_CAPABILITY
