// The CPU kernels as plain functions of pointers and sizes. There is one table of them per capability (AVX-512, AVX2,
// the compiler's default), and `kernels()` is the table for this processor. Each function computes a range of its work
// items, so that the caller can distribute them over threads; results do not depend on how the range is divided.
#pragma once

#include <cstdint>

#include "../arguments.h"

namespace mind {

// The columns of a group are cut into `spans` of `span` columns, which are work items (the last one may be shorter);
// what is summed over columns is summed a span at a time, so that the items can be shared out in any way.
struct GroupWork : GroupArguments {
    std::int64_t span, spans;
    std::int64_t tile;  // columns that are worked on at a time, a multiple of 16
    static constexpr std::int64_t kNormalizer = 3;
    float* normalizer;  // (G, K, kNormalizer) the log-sum-exp of each row in parts
    double* parts;      // (G, spans, pairs or K) sums of the divergences' entries
    double* sums;       // (G, spans, K, 2) sums of p F' and of p, if there is a gradient
    bool times_p;       // whether the kernel leaves p F' + d in the gradient, where d adds up to 0, or F' alone
};

// Sums over entries of a row of logits z; `Statistics` in cross_entropy.h works with them.
struct RowSums {
    float maximum = -3.4028235e38f;  // of the elements so far
    bool correct = false;            // the target was the first to reach it
    std::int64_t block = 0;          // where the block begins that did
    double others = 0.0;             // sum of e^d, d = z - maximum, of all but the target
    double total = 0.0;              // sum of e^d
    double weighted = 0.0;           // sum of d e^d
    double shifted = 0.0;            // sum of d
};

// The values that stream.h finds at a row's target.
struct TargetLogit {
    float projected = 0.0f, z = -__builtin_inff();  // minus infinity: another shard has it
    float before = -__builtin_inff();               // the largest z before it in its span
};

// An entry that may be above the threshold in the end.
struct Candidate {
    std::int32_t column, row;  // row: in its strip
    float projected;
};

struct Candidates {
    Candidate* data;
    std::int64_t size, capacity;
};

// Vocabulary entries of a block, whole panels of product.h: with D 576 they take 221 KB of the weight, which stays in
// the L2 cache for the strips.
constexpr std::int64_t kBlock = 96;
// Vocabulary entries of a span: with few rows, spans are what the threads share out, and sums of a row are known span
// by span. A multiple of the blocks.
constexpr std::int64_t kSpan = kBlock * 64;

// Rows are worked on in strips of `Kernels::strip_rows` (the last one may be shorter), the vocabulary in `spans` of
// `span` entries: what is summed over a span does not depend on who does the others.
struct StreamWork : StreamArguments {
    std::int64_t span, spans, strips;
    float* packed;         // the strips of hidden, one after the other, each (D, rows of the strip up to whole vectors)
    RowSums* sums;         // (spans, n)
    TargetLogit* targets;  // (n,)
    float* bounds;         // (n,) log-sum-exp of the spans before without the target; null if they come in any order
    Candidates* candidates;   // (spans, strips), or null
    std::int64_t most;        // candidates of all lists; past them no more are collected
    std::int64_t* collected;  // how many there are, counted by all threads
    void (*grow)(Candidates&);
};

// The vocabulary is cut into `parts` of whole blocks; each has its own sums of dH.
struct ProductWork : ProductArguments {
    std::int64_t blocks, parts;
    std::int64_t stride;                       // of a block's gradient, `gradient_stride(n)`
    std::int64_t padded_rows, padded_columns;  // n and D as the sums of dH have them
    float* packed;                             // (n padded_columns,) hidden, a strip of columns after the other
    float* coefficients;                       // (of the loss, stride): what a row's gradient is made from
    float* sums;                               // (parts, padded_rows padded_columns), or null without dH
};

// The data of rows for RowGradient of cross_entropy.h.
enum Coefficient { kRowMaximum, kRowA, kRowB, kRowU, kRowAtTarget, kCoefficients };

struct GradientWork : ProductWork {
    RowArguments rows;       // logits: (n, V) without data; numbers as the statistics left them
    WholeRows whole;         // in place of the numbers and weights, if the vocabulary is a shard; or null
    const float* at_target;  // (n,) the gradient of the target's projected logit, if it is another than the loss's
};

// The gradient of the projected logits is in memory; there are no logits.
struct DenseWork : ProductWork {
    const float* gradient;  // (n, V)
};

// The data of a row in divergence_gradient.h. The share is S, in two parts, and the scale that of the row's divergence.
enum DivergenceCoefficient {
    kOwnMaximum,
    kOwnLogTotal,
    kTheirMaximum,
    kTheirLogTotal,
    kLogRatio,
    kShareHigh,
    kShareLow,
    kScale,
    kDivergenceCoefficients
};

// See `DivergenceArguments`. F' takes the place of the teacher's logits unless the mixture is 0.
struct DivergenceWork : ProductWork {
    float* teacher;  // (V, n) z as `StreamArguments` has it, `logits_stride` floats from entry to entry
    Conditions head;
    float teacher_part, student_part, mixture, rest, difference_part;
    const double *softmax, *teacher_softmax;  // (kSoftmaxNumbers, n)
    const float* scale;                       // (n,)
    float* divergence;                        // (n,)
    float* values;                            // (blocks, stride) a block's entries
    double *weighted, *mass;                  // (blocks, stride) a block's sums of q F' and of q
};

enum ListedCoefficient { kOthersMaximum, kOthersLogTotal, kOthersWeight, kListedCoefficients };

// The gradient of the log-sum-exp of the tokens that are not listed, times a weight, and that at the listed tokens.
struct ListedWork : ProductWork {
    Conditions head;
    const double* softmax;          // (kSoftmaxNumbers, n) of the others
    const float* weight_of_others;  // (n,)
    ListedTokens listed;
    const float* at_listed;  // (n, count) the gradient of their projected logits
};

// Logits of rows in memory; strips and spans as above.
struct ProjectWork {
    Matrix hidden;        // (n, D)
    Matrix weight;        // (V, D), in the type of hidden
    const void* bias;     // (V,), in the type of hidden, or null
    float* logits;        // (n, V)
    std::int64_t stride;  // from one row of them to the next
    std::int64_t span;
    float* packed;  // the strips of hidden
};

struct Kernels {
    const char* capability;
    void (*rows)(const RowArguments&, std::int64_t begin, std::int64_t end);                // rows
    void (*count)(const CountArguments&, std::int64_t begin, std::int64_t end);             // rows
    void (*entries)(const EntryArguments&, std::int64_t begin, std::int64_t end);           // rows
    void (*background)(const BackgroundArguments&, std::int64_t begin, std::int64_t end);   // vocabulary entries
    void (*shard_sums)(const ShardArguments&, std::int64_t begin, std::int64_t end);        // rows
    void (*shard_gradient)(const ShardArguments&, std::int64_t begin, std::int64_t end);    // rows
    void (*shard_count)(const ShardCountArguments&, std::int64_t begin, std::int64_t end);  // rows
    void (*gather)(const GatherArguments&, std::int64_t begin, std::int64_t end);           // bags
    void (*group_normalizer)(const GroupWork&, std::int64_t begin, std::int64_t end);       // rows
    // All fill `parts` and `sums`, and the gradient as `times_p` has it. Scratch: 64-byte aligned, 4 K tile + tile + K
    // floats.
    void (*pairs)(const GroupWork&, float* scratch, std::int64_t begin, std::int64_t end);     // spans of groups
    void (*jeffreys)(const GroupWork&, float* scratch, std::int64_t begin, std::int64_t end);  // spans of groups
    void (*mixture)(const GroupWork&, float* scratch, std::int64_t begin, std::int64_t end);   // spans of groups
    void (*group_gradient)(const GroupWork&, std::int64_t begin, std::int64_t end);            // spans of groups
    void (*divergence)(const DivergenceArguments&, std::int64_t begin, std::int64_t end);      // rows
    void (*others)(const OthersArguments&, std::int64_t begin, std::int64_t end);              // rows: their numbers
    void (*spread)(const OthersArguments&, std::int64_t begin, std::int64_t end);              // rows: their gradient
    std::int64_t strip_rows;
    void (*pack)(const Matrix& hidden, float* packed, std::int64_t begin, std::int64_t end);  // strips
    // Strips of rows over one span. Scratch: 64-byte aligned, project_scratch(D) floats.
    void (*project)(const ProjectWork&, float* scratch, std::int64_t span, std::int64_t begin, std::int64_t end);
    std::int64_t (*project_scratch)(std::int64_t size);
    // Sums and candidates of strips of rows over one span. Scratch: 64-byte aligned, stream_scratch(D) floats.
    void (*stream)(const StreamWork&, float* scratch, std::int64_t span, std::int64_t begin, std::int64_t end);
    std::int64_t (*stream_scratch)(std::int64_t size);
    void (*finish_stream)(const StreamWork&, std::int64_t begin, std::int64_t end);    // strips
    void (*write_kept)(const StreamWork&, std::int64_t begin, std::int64_t end);       // strips
    void (*kept_values)(const EntryArguments&, std::int64_t begin, std::int64_t end);  // rows
    // Fills the sizes of the work; returns the floats of a thread's scratch, 64-byte aligned.
    std::int64_t (*plan_products)(ProductWork&, std::int64_t threads);
    void (*pack_products)(const ProductWork&);
    void (*join_products)(const ProductWork&, std::int64_t begin, std::int64_t end);  // rows
    void (*prepare_gradient)(const GradientWork&);
    void (*gradient)(const GradientWork&, float* scratch, std::int64_t begin, std::int64_t end);     // parts
    void (*dense_gradient)(const DenseWork&, float* scratch, std::int64_t begin, std::int64_t end);  // parts
    void (*prepare_divergence)(const DivergenceWork&);
    void (*divergence_slopes)(const DivergenceWork&, std::int64_t begin, std::int64_t end);  // blocks
    void (*divergence_shares)(const DivergenceWork&);                                        // from what these leave
    void (*divergence_gradient)(const DivergenceWork&, float* scratch, std::int64_t begin, std::int64_t end);  // parts
    void (*join_divergence)(const DivergenceWork&);
    void (*prepare_listed)(const ListedWork&);
    void (*listed_gradient)(const ListedWork&, float* scratch, std::int64_t begin, std::int64_t end);  // parts
};

// The table that MIND_KERNELS_CPU_CAPABILITY names (avx512, avx2, baseline), or the best that this processor has.
// Throws if the named one is unknown, not built, or not supported by the processor.
const Kernels& kernels();

// Makes later calls use the table of this name, or the best one if the name is empty. Throws as `kernels` does.
void use_capability(const char* name);

}  // namespace mind
