// The exact gradients of hidden states, weight and bias, from a chunk's projected logits that stream.h has stored, or
// from their gradient in memory (`run_dense_gradient`).
// The logits of one block of the vocabulary at a time become their gradient, which stays in the L2 cache for both
// products. dW of the block is then complete for the chunk; dH is summed over the blocks of a part of the vocabulary,
// and over the parts at the end. Each thread has one part, so the bits of dH depend on the number of threads, as in any
// product.
#pragma once

#include "cross_entropy.h"
#include "product.h"

namespace mind::MIND_CAPABILITY {

inline float* coefficient(const ProductWork& work, int which) { return work.coefficients + which * work.stride; }

// A strip of the columns of hidden states and weight.
struct ColumnStrip {
    std::int64_t first, columns;
    int vectors;

    ColumnStrip(const ProductWork& work, std::int64_t index) : first(index * kStripRows) {
        const std::int64_t left = work.hidden.columns - first;
        columns = left < kStripRows ? left : kStripRows;
        vectors = vectors_of(columns);
    }
    std::int64_t width() const { return vectors * kLanes; }
    // Its sums of dH (rows up to a whole panel, width) in those of a part.
    float* sums(const ProductWork& work, float* of_part) const { return of_part + first * work.padded_rows; }
};

constexpr std::int64_t kPageFloats = 1024;

inline std::int64_t column_strips(const ProductWork& work) {
    return (work.hidden.columns + kStripRows - 1) / kStripRows;
}

// Floats between the rows of a block's gradient: whole cache lines, an odd number of them. With an even one, elements
// of neighboring rows would push each other out of the L1 cache.
inline std::int64_t gradient_stride(std::int64_t rows) { return ((rows + 15) / 16 | 1) * 16; }

inline std::int64_t plan_products(ProductWork& work, std::int64_t threads) {
    const std::int64_t rows = work.hidden.rows;
    work.blocks = (work.weight.rows + kBlock - 1) / kBlock;
    work.parts = threads < work.blocks ? threads : work.blocks;
    work.stride = gradient_stride(rows);
    work.padded_rows = (rows + kPanel - 1) / kPanel * kPanel;
    work.padded_columns = vectors_of(work.hidden.columns) * kLanes;
    return kBlock * (work.stride + kStripRows);
}

inline void pack_products(const ProductWork& work) {
    with_type(work.hidden.type, [&]<typename T>(T*) {
        for (std::int64_t s = 0; s < column_strips(work); ++s) {
            const ColumnStrip strip(work, s);
            pack_columns<T>(work.hidden, 0, work.hidden.rows, strip.first, strip.columns,
                            work.packed + strip.first * work.hidden.rows);
        }
    });
}

inline void prepare_gradient(const GradientWork& work) {
    __builtin_memset(work.coefficients, 0, kCoefficients * work.stride * sizeof(float));
    with_mode<float>(work.rows.head, [&]<typename C>(float*, C condition) {
        for (std::int64_t r = 0; r < work.hidden.rows; ++r) {
            const std::int64_t entry = work.rows.target[r];
            const float projected = entry < 0 ? 0.0f : work.logits[entry * work.logits_stride + r];
            const Logit target = condition(splat(projected));
            const RowGradient of = work.whole.a != nullptr ? RowGradient(work.whole, r)
                                                           : RowGradient(work.rows, r, number(work.rows, kMean, r),
                                                                         number(work.rows, kTotal, r), target.z[0]);
            coefficient(work, kRowMaximum)[r] = of.maximum;
            coefficient(work, kRowA)[r] = of.a;
            coefficient(work, kRowB)[r] = of.b;
            coefficient(work, kRowU)[r] = of.u;
            coefficient(work, kRowAtTarget)[r] = work.at_target != nullptr
                                                     ? work.at_target[r]
                                                     : condition.to_projected(splat(of.at_target - of.u), target)[0];
        }
    });
}

// The gradient (count, stride) of the logits of vocabulary entries [begin, begin + count).
template <typename C>
inline void differentiate_block(const GradientWork& work, C condition, std::int64_t begin, std::int64_t count,
                                float* out) {
    const bool has_entropy = work.rows.entropy_scale != nullptr || work.whole.b != nullptr;
    const std::int64_t rows = work.hidden.rows;
    for (std::int64_t i = 0; i < count; ++i) {
        const float* logits = work.logits + (begin + i) * work.logits_stride;
        for (std::int64_t r = 0; r < rows; r += kLanes) {
            const Logit logit = condition(load(logits + r));
            const Floats d = logit.z - load(coefficient(work, kRowMaximum) + r), e = without_tiny(exp_negative(d));
            Floats factor = load(coefficient(work, kRowA) + r);
            if (has_entropy) factor += e == 0.0f ? Floats{} : d * load(coefficient(work, kRowB) + r);
            const Floats gradient = e * factor - load(coefficient(work, kRowU) + r);
            store(out + i * work.stride + r, condition.to_projected(gradient, logit));
        }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t place = work.rows.target[r] - begin;
        if (place >= 0 && place < count) out[place * work.stride + r] = coefficient(work, kRowAtTarget)[r];
    }
}

inline void add_bias(const ProductWork& work, std::int64_t begin, std::int64_t count, const float* gradient) {
    for (std::int64_t i = 0; i < count; ++i, gradient += work.stride) {
        Floats total{};
        std::int64_t r = 0;
        for (; r + kLanes <= work.hidden.rows; r += kLanes) total += load(gradient + r);
        if (r < work.hidden.rows) total += load_first(gradient + r, work.hidden.rows - r, 0.0f);
        work.of_bias[begin + i] += sum(total);
    }
}

// dW of vocabulary entries [begin, begin + count), straight to its place if whole tiles fit there.
inline void multiply_weight(const ProductWork& work, std::int64_t begin, std::int64_t count, const float* gradient,
                            float* scratch) {
    const std::int64_t strips = column_strips(work), size = work.hidden.columns;
    float* block = work.of_weight + begin * size;
    const bool follows = work.add_weight && begin + 2 * kBlock <= work.weight.rows;
    const Ahead next{reinterpret_cast<const char*>(block + kBlock * size),
                     follows ? kBlock * size * static_cast<std::int64_t>(sizeof(float)) : 0};
    for (std::int64_t s = 0; s < strips; ++s) {
        const ColumnStrip strip(work, s);
        const bool fits = count % kPanel == 0 && strip.columns == strip.width();
        float* to = block + strip.first;
        const Result out = fits ? Result{to, size, work.add_weight} : Result{scratch, strip.width(), false};
        with_vectors(strip.vectors, [&]<int kVectors>() {
            multiply_block<kVectors>({gradient, work.stride, 1, kBlock}, count,
                                     {work.packed + strip.first * work.hidden.rows, kVectors * kLanes},
                                     work.hidden.rows, out, next.share(s, strips));
        });
        if (fits) continue;
        for (std::int64_t i = 0; i < count; ++i) {
            const float* from = scratch + i * strip.width();
            for (std::int64_t k = 0; k < strip.columns; ++k) {
                to[i * size + k] = work.add_weight ? to[i * size + k] + from[k] : from[k];
            }
        }
    }
}

// `count` rows of a strip of the weight's columns: where they are if they can be read there in whole vectors and do not
// push each other out of the L1 cache, as rows that lie a multiple of a page apart do. A copy takes a twentieth of the
// time of the product.
template <typename T>
inline Panel panel_of(const Matrix& weight, std::int64_t row, std::int64_t count, const ColumnStrip& strip,
                      float* scratch) {
    if constexpr (sizeof(T) == sizeof(float)) {
        if (strip.columns == strip.width() && weight.stride % kPageFloats != 0) {
            return {static_cast<const float*>(weight.data) + row * weight.stride + strip.first, weight.stride};
        }
    }
    pack_columns<T>(weight, row, count, strip.first, strip.columns, scratch);
    return {scratch, strip.width()};
}

// Adds the block's products to the sums of dH.
template <typename T>
inline void multiply_hidden(const ProductWork& work, std::int64_t begin, std::int64_t count, const float* gradient,
                            float* sums, float* scratch) {
    const std::int64_t strips = column_strips(work), of_logits = strips / 3;
    const std::int64_t of_beside = work.beside == nullptr ? 0 : of_logits / 2;
    const bool follows = begin + 2 * kBlock <= work.weight.rows;
    const std::int64_t logits_bytes = kBlock * work.logits_stride * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t weight_bytes = kBlock * work.weight.stride * static_cast<std::int64_t>(sizeof(T));
    const Ahead logits{reinterpret_cast<const char*>(work.logits + (begin + kBlock) * work.logits_stride),
                       follows ? logits_bytes : 0};
    const float* of_next = work.beside == nullptr ? nullptr : work.beside + (begin + kBlock) * work.logits_stride;
    const Ahead beside{reinterpret_cast<const char*>(of_next), follows ? logits_bytes : 0};
    const Ahead weight{static_cast<const char*>(work.weight.data) + begin / kBlock * weight_bytes + weight_bytes,
                       follows ? weight_bytes : 0};
    for (std::int64_t s = 0; s < strips; ++s) {
        const ColumnStrip strip(work, s);
        const Panel panel = panel_of<T>(work.weight, begin, count, strip, scratch);
        const Ahead ahead = s < of_beside   ? beside.share(s, of_beside)
                            : s < of_logits ? logits.share(s - of_beside, of_logits - of_beside)
                                            : weight.share(s - of_logits, strips - of_logits);
        with_vectors(strip.vectors, [&]<int kVectors>() {
            multiply_block<kVectors>({gradient, 1, work.stride, work.padded_rows}, work.hidden.rows, panel, count,
                                     {strip.sums(work, sums), kVectors * kLanes, true}, ahead);
        });
    }
}

// Parts [begin, end) of the vocabulary, whole blocks each. differentiate(first entry, count, out) writes the gradient
// (count, stride) of a block's logits.
template <typename F>
inline void multiply_parts(const ProductWork& work, float* scratch, std::int64_t begin, std::int64_t end,
                           F differentiate) {
    const std::int64_t vocabulary = work.weight.rows, sums_size = work.padded_rows * work.padded_columns;
    float* tile = scratch + kBlock * work.stride;
    for (std::int64_t part = begin; part < end; ++part) {
        float* sums = nullptr;
        if (work.of_hidden != nullptr) {
            sums = work.sums + part * sums_size;
            __builtin_memset(sums, 0, sums_size * sizeof(float));
        }
        const std::int64_t last = work.blocks * (part + 1) / work.parts;
        for (std::int64_t b = work.blocks * part / work.parts; b < last; ++b) {
            const std::int64_t first = b * kBlock, left = vocabulary - first, count = left < kBlock ? left : kBlock;
            differentiate(first, count, scratch);
            if (work.of_bias != nullptr) add_bias(work, first, count, scratch);
            if (work.of_weight != nullptr) multiply_weight(work, first, count, scratch, tile);
            if (work.of_hidden == nullptr) continue;
            with_type(work.weight.type,
                      [&]<typename T>(T*) { multiply_hidden<T>(work, first, count, scratch, sums, tile); });
        }
    }
}

inline void run_gradient(const GradientWork& work, float* scratch, std::int64_t begin, std::int64_t end) {
    with_mode<float>(work.rows.head, [&]<typename C>(float*, C condition) {
        multiply_parts(work, scratch, begin, end, [&](std::int64_t first, std::int64_t count, float* out) {
            differentiate_block(work, condition, first, count, out);
        });
    });
}

// The gradient (count, stride) of vocabulary entries [begin, begin + count), from rows (n, V) in memory.
inline void transpose_block(const DenseWork& work, std::int64_t begin, std::int64_t count, float* out) {
    const std::int64_t rows = work.hidden.rows, vocabulary = work.weight.rows;
    for (std::int64_t r = 0; r < rows; r += kLanes) {
        const std::int64_t last = rows - r < kLanes ? rows - r : kLanes;
        const float* from = work.gradient + r * vocabulary + begin;
        for (std::int64_t v = 0; v < count; v += kLanes) {
            const std::int64_t columns = count - v < kLanes ? count - v : kLanes;
            Floats square[kLanes];
            for (std::int64_t i = 0; i < kLanes; ++i) {
                const float* row = from + i * vocabulary + v;
                square[i] = i >= last ? Floats{} : columns == kLanes ? load(row) : load_first(row, columns, 0.0f);
            }
            transpose(square);
            for (std::int64_t i = 0; i < columns; ++i) store(out + (v + i) * work.stride + r, square[i]);
        }
    }
}

inline void run_dense_gradient(const DenseWork& work, float* scratch, std::int64_t begin, std::int64_t end) {
    multiply_parts(work, scratch, begin, end, [&](std::int64_t first, std::int64_t count, float* out) {
        transpose_block(work, first, count, out);
    });
}

// dH of rows: the sums of all parts.
inline void join_products(const ProductWork& work, std::int64_t begin, std::int64_t end) {
    const std::int64_t sums_size = work.padded_rows * work.padded_columns, size = work.hidden.columns;
    for (std::int64_t r = begin; r < end; ++r) {
        for (std::int64_t s = 0; s < column_strips(work); ++s) {
            const ColumnStrip strip(work, s);
            for (std::int64_t k = 0; k < strip.columns; ++k) {
                const float* from = strip.sums(work, work.sums) + r * strip.width() + k;
                float total = 0.0f;
                for (std::int64_t part = 0; part < work.parts; ++part) total += from[part * sums_size];
                work.of_hidden[r * size + strip.first + k] = total;
            }
        }
    }
}

}  // namespace mind::MIND_CAPABILITY
