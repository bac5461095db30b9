// The arguments of the kernels of csrc/cpu and csrc/cuda: pointers and sizes, without PyTorch.
#pragma once

#include <cstdint>

namespace mind {

enum class Type { kFloat, kBFloat16, kHalf };

// z = softcap tanh(x / softcap) / temperature of projected logits x; softcap 0 stands for none.
struct Conditions {
    float softcap = 0.0f;
    float temperature = 1.0f;
};

struct Matrix {
    void* data;
    Type type;
    std::int64_t rows, columns, stride;  // elements; the columns of a row are contiguous
};

// The statistics of a row in the order of `numbers`. total is the sum of e^(z - maximum). others is the probability of
// all entries but the target, 1 - p of the target, and lse_others their log-sum-exp, or infinity if they have
// probability 0; both are summed without the target, since they may be smaller than its rounding. mean is the mean of z
// - maximum in the softmax, log_total - entropy before either is rounded; so far only the CPU's gradients read it. A
// new statistic has to be added here, in the kernels (cpu/cross_entropy.h, cpu/stream.h, cuda/statistics.cuh), and in
// compiled_rows.py.
enum RowNumber { kLoss, kNll, kLse, kEntropy, kMaximum, kLogTotal, kTotal, kOthers, kLseOthers, kMean, kRowNumbers };
constexpr const char* kRowNumberNames[] = {"loss",      "nll",   "lse",    "entropy",    "maximum",
                                           "log_total", "total", "others", "lse_others", "mean"};
static_assert(sizeof kRowNumberNames == kRowNumbers * sizeof *kRowNumberNames);

// The loss of a row is (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2.
struct RowArguments {
    Matrix logits;               // (n, V), projected; becomes its gradient if scale is given
    const std::int64_t* target;  // (n,), in [0, V)
    const float* scale;          // (n,) d(total loss) / d(row loss), or null
    const float* entropy_scale;  // (n,) d(total loss) / d(row entropy), or null
    Conditions head;
    float label_smoothing, z_loss;
    float* numbers;  // (kRowNumbers, n)
    bool* correct;   // (n,)
};

// A shard of the vocabulary: the columns of its logits are a part of the rows' entries, and a target of -1 means that
// another shard has it. These are the sums over a row's entries in this shard, in the order of `sums`; RowSums in
// mind_kernels/linear_cross_entropy/shard_contract.py explains them.
enum ShardSum { kShardMaximum, kShardOthers, kShardMoment, kShardAtTarget, kShardTotal, kShardSums };

// Numbers of whole rows, (n,) each: GradientTerms in shard_contract.py.
struct WholeRows {
    const float *maximum, *log_total;
    const float *a, *b, *at_target, *uniform;  // b and uniform may be null: 0
};

struct ShardArguments {
    Matrix logits;               // (n, V) projected, V from 0 on; becomes its gradient if `whole` is given
    const std::int64_t* target;  // (n,), in [-1, V)
    Conditions head;
    bool adds_logits;      // whether kShardTotal is filled; 0 otherwise
    float* sums;           // (kShardSums, n), or null
    std::int64_t* argmax;  // (n,) the first of equal maxima; 0 if there is none
    WholeRows whole;
};

// Entries with z > lse_others + log_threshold, so p > threshold (1 - p of the target), and the target's, are kept.
struct CountArguments {
    RowArguments rows;
    float log_threshold;
    std::int64_t* kept;   // (n,)
    float* dropped_mass;  // (n,) the sum of p over all others
};

// The same for a shard, given the numbers of whole rows.
struct ShardCountArguments {
    RowArguments rows;  // targets in [-1, V)
    float log_threshold;
    std::int64_t* kept;  // (n,)
    float* kept_mass;    // (n,) the sum of p over the kept entries but the target's
};

// Also for a shard, as `BackgroundArguments`: with the numbers of whole rows, and targets in [-1, V).
struct EntryArguments {
    RowArguments rows;  // numbers as `count` left them
    float log_threshold;
    const std::int64_t* offsets;  // (n + 1,), where each row's entries go
    std::int64_t total;
    std::int32_t* columns;  // (total,), increasing in a row
    float* values;          // (total,) gradient of the projected logit, without a uniform part
    float* kept_sum;        // (n,) sum over the kept entries of the gradient of z, without a uniform part
    float least;            // the same sum over entries whose value is no larger, by spans of kSpan columns
    float* small_sum;       // (cpu/kernels.h), (n, spans); or null
};

// Tokens that rows list, by blocks of the vocabulary: those of block b are places[starts[b]] to places[starts[b + 1] -
// 1], and place i is token ids[i] of row i / count.
struct ListedTokens {
    const std::int64_t* ids;  // (n, count); null: there are none
    std::int64_t count;
    const std::int64_t* starts;
    const std::int64_t* places;
};

// A softmax as `softmax` (3, n) has it: the largest logit, the logarithm of the sum of e^(z - maximum), and the mean of
// z - maximum. Of all tokens, -inf, nan and nan if all logits are -inf; of those that are not listed, -inf, 0 and 0.
enum SoftmaxNumber { kSoftmaxMaximum, kSoftmaxLogTotal, kSoftmaxMean, kSoftmaxNumbers };

// Statistics of rows computed from hidden states, and data for the sparse gradient; only in csrc/cpu.
struct StreamArguments {
    Matrix hidden;              // (n, D)
    Matrix weight;              // (V, D), in the type of hidden
    const void* bias;           // (V,), in the type of hidden, or null
    RowArguments rows;          // logits: (n, V) without data
    ShardArguments shard;       // the same; with sums, these are filled in place of the numbers of rows
    const float* temperatures;  // (n,) of the rows, by which their logits are divided after all else; or null
    float* logits;              // to be filled with projected logits, transposed (`check_transposed`); or null
    std::int64_t logits_stride;
    bool conditioned;  // fill them with z instead
    double* softmax;   // (kSoftmaxNumbers, n) in place of the numbers of rows, which have no targets then; or null
    ListedTokens listed;
    float* listed_z;              // (n, count)
    float log_threshold;          // what is kept is as `CountArguments` has it
    const float* log_cuts;        // or, of each row (n,), z > lse + log_cut; null: the former
    const float* floors;          // (n,) what lse is known to be at least, with log_cuts
    std::int64_t* kept;           // (n,); null: statistics only
    float* dropped_mass;          // (n,)
    float* span_mass;             // (n, spans) the part of it in each span of kSpan entries (cpu/kernels.h); or null
    const std::int64_t* offsets;  // (n + 1,) those of kept
    std::int32_t* columns;        // (total,) of the kept entries, increasing in a row
    float* projected;             // (total,) and their projected logits
};

// The gradients of hidden states, weight and bias, from the logits that `StreamArguments` has filled; only in csrc/cpu.
struct ProductArguments {
    Matrix hidden;        // (n, D)
    Matrix weight;        // (V, D), in the type of hidden
    const float* logits;  // (V, n) as `StreamArguments` has them
    const float* beside;  // what is read with each of them, as far apart; or null
    std::int64_t logits_stride;
    float* of_hidden;  // (n, D), or null
    float* of_weight;  // (V, D), or null
    bool add_weight;   // to what is in of_weight
    float* of_bias;    // (V,), added to; or null
};

struct BackgroundArguments {
    RowArguments rows;  // numbers as `count` left them
    float log_threshold;
    const std::int64_t* sample;  // (count,), rows of the logits
    const float* weight;         // (count,)
    std::int64_t count;
    float* out;  // (V,) sum over the sample of weight x dropped p x slope
};

// out[b] = sum over offsets[b] <= i < offsets[b + 1] of values[i] matrix[indices[i]], plus left[b] @ right.
struct GatherArguments {
    const float* values;          // (total,)
    const std::int32_t* indices;  // (total,)
    std::int64_t total;
    const std::int64_t* offsets;  // (bags + 1,)
    Matrix matrix;                // (m, D)
    const float* left;            // (bags, rank), element (b, r) at b left_stride + r left_column_stride
    std::int64_t left_stride, left_column_stride;
    Matrix right;  // (rank, D), in the type of matrix
    Matrix out;    // (bags, D), in the type of matrix or in float32
};

// sum_v a K(p_v, m_v) + b K(q_v, m_v), K(x, m) = x log(x / m) - x + m and m = c p + (1 - c) q, of the softmaxes q of a
// row and p of its teacher's, or of interpolated logits; only in csrc/cpu.
struct DivergenceArguments {
    float* logits;   // (n, V), projected; becomes its gradient if scale is given
    float* teacher;  // (n, V), projected; overwritten
    std::int64_t rows, vocabulary;
    Conditions head, teacher_head;
    float teacher_part, student_part, mixture;  // a, b, c
    float rest, difference_part;                // 1 - c and a (1 - c) - b c, rounded once
    float interpolation;                        // the teacher's share of the logits that make p
    const float* scale;                         // (n,) d(total loss) / d(row's divergence), or null
    float* divergence;                          // (n,)
    float* entropy;                             // (n,) of q
    float* target_entropy;                      // (n,) of p
};

// The tokens that a teacher's list leaves out; a listed one has the logit kListed of cpu/divergence.h; only in
// csrc/cpu.
struct OthersArguments {
    float* logits;  // (n, V), projected; becomes the gradient of the log-sum-exp of the others
    std::int64_t rows, vocabulary;
    Conditions head;
    const float* weight;  // (n,) d(total loss) / d(log-sum-exp of the others); for the gradient alone
    float* numbers;       // (3, n): maximum of z, log sum e^(z - maximum), mean of z - maximum in their softmax
};

struct GroupArguments {
    const float* logits;  // (G, K, V), conditioned
    std::int64_t groups, count, vocabulary;
    const float* weight;  // (G, K, K) of pairs, of which the upper triangle counts, or (G, K) of a mixture
    const bool* mask;     // (G, K)
    float* divergence;    // shaped as weight
    float* gradient;      // (G, K, V), or null
};

}  // namespace mind
