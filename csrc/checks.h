// Checks of operator arguments. The public functions have checked theirs in Python already; these keep a direct call of
// an operator from reading or writing where it must not.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

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

// The elements of a contiguous tensor of this type and shape, on the device of `like`.
template <typename T>
T* checked(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape, const Tensor& like) {
    check_shape(name, tensor, shape);
    STD_TORCH_CHECK(tensor.scalar_type() == kScalarType<T>, name, " has dtype number ",
                    static_cast<int>(tensor.scalar_type()), ": expected ", static_cast<int>(kScalarType<T>));
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous");
    STD_TORCH_CHECK(tensor.device() == like.device(), name, " is on another device");
    return static_cast<T*>(tensor.data_ptr());
}

inline Conditions conditions_of(double softcap, double temperature) {
    STD_TORCH_CHECK(softcap >= 0 && temperature > 0, "softcap is ", softcap, ", temperature ", temperature);
    return {static_cast<float>(softcap), static_cast<float>(temperature)};
}

// values[begin, ..., end - 1], on the host, are in [0, limit).
template <typename T>
void check_indices(const char* name, const T* values, std::int64_t begin, std::int64_t end, std::int64_t limit) {
    for (std::int64_t i = begin; i < end; ++i) {
        STD_TORCH_CHECK(values[i] >= 0 && values[i] < limit, name, "[", i, "] is ", values[i], ": expected 0 to ",
                        limit - 1);
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

// float32, bfloat16 or float16, the elements of a row next to one another, and rows that do not overlap.
inline void check_matrix(const char* name, const Tensor& tensor, const Tensor& like) {
    STD_TORCH_CHECK(tensor.dim() == 2, name, " has shape ", shape_of(tensor), ": expected two dimensions");
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                    " has dtype number ", static_cast<int>(type), ": expected float32, bfloat16 or float16");
    STD_TORCH_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, name, " has rows that are not contiguous");
    STD_TORCH_CHECK(tensor.device() == like.device(), name, " is on another device");
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

}  // namespace mind
