// Weighted sums of gathered matrix rows: what a sparse matrix product comes to.
//
// Four entries at a time, so that four rows are on their way from memory; a block of columns is summed in the L1 cache.
#pragma once

#include "logits_row.h"

namespace mind::MIND_CAPABILITY {

// Columns of a block: its sums take 4 KiB.
constexpr std::int64_t kColumns = 1024;
constexpr int kRows = 4;

template <typename T>
inline const T* row_of(const Matrix& matrix, std::int64_t row, std::int64_t column) {
    return static_cast<const T*>(matrix.data) + row * matrix.stride + column;
}

// sums[j] += sum over kCount rows of factors[k] rows[k][j], j < count.
template <int kCount, typename T>
inline void add_rows(float* sums, const float* factors, const T* const* rows, std::int64_t count) {
    std::int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
        Floats part = load(rows[0] + j) * factors[0];
        for (int k = 1; k < kCount; ++k) part += load(rows[k] + j) * factors[k];
        store(sums + j, load(sums + j) + part);
    }
    if (j < count) {
        Floats part = load_first(rows[0] + j, count - j, 0.0f) * factors[0];
        for (int k = 1; k < kCount; ++k) part += load_first(rows[k] + j, count - j, 0.0f) * factors[k];
        store_first(sums + j, load_first(sums + j, count - j, 0.0f) + part, count - j);
    }
}

template <typename T, typename Out>
inline void gather_bag(const GatherArguments& args, std::int64_t bag, std::int64_t column, std::int64_t count) {
    float sums[kColumns];
    for (std::int64_t j = 0; j < count; ++j) sums[j] = 0.0f;
    const auto row = [&](std::int64_t entry) { return row_of<T>(args.matrix, args.indices[entry], column); };
    std::int64_t i = args.offsets[bag];
    const std::int64_t last = args.offsets[bag + 1];
    for (; i + kRows <= last; i += kRows) {
        const T* const rows[kRows] = {row(i), row(i + 1), row(i + 2), row(i + 3)};
        add_rows<kRows>(sums, args.values + i, rows, count);
    }
    for (; i < last; ++i) {
        const T* const rows[1] = {row(i)};
        add_rows<1>(sums, args.values + i, rows, count);
    }
    for (std::int64_t r = 0; r < args.right.rows; ++r) {
        const T* const rows[1] = {row_of<T>(args.right, r, column)};
        add_rows<1>(sums, args.left + bag * args.left_stride + r * args.left_column_stride, rows, count);
    }
    Out* out = static_cast<Out*>(args.out.data) + bag * args.out.stride + column;
    std::int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) store(out + j, load(sums + j));
    if (j < count) store_first(out + j, load_first(sums + j, count - j, 0.0f), count - j);
}

template <typename T, typename Out>
inline void gather_bags(const GatherArguments& args, std::int64_t begin, std::int64_t end) {
    for (std::int64_t bag = begin; bag < end; ++bag) {
        for (std::int64_t column = 0; column < args.matrix.columns; column += kColumns) {
            const std::int64_t rest = args.matrix.columns - column;
            gather_bag<T, Out>(args, bag, column, rest < kColumns ? rest : kColumns);
        }
    }
}

inline void run_gather(const GatherArguments& args, std::int64_t begin, std::int64_t end) {
    with_type(args.matrix.type, [&]<typename T>(T*) {
        if (args.out.type == Type::kFloat) {
            gather_bags<T, float>(args, begin, end);
        } else {
            gather_bags<T, T>(args, begin, end);
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
