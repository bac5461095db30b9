// Weighted sums of gathered matrix rows, by which sparse matrix products are computed.
// Four entries are added at a time, so that sums are read and written once per four entries, while the rows of the next
// four are being fetched; a block of columns is summed in the L1 cache. If bags have many entries, a group of bags goes
// through the matrix block by block, and finds the block's rows in the L2 cache: otherwise every entry would fetch its
// row from memory.
#pragma once

#include "logits_row.h"

namespace mind::MIND_CAPABILITY {

// Columns of a block: its sums take 4 KiB.
constexpr std::int64_t kColumns = 1024;
constexpr int kRows = 4;
// Bytes of a block of the matrix, and of the sums of a group of bags. Measured with an L2 cache of 2 MiB.
constexpr std::int64_t kBlockBytes = 1 << 20;
// Entries that a bag has in a block on average, at least: its sums come from the L2 cache and go back for each block.
constexpr std::int64_t kEntriesPerBlock = 8;
constexpr std::int64_t kMostBags = 512;

template <typename T>
inline const T* row_of(const Matrix& matrix, std::int64_t row, std::int64_t column) {
    return static_cast<const T*>(matrix.data) + row * matrix.stride + column;
}

// sums[j] += sum over kCount rows of factors[k] rows[k][j], j < count. What comes `ahead` is asked for meanwhile.
template <int kCount, typename T>
inline void add_rows(float* sums, const float* factors, const T* const* rows, std::int64_t count,
                     const T* const* ahead) {
    // Copies in registers: as far as the compiler knows, `sums` may be where the arguments are.
    Floats of_row[kCount];
    const T *from[kCount], *next[kCount];
    for (int k = 0; k < kCount; ++k) {
        of_row[k] = splat(factors[k]);
        from[k] = rows[k];
        next[k] = ahead[k];
    }
    std::int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
        Floats part = load(sums + j);
        for (int k = 0; k < kCount; ++k) {
            __builtin_prefetch(next[k] + j);
            part += load(from[k] + j) * of_row[k];
        }
        store(sums + j, part);
    }
    if (j < count) {
        Floats part = load_first(sums + j, count - j, 0.0f);
        for (int k = 0; k < kCount; ++k) part += load_first(from[k] + j, count - j, 0.0f) * of_row[k];
        store_first(sums + j, part, count - j);
    }
}

// sums (count,) += the entries [first, last) of columns from `column` on; the entry `after` is what is taken next.
template <typename T>
inline void add_entries(const GatherArguments& args, std::int64_t first, std::int64_t last, std::int64_t after,
                        std::int64_t column, std::int64_t count, float* sums) {
    const auto row = [&](std::int64_t entry) { return row_of<T>(args.matrix, args.indices[entry], column); };
    std::int64_t i = first;
    const auto add = [&]<int kCount>() {
        const T *rows[kCount], *ahead[kCount];
        for (int k = 0; k < kCount; ++k) {
            const std::int64_t place = i + kCount + k, next = place < last ? place : after + place - last;
            rows[k] = row(i + k);
            ahead[k] = row(next < args.total ? next : args.total - 1);
        }
        add_rows<kCount>(sums, args.values + i, rows, count, ahead);
        i += kCount;
    };
    while (i + kRows <= last) add.template operator()<kRows>();
    if (i + 2 <= last) add.template operator()<2>();
    if (i < last) add.template operator()<1>();
}

// sums (count,) += left[bag] @ right.
template <typename T>
inline void add_correction(const GatherArguments& args, std::int64_t bag, std::int64_t column, std::int64_t count,
                           float* sums) {
    for (std::int64_t r = 0; r < args.right.rows; ++r) {
        const T* const rows[1] = {row_of<T>(args.right, r, column)};
        add_rows<1>(sums, args.left + bag * args.left_stride + r * args.left_column_stride, rows, count, rows);
    }
}

template <typename Out>
inline void write_sums(const float* sums, Out* out, std::int64_t count) {
    std::int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) store(out + j, load(sums + j));
    if (j < count) store_first(out + j, load_first(sums + j, count - j, 0.0f), count - j);
}

template <typename T, typename Out>
inline void gather_bag(const GatherArguments& args, std::int64_t bag, std::int64_t column, std::int64_t count) {
    float sums[kColumns];
    for (std::int64_t j = 0; j < count; ++j) sums[j] = 0.0f;
    add_entries<T>(args, args.offsets[bag], args.offsets[bag + 1], args.offsets[bag + 1], column, count, sums);
    add_correction<T>(args, bag, column, count, sums);
    write_sums(sums, static_cast<Out*>(args.out.data) + bag * args.out.stride + column, count);
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

// Into how many blocks the matrix is cut: 1 if that does not pay. The same for every part of the bags, and so are sums.
inline std::int64_t blocks_of(const GatherArguments& args) {
    if (args.out.rows == 0) return 1;
    const std::int64_t entries = args.offsets[args.out.rows] - args.offsets[0];
    const std::int64_t most = entries / args.out.rows / kEntriesPerBlock;
    const std::int64_t bytes = args.matrix.rows * args.matrix.columns * (args.matrix.type == Type::kFloat ? 4 : 2);
    const std::int64_t fitting = (bytes + kBlockBytes - 1) / kBlockBytes;
    const std::int64_t blocks = most < fitting ? most : fitting;
    return blocks < 1 ? 1 : blocks;
}

// The entries of a bag are in increasing order of their indices; of others, some come with the last block. Sums are in
// float32: in `out`, or until the group is done in memory of their own.
template <typename T, typename Out>
inline void gather_blocks(const GatherArguments& args, std::int64_t blocks, std::int64_t begin, std::int64_t end) {
    constexpr bool kInPlace = sizeof(Out) == sizeof(float);
    const std::int64_t size = args.matrix.columns, fitting = kBlockBytes / (size * 4 + 1) + 1;
    const std::int64_t group = fitting < kMostBags ? fitting : kMostBags;
    float* const own = kInPlace ? nullptr : new float[group * size];
    std::int64_t next[kMostBags];
    const auto out_of = [&](std::int64_t bag) { return static_cast<Out*>(args.out.data) + bag * args.out.stride; };
    for (std::int64_t from = begin; from < end; from += group) {
        const std::int64_t to = from + group < end ? from + group : end;
        const auto sums_of = [&](std::int64_t bag) {
            if constexpr (kInPlace) return out_of(bag);
            return own + (bag - from) * size;
        };
        for (std::int64_t bag = from; bag < to; ++bag) {
            next[bag - from] = args.offsets[bag];
            std::memset(sums_of(bag), 0, size * sizeof(float));
        }
        for (std::int64_t block = 1; block <= blocks; ++block) {
            const std::int64_t limit = block < blocks ? args.matrix.rows * block / blocks : INT64_MAX;
            for (std::int64_t bag = from; bag < to; ++bag) {
                const std::int64_t first = next[bag - from];
                std::int64_t last = first;
                while (last < args.offsets[bag + 1] && args.indices[last] < limit) ++last;
                const std::int64_t after = bag + 1 < to ? next[bag + 1 - from] : last;
                add_entries<T>(args, first, last, after, 0, size, sums_of(bag));
                next[bag - from] = last;
            }
        }
        for (std::int64_t bag = from; bag < to; ++bag) {
            add_correction<T>(args, bag, 0, size, sums_of(bag));
            if constexpr (!kInPlace) write_sums(sums_of(bag), out_of(bag), size);
        }
    }
    delete[] own;
}

template <typename T, typename Out>
inline void gather_into(const GatherArguments& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t blocks = blocks_of(args);
    if (blocks > 1) {
        gather_blocks<T, Out>(args, blocks, begin, end);
    } else {
        gather_bags<T, Out>(args, begin, end);
    }
}

inline void run_gather(const GatherArguments& args, std::int64_t begin, std::int64_t end) {
    with_type(args.matrix.type, [&]<typename T>(T*) {
        if (args.out.type == Type::kFloat) {
            gather_into<T, float>(args, begin, end);
        } else {
            gather_into<T, T>(args, begin, end);
        }
    });
}

}  // namespace mind::MIND_CAPABILITY
