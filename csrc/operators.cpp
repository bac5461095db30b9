// Converts tensors to pointers after checks of shapes, dtypes and devices, for both libraries. Values of targets,
// indices and offsets are checked by csrc/cpu/run_rows.cpp on a CPU, and by the kernels on a GPU, since reading them
// here would mean waiting for the device.
#include "operators.h"

#include "checks.h"
#include "run.h"

namespace mind {

namespace {

// A shard of the vocabulary may be empty.
constexpr std::int64_t kFewestOfShard = 0;

void check_columns(std::int64_t columns, std::int64_t fewest = 1) {
    STD_TORCH_CHECK(columns >= fewest && columns <= run::kMostColumns, "logits have ", columns, " columns: expected ",
                    fewest, " to ", run::kMostColumns);
}

void check_rows(const char* name, std::int64_t rows) {
    STD_TORCH_CHECK(rows <= run::kMostRows, name, " has ", rows, " rows: expected at most ", run::kMostRows);
}

RowArguments row_arguments(const Tensor& logits, const Tensor& target, double softcap, double temperature,
                           double label_smoothing, double z_loss, const Tensor& numbers, std::int64_t fewest = 1) {
    check_matrix("logits", logits, logits);
    const std::int64_t rows = logits.size(0);
    check_columns(logits.size(1), fewest);
    check_rows("logits", rows);
    RowArguments args{};
    args.logits = matrix_of(logits);
    args.target = checked<std::int64_t>("target", target, {rows}, logits);
    args.head = conditions_of(softcap, temperature);
    set_loss(args, label_smoothing, z_loss);
    args.numbers = checked<float>("numbers", numbers, {kRowNumbers, rows}, logits);
    return args;
}

ShardArguments shard_arguments(const Tensor& logits, const Tensor& target, double softcap, double temperature) {
    check_matrix("logits", logits, logits);
    check_columns(logits.size(1), kFewestOfShard);
    check_rows("logits", logits.size(0));
    ShardArguments args{};
    args.logits = matrix_of(logits);
    args.target = checked<std::int64_t>("target", target, {logits.size(0)}, logits);
    args.head = conditions_of(softcap, temperature);
    return args;
}

void set_scales(RowArguments& args, const OptionalTensor& scale, const OptionalTensor& entropy_scale,
                const Tensor& logits) {
    const std::int64_t rows = args.logits.rows;
    if (scale) args.scale = checked<float>("scale", *scale, {rows}, logits);
    if (entropy_scale) args.entropy_scale = checked<float>("entropy_scale", *entropy_scale, {rows}, logits);
}

}  // namespace

WholeRows whole_rows(std::int64_t rows, const Tensor& maximum, const Tensor& log_total, const Tensor& a,
                     const OptionalTensor& b, const Tensor& at_target, const OptionalTensor& uniform,
                     const Tensor& like) {
    const auto of_rows = [&](const char* name, const Tensor& tensor) {
        return checked<float>(name, tensor, {rows}, like);
    };
    WholeRows whole{};
    whole.maximum = of_rows("maximum", maximum);
    whole.log_total = of_rows("log_total", log_total);
    whole.a = of_rows("a", a);
    if (b) whole.b = of_rows("b", *b);
    whole.at_target = of_rows("at_target", at_target);
    if (uniform) whole.uniform = of_rows("uniform", *uniform);
    return whole;
}

GroupArguments group_arguments(const Tensor& logits, const char* weight_name, const Tensor& weight, const Tensor& mask,
                               const Tensor& divergence, const OptionalTensor& gradient, bool of_pairs) {
    STD_TORCH_CHECK(logits.dim() == 3, "logits have shape ", shape_of(logits), ": expected (G, K, V)");
    const std::int64_t groups = logits.size(0), count = logits.size(1), vocabulary = logits.size(2);
    check_columns(vocabulary);
    STD_TORCH_CHECK(count == 0 || groups <= run::kMostRows / count, "logits have ", groups, " x ", count,
                    " rows: expected at most ", run::kMostRows);
    const auto shaped_as_weight = [&](const char* name, const Tensor& tensor) {
        return of_pairs ? checked<float>(name, tensor, {groups, count, count}, logits)
                        : checked<float>(name, tensor, {groups, count}, logits);
    };
    GroupArguments args{};
    args.logits = checked<float>("logits", logits, {groups, count, vocabulary}, logits);
    args.groups = groups;
    args.count = count;
    args.vocabulary = vocabulary;
    args.weight = shaped_as_weight(weight_name, weight);
    args.mask = checked<bool>("mask", mask, {groups, count}, logits);
    args.divergence = shaped_as_weight("divergence", divergence);
    if (gradient) args.gradient = checked<float>("gradient", *gradient, {groups, count, vocabulary}, logits);
    check_apart({{"divergence", divergence}, {"gradient", gradient}},
                {{"logits", logits}, {weight_name, weight}, {"mask", mask}});
    return args;
}

void row_kernel_(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
                 double temperature, double label_smoothing, double z_loss, Tensor numbers, Tensor correct) {
    check_out("logits", logits, logits);
    RowArguments args = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    set_scales(args, scale, entropy_scale, logits);
    args.correct = checked<bool>("correct", correct, {args.logits.rows}, logits);
    check_apart({{"logits", logits}, {"numbers", numbers}, {"correct", correct}},
                {{"target", target}, {"scale", scale}, {"entropy_scale", entropy_scale}});
    run::rows(args, logits);
}

void count(Tensor logits, Tensor target, double softcap, double temperature, double label_smoothing, double z_loss,
           double log_threshold, Tensor numbers, Tensor correct, Tensor kept, Tensor dropped_mass) {
    CountArguments args{};
    args.rows = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    const std::int64_t rows = args.rows.logits.rows;
    args.rows.correct = checked<bool>("correct", correct, {rows}, logits);
    args.log_threshold = checked_log_threshold(log_threshold);
    args.kept = checked<std::int64_t>("kept", kept, {rows}, logits);
    args.dropped_mass = checked<float>("dropped_mass", dropped_mass, {rows}, logits);
    check_apart({{"numbers", numbers}, {"correct", correct}, {"kept", kept}, {"dropped_mass", dropped_mass}},
                {{"logits", logits}, {"target", target}});
    run::count(args, logits);
}

void entries(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
             double temperature, double label_smoothing, double z_loss, double log_threshold, Tensor numbers,
             Tensor offsets, Tensor columns, Tensor values, Tensor kept_sum) {
    STD_TORCH_CHECK(scale.has_value(), "scale is missing");
    EntryArguments args{};
    args.rows = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers, kFewestOfShard);
    set_scales(args.rows, scale, entropy_scale, logits);
    const std::int64_t rows = args.rows.logits.rows, total = columns.numel();
    args.log_threshold = checked_log_threshold(log_threshold);
    args.offsets = checked<std::int64_t>("offsets", offsets, {rows + 1}, logits);
    args.total = total;
    args.columns = checked<std::int32_t>("columns", columns, {total}, logits);
    args.values = checked<float>("values", values, {total}, logits);
    args.kept_sum = checked<float>("kept_sum", kept_sum, {rows}, logits);
    check_apart({{"columns", columns}, {"values", values}, {"kept_sum", kept_sum}}, {{"logits", logits},
                                                                                     {"target", target},
                                                                                     {"scale", scale},
                                                                                     {"entropy_scale", entropy_scale},
                                                                                     {"numbers", numbers},
                                                                                     {"offsets", offsets}});
    run::entries(args, logits);
}

void background(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                Tensor sample, Tensor weight, Tensor out) {
    BackgroundArguments args{};
    args.rows = row_arguments(logits, target, softcap, temperature, 0.0, 0.0, numbers, kFewestOfShard);
    args.log_threshold = checked_log_threshold(log_threshold);
    args.count = sample.numel();
    args.sample = checked<std::int64_t>("sample", sample, {args.count}, logits);
    args.weight = checked<float>("weight", weight, {args.count}, logits);
    args.out = checked<float>("out", out, {args.rows.logits.columns}, logits);
    check_apart({{"out", out}},
                {{"logits", logits}, {"target", target}, {"numbers", numbers}, {"sample", sample}, {"weight", weight}});
    run::background(args, logits);
}

void shard_sums(Tensor logits, Tensor target, double softcap, double temperature, bool adds_logits, Tensor sums,
                Tensor argmax) {
    ShardArguments args = shard_arguments(logits, target, softcap, temperature);
    args.adds_logits = adds_logits;
    args.sums = checked<float>("sums", sums, {kShardSums, args.logits.rows}, logits);
    args.argmax = checked<std::int64_t>("argmax", argmax, {args.logits.rows}, logits);
    check_apart({{"sums", sums}, {"argmax", argmax}}, {{"logits", logits}, {"target", target}});
    run::shard_sums(args, logits);
}

void shard_gradient_(Tensor logits, Tensor target, double softcap, double temperature, Tensor maximum, Tensor log_total,
                     Tensor a, OptionalTensor b, Tensor at_target, OptionalTensor uniform) {
    check_out("logits", logits, logits);
    ShardArguments args = shard_arguments(logits, target, softcap, temperature);
    args.whole = whole_rows(args.logits.rows, maximum, log_total, a, b, at_target, uniform, logits);
    check_apart({{"logits", logits}}, {{"target", target},
                                       {"maximum", maximum},
                                       {"log_total", log_total},
                                       {"a", a},
                                       {"b", b},
                                       {"at_target", at_target},
                                       {"uniform", uniform}});
    run::shard_gradient(args, logits);
}

void shard_count(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                 Tensor kept, Tensor kept_mass) {
    ShardCountArguments args{};
    args.rows = row_arguments(logits, target, softcap, temperature, 0.0, 0.0, numbers, kFewestOfShard);
    const std::int64_t rows = args.rows.logits.rows;
    args.log_threshold = checked_log_threshold(log_threshold);
    args.kept = checked<std::int64_t>("kept", kept, {rows}, logits);
    args.kept_mass = checked<float>("kept_mass", kept_mass, {rows}, logits);
    check_apart({{"kept", kept}, {"kept_mass", kept_mass}},
                {{"logits", logits}, {"target", target}, {"numbers", numbers}});
    run::shard_count(args, logits);
}

void gather_rows(Tensor values, Tensor indices, Tensor offsets, Tensor matrix, Tensor left, Tensor right, Tensor out) {
    check_matrix("matrix", matrix, matrix);
    check_matrix("right", right, matrix);
    check_out("out", out, matrix);
    const std::int64_t bags = out.size(0), size = matrix.size(1), rank = right.size(0);
    check_rows("out", bags);
    check_shape("left", left, {bags, rank});
    check_shape("right", right, {rank, size});
    check_shape("out", out, {bags, size});
    check_dtype("left", left, ScalarType::Float);
    check_device("left", left, matrix);
    check_dtype("right", right, matrix.scalar_type());
    if (out.scalar_type() != ScalarType::Float) check_dtype("out", out, matrix.scalar_type());
    GatherArguments args{};
    args.total = values.numel();
    args.values = checked<float>("values", values, {args.total}, matrix);
    args.indices = checked<std::int32_t>("indices", indices, {args.total}, matrix);
    args.offsets = checked<std::int64_t>("offsets", offsets, {bags + 1}, matrix);
    args.matrix = matrix_of(matrix);
    args.left = static_cast<const float*>(left.data_ptr());
    args.left_stride = left.stride(0);
    args.left_column_stride = left.stride(1);
    args.right = matrix_of(right);
    args.out = matrix_of(out);
    check_apart({{"out", out}}, {{"values", values},
                                 {"indices", indices},
                                 {"offsets", offsets},
                                 {"matrix", matrix},
                                 {"left", left},
                                 {"right", right}});
    run::gather(args, matrix);
}

void pair_divergences(Tensor logits, Tensor pair_weight, Tensor mask, Tensor divergence, OptionalTensor gradient) {
    run::pairs(group_arguments(logits, "pair_weight", pair_weight, mask, divergence, gradient, true), logits);
}

void mixture_divergences(Tensor logits, Tensor mixture_weight, Tensor mask, Tensor divergence,
                         OptionalTensor gradient) {
    run::mixture(group_arguments(logits, "mixture_weight", mixture_weight, mask, divergence, gradient, false), logits);
}

}  // namespace mind
