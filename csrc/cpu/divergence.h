// Divergences of rows from a teacher, on float32 logits: of all tokens, or of those that a teacher's list leaves out.
//
// Of all tokens: both normalizers (a read of either row), the divergence and S = sum q F' / sum q (another), and the
// gradient q (F' - S) in place; after the first read both rows are in the L2 cache. With r = log(q / p), an entry of
// the divergence is K(p, m) = p (g - 1 + e^-g), g = log(p / m), which is non-negative and relatively accurate however
// near p and q are; so is q - p, made from r. Formulas: mind_kernels/linear_divergence/terms.py. Six exponentials a
// pair of logits with the gradient, of a mixture a logarithm and two divisions more.
#pragma once

#include "cross_entropy.h"
#include "mixture.h"

namespace mind::MIND_CAPABILITY {

enum class Kind { kForward, kReverse, kMixed };  // m is q, p, or both

// |log(q / p)| is less where neither q nor p is 0.
constexpr float kFar = 1e4f;
// What a logit below its row's largest counts as at least, before two of them are interpolated.
constexpr float kFloor = -1e38f;
// Stands in the place of a listed token's logit, before the softcap. A logit may be any number, so it is one that no
// mask and no other constant is.
constexpr float kListed = 0x1.6a09e6p-100f;

struct Softmax {
    float maximum;
    double log_total;  // log sum e^(z - maximum); nan where all logits are minus infinity
    double mean;       // of z - maximum
};

template <typename Row>
inline Statistics sums_of_row(const Row& row) {
    Statistics found;
    for (std::int64_t start = 0; start < row.size; start += kRowBlock) {
        const std::int64_t end = smaller(start + kRowBlock, row.size);
        const float block_maximum = largest(row.maximum(start, end));
        if (block_maximum > found.maximum) found.raise(block_maximum, start);
        add_block<false>(row, start, end, found.maximum, found);
    }
    found.total = found.others;
    return found;
}

template <typename Row>
inline Softmax softmax_of(const Row& row) {
    const Statistics found = sums_of_row(row);
    if (found.total < 0.5) return {-kInfinity, __builtin_nan(""), __builtin_nan("")};
    return {found.maximum, __builtin_log(found.total), found.mean()};
}

// log(1 + x) of x >= 0.
MIND_INLINE inline Floats log1p(Floats x) {
    const Floats sum = x + 1.0f, part = sum - 1.0f;
    return part > 0.0f ? log(sum) * (x / part) : x;
}

// K(x, m) from x, m and g = log(x / m), finite where x is not 0.
MIND_INLINE inline Floats entry_of(Floats x, Floats m, Floats g) {
    const Ints near = (g > -1.0f) & (g < 1.0f);
    return near ? x * entry_near(g) : (x == 0.0f ? m : x * (g - 1.0f) + m);
}

// Of a row, or of rows in lanes.
template <typename Number>
struct Pair {
    Number log_total, their_log_total, log_ratio;  // log_ratio: their difference
    float c, rest, teacher_part, student_part, difference_part;
};

// m is p if nothing of q is in it: c alone may have been rounded to 1, and q be more than 1 / (1 - c) times p.
template <typename Arguments>
inline Kind kind_of(const Arguments& args) {
    return args.mixture == 0.0f ? Kind::kForward : args.rest == 0.0f ? Kind::kReverse : Kind::kMixed;
}

// If m is q or p, a divergence is the other side's, times that side's part.
template <typename Arguments>
inline float part_of(const Arguments& args) {
    const Kind kind = kind_of(args);
    return kind == Kind::kForward ? args.teacher_part : kind == Kind::kReverse ? args.student_part : 1.0f;
}

struct DivergenceTerms {
    Floats q, value;
    Floats derivative;  // F', or q F' where m is q
};

template <Kind kKind, typename Number>
MIND_INLINE inline DivergenceTerms terms_of(Floats student, Floats theirs, const Pair<Number>& of) {
    const Floats ratio = (student - theirs) - of.log_ratio;
    const Ints near = (ratio > -1.0f) & (ratio < 1.0f);
    if constexpr (kKind == Kind::kForward) {
        // Near, K(p, q) is p (e^ratio - 1 - ratio), and q - p is that and p ratio.
        const Floats q = exp_negative(student - of.log_total), p = exp_negative(theirs - of.their_log_total);
        const Floats entry = p * entry_near(-ratio), far = p == 0.0f ? q : q - p * (ratio + 1.0f);
        return {q, near ? entry : far, near ? p * ratio + entry : q - p};
    }
    const Floats q = exp(student - of.log_total), p = exp(theirs - of.their_log_total);
    if constexpr (kKind == Kind::kReverse) return {q, entry_of(q, p, ratio), q == 0.0f ? Floats{} : ratio};
    const Ints above = ratio > 0.0f;
    const Floats small = expm1_near(above ? -ratio : ratio);
    const Floats difference = near ? (above ? -q * small : p * small) : q - p;
    const Floats bounded = max(splat(-kFar), ratio < kFar ? ratio : splat(kFar));
    const Floats m = of.c * p + of.rest * q, relative = difference / max(splat(1.17549435e-38f), m);
    const Floats log_larger = log1p(max(of.c * relative, -of.rest * relative));  // log(max(p, q) / m)
    const Floats of_teacher = log_larger - max(bounded, Floats{}), of_student = log_larger + min(bounded, Floats{});
    Floats value{};
    if (of.teacher_part != 0.0f) value += of.teacher_part * entry_of(p, m, of_teacher);
    if (of.student_part != 0.0f) value += of.student_part * entry_of(q, m, of_student);
    return {q, value, of.student_part * of_student + (of.rest * of.difference_part) * relative};
}

struct DivergenceSums {
    double value = 0.0, weighted = 0.0, mass = 0.0;  // of the entries, of q F' and of q
};

// With kStore, the derivative takes the place of the teacher's logits.
template <Kind kKind, bool kStore, typename Row>
inline DivergenceSums divergence_of_row(const Row& row, float* theirs, const Softmax& student, const Softmax& teacher,
                                        const Pair<float>& pair) {
    DivergenceSums found;
    for (std::int64_t start = 0; start < row.size; start += kVectorsPerSum * kLanes) {
        Floats value{};
        Doubles weighted{}, mass{};
        row.each(start, smaller(start + kVectorsPerSum * kLanes, row.size), [&](Logit logit, std::int64_t i) {
            const std::int64_t left = row.size - i;
            const Floats other = load_columns(theirs + i, left, -kInfinity) - teacher.maximum;
            const DivergenceTerms terms = terms_of<kKind>(logit.z - student.maximum, other, pair);
            value += terms.value;
            if constexpr (kStore) {
                float q[kLanes], derivative[kLanes];
                store(q, terms.q);
                store(derivative, terms.derivative);
                for (int half = 0; half < kLanes; half += kLanes / 2) {
                    const Doubles of_half = load_doubles(q + half), slope = load_doubles(derivative + half);
                    mass += of_half;
                    weighted += kKind == Kind::kForward ? slope : of_half * slope;
                }
                store_columns(theirs + i, terms.derivative, left);
            }
        });
        found.value += sum(value);
        found.weighted += sum(weighted);
        found.mass += sum(mass);
    }
    return found;
}

// The gradient of the projected logits, from the derivatives in `theirs`. S goes in as two parts.
template <Kind kKind, typename Row>
inline void finish_divergence(const Row& row, const float* theirs, const Softmax& student, const DivergenceSums& sums,
                              float weight) {
    const double share = sums.weighted / sums.mass;
    const float high = static_cast<float>(share), low = static_cast<float>(share - high);
    const float log_total = static_cast<float>(student.log_total);
    row.update(0, row.size, [&](Logit logit, std::int64_t i) {
        const Floats derivative = load_columns(theirs + i, row.size - i, 0.0f);
        const Floats q = exp((logit.z - student.maximum) - log_total);
        const Floats of_z =
            kKind == Kind::kForward ? (derivative - high * q) - low * q : q * ((derivative - high) - low);
        return weight == 0.0f ? Floats{} : row.condition.to_projected(without_tiny(of_z) * weight, logit);
    });
}

// Between logits below 0: a rounding of large ones would be one of p. Exactly the student's where both are equal.
template <typename Row>
inline void interpolate(const Row& row, float* theirs, const Softmax& student, const Softmax& teacher, float part) {
    const float top = teacher.log_total == teacher.log_total ? teacher.maximum : __builtin_nanf("");
    row.each(0, row.size, [&](Logit logit, std::int64_t i) {
        const Floats own = max(splat(kFloor), logit.z - student.maximum);
        const Floats other = max(splat(kFloor), load_columns(theirs + i, row.size - i, 0.0f) - top);
        store_columns(theirs + i, own + part * (other - own), row.size - i);
    });
}

template <Kind kKind, typename C>
inline void divergence_row(const DivergenceArguments& args, std::int64_t r, C condition) {
    using Plain = Condition<Mode::kPlain>;
    const Matrix teacher_logits{args.teacher, Type::kFloat, args.rows, args.vocabulary, args.vocabulary};
    const LogitsRow<float, C> row({args.logits, Type::kFloat, args.rows, args.vocabulary, args.vocabulary}, r,
                                  condition);
    const LogitsRow<float, Plain> theirs(teacher_logits, r, Plain({}));
    with_mode<float>(args.teacher_head, [&]<typename T>(float*, T of_teacher) {
        if constexpr (T::kPlain) return;
        const LogitsRow<float, T> projected(teacher_logits, r, of_teacher);
        projected.update(0, projected.size, [](Logit logit, std::int64_t) { return logit.z; });
    });
    const Softmax student = softmax_of(row);
    Softmax teacher = softmax_of(theirs);
    if (args.interpolation != 1.0f) {
        interpolate(row, theirs.data, student, teacher, args.interpolation);
        teacher = softmax_of(theirs);
    }
    const Pair<float> pair{static_cast<float>(student.log_total),
                           static_cast<float>(teacher.log_total),
                           static_cast<float>(student.log_total - teacher.log_total),
                           args.mixture,
                           args.rest,
                           args.teacher_part,
                           args.student_part,
                           args.difference_part};
    const bool with_gradient = args.scale != nullptr;
    const DivergenceSums sums = with_gradient
                                    ? divergence_of_row<kKind, true>(row, theirs.data, student, teacher, pair)
                                    : divergence_of_row<kKind, false>(row, theirs.data, student, teacher, pair);
    const float part = part_of(args);
    args.divergence[r] = sums.value < 0.0 ? 0.0f : static_cast<float>(part * sums.value);
    args.entropy[r] = static_cast<float>(student.log_total - student.mean);
    args.target_entropy[r] = static_cast<float>(teacher.log_total - teacher.mean);
    if (with_gradient) finish_divergence<kKind>(row, theirs.data, student, sums, part * args.scale[r]);
}

inline void run_divergence(const DivergenceArguments& args, std::int64_t begin, std::int64_t end) {
    with_mode<float>(args.head, [&]<typename C>(float*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            switch (kind_of(args)) {
                case Kind::kForward:
                    divergence_row<Kind::kForward>(args, r, condition);
                    break;
                case Kind::kReverse:
                    divergence_row<Kind::kReverse>(args, r, condition);
                    break;
                case Kind::kMixed:
                    divergence_row<Kind::kMixed>(args, r, condition);
                    break;
            }
        }
    });
}

// Minus infinity where a token is listed.
template <typename C>
struct Unlisted : C {
    explicit Unlisted(C condition) : C(condition) {}

    MIND_INLINE Logit operator()(Floats x) const {
        Logit logit = C::operator()(x);
        logit.z = x == kListed ? splat(-kInfinity) : logit.z;
        return logit;
    }
};

template <typename Run>
inline void each_unlisted_row(const OthersArguments& args, std::int64_t begin, std::int64_t end, Run run) {
    with_mode<float>(args.head, [&]<typename C>(float*, C condition) {
        for (std::int64_t r = begin; r < end; ++r) {
            const Matrix logits{args.logits, Type::kFloat, args.rows, args.vocabulary, args.vocabulary};
            run(LogitsRow<float, Unlisted<C>>(logits, r, Unlisted<C>(condition)), r);
        }
    });
}

// What the softmax of the others is made of: -inf, 0 and 0 where none of them has any probability.
inline void run_others(const OthersArguments& args, std::int64_t begin, std::int64_t end) {
    each_unlisted_row(args, begin, end, [&](const auto& row, std::int64_t r) {
        const Statistics found = sums_of_row(row);
        const bool none = found.total < 0.5;
        args.numbers[r] = none ? -kInfinity : found.maximum;
        args.numbers[args.rows + r] = none ? 0.0f : static_cast<float>(__builtin_log(found.total));
        args.numbers[2 * args.rows + r] = none ? 0.0f : static_cast<float>(found.mean());
    });
}

// The gradient of their log-sum-exp with respect to the projected logits, times the row's weight, in place.
inline void run_spread(const OthersArguments& args, std::int64_t begin, std::int64_t end) {
    each_unlisted_row(args, begin, end, [&](const auto& row, std::int64_t r) {
        const float maximum = args.numbers[r] == -kInfinity ? 0.0f : args.numbers[r];
        const float log_total = args.numbers[args.rows + r], weight = args.weight[r];
        row.update(0, row.size, [&](Logit logit, std::int64_t) {
            const Floats p = without_tiny(exp((logit.z - maximum) - log_total));
            return row.condition.to_projected(p * weight, logit);
        });
    });
}

}  // namespace mind::MIND_CAPABILITY
