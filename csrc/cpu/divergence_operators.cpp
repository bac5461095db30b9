// Calls, with tensors as arguments, the kernels of divergence.h and jeffreys.h: checks, and the rows spread over
// PyTorch's threads.
#include "divergence_operators.h"

#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "../operators.h"
#include "kernels.h"

namespace mind {

namespace {

void divergence_(Tensor logits, Tensor teacher_logits, OptionalTensor scale, double softcap, double temperature,
                 double teacher_softcap, double teacher_temperature, double teacher_part, double student_part,
                 double mixture, double interpolation, Tensor divergence, Tensor entropy, Tensor target_entropy) {
    STD_TORCH_CHECK(logits.dim() == 2, "logits have shape ", shape_of(logits), ": expected (n, V)");
    const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
    DivergenceArguments args{};
    args.logits = checked<float>("logits", logits, {rows, vocabulary}, logits);
    args.teacher = checked<float>("teacher_logits", teacher_logits, {rows, vocabulary}, logits);
    args.rows = rows;
    args.vocabulary = vocabulary;
    args.head = conditions_of(softcap, temperature);
    args.teacher_head = conditions_of(teacher_softcap, teacher_temperature, "teacher_");
    args.teacher_part = checked_share("teacher_part", teacher_part);
    args.student_part = checked_share("student_part", student_part);
    args.mixture = checked_share("mixture", mixture);
    args.rest = static_cast<float>(1.0 - mixture);
    args.difference_part = static_cast<float>(teacher_part * (1.0 - mixture) - student_part * mixture);
    args.interpolation = checked_share("interpolation", interpolation);
    if (scale) args.scale = checked<float>("scale", *scale, {rows}, logits);
    args.divergence = checked<float>("divergence", divergence, {rows}, logits);
    args.entropy = checked<float>("entropy", entropy, {rows}, logits);
    args.target_entropy = checked<float>("target_entropy", target_entropy, {rows}, logits);
    check_apart({{"logits", logits},
                 {"teacher_logits", teacher_logits},
                 {"divergence", divergence},
                 {"entropy", entropy},
                 {"target_entropy", target_entropy}},
                {{"scale", scale}});
    torch::stable::parallel_for(0, rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { kernels().divergence(args, begin, end); });
}

OthersArguments others_arguments(const Tensor& logits, double softcap, double temperature, const Tensor& numbers) {
    STD_TORCH_CHECK(logits.dim() == 2, "logits have shape ", shape_of(logits), ": expected (n, V)");
    OthersArguments args{};
    args.rows = logits.size(0);
    args.vocabulary = logits.size(1);
    args.logits = checked<float>("logits", logits, {args.rows, args.vocabulary}, logits);
    args.head = conditions_of(softcap, temperature);
    args.numbers = checked<float>("numbers", numbers, {3, args.rows}, logits);
    return args;
}

void others(Tensor logits, double softcap, double temperature, Tensor numbers) {
    const OthersArguments args = others_arguments(logits, softcap, temperature, numbers);
    check_apart({{"numbers", numbers}}, {{"logits", logits}});
    torch::stable::parallel_for(0, args.rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { kernels().others(args, begin, end); });
}

void spread_(Tensor logits, Tensor numbers, Tensor weight, double softcap, double temperature) {
    OthersArguments args = others_arguments(logits, softcap, temperature, numbers);
    args.weight = checked<float>("weight", weight, {args.rows}, logits);
    check_apart({{"logits", logits}}, {{"numbers", numbers}, {"weight", weight}});
    torch::stable::parallel_for(0, args.rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { kernels().spread(args, begin, end); });
}

void jeffreys_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor divergence, OptionalTensor gradient) {
    run::jeffreys(group_arguments(logits, "pair_weight", pair_weight, mask, divergence, gradient, true));
}

}  // namespace

void define_divergence_operators(torch::stable::detail::StableLibrary& library) {
    library.def(
        "divergence_(Tensor(a!) logits, Tensor(b!) teacher_logits, Tensor? scale, float softcap, float temperature, "
        "float teacher_softcap, float teacher_temperature, float teacher_part, float student_part, float mixture, "
        "float interpolation, Tensor(c!) divergence, Tensor(d!) entropy, Tensor(e!) target_entropy) -> ()");
    library.def(
        "jeffreys_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor(a!) divergence, "
        "Tensor(b!)? gradient) -> ()");
    library.def("others(Tensor logits, float softcap, float temperature, Tensor(a!) numbers) -> ()");
    library.def("spread_(Tensor(a!) logits, Tensor numbers, Tensor weight, float softcap, float temperature) -> ()");
}

void implement_divergence_operators(torch::stable::detail::StableLibrary& library) {
    library.impl("divergence_", TORCH_BOX(&divergence_));
    library.impl("jeffreys_divergences", TORCH_BOX(&jeffreys_divergences));
    library.impl("others", TORCH_BOX(&others));
    library.impl("spread_", TORCH_BOX(&spread_));
}

}  // namespace mind
