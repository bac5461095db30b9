// The operators of groups of rows on CPU tensors: memory for the kernels, and the work spread over PyTorch's threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../run.h"
#include "kernels.h"
#include "memory.h"

namespace mind::run {

namespace {

// Columns of a work item: 12 of them a group at V 49152, each of 16 KiB a row.
constexpr std::int64_t kSpan = 4096;
// Numbers of a tile, of which 4 floats each are kept: 16 KiB, half of the smallest L1 cache.
constexpr std::int64_t kTileNumbers = 1024;
constexpr std::int64_t kWidest = 16;  // floats of the widest vector
// With at least this many groups per thread, each thread computes whole groups, whose logits and gradient stay in its
// caches from one pass to the next.
constexpr std::int64_t kGroupsPerThread = 4;

Memory<float> scratch_for(const GroupWork& args) {
    return allocate<float>((4 * args.count + 1) * args.tile + args.count);
}

// The normalizer of the rows, the kernel on spans of columns, and the gradient of the rows. What each item computes
// does not depend on which way the items are shared out. Returns the sums over columns, (G, parts).
std::vector<double> column_sums(const GroupArguments& arguments, std::int64_t parts,
                                void (*kernel)(const GroupWork&, float*, std::int64_t, std::int64_t),
                                bool times_p = false) {
    const std::int64_t rows = arguments.groups * arguments.count;
    const std::int64_t spans = (arguments.vocabulary + kSpan - 1) / kSpan, items = arguments.groups * spans;
    const std::int64_t tile = kTileNumbers / std::max<std::int64_t>(arguments.count, 1) / kWidest;
    std::vector<float> normalizer(rows * GroupWork::kNormalizer);
    std::vector<double> part(items * parts);
    std::vector<double> sums(arguments.gradient == nullptr ? 0 : rows * spans * 2);
    const GroupWork args{arguments,         kSpan,       spans,       std::max(tile, std::int64_t{1}) * kWidest,
                         normalizer.data(), part.data(), sums.data(), times_p};
    const Kernels& table = kernels();
    const auto divergences = [&](std::int64_t begin, std::int64_t end) {
        const Memory<float> scratch = scratch_for(args);
        kernel(args, scratch.get(), begin, end);
    };
    const auto gradients = [&](std::int64_t begin, std::int64_t end) { table.group_gradient(args, begin, end); };
    if (args.groups >= kGroupsPerThread * torch::stable::get_num_threads()) {
        torch::stable::parallel_for(0, args.groups, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t group = begin; group < end; ++group) {
                table.group_normalizer(args, group * args.count, (group + 1) * args.count);
                divergences(group * args.spans, (group + 1) * args.spans);
                if (args.gradient != nullptr) gradients(group * args.spans, (group + 1) * args.spans);
            }
        });
    } else {
        torch::stable::parallel_for(0, args.groups * args.count, 1, [&](std::int64_t begin, std::int64_t end) {
            table.group_normalizer(args, begin, end);
        });
        torch::stable::parallel_for(0, items, 1, divergences);
        if (args.gradient != nullptr) torch::stable::parallel_for(0, items, 1, gradients);
    }
    std::vector<double> total(args.groups * parts);
    for (std::int64_t item = 0; item < items; ++item) {
        for (std::int64_t i = 0; i < parts; ++i) total[item / args.spans * parts + i] += part[item * parts + i];
    }
    return total;
}

// Rounding may leave a sum of non-negative entries just below 0; a nan stays. Above 1e19 it is infinite: where no row
// of a mixture has any probability, the log-ratio of another row is 3e38 for infinity.
float divergence_of(double total) {
    if (total > 1e19) return std::numeric_limits<float>::infinity();
    return total < 0.0 ? 0.0f : static_cast<float>(total);
}

// The divergences of pairs are `scale` times the sums of their entries; 0 where a row is absent.
void store_pairs(const GroupArguments& args, const std::vector<double>& sums, double scale) {
    const std::int64_t count = args.count;
    float* out = args.divergence;
    const double* sum = sums.data();
    for (std::int64_t group = 0; group < args.groups; ++group, out += count * count) {
        for (std::int64_t i = 0; i < count; ++i) {
            out[i * count + i] = 0.0f;
            for (std::int64_t j = i + 1; j < count; ++j) {
                out[i * count + j] = out[j * count + i] = divergence_of(scale * *sum++);
            }
        }
    }
}

std::int64_t pairs_of(const GroupArguments& args) { return args.count * (args.count - 1) / 2; }

}  // namespace

void pairs(const GroupArguments& args, const torch::stable::Tensor&) {
    store_pairs(args, column_sums(args, pairs_of(args), kernels().pairs), 0.5);
}

void jeffreys(const GroupArguments& args) {
    store_pairs(args, column_sums(args, pairs_of(args), kernels().jeffreys, true), 1.0);
}

void mixture(const GroupArguments& args, const torch::stable::Tensor&) {
    const std::vector<double> total = column_sums(args, args.count, kernels().mixture);
    std::transform(total.begin(), total.end(), args.divergence, divergence_of);
}

}  // namespace mind::run
