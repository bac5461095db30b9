// The CUDA kernels as plain functions of pointers and sizes, without PyTorch: each puts its launches on a stream and
// returns. Pointers are to a GPU's memory. Deterministic: no atomics. What the operators' arguments mean is said in
// csrc/operators.h and csrc/cpu/kernels.h; these structures are the CUDA library's own.
#pragma once

#include <cstdint>

namespace mind::cuda {

enum class Type { kFloat, kBFloat16, kHalf };

// z = softcap tanh(x / softcap) / temperature of projected logits x; softcap 0 stands for none.
struct Conditions {
    float softcap, temperature;
};

struct Matrix {
    void* data;
    Type type;
    std::int64_t rows, columns, stride;  // elements; the columns of a row are contiguous
};

// Rows of `numbers`: loss, nll, lse, entropy, maximum, log of total, and total, the sum of e^(z - maximum).
constexpr int kNumbers = 7;

// The loss of a row is (1 - label_smoothing) nll + label_smoothing (lse - mean z) + z_loss lse^2.
struct RowArguments {
    Matrix logits;               // (n, V), projected; becomes its gradient where scale is given
    const std::int64_t* target;  // (n,)
    const float* scale;          // (n,) d(total loss) / d(row loss), or null
    const float* entropy_scale;  // (n,) d(total loss) / d(row entropy), or null
    Conditions head;
    float label_smoothing, z_loss;
    float* numbers;  // (kNumbers, n)
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
    std::int64_t total;
    std::int32_t* columns;  // (total,), increasing in a row
    float* values;          // (total,) gradient of the projected logit, without a uniform part
    float* kept_sum;        // (n,) sum of p (a + b log p) over the kept entries
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
    const float* left;            // element (b, r) at b left_stride + r left_column_stride
    std::int64_t left_stride, left_column_stride;
    Matrix right;  // (rank, D), in the type of matrix
    Matrix out;    // (bags, D), in the type of matrix or in float32
};

struct GroupArguments {
    const float* logits;  // (G, K, V), conditioned
    std::int64_t groups, count, vocabulary;
    const float* weight;  // (G, K, K) of pairs, of which the upper triangle counts, or (G, K) of a mixture
    const bool* mask;     // (G, K)
    float* divergence;    // shaped as weight
    float* gradient;      // (G, K, V), or null
};

void rows(const RowArguments& args, void* stream);
void count(const CountArguments& args, void* stream);
void entries(const EntryArguments& args, void* stream);
void background(const BackgroundArguments& args, void* stream);
void gather(const GatherArguments& args, void* stream);

// The kernels of groups keep sums of parts of the vocabulary in memory: so many floats of any contents.
std::int64_t pair_workspace(const GroupArguments& args);
std::int64_t mixture_workspace(const GroupArguments& args);
void pairs(const GroupArguments& args, float* workspace, void* stream);
void mixture(const GroupArguments& args, float* workspace, void* stream);

// What the last launch of this thread failed of, or null.
const char* launch_error();

}  // namespace mind::cuda
