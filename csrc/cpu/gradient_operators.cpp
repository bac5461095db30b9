// Calls, with tensors as arguments, the kernels of gradient.h: checks, memory, and the work spread over PyTorch's
// threads.
#include "gradient_operators.h"

#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "../operators.h"
#include "kernels.h"
#include "memory.h"

namespace mind {

void check_transposed(const char* name, const Tensor& logits, std::int64_t vocabulary, std::int64_t rows) {
    STD_TORCH_CHECK(logits.dim() == 2, name, " has shape ", shape_of(logits), ": expected two dimensions");
    checked<float>(name, logits, {logits.size(0), logits.size(1)}, logits);
    const std::int64_t entries = (vocabulary + kBlock - 1) / kBlock * kBlock, columns = (rows + 15) / 16 * 16;
    STD_TORCH_CHECK(logits.size(1) % 16 == 0 && reinterpret_cast<std::uintptr_t>(logits.data_ptr()) % 64 == 0, name,
                    " has rows that are not whole cache lines");
    STD_TORCH_CHECK(logits.size(0) >= entries && logits.size(1) >= columns, name, " has shape ", shape_of(logits),
                    ": expected (", entries, ", ", columns, ") or more");
}

void run_products(ProductWork& work, std::int64_t coefficients, const std::function<void()>& prepare,
                  const std::function<void(float*, std::int64_t, std::int64_t)>& gradient) {
    if (work.of_weight != nullptr && !work.add_weight) {
        const std::int64_t size = work.weight.rows * work.weight.columns;
        prefer_large_pages(work.of_weight, size * static_cast<std::int64_t>(sizeof(float)));
    }
    const Kernels& table = kernels();
    const std::int64_t scratch_size = table.plan_products(work, torch::stable::get_num_threads());
    const Memory<float> packed = allocate<float>(work.hidden.rows * work.padded_columns);
    const Memory<float> of_rows = allocate<float>(coefficients * work.stride);
    const Memory<float> sums =
        allocate<float>(work.of_hidden == nullptr ? 0 : work.parts * work.padded_rows * work.padded_columns);
    work.packed = packed.get();
    work.coefficients = of_rows.get();
    work.sums = sums.get();
    table.pack_products(work);
    prepare();
    torch::stable::parallel_for(0, work.parts, 1, [&](std::int64_t begin, std::int64_t end) {
        const Memory<float> scratch = allocate<float>(scratch_size);
        gradient(scratch.get(), begin, end);
    });
    if (work.of_hidden == nullptr) return;
    torch::stable::parallel_for(0, work.hidden.rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { table.join_products(work, begin, end); });
}

void set_factors(ProductWork& work, const Tensor& hidden, const Tensor& weight, const OptionalTensor& of_hidden,
                 const OptionalTensor& of_weight, bool add_weight, const OptionalTensor& of_bias) {
    check_matrix("hidden", hidden, hidden);
    check_matrix("weight", weight, hidden);
    const std::int64_t rows = hidden.size(0), size = hidden.size(1), vocabulary = weight.size(0);
    check_shape("weight", weight, {vocabulary, size});
    check_dtype("weight", weight, hidden.scalar_type());
    work.hidden = matrix_of(hidden);
    work.weight = matrix_of(weight);
    if (of_hidden) work.of_hidden = checked<float>("of_hidden", *of_hidden, {rows, size}, hidden);
    if (of_weight) work.of_weight = checked<float>("of_weight", *of_weight, {vocabulary, size}, hidden);
    work.add_weight = add_weight;
    if (of_bias) work.of_bias = checked<float>("of_bias", *of_bias, {vocabulary}, hidden);
}

void set_products(ProductWork& work, const Tensor& logits, const Tensor& hidden, const Tensor& weight,
                  const OptionalTensor& of_hidden, const OptionalTensor& of_weight, bool add_weight,
                  const OptionalTensor& of_bias) {
    set_factors(work, hidden, weight, of_hidden, of_weight, add_weight, of_bias);
    check_transposed("logits", logits, weight.size(0), hidden.size(0));
    work.logits = static_cast<const float*>(logits.data_ptr());
    work.logits_stride = logits.size(1);
}

namespace {

void run_gradient(GradientWork& work) {
    if (work.hidden.rows == 0) return;
    const Kernels& table = kernels();
    run_products(
        work, kCoefficients, [&] { table.prepare_gradient(work); },
        [&](float* scratch, std::int64_t begin, std::int64_t end) { table.gradient(work, scratch, begin, end); });
}

void exact_products(Tensor logits, Tensor hidden, Tensor weight, Tensor target, Tensor scale,
                    OptionalTensor entropy_scale, OptionalTensor at_target, double softcap, double temperature,
                    double label_smoothing, double z_loss, Tensor numbers, OptionalTensor of_hidden,
                    OptionalTensor of_weight, bool add_weight, OptionalTensor of_bias) {
    GradientWork work{};
    set_products(work, logits, hidden, weight, of_hidden, of_weight, add_weight, of_bias);
    const std::int64_t rows = hidden.size(0), vocabulary = weight.size(0);
    work.rows.logits = {nullptr, Type::kFloat, rows, vocabulary, vocabulary};
    work.rows.target = checked<std::int64_t>("target", target, {rows}, hidden);
    work.rows.scale = checked<float>("scale", scale, {rows}, hidden);
    if (entropy_scale) work.rows.entropy_scale = checked<float>("entropy_scale", *entropy_scale, {rows}, hidden);
    if (at_target) work.at_target = checked<float>("at_target", *at_target, {rows}, hidden);
    work.rows.head = conditions_of(softcap, temperature);
    set_loss(work.rows, label_smoothing, z_loss);
    work.rows.numbers = checked<float>("numbers", numbers, {kRowNumbers, rows}, hidden);
    check_indices("target", work.rows.target, 0, rows, vocabulary);
    check_apart({{"of_hidden", of_hidden}, {"of_weight", of_weight}, {"of_bias", of_bias}},
                {{"logits", logits},
                 {"hidden", hidden},
                 {"weight", weight},
                 {"target", target},
                 {"scale", scale},
                 {"entropy_scale", entropy_scale},
                 {"at_target", at_target},
                 {"numbers", numbers}});
    run_gradient(work);
}

void shard_products(Tensor logits, Tensor hidden, Tensor weight, Tensor target, double softcap, double temperature,
                    Tensor maximum, Tensor log_total, Tensor a, OptionalTensor b, Tensor at_target,
                    OptionalTensor uniform, OptionalTensor of_hidden, OptionalTensor of_weight, bool add_weight,
                    OptionalTensor of_bias) {
    GradientWork work{};
    set_products(work, logits, hidden, weight, of_hidden, of_weight, add_weight, of_bias);
    const std::int64_t rows = hidden.size(0), vocabulary = weight.size(0);
    work.rows.logits = {nullptr, Type::kFloat, rows, vocabulary, vocabulary};
    work.rows.target = checked<std::int64_t>("target", target, {rows}, hidden);
    work.rows.head = conditions_of(softcap, temperature);
    work.whole = whole_rows(rows, maximum, log_total, a, b, at_target, uniform, hidden);
    check_indices("target", work.rows.target, 0, rows, vocabulary, -1);
    check_apart({{"of_hidden", of_hidden}, {"of_weight", of_weight}, {"of_bias", of_bias}}, {{"logits", logits},
                                                                                             {"hidden", hidden},
                                                                                             {"weight", weight},
                                                                                             {"target", target},
                                                                                             {"maximum", maximum},
                                                                                             {"log_total", log_total},
                                                                                             {"a", a},
                                                                                             {"b", b},
                                                                                             {"at_target", at_target},
                                                                                             {"uniform", uniform}});
    run_gradient(work);
}

void dense_products(Tensor gradient, Tensor hidden, Tensor weight, OptionalTensor of_hidden, OptionalTensor of_weight,
                    bool add_weight, OptionalTensor of_bias) {
    DenseWork work{};
    set_factors(work, hidden, weight, of_hidden, of_weight, add_weight, of_bias);
    work.gradient = checked<float>("gradient", gradient, {hidden.size(0), weight.size(0)}, hidden);
    check_apart({{"of_hidden", of_hidden}, {"of_weight", of_weight}, {"of_bias", of_bias}},
                {{"gradient", gradient}, {"hidden", hidden}, {"weight", weight}});
    if (hidden.size(0) == 0) return;
    const Kernels& table = kernels();
    run_products(
        work, 0, [] {},
        [&](float* scratch, std::int64_t begin, std::int64_t end) { table.dense_gradient(work, scratch, begin, end); });
}

}  // namespace

void define_gradient_operators(torch::stable::detail::StableLibrary& library) {
    library.def(
        "exact_products(Tensor logits, Tensor hidden, Tensor weight, Tensor target, Tensor scale, "
        "Tensor? entropy_scale, Tensor? at_target, float softcap, float temperature, float label_smoothing, "
        "float z_loss, Tensor numbers, Tensor(a!)? of_hidden, Tensor(b!)? of_weight, bool add_weight, "
        "Tensor(c!)? of_bias) -> ()");
    library.def(
        "shard_products(Tensor logits, Tensor hidden, Tensor weight, Tensor target, float softcap, float temperature, "
        "Tensor maximum, Tensor log_total, Tensor a, Tensor? b, Tensor at_target, Tensor? uniform, "
        "Tensor(a!)? of_hidden, Tensor(b!)? of_weight, bool add_weight, Tensor(c!)? of_bias) -> ()");
    library.def(
        "dense_products(Tensor gradient, Tensor hidden, Tensor weight, Tensor(a!)? of_hidden, Tensor(b!)? of_weight, "
        "bool add_weight, Tensor(c!)? of_bias) -> ()");
}

void implement_gradient_operators(torch::stable::detail::StableLibrary& library) {
    library.impl("exact_products", TORCH_BOX(&exact_products));
    library.impl("shard_products", TORCH_BOX(&shard_products));
    library.impl("dense_products", TORCH_BOX(&dense_products));
}

}  // namespace mind
