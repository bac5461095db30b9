// The CPU kernels as plain functions of pointers and sizes. There is one table of them per capability (AVX-512, AVX2,
// the compiler's default), and `kernels()` is the table for this processor. Each function does a range of its work
// items, so that the caller chooses the threads; results do not depend on how the range is cut.
#pragma once

#include <cstdint>

#include "../arguments.h"

namespace mind {

// The columns of a group are cut into `spans` of `span` columns, which are work items (the last one may be shorter);
// what is summed over columns is summed a span at a time, so that the items can be shared out in any way.
struct GroupWork : GroupArguments {
    std::int64_t span, spans;
    std::int64_t tile;  // columns that are worked on at a time, a multiple of 16
    float* normalizer;  // (G, K, 2) the log-sum-exp of each row in two parts
    double* parts;      // (G, spans, pairs or K) sums of the divergences' entries
    double* sums;       // (G, spans, K, 2) sums of p F' and of p, if there is a gradient
};

struct Kernels {
    const char* capability;
    void (*rows)(const RowArguments&, std::int64_t begin, std::int64_t end);               // rows
    void (*count)(const CountArguments&, std::int64_t begin, std::int64_t end);            // rows
    void (*entries)(const EntryArguments&, std::int64_t begin, std::int64_t end);          // rows
    void (*background)(const BackgroundArguments&, std::int64_t begin, std::int64_t end);  // vocabulary entries
    void (*gather)(const GatherArguments&, std::int64_t begin, std::int64_t end);          // bags
    void (*group_normalizer)(const GroupWork&, std::int64_t begin, std::int64_t end);      // rows
    // Both fill `parts` and `sums`, and the gradient with F'. Scratch: 64-byte aligned, 4 K tile + tile + K floats.
    void (*pairs)(const GroupWork&, float* scratch, std::int64_t begin, std::int64_t end);    // spans of groups
    void (*mixture)(const GroupWork&, float* scratch, std::int64_t begin, std::int64_t end);  // spans of groups
    void (*group_gradient)(const GroupWork&, std::int64_t begin, std::int64_t end);           // spans of groups
};

// The table that MIND_KERNELS_CPU_CAPABILITY names (avx512, avx2, baseline), or the best that this processor has.
// Throws where the named one is unknown, not built, or not supported by the processor.
const Kernels& kernels();

// Calls from now on take the table of this name, or of the best one if it is empty. Throws as `kernels` does.
void use_capability(const char* name);

}  // namespace mind
