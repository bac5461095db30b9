// The operators of rows on CPU tensors: checks of targets, indices and offsets, and the work spread over PyTorch's
// threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../checks.h"
#include "../run.h"
#include "kernels.h"

namespace mind::run {

namespace {

void check_target(const RowArguments& args) {
    check_indices("target", args.target, 0, args.logits.rows, args.logits.columns);
}

// -1: another shard has it.
template <typename Arguments>
void check_target_of_shard(const Arguments& args) {
    check_indices("target", args.target, 0, args.logits.rows, args.logits.columns, -1);
}

// Calls kernel(args, begin, end) on parts of [0, count), each of `grain` items or more.
template <typename Arguments>
void spread(void (*kernel)(const Arguments&, std::int64_t, std::int64_t), const Arguments& args, std::int64_t count,
            std::int64_t grain = 1) {
    torch::stable::parallel_for(0, count, grain,
                                [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

}  // namespace

const std::int64_t kMostRows = INT64_MAX, kMostColumns = INT32_MAX;

void rows(const RowArguments& args, const torch::stable::Tensor&) {
    check_target(args);
    spread(kernels().rows, args, args.logits.rows);
}

void count(const CountArguments& args, const torch::stable::Tensor&) {
    check_target(args.rows);
    spread(kernels().count, args, args.rows.logits.rows);
}

void entries(const EntryArguments& args, const torch::stable::Tensor&) {
    check_target_of_shard(args.rows);
    check_offsets(args.offsets, args.rows.logits.rows, args.total);
    spread(kernels().entries, args, args.rows.logits.rows);
}

void background(const BackgroundArguments& args, const torch::stable::Tensor&) {
    check_target_of_shard(args.rows);
    check_indices("sample", args.sample, 0, args.count, args.rows.logits.rows);
    spread(kernels().background, args, args.rows.logits.columns, 1024);
}

void shard_sums(const ShardArguments& args, const torch::stable::Tensor&) {
    check_target_of_shard(args);
    spread(kernels().shard_sums, args, args.logits.rows);
}

void shard_gradient(const ShardArguments& args, const torch::stable::Tensor&) {
    check_target_of_shard(args);
    spread(kernels().shard_gradient, args, args.logits.rows);
}

void shard_count(const ShardCountArguments& args, const torch::stable::Tensor&) {
    check_target_of_shard(args.rows);
    spread(kernels().shard_count, args, args.rows.logits.rows);
}

void gather(const GatherArguments& args, const torch::stable::Tensor&) {
    const std::int64_t* starts = args.offsets;
    const std::int64_t bags = args.out.rows;
    check_offsets(starts, bags, args.total);
    check_indices("indices", args.indices, starts[0], starts[bags], args.matrix.rows);
    // Frequent tokens make heavy bags, and they stand together: parts of equal work, not of as many bags.
    const auto work = [&](std::int64_t bag) { return starts[bag] - starts[0] + bag; };
    const std::int64_t parts = std::min<std::int64_t>(bags, 4 * torch::stable::get_num_threads());
    const auto first_of = [&](std::int64_t part) {
        std::int64_t low = 0, high = bags;
        while (low < high) {
            const std::int64_t middle = (low + high) / 2;
            if (work(middle) * parts < work(bags) * part) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    };
    const Kernels& table = kernels();
    torch::stable::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
        table.gather(args, first_of(begin), end == parts ? bags : first_of(end));
    });
}

}  // namespace mind::run
