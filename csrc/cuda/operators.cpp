// From tensors to pointers and a stream: checks of shapes, dtypes and devices. Values of targets, indices and offsets
// are checked by the kernels: to read them here would wait for the device.
#include "operators.h"

#include "arguments.h"

namespace mind::cuda {

namespace {

const float* weights(const char* name, const OptionalTensor& tensor, std::int64_t rows, const Tensor& like) {
    if (!tensor) return nullptr;
    check(name, *tensor, ScalarType::Float, {rows}, like);
    return pointer<float>(*tensor);
}

RowArguments row_arguments(const Tensor& logits, const Tensor& target, double softcap, double temperature,
                           double label_smoothing, double z_loss, const Tensor& numbers) {
    check_matrix("logits", logits, logits);
    const std::int64_t rows = logits.size(0);
    check_vocabulary(logits.size(1));
    check_rows("logits", rows);
    STD_TORCH_CHECK(softcap >= 0 && temperature > 0, "softcap is ", softcap, ", temperature ", temperature);
    check("target", target, ScalarType::Long, {rows}, logits);
    check("numbers", numbers, ScalarType::Float, {kNumbers, rows}, logits);
    RowArguments out{};
    out.logits = matrix_of(logits);
    out.target = pointer<std::int64_t>(target);
    out.head = {static_cast<float>(softcap), static_cast<float>(temperature)};
    out.label_smoothing = static_cast<float>(label_smoothing);
    out.z_loss = static_cast<float>(z_loss);
    out.numbers = pointer<float>(numbers);
    return out;
}

}  // namespace

void row_kernel_(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
                 double temperature, double label_smoothing, double z_loss, Tensor numbers, Tensor correct) {
    check_out("logits", logits, logits);
    RowArguments args = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    args.scale = weights("scale", scale, args.logits.rows, logits);
    args.entropy_scale = weights("entropy_scale", entropy_scale, args.logits.rows, logits);
    check("correct", correct, ScalarType::Bool, {args.logits.rows}, logits);
    args.correct = pointer<bool>(correct);
    const Launch launch(logits);
    rows(args, launch.stream());
    launch.check("row_kernel_");
}

void count(Tensor logits, Tensor target, double softcap, double temperature, double label_smoothing, double z_loss,
           double log_threshold, Tensor numbers, Tensor correct, Tensor kept, Tensor kept_mass) {
    RowArguments base = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    const std::int64_t rows = base.logits.rows;
    check("correct", correct, ScalarType::Bool, {rows}, logits);
    check("kept", kept, ScalarType::Long, {rows}, logits);
    check("kept_mass", kept_mass, ScalarType::Float, {rows}, logits);
    base.correct = pointer<bool>(correct);
    const Launch launch(logits);
    count({base, static_cast<float>(log_threshold), pointer<std::int64_t>(kept), pointer<float>(kept_mass)},
          launch.stream());
    launch.check("count");
}

void entries(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
             double temperature, double label_smoothing, double z_loss, double log_threshold, Tensor numbers,
             Tensor offsets, Tensor columns, Tensor values, Tensor kept_sum) {
    RowArguments base = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    const std::int64_t rows = base.logits.rows, total = columns.numel();
    STD_TORCH_CHECK(scale.has_value(), "scale is missing");
    base.scale = weights("scale", scale, rows, logits);
    base.entropy_scale = weights("entropy_scale", entropy_scale, rows, logits);
    check("offsets", offsets, ScalarType::Long, {rows + 1}, logits);
    check("columns", columns, ScalarType::Int, {total}, logits);
    check("values", values, ScalarType::Float, {total}, logits);
    check("kept_sum", kept_sum, ScalarType::Float, {rows}, logits);
    const Launch launch(logits);
    entries({base, static_cast<float>(log_threshold), pointer<std::int64_t>(offsets), total,
             pointer<std::int32_t>(columns), pointer<float>(values), pointer<float>(kept_sum)},
            launch.stream());
    launch.check("entries");
}

void background(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                Tensor sample, Tensor weight, Tensor out) {
    const RowArguments base = row_arguments(logits, target, softcap, temperature, 0.0, 0.0, numbers);
    const std::int64_t listed = sample.numel();
    check("sample", sample, ScalarType::Long, {listed}, logits);
    check("weight", weight, ScalarType::Float, {listed}, logits);
    check("out", out, ScalarType::Float, {base.logits.columns}, logits);
    const Launch launch(logits);
    background({base, static_cast<float>(log_threshold), pointer<std::int64_t>(sample), pointer<float>(weight), listed,
                pointer<float>(out)},
               launch.stream());
    launch.check("background");
}

void gather_rows(Tensor values, Tensor indices, Tensor offsets, Tensor matrix, Tensor left, Tensor right, Tensor out) {
    check_matrix("matrix", matrix, matrix);
    check_matrix("right", right, matrix);
    check_out("out", out, matrix);
    const std::int64_t total = values.numel(), bags = out.size(0), size = matrix.size(1), rank = right.size(0);
    check_rows("out", bags);
    check("values", values, ScalarType::Float, {total}, matrix);
    check("indices", indices, ScalarType::Int, {total}, matrix);
    check("offsets", offsets, ScalarType::Long, {bags + 1}, matrix);
    check_shape("left", left, {bags, rank});
    check_shape("right", right, {rank, size});
    check_shape("out", out, {bags, size});
    STD_TORCH_CHECK(left.scalar_type() == ScalarType::Float && left.device() == matrix.device(),
                    "left: expected float32 on the device of matrix");
    STD_TORCH_CHECK(right.scalar_type() == matrix.scalar_type(), "right: expected the dtype of matrix");
    STD_TORCH_CHECK(out.scalar_type() == matrix.scalar_type() || out.scalar_type() == ScalarType::Float,
                    "out: expected the dtype of matrix, or float32");
    const Launch launch(matrix);
    gather({pointer<float>(values), pointer<std::int32_t>(indices), total, pointer<std::int64_t>(offsets),
            matrix_of(matrix), pointer<float>(left), left.stride(0), left.stride(1), matrix_of(right), matrix_of(out)},
           launch.stream());
    launch.check("gather_rows");
}

}  // namespace mind::cuda
