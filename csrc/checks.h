// Checks of operator arguments. The public functions check theirs in Python already; these checks prevent invalid
// memory accesses if an operator is called directly.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "arguments.h"

namespace mind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
inline constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kScalarType<double> = ScalarType::Double;
template <>
inline constexpr ScalarType kScalarType<std::int64_t> = ScalarType::Long;
template <>
inline constexpr ScalarType kScalarType<std::int32_t> = ScalarType::Int;
template <>
inline constexpr ScalarType kScalarType<bool> = ScalarType::Bool;

inline std::string shape_of(const Tensor& tensor) {
    std::string text = "(";
    for (std::int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
    return text + ")";
}

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> expected) {
    bool equal = tensor.dim() == static_cast<std::int64_t>(expected.size());
    std::string text = "(";
    std::int64_t i = 0;
    for (std::int64_t size : expected) {
        equal = equal && tensor.size(i) == size;
        text += (i++ ? ", " : "") + std::to_string(size);
    }
    STD_TORCH_CHECK(equal, name, " has shape ", shape_of(tensor), ": expected ", text, ")");
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType expected) {
    STD_TORCH_CHECK(tensor.scalar_type() == expected, name, " has dtype ", toString(tensor.scalar_type()),
                    ": expected ", toString(expected));
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& like) {
    STD_TORCH_CHECK(tensor.device() == like.device(), name, " is on another device");
}

// The elements of a contiguous tensor of this type and shape, on the device of `like`.
template <typename T>
T* checked(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape, const Tensor& like) {
    check_shape(name, tensor, shape);
    check_dtype(name, tensor, kScalarType<T>);
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous");
    check_device(name, tensor, like);
    return static_cast<T*>(tensor.data_ptr());
}

// The number converted to float32 for the kernels; `allowed` says whether it is valid, `expected` says in words what
// is.
template <typename Allowed>
float checked_number(const char* name, double value, const char* expected, Allowed allowed) {
    const float number = static_cast<float>(value);
    STD_TORCH_CHECK(std::isfinite(number) && allowed(number), name, " is ", value, ": expected ", expected);
    return number;
}

// `of` is what their names begin with.
inline Conditions conditions_of(double softcap, double temperature, const std::string& of = "") {
    // A softcap that is 0 in float32 would mean no softcap.
    return {checked_number((of + "softcap").c_str(), softcap, "a finite float32 number above 0, or 0 for none",
                           [&](float number) { return number > 0 || softcap == 0; }),
            checked_number((of + "temperature").c_str(), temperature, "a finite float32 number above 0",
                           [](float number) { return number > 0; })};
}

inline float checked_share(const char* name, double value) {
    return checked_number(name, value, "a number in [0, 1]", [](float number) { return number >= 0 && number <= 1; });
}

inline void set_loss(RowArguments& rows, double label_smoothing, double z_loss) {
    rows.label_smoothing = checked_share("label_smoothing", label_smoothing);
    rows.z_loss = checked_number("z_loss", z_loss, "a finite float32 number", [](float) { return true; });
}

inline float checked_log_threshold(double log_threshold) {
    return checked_number("log_threshold", log_threshold, "a finite number, at most 0",
                          [](float number) { return number <= 0; });
}

// values[begin, ..., end - 1], on the host, are in [least, limit).
template <typename T>
void check_indices(const char* name, const T* values, std::int64_t begin, std::int64_t end, std::int64_t limit,
                   std::int64_t least = 0) {
    for (std::int64_t i = begin; i < end; ++i) {
        STD_TORCH_CHECK(values[i] >= least && values[i] < limit, name, "[", i, "] is ", values[i], ": expected ", least,
                        " to ", limit - 1);
    }
}

// Each of the bags has `fewest` entries or more, all of them in [0, limit). The offsets are on the host.
inline void check_offsets(const std::int64_t* offsets, std::int64_t bags, std::int64_t limit, std::int64_t fewest = 0) {
    for (std::int64_t b = 0; b < bags; ++b) {
        STD_TORCH_CHECK(offsets[b + 1] - offsets[b] >= fewest, "offsets ", fewest == 0 ? "decrease" : "do not increase",
                        " at ", b);
    }
    STD_TORCH_CHECK(offsets[0] >= 0 && offsets[bags] <= limit, "offsets reach from ", offsets[0], " to ", offsets[bags],
                    ": expected 0 to ", limit);
}

// float32, bfloat16 or float16, the elements of a row next to one another.
inline void check_matrix(const char* name, const Tensor& tensor, const Tensor& like) {
    STD_TORCH_CHECK(tensor.dim() == 2, name, " has shape ", shape_of(tensor), ": expected two dimensions");
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                    " has dtype ", toString(type), ": expected Float, BFloat16 or Half");
    STD_TORCH_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, name, " has rows that are not contiguous");
    check_device(name, tensor, like);
}

// The memory of a bias, one for each of `vocabulary` entries, in the type of `hidden`; null if there is none.
inline const void* checked_bias(const OptionalTensor& bias, const Tensor& hidden, std::int64_t vocabulary) {
    if (!bias) return nullptr;
    check_shape("bias", *bias, {vocabulary});
    check_dtype("bias", *bias, hidden.scalar_type());
    STD_TORCH_CHECK(bias->is_contiguous(), "bias is not contiguous");
    check_device("bias", *bias, hidden);
    return bias->data_ptr();
}

inline Matrix matrix_of(const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    const Type name = type == ScalarType::Float  ? Type::kFloat
                      : type == ScalarType::Half ? Type::kHalf
                                                 : Type::kBFloat16;
    return {tensor.data_ptr(), name, tensor.size(0), tensor.size(1), tensor.stride(0)};
}

// A matrix that is written: its rows must not overlap.
inline void check_out(const char* name, const Tensor& tensor, const Tensor& like) {
    check_matrix(name, tensor, like);
    STD_TORCH_CHECK(tensor.size(0) <= 1 || tensor.stride(0) >= tensor.size(1), name, " has rows that overlap");
}

// An argument, whose memory is from `begin` to before `end`: `row` bytes every `stride` bytes.
struct Region {
    const char* name;
    std::uintptr_t begin = 0, end = 0, row = 0, stride = 0;

    Region(const char* name, const Tensor& tensor) : name(name) {
        if (tensor.numel() == 0) return;
        const std::int64_t width = tensor.element_size(), last = tensor.dim() - 1;
        std::int64_t reach = 1;
        for (std::int64_t i = 0; i <= last; ++i) reach += (tensor.size(i) - 1) * tensor.stride(i);
        begin = reinterpret_cast<std::uintptr_t>(tensor.data_ptr());
        end = begin + reach * width;
        const bool rows = tensor.dim() == 2 && tensor.stride(1) == 1 && tensor.stride(0) > tensor.size(1);
        row = rows ? tensor.size(1) * width : end - begin;
        stride = rows ? tensor.stride(0) * width : end - begin;
    }
    Region(const char* name, const OptionalTensor& tensor) : name(name) {
        if (tensor) *this = Region(name, *tensor);
    }

    // Columns of one buffer beside one another do not meet, though their rows alternate.
    bool meets(const Region& other) const {
        if (begin >= other.end || other.begin >= end) return false;
        if (stride != other.stride) return true;
        const std::uintptr_t after = (other.begin + stride - begin % stride) % stride;
        return after < row || after + other.row > stride;
    }
};

// No argument that is written shares memory with another one.
inline void check_apart(std::initializer_list<Region> written, std::initializer_list<Region> read) {
    for (const Region& out : written) {
        for (const Region& other : written) {
            STD_TORCH_CHECK(&out == &other || !out.meets(other), out.name, " overlaps ", other.name,
                            ": expected memory of its own");
        }
        for (const Region& in : read) {
            STD_TORCH_CHECK(!out.meets(in), out.name, " overlaps ", in.name, ": expected memory of its own");
        }
    }
}

}  // namespace mind
