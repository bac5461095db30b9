// From tensors to pointers: checks, and the work spread over PyTorch's threads.
#include "operators.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "../checks.h"
#include "kernels.h"

namespace mind {

namespace {

Matrix matrix_of(const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    const Type name = type == ScalarType::Float  ? Type::kFloat
                      : type == ScalarType::Half ? Type::kHalf
                                                 : Type::kBFloat16;
    return {tensor.data_ptr(), name, tensor.size(0), tensor.size(1), tensor.stride(0)};
}

const float* weights(const char* name, const OptionalTensor& tensor, std::int64_t rows, const Tensor& like) {
    if (!tensor) return nullptr;
    check(name, *tensor, ScalarType::Float, {rows}, like);
    return pointer<float>(*tensor);
}

void check_indices(const char* name, const std::int64_t* values, std::int64_t count, std::int64_t limit) {
    for (std::int64_t i = 0; i < count; ++i) {
        STD_TORCH_CHECK(values[i] >= 0 && values[i] < limit, name, "[", i, "] is ", values[i], ": expected 0 to ",
                        limit - 1);
    }
}

// 0 = offsets[0] <= offsets[1] <= ... , and the last one at most `limit`.
void check_offsets(const std::int64_t* offsets, std::int64_t bags, std::int64_t limit) {
    for (std::int64_t b = 0; b < bags; ++b) {
        STD_TORCH_CHECK(offsets[b] <= offsets[b + 1], "offsets decrease at ", b);
    }
    STD_TORCH_CHECK(offsets[0] >= 0 && offsets[bags] <= limit, "offsets reach from ", offsets[0], " to ", offsets[bags],
                    ": expected 0 to ", limit);
}

RowArguments row_arguments(const Tensor& logits, const Tensor& target, double softcap, double temperature,
                           double label_smoothing, double z_loss, const Tensor& numbers) {
    check_matrix("logits", logits, logits);
    const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
    STD_TORCH_CHECK(vocabulary >= 1 && vocabulary <= INT32_MAX, "logits have ", vocabulary, " columns");
    STD_TORCH_CHECK(softcap >= 0 && temperature > 0, "softcap is ", softcap, ", temperature ", temperature);
    check("target", target, ScalarType::Long, {rows}, logits);
    check("numbers", numbers, ScalarType::Float, {7, rows}, logits);
    check_indices("target", pointer<std::int64_t>(target), rows, vocabulary);
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
    const std::int64_t rows = args.logits.rows;
    args.scale = weights("scale", scale, rows, logits);
    args.entropy_scale = weights("entropy_scale", entropy_scale, rows, logits);
    check("correct", correct, ScalarType::Bool, {rows}, logits);
    args.correct = pointer<bool>(correct);
    const Kernels& table = kernels();
    torch::stable::parallel_for(0, rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { table.rows(args, begin, end); });
}

void count(Tensor logits, Tensor target, double softcap, double temperature, double label_smoothing, double z_loss,
           double log_threshold, Tensor numbers, Tensor correct, Tensor kept, Tensor kept_mass) {
    const RowArguments base = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    const std::int64_t rows = base.logits.rows;
    check("correct", correct, ScalarType::Bool, {rows}, logits);
    check("kept", kept, ScalarType::Long, {rows}, logits);
    check("kept_mass", kept_mass, ScalarType::Float, {rows}, logits);
    CountArguments args{base, static_cast<float>(log_threshold), pointer<std::int64_t>(kept),
                        pointer<float>(kept_mass)};
    args.rows.correct = pointer<bool>(correct);
    const Kernels& table = kernels();
    torch::stable::parallel_for(0, rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { table.count(args, begin, end); });
}

void entries(Tensor logits, Tensor target, OptionalTensor scale, OptionalTensor entropy_scale, double softcap,
             double temperature, double label_smoothing, double z_loss, double log_threshold, Tensor numbers,
             Tensor offsets, Tensor columns, Tensor values, Tensor kept_sum) {
    RowArguments base = row_arguments(logits, target, softcap, temperature, label_smoothing, z_loss, numbers);
    const std::int64_t rows = base.logits.rows, total = columns.numel();
    base.scale = weights("scale", scale, rows, logits);
    base.entropy_scale = weights("entropy_scale", entropy_scale, rows, logits);
    STD_TORCH_CHECK(scale.has_value(), "scale is missing");
    check("offsets", offsets, ScalarType::Long, {rows + 1}, logits);
    check("columns", columns, ScalarType::Int, {total}, logits);
    check("values", values, ScalarType::Float, {total}, logits);
    check("kept_sum", kept_sum, ScalarType::Float, {rows}, logits);
    check_offsets(pointer<std::int64_t>(offsets), rows, total);
    const EntryArguments args{base,
                              static_cast<float>(log_threshold),
                              pointer<std::int64_t>(offsets),
                              pointer<std::int32_t>(columns),
                              pointer<float>(values),
                              pointer<float>(kept_sum)};
    const Kernels& table = kernels();
    torch::stable::parallel_for(0, rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { table.entries(args, begin, end); });
}

void background(Tensor logits, Tensor target, double softcap, double temperature, double log_threshold, Tensor numbers,
                Tensor sample, Tensor weight, Tensor out) {
    const RowArguments base = row_arguments(logits, target, softcap, temperature, 0.0, 0.0, numbers);
    const std::int64_t listed = sample.numel(), vocabulary = base.logits.columns;
    check("sample", sample, ScalarType::Long, {listed}, logits);
    check("weight", weight, ScalarType::Float, {listed}, logits);
    check("out", out, ScalarType::Float, {vocabulary}, logits);
    check_indices("sample", pointer<std::int64_t>(sample), listed, base.logits.rows);
    const BackgroundArguments args{base,
                                   static_cast<float>(log_threshold),
                                   pointer<std::int64_t>(sample),
                                   pointer<float>(weight),
                                   listed,
                                   pointer<float>(out)};
    const Kernels& table = kernels();
    torch::stable::parallel_for(0, vocabulary, 1024,
                                [&](std::int64_t begin, std::int64_t end) { table.background(args, begin, end); });
}

void gather_rows(Tensor values, Tensor indices, Tensor offsets, Tensor matrix, Tensor left, Tensor right, Tensor out) {
    check_matrix("matrix", matrix, matrix);
    check_matrix("right", right, matrix);
    check_out("out", out, matrix);
    const std::int64_t total = values.numel(), bags = out.size(0), size = matrix.size(1), rank = right.size(0);
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
    const std::int64_t* starts = pointer<std::int64_t>(offsets);
    check_offsets(starts, bags, total);
    const std::int32_t* rows = pointer<std::int32_t>(indices);
    for (std::int64_t i = starts[0]; i < starts[bags]; ++i) {
        STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < matrix.size(0), "indices[", i, "] is ", rows[i], ": expected 0 to ",
                        matrix.size(0) - 1);
    }
    const GatherArguments args{pointer<float>(values), rows,           starts, matrix_of(matrix), pointer<float>(left),
                               left.stride(0),         left.stride(1), rank,   matrix_of(right),  matrix_of(out)};
    const Kernels& table = kernels();
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
    torch::stable::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
        table.gather(args, first_of(begin), end == parts ? bags : first_of(end));
    });
}

}  // namespace mind
