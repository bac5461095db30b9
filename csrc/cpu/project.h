// Projected logits of rows in memory, in float32: hidden weight^T + bias by the tiles of product.h.
// A tile has the rows as its lanes, and logits are stored row by row: a block of a strip is transposed when it is
// written from the L1 cache, one square of vectors at a time. That is a quarter of a shuffle per logit, beside D /
// kLanes multiply-adds.
#pragma once

#include "product.h"

namespace mind::MIND_CAPABILITY {

// Logits of vocabulary entries [begin, begin + count) of a strip, from their products (count, width).
template <typename T>
inline void write_block(const ProjectWork& work, std::int64_t first, std::int64_t rows, std::int64_t begin,
                        std::int64_t count, const float* products) {
    const std::int64_t width = vectors_of(rows) * kLanes;
    for (std::int64_t v = 0; v < count; v += kLanes) {
        const std::int64_t columns = count - v < kLanes ? count - v : kLanes;
        Floats bias{};
        if (work.bias != nullptr) {
            const T* from = static_cast<const T*>(work.bias) + begin + v;
            bias = columns == kLanes ? load(from) : load_first(from, columns, 0.0f);
        }
        for (std::int64_t lane = 0; lane < rows; lane += kLanes) {
            Floats square[kLanes];
            for (int i = 0; i < kLanes; ++i) square[i] = load(products + (v + i) * width + lane);
            transpose(square);
            const std::int64_t last = rows - lane < kLanes ? rows - lane : kLanes;
            float* to = work.logits + (first + lane) * work.stride + begin + v;
            for (std::int64_t i = 0; i < last; ++i, to += work.stride) {
                if (columns == kLanes) {
                    store(to, square[i] + bias);
                } else {
                    store_first(to, square[i] + bias, columns);
                }
            }
        }
    }
}

inline std::int64_t project_scratch(std::int64_t size) { return kBlock * (kStripRows + size); }

// Strips [from, to) over the span.
template <typename T>
inline void project_group(const ProjectWork& work, std::int64_t span, std::int64_t from, std::int64_t to,
                          float* scratch) {
    const std::int64_t size = work.hidden.columns, begin = span * work.span;
    const std::int64_t last = begin + work.span < work.weight.rows ? begin + work.span : work.weight.rows;
    const auto write = [&](std::int64_t s, std::int64_t v, std::int64_t count, const Elements& weights, Ahead ahead) {
        const std::int64_t first = s * kStripRows, left = work.hidden.rows - first;
        const std::int64_t rows = left < kStripRows ? left : kStripRows;
        with_vectors(vectors_of(rows), [&]<int kVectors>() {
            constexpr std::int64_t kWidth = kVectors * kLanes;
            multiply_block<kVectors>(weights, count, {work.packed + first * size, kWidth}, size,
                                     {scratch, kWidth, false}, ahead);
        });
        write_block<T>(work, first, rows, v, count, scratch);
    };
    each_block<T>(work.weight, begin, last, from, to, scratch + kBlock * kStripRows, write);
}

inline void run_project(const ProjectWork& work, float* scratch, std::int64_t span, std::int64_t begin,
                        std::int64_t end) {
    const std::int64_t group = strips_of_group(work.hidden.columns);
    with_type(work.hidden.type, [&]<typename T>(T*) {
        for (std::int64_t from = begin; from < end; from += group) {
            project_group<T>(work, span, from, from + group < end ? from + group : end, scratch);
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
