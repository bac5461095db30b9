// hidden weight^T, a strip of rows by a block of vocabulary entries at a time, in float32.
//
// A tile is kPanel vocabulary entries by a strip of rows: its sums stay in registers while the depth D goes by. The
// rows of a strip are the lanes, so hidden states lie transposed; those of the weight are read one element at a time,
// which leaves them where they are (half precision is widened first, a block at a time). For one step of the depth a
// tile of 8 x 48 takes 24 multiply-adds and 11 loads. It reaches 95 % of the processor's rate (Xeon, AVX-512 and AVX2).
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
// Vocabulary entries of a block, whole panels: with D 576 they take 221 KB, which stays in the L2 cache for the strips.
constexpr int kBlock = 96;
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

// Memory that is asked for while a product is under way: the weight of the next block, a share with every strip.
// Without it, a sixth of the time goes by waiting for the first use of each block.
struct Ahead {
    const char* from;
    std::int64_t bytes;
};

// out (kPanel, kVectors vectors) = [out +] weight hidden, over `depth` elements.
template <int kVectors>
inline void multiply_tile(const float* const* weight, const float* hidden, std::int64_t depth, float* out, bool add,
                          const char* ahead, std::int64_t ahead_step) {
    constexpr int kWidth = kVectors * kLanes;
    const float* rows[kPanel];
    Floats sums[kPanel][kVectors];
    for (int i = 0; i < kPanel; ++i) {
        rows[i] = weight[i];
        for (int j = 0; j < kVectors; ++j) sums[i][j] = add ? load(out + i * kWidth + j * kLanes) : Floats{};
    }
    for (std::int64_t k = 0; k < depth; ++k, hidden += kWidth, ahead += ahead_step) {
        __builtin_prefetch(ahead);
        Floats of_rows[kVectors];
        for (int j = 0; j < kVectors; ++j) of_rows[j] = load(hidden + j * kLanes);
        for (int i = 0; i < kPanel; ++i) {
            const Floats element = splat(rows[i][k]);
            for (int j = 0; j < kVectors; ++j) sums[i][j] += element * of_rows[j];
        }
    }
    for (int i = 0; i < kPanel; ++i) {
        for (int j = 0; j < kVectors; ++j) store(out + i * kWidth + j * kLanes, sums[i][j]);
    }
}

// out (kBlock, kVectors vectors): products of `count` rows of weight with a strip. Not inlined: the tile needs all of
// the registers.
template <int kVectors>
__attribute__((noinline)) void multiply_block(const float* weight, std::int64_t stride, std::int64_t count,
                                              const float* strip, std::int64_t size, float* out, Ahead ahead) {
    constexpr int kWidth = kVectors * kLanes;
    const std::int64_t parts = (size + kDepth - 1) / kDepth, panels = (count + kPanel - 1) / kPanel;
    const std::int64_t share = ahead.bytes / (parts * panels), step = share * parts / size + 1;
    for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t begin = size * part / parts, end = size * (part + 1) / parts;
        for (std::int64_t panel = 0; panel < count; panel += kPanel, ahead.from += share) {
            const float* rows[kPanel];
            for (int i = 0; i < kPanel; ++i) {  // beyond the end the last one again
                rows[i] = weight + (panel + i < count ? panel + i : count - 1) * stride + begin;
            }
            multiply_tile<kVectors>(rows, strip + begin * kWidth, end - begin, out + panel * kWidth, part > 0,
                                    ahead.from, step);
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
