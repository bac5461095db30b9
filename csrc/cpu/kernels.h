// The CPU kernels as plain functions of pointers and sizes. There is one table of them a capability (AVX-512, AVX2, the
// compiler's default), and `kernels()` is the table for this processor. Each function does a range of its work items,
// so that the caller chooses the threads; results do not depend on how the range is cut.
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

// The loss of a row is (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2.
struct RowArguments {
    Matrix logits;               // (n, V), projected; becomes its gradient where scale is given
    const std::int64_t* target;  // (n,), in [0, V)
    const float* scale;          // (n,) d(total loss) / d(row loss), or null
    const float* entropy_scale;  // (n,) d(total loss) / d(row entropy), or null
    Conditions head;
    float label_smoothing, z_loss;
    float* numbers;  // (7, n): loss, nll, lse, entropy, maximum, log of total, total: sum e^(z - maximum)
    bool* correct;   // (n,)
};

// Entries with log p > log_threshold, and the target's, are kept.
struct CountArguments {
    RowArguments rows;
    float log_threshold;
    std::int64_t* kept;  // (n,)
    float* kept_mass;    // (n,) the sum of p over them
};

struct EntryArguments {
    RowArguments rows;  // numbers as `count` left them
    float log_threshold;
    const std::int64_t* offsets;  // (n + 1,), where each row's entries go
    std::int32_t* columns;        // (entries,), increasing in a row
    float* values;                // (entries,) gradient of the projected logit, without a uniform part
    float* kept_sum;              // (n,) sum of p (a + b log p) over the kept entries
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
    const float* values;
    const std::int32_t* indices;
    const std::int64_t* offsets;  // (bags + 1,)
    Matrix matrix;                // (m, D)
    const float* left;            // element (b, r) at b left_stride + r left_column_stride
    std::int64_t left_stride, left_column_stride, rank;
    Matrix right;  // (rank, D), in the type of matrix
    Matrix out;    // (bags, D), in the type of matrix or in float32
};

// The columns of a group are cut into `spans` of `span` columns, which are work items (the last one may be shorter);
// what is summed over columns is summed a span at a time, so that the items can be shared out in any way.
struct GroupArguments {
    const float* logits;  // (G, K, V), conditioned
    std::int64_t groups, count, vocabulary;
    const float* weight;  // (G, K, K) of pairs, of which the upper triangle counts, or (G, K) of a mixture
    const bool* mask;     // (G, K)
    float* gradient;      // (G, K, V), or null
    std::int64_t span, spans;
    std::int64_t tile;  // columns that are worked on at a time, a multiple of 16
    float* normalizer;  // (G, K, 2) the log-sum-exp of each row in two parts
    double* parts;      // (G, spans, pairs or K) sums of the divergences' entries
    double* sums;       // (G, spans, K, 2) sums of p F' and of p, where there is a gradient
};

struct Kernels {
    const char* capability;
    void (*rows)(const RowArguments&, std::int64_t begin, std::int64_t end);                // rows
    void (*count)(const CountArguments&, std::int64_t begin, std::int64_t end);             // rows
    void (*entries)(const EntryArguments&, std::int64_t begin, std::int64_t end);           // rows
    void (*background)(const BackgroundArguments&, std::int64_t begin, std::int64_t end);   // vocabulary entries
    void (*gather)(const GatherArguments&, std::int64_t begin, std::int64_t end);           // bags
    void (*group_normalizer)(const GroupArguments&, std::int64_t begin, std::int64_t end);  // rows
    // Both fill `parts` and `sums`, and the gradient with F'. Scratch: 64-byte aligned, 4 K tile + tile + K floats.
    void (*pairs)(const GroupArguments&, float* scratch, std::int64_t begin, std::int64_t end);    // spans of groups
    void (*mixture)(const GroupArguments&, float* scratch, std::int64_t begin, std::int64_t end);  // spans of groups
    void (*group_gradient)(const GroupArguments&, std::int64_t begin, std::int64_t end);           // spans of groups
};

// The table that MIND_KERNELS_CPU_CAPABILITY names (avx512, avx2, baseline), or the best that this processor has.
// Throws where the named one is unknown, not built, or not supported by the processor.
const Kernels& kernels();

}  // namespace mind
