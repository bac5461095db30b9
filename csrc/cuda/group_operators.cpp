// The operators of groups of rows on CUDA tensors: checks, and memory for sums of parts of the vocabulary.
#include <torch/csrc/stable/ops.h>

#include "arguments.h"
#include "operators.h"

namespace mind::cuda {

namespace {

// Checks what both forms share. The weight is (G, K, K) of pairs, (G, K) of a mixture.
GroupArguments group_arguments(const Tensor& logits, const Tensor& weight, const Tensor& mask, const Tensor& divergence,
                               const OptionalTensor& gradient, bool of_pairs) {
    STD_TORCH_CHECK(logits.dim() == 3, "logits have shape ", shape_of(logits), ": expected (G, K, V)");
    const std::int64_t groups = logits.size(0), rows = logits.size(1), vocabulary = logits.size(2);
    check_vocabulary(vocabulary);
    STD_TORCH_CHECK(rows == 0 || groups <= INT32_MAX / rows, "logits have ", groups, " x ", rows,
                    " rows: expected fewer than 2^31");
    check("logits", logits, ScalarType::Float, {groups, rows, vocabulary}, logits);
    check("mask", mask, ScalarType::Bool, {groups, rows}, logits);
    if (of_pairs) {
        check("pair_weight", weight, ScalarType::Float, {groups, rows, rows}, logits);
        check("divergence", divergence, ScalarType::Float, {groups, rows, rows}, logits);
    } else {
        check("mixture_weight", weight, ScalarType::Float, {groups, rows}, logits);
        check("divergence", divergence, ScalarType::Float, {groups, rows}, logits);
    }
    if (gradient) check("gradient", *gradient, ScalarType::Float, {groups, rows, vocabulary}, logits);
    return {pointer<float>(logits),
            groups,
            rows,
            vocabulary,
            pointer<float>(weight),
            pointer<bool>(mask),
            pointer<float>(divergence),
            gradient ? pointer<float>(*gradient) : nullptr};
}

}  // namespace

void pair_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor divergence, OptionalTensor gradient) {
    const GroupArguments args = group_arguments(logits, pair_weight, mask, divergence, gradient, true);
    const Tensor workspace = torch::stable::new_empty(logits, {pair_workspace(args)});
    const Launch launch(logits);
    pairs(args, pointer<float>(workspace), launch.stream());
    launch.check("pair_divergences");
}

void mixture_divergences(Tensor logits, Tensor mixture_weight, Tensor mask, Tensor divergence,
                         OptionalTensor gradient) {
    const GroupArguments args = group_arguments(logits, mixture_weight, mask, divergence, gradient, false);
    const Tensor workspace = torch::stable::new_empty(logits, {mixture_workspace(args)});
    const Launch launch(logits);
    mixture(args, pointer<float>(workspace), launch.stream());
    launch.check("mixture_divergences");
}

}  // namespace mind::cuda
