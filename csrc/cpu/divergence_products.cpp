// Calls, with tensors as arguments, the kernels of divergence_gradient.h: checks, memory, and the work spread over
// PyTorch's threads.
#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "divergence_operators.h"
#include "gradient_operators.h"
#include "kernels.h"
#include "listed.h"
#include "memory.h"

namespace mind {

namespace {

void run(DivergenceWork& work) {
    const Kernels& table = kernels();
    Memory<float> values;
    Memory<double> weighted, mass;
    const auto prepare = [&] {
        values = allocate<float>(work.blocks * work.stride);
        work.values = values.get();
        table.prepare_divergence(work);
        if (work.mixture == 0.0f) return;
        weighted = allocate<double>(work.blocks * work.stride);
        mass = allocate<double>(work.blocks * work.stride);
        work.weighted = weighted.get();
        work.mass = mass.get();
        torch::stable::parallel_for(0, work.blocks, 1, [&](std::int64_t begin, std::int64_t end) {
            table.divergence_slopes(work, begin, end);
        });
        table.divergence_shares(work);
    };
    run_products(work, kDivergenceCoefficients, prepare, [&](float* scratch, std::int64_t begin, std::int64_t end) {
        table.divergence_gradient(work, scratch, begin, end);
    });
    table.join_divergence(work);
}

void divergence_products(Tensor logits, Tensor teacher_logits, Tensor hidden, Tensor weight, Tensor softmax,
                         Tensor teacher_softmax, Tensor scale, double softcap, double temperature, double teacher_part,
                         double student_part, double mixture, Tensor divergence, OptionalTensor of_hidden,
                         OptionalTensor of_weight, bool add_weight, OptionalTensor of_bias) {
    DivergenceWork work{};
    set_products(work, logits, hidden, weight, of_hidden, of_weight, add_weight, of_bias);
    const std::int64_t rows = hidden.size(0), vocabulary = weight.size(0);
    check_transposed("teacher_logits", teacher_logits, vocabulary, rows);
    STD_TORCH_CHECK(teacher_logits.size(1) == logits.size(1), "teacher_logits has shape ", shape_of(teacher_logits),
                    ": expected ", logits.size(1), " columns, as logits have");
    work.teacher = static_cast<float*>(teacher_logits.data_ptr());
    work.beside = work.teacher;
    work.head = conditions_of(softcap, temperature);
    work.softmax = checked<double>("softmax", softmax, {kSoftmaxNumbers, rows}, hidden);
    work.teacher_softmax = checked<double>("teacher_softmax", teacher_softmax, {kSoftmaxNumbers, rows}, hidden);
    work.scale = checked<float>("scale", scale, {rows}, hidden);
    work.teacher_part = checked_share("teacher_part", teacher_part);
    work.student_part = checked_share("student_part", student_part);
    work.mixture = checked_share("mixture", mixture);
    work.rest = static_cast<float>(1.0 - mixture);
    work.difference_part = static_cast<float>(teacher_part * (1.0 - mixture) - student_part * mixture);
    work.divergence = checked<float>("divergence", divergence, {rows}, hidden);
    check_apart({{"teacher_logits", teacher_logits},
                 {"divergence", divergence},
                 {"of_hidden", of_hidden},
                 {"of_weight", of_weight},
                 {"of_bias", of_bias}},
                {{"logits", logits},
                 {"hidden", hidden},
                 {"weight", weight},
                 {"softmax", softmax},
                 {"teacher_softmax", teacher_softmax},
                 {"scale", scale}});
    if (rows > 0) run(work);
}

void listed_products(Tensor logits, Tensor hidden, Tensor weight, Tensor ids, Tensor softmax, Tensor others_weight,
                     Tensor at_listed, double softcap, double temperature, OptionalTensor of_hidden,
                     OptionalTensor of_weight, bool add_weight, OptionalTensor of_bias) {
    ListedWork work{};
    set_products(work, logits, hidden, weight, of_hidden, of_weight, add_weight, of_bias);
    const std::int64_t rows = hidden.size(0);
    const ListedBlocks of_ids(ids, rows, weight.size(0), hidden);
    work.listed = of_ids.tokens();
    work.head = conditions_of(softcap, temperature);
    work.softmax = checked<double>("softmax", softmax, {kSoftmaxNumbers, rows}, hidden);
    work.weight_of_others = checked<float>("others_weight", others_weight, {rows}, hidden);
    work.at_listed = checked<float>("at_listed", at_listed, {rows, work.listed.count}, hidden);
    check_apart({{"of_hidden", of_hidden}, {"of_weight", of_weight}, {"of_bias", of_bias}},
                {{"logits", logits},
                 {"hidden", hidden},
                 {"weight", weight},
                 {"ids", ids},
                 {"softmax", softmax},
                 {"others_weight", others_weight},
                 {"at_listed", at_listed}});
    if (rows == 0) return;
    const Kernels& table = kernels();
    run_products(
        work, kListedCoefficients, [&] { table.prepare_listed(work); },
        [&](float* scratch, std::int64_t begin, std::int64_t end) {
            table.listed_gradient(work, scratch, begin, end);
        });
}

}  // namespace

void define_divergence_products(torch::stable::detail::StableLibrary& library) {
    library.def(
        "divergence_products(Tensor logits, Tensor(a!) teacher_logits, Tensor hidden, Tensor weight, Tensor softmax, "
        "Tensor teacher_softmax, Tensor scale, float softcap, float temperature, float teacher_part, "
        "float student_part, float mixture, Tensor(b!) divergence, Tensor(c!)? of_hidden, Tensor(d!)? of_weight, "
        "bool add_weight, Tensor(e!)? of_bias) -> ()");
    library.def(
        "listed_products(Tensor logits, Tensor hidden, Tensor weight, Tensor ids, Tensor softmax, "
        "Tensor others_weight, Tensor at_listed, float softcap, float temperature, Tensor(a!)? of_hidden, "
        "Tensor(b!)? of_weight, bool add_weight, Tensor(c!)? of_bias) -> ()");
}

void implement_divergence_products(torch::stable::detail::StableLibrary& library) {
    library.impl("divergence_products", TORCH_BOX(&divergence_products));
    library.impl("listed_products", TORCH_BOX(&listed_products));
}

}  // namespace mind
