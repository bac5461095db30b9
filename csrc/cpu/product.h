// Matrix products in float32, one block of rows by one panel of columns at a time.
// A tile is kPanel rows by the columns of a panel: its sums stay in registers during the loop over the depth. The
// columns are the lanes, so panels are packed, as (depth, columns); the elements of the other factor are read one at a
// time, in any layout, so they need not be copied. For one step of the depth a tile of 8 x 48 takes 24 multiply-adds
// and 11 loads. It reaches 95 % of the processor's rate (Xeon, AVX-512 and AVX2).
//
//                rows                  panel                              depth
//   logits       weight (block)        hidden^T, a strip of its rows      D
//   dW           dlogits^T (block)     hidden, a strip of its columns     rows of the chunk
//   dH           dlogits               weight, a strip of its columns     block
//
// What a tile costs beside its multiply-adds, about 20 cycles of 1170 to 3480 (AVX-512), depends on how few registers
// its loop needs: elements are reached from two rows and a stride, and addresses of the result are made one row after
// the other. With a pointer for each row it was 50.
#pragma once

#include "logits_row.h"

namespace mind::MIND_CAPABILITY {

// A tile fills the vector registers: 32 of them, or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kStripVectors = 3, kPanel = 8, kFewestStrips = 4;
#else
constexpr int kStripVectors = 2, kPanel = 6, kFewestStrips = 8;
#endif
constexpr int kStripRows = kStripVectors * kLanes;
// The depth that is taken at once: a strip's part of it is to stay in the L1 cache from panel to panel.
constexpr std::int64_t kDepth = 320;

// Bytes of the strips that are taken through the vocabulary together: they are to stay in the L2 cache. Where few fit,
// the weight would be read too often: at D 2048 a strip alone runs at 132 GFLOP/s and four at 150 (AVX-512), at D 4096
// two strips run at 60 and eight at 69 (AVX2).
constexpr std::int64_t kGroupBytes = 512 << 10;

inline std::int64_t strips_of_group(std::int64_t size) {
    const std::int64_t fit = kGroupBytes / (kStripRows * size * static_cast<std::int64_t>(sizeof(float)));
    return fit < kFewestStrips ? kFewestStrips : fit;
}

inline int vectors_of(std::int64_t rows) { return static_cast<int>((rows + kLanes - 1) / kLanes); }

// Memory that is asked for while a product is under way: what the next block needs, a share with every panel. Without
// it, a sixth of the time goes by waiting for the first use of each block.
struct Ahead {
    const char* from;
    std::int64_t bytes;

    // The part that goes with number `i` of `count`.
    Ahead share(std::int64_t i, std::int64_t count) const { return {from + bytes / count * i, bytes / count}; }
};

// Element (i, k) of a factor is at data[i * row + k * column]; `readable` rows of it may be read.
struct Elements {
    const float* data;
    std::int64_t row, column, readable;
};

// Row k of a factor begins at data[k * stride].
struct Panel {
    const float* data;
    std::int64_t stride;
};

// Row i of the result begins at data[i * stride]; with `add`, the product is added to what is there.
struct Result {
    float* data;
    std::int64_t stride;
    bool add;
};

// Keeps the compiler from making the addresses of all rows beforehand, for which it has no registers.
template <typename T>
MIND_INLINE inline void one_at_a_time(T*& pointer) {
    asm("" : "+r"(pointer));
}

// Row i < 4 from a first one. Not an expression of i in the loop below: GCC 12 folds that to another row in a build
// with sanitizers.
MIND_INLINE inline const float* row_of(const float* first, int i, std::int64_t row, std::int64_t thrice) {
    switch (i) {
        case 0:
            return first;
        case 1:
            return first + row;
        case 2:
            return first + 2 * row;
        default:
            return first + thrice;
    }
}

// The result (kPanel, kVectors vectors) over `depth` elements.
template <int kVectors>
MIND_INLINE inline void multiply_tile(const float* rows, std::int64_t row, std::int64_t column, Panel panel,
                                      std::int64_t depth, Result out, const char* ahead, std::int64_t ahead_step) {
    // Unrolled by name: else the sums go through memory before and after the loop, a twentieth of the time.
    Floats sums[kPanel][kVectors] = {};
    const float *low = rows, *high = rows + 4 * row, *of_panel = panel.data;
    const std::int64_t thrice = 3 * row;
    for (const float* end = of_panel + depth * panel.stride; of_panel != end;
         of_panel += panel.stride, low += column, high += column, ahead += ahead_step) {
        __builtin_prefetch(ahead);
        Floats of_columns[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) of_columns[j] = load(of_panel + j * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kPanel; ++i) {
            const Floats element = splat(*row_of(i < 4 ? low : high, i % 4, row, thrice));
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; ++j) sums[i][j] += element * of_columns[j];
        }
    }
    if (out.add) {
        // What is there comes last: one rounding beside it, not one for each step of the depth.
        const float* from = out.data;
#pragma GCC unroll 8
        for (int i = 0; i < kPanel; ++i) {
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; ++j) sums[i][j] += load(from + j * kLanes);
            from += out.stride;
            one_at_a_time(from);
        }
    }
    float* to = out.data;
#pragma GCC unroll 8
    for (int i = 0; i < kPanel; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) store(to + j * kLanes, sums[i][j]);
        to += out.stride;
        one_at_a_time(to);
    }
}

// The result (count, kVectors vectors) of `count` rows with a panel. Rows up to a multiple of kPanel are written if
// they may be read. Not inlined: the tile needs all of the registers.
template <int kVectors>
__attribute__((noinline)) void multiply_block(Elements rows, std::int64_t count, Panel panel, std::int64_t depth,
                                              Result out, Ahead ahead) {
    const std::int64_t parts = (depth + kDepth - 1) / kDepth, tiles = (count + kPanel - 1) / kPanel;
    const std::int64_t share = ahead.bytes / (parts * tiles), step = ahead.bytes == 0 ? 0 : share * parts / depth + 1;
    for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t begin = depth * part / parts, end = depth * (part + 1) / parts;
        for (std::int64_t first = 0; first < count; ahead.from += share) {
            // Where less than a tile may be read, a tile is one row kPanel times: that is the end of a matrix alone.
            const std::int64_t taken = first + kPanel <= rows.readable ? kPanel : 1, one = taken == kPanel ? 1 : 0;
            multiply_tile<kVectors>(rows.data + first * rows.row + begin * rows.column, one * rows.row, rows.column,
                                    {panel.data + begin * panel.stride, panel.stride}, end - begin,
                                    {out.data + first * out.stride, one * out.stride, out.add || part > 0}, ahead.from,
                                    step);
            first += taken;
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

// `count` rows of a matrix in float32: where they are, or widened to `wide`.
template <typename T>
inline Elements widen(const Matrix& matrix, std::int64_t first, std::int64_t count, float* wide) {
    const T* from = static_cast<const T*>(matrix.data) + first * matrix.stride;
    if constexpr (sizeof(T) == sizeof(float)) {
        return {from, matrix.stride, 1, count};
    } else {
        const std::int64_t size = matrix.columns;
        for (std::int64_t i = 0; i < count; ++i, from += matrix.stride) {
            float* to = wide + i * size;
            std::int64_t k = 0;
            for (; k + kLanes <= size; k += kLanes) store(to + k, load(from + k));
            if (k < size) store_first(to + k, load_first(from + k, size - k, 0.0f), size - k);
        }
        return {wide, size, 1, count};
    }
}

// Calls f(strip, first entry, count, their weights, what to ask for on the way) for strips [from, to) and, one after
// the other, blocks of vocabulary entries [begin, end). `wide` holds kBlock rows of the weight.
template <typename T, typename F>
inline void each_block(const Matrix& weight, std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to,
                       float* wide, F f) {
    const std::int64_t bytes = kBlock * weight.stride * static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t v = begin; v < end; v += kBlock) {
        const std::int64_t count = end - v < kBlock ? end - v : kBlock;
        const Elements rows = widen<T>(weight, v, count, wide);
        const Ahead next{static_cast<const char*>(weight.data) + v / kBlock * bytes + bytes, bytes};
        for (std::int64_t s = from; s < to; ++s) f(s, v, count, rows, next.share(s - from, to - from));
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

// Strips of hidden states, one after the other.
inline void run_pack(const Matrix& hidden, float* packed, std::int64_t begin, std::int64_t end) {
    with_type(hidden.type, [&]<typename T>(T*) {
        for (std::int64_t first = begin * kStripRows; first < end * kStripRows; first += kStripRows) {
            const std::int64_t left = hidden.rows - first;
            pack_strip<T>(hidden, first, left < kStripRows ? left : kStripRows, packed + first * hidden.columns);
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
