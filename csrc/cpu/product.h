// Products in float32, a block of rows by a panel of columns at a time.
//
// A tile is kPanel rows by the columns of a panel: its sums stay in registers while the depth goes by. The columns are
// the lanes, so panels are packed, as (depth, columns); the elements of the other factor are read one at a time, in any
// layout, which leaves them where they are. For one step of the depth a tile of 8 x 48 takes 24 multiply-adds and 11
// loads. It reaches 95 % of the processor's rate (Xeon, AVX-512 and AVX2).
//
//                rows                  panel                              depth
//   logits       weight (block)        hidden^T, a strip of its rows      D
//   dW           dlogits^T (block)     hidden, a strip of its columns     rows of the chunk
//   dH           dlogits               weight, a strip of its columns     block
#pragma once

#include "logits_row.h"

namespace mind::MIND_CAPABILITY {

// A tile fills the vector registers: 32 of them, or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kStripVectors = 3, kPanel = 8;
#else
constexpr int kStripVectors = 2, kPanel = 6;
#endif
constexpr int kStripRows = kStripVectors * kLanes;
// The depth that is taken at once: a strip's part of it is to stay in the L1 cache from panel to panel.
constexpr std::int64_t kDepth = 320;

inline int vectors_of(std::int64_t rows) { return static_cast<int>((rows + kLanes - 1) / kLanes); }

// Memory that is asked for while a product is under way: what the next block needs, a share with every panel. Without
// it, a sixth of the time goes by waiting for the first use of each block.
struct Ahead {
    const char* from;
    std::int64_t bytes;

    // The part that goes with number `i` of `count`.
    Ahead share(std::int64_t i, std::int64_t count) const { return {from + bytes / count * i, bytes / count}; }
};

// Element (i, k) of a factor is at data[i * row + k * column].
struct Elements {
    const float* data;
    std::int64_t row, column;
};

// Row i of the result begins at data[i * stride]; with `add`, the product is added to what is there.
struct Result {
    float* data;
    std::int64_t stride;
    bool add;
    float* kept = nullptr;  // if given, it is written there too, whole cache lines past the caches
    std::int64_t kept_stride = 0;
};

// The result (kPanel, kVectors vectors) over `depth` elements, those of row i from rows[i] on, `step` apart.
template <int kVectors>
inline void multiply_tile(const float* const* rows, std::int64_t step, const float* panel, std::int64_t depth,
                          Result out, const char* ahead, std::int64_t ahead_step) {
    constexpr int kWidth = kVectors * kLanes;
    // Unrolled by name: else the sums go through memory before and after the loop, a twentieth of the time.
    const float* elements[kPanel];
    Floats sums[kPanel][kVectors] = {};
#pragma GCC unroll 8
    for (int i = 0; i < kPanel; ++i) elements[i] = rows[i];
    for (std::int64_t k = 0, at = 0; k < depth; ++k, at += step, panel += kWidth, ahead += ahead_step) {
        __builtin_prefetch(ahead);
        Floats of_columns[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) of_columns[j] = load(panel + j * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kPanel; ++i) {
            const Floats element = splat(elements[i][at]);
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; ++j) sums[i][j] += element * of_columns[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kPanel; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
            float* to = out.data + i * out.stride + j * kLanes;
            // What is there comes last: one rounding beside it, not one for each step of the depth.
            if (out.add) sums[i][j] += load(to);
            store(to, sums[i][j]);
        }
    }
    if (out.kept != nullptr) {
#pragma GCC unroll 8
        for (int i = 0; i < kPanel; ++i) {
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; ++j) {
                store_past_cache(out.kept + i * out.kept_stride + j * kLanes, sums[i][j]);
            }
        }
    }
}

// The result (count, kVectors vectors) of `count` rows with a packed panel. Rows up to a multiple of kPanel are
// written. Not inlined: the tile needs all of the registers.
template <int kVectors>
__attribute__((noinline)) void multiply_block(Elements rows, std::int64_t count, const float* panel, std::int64_t depth,
                                              Result out, Ahead ahead) {
    constexpr int kWidth = kVectors * kLanes;
    const std::int64_t parts = (depth + kDepth - 1) / kDepth, tiles = (count + kPanel - 1) / kPanel;
    const std::int64_t share = ahead.bytes / (parts * tiles), step = ahead.bytes == 0 ? 0 : share * parts / depth + 1;
    for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t begin = depth * part / parts, end = depth * (part + 1) / parts;
        for (std::int64_t first = 0; first < count; first += kPanel, ahead.from += share) {
            const float* elements[kPanel];
            for (int i = 0; i < kPanel; ++i) {  // beyond the end the last one again
                const std::int64_t row = first + i < count ? first + i : count - 1;
                elements[i] = rows.data + row * rows.row + begin * rows.column;
            }
            Result tile{out.data + first * out.stride, out.stride, out.add || part > 0};
            if (out.kept != nullptr && part + 1 == parts) {
                tile.kept = out.kept + first * out.kept_stride;
                tile.kept_stride = out.kept_stride;
            }
            multiply_tile<kVectors>(elements, rows.column, panel + begin * kWidth, end - begin, tile, ahead.from, step);
        }
    }
}

// Calls f<vectors>() for 1 to kStripVectors of them.
template <typename F>
inline void with_vectors(int vectors, F f) {
    if (vectors == kStripVectors) {
        f.template operator()<kStripVectors>();
    } else if (vectors == 2) {
        f.template operator()<2>();
    } else {
        f.template operator()<1>();
    }
}

// The rows of a strip as (D, whole vectors of rows); zeros beyond the last row.
template <typename T>
inline void pack_strip(const Matrix& hidden, std::int64_t first, std::int64_t rows, float* packed) {
    const std::int64_t width = vectors_of(rows) * kLanes;
    for (std::int64_t r = 0; r < width; ++r) {
        const T* row = static_cast<const T*>(hidden.data) + (first + r) * hidden.stride;
        for (std::int64_t k = 0; k < hidden.columns; ++k) packed[k * width + r] = r < rows ? load_one(row + k) : 0.0f;
    }
}

// `count` rows of a matrix in float32: where they are, or widened to `wide`. `stride` becomes theirs.
template <typename T>
inline const float* widen(const Matrix& matrix, std::int64_t first, std::int64_t count, float* wide,
                          std::int64_t& stride) {
    const T* from = static_cast<const T*>(matrix.data) + first * matrix.stride;
    if constexpr (sizeof(T) == sizeof(float)) {
        stride = matrix.stride;
        return from;
    } else {
        stride = matrix.columns;
        for (std::int64_t i = 0; i < count; ++i, from += matrix.stride) {
            float* to = wide + i * stride;
            std::int64_t k = 0;
            for (; k + kLanes <= stride; k += kLanes) store(to + k, load(from + k));
            if (k < stride) store_first(to + k, load_first(from + k, stride - k, 0.0f), stride - k);
        }
        return wide;
    }
}

// `count` columns of a matrix in float32, as (rows, whole vectors of columns); zeros beyond the last column.
template <typename T>
inline void pack_columns(const Matrix& matrix, std::int64_t row, std::int64_t rows, std::int64_t column,
                         std::int64_t count, float* packed) {
    const T* from = static_cast<const T*>(matrix.data) + row * matrix.stride + column;
    for (std::int64_t r = 0; r < rows; ++r, from += matrix.stride) {
        std::int64_t k = 0;
        for (; k + kLanes <= count; k += kLanes, packed += kLanes) store(packed, load(from + k));
        if (k == count) continue;
        store(packed, load_first(from + k, count - k, 0.0f));
        packed += kLanes;
    }
}

}  // namespace mind::MIND_CAPABILITY
