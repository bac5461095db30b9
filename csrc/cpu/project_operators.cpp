// From tensors to the kernel of project.h: checks, memory, and the work spread over PyTorch's threads.
#include "project_operators.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../checks.h"
#include "kernels.h"
#include "memory.h"

namespace mind {

namespace {

// Blocks of a span, at most: spans are what the threads share out, and a logit does not depend on them.
constexpr std::int64_t kMostBlocks = 16;

std::int64_t span_of(std::int64_t vocabulary) {
    const std::int64_t share = vocabulary / (4 * torch::stable::get_num_threads() * kBlock);
    return kBlock * std::clamp<std::int64_t>(share, 1, kMostBlocks);
}

void project(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor logits) {
    check_matrix("hidden", hidden, hidden);
    check_matrix("weight", weight, hidden);
    check_out("logits", logits, hidden);
    const std::int64_t rows = hidden.size(0), size = hidden.size(1), vocabulary = weight.size(0);
    check_shape("weight", weight, {vocabulary, size});
    check_shape("logits", logits, {rows, vocabulary});
    check_dtype("weight", weight, hidden.scalar_type());
    check_dtype("logits", logits, ScalarType::Float);
    STD_TORCH_CHECK(size >= 1, "hidden has no columns");
    ProjectWork work{};
    work.hidden = matrix_of(hidden);
    work.weight = matrix_of(weight);
    work.bias = checked_bias(bias, hidden, vocabulary);
    check_apart({{"logits", logits}}, {{"hidden", hidden}, {"weight", weight}, {"bias", bias}});
    work.logits = static_cast<float*>(logits.data_ptr());
    work.stride = logits.stride(0);
    const Kernels& table = kernels();
    const std::int64_t strips = (rows + table.strip_rows - 1) / table.strip_rows;
    const Memory<float> packed = allocate<float>(strips * table.strip_rows * size);
    work.packed = packed.get();
    work.span = span_of(vocabulary);
    torch::stable::parallel_for(
        0, strips, 1, [&](std::int64_t begin, std::int64_t end) { table.pack(work.hidden, packed.get(), begin, end); });
    const std::int64_t spans = (vocabulary + work.span - 1) / work.span;
    torch::stable::parallel_for(0, spans, 1, [&](std::int64_t begin, std::int64_t end) {
        const Memory<float> scratch = allocate<float>(table.project_scratch(size));
        for (std::int64_t span = begin; span < end; ++span) table.project(work, scratch.get(), span, 0, strips);
    });
}

}  // namespace

void define_project_operators(torch::stable::detail::StableLibrary& library) {
    library.def("project(Tensor hidden, Tensor weight, Tensor? bias, Tensor(a!) logits) -> ()");
}

void implement_project_operators(torch::stable::detail::StableLibrary& library) {
    library.impl("project", TORCH_BOX(&project));
}

}  // namespace mind
