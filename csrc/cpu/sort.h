// Sorts the entries of a sparse matrix by column, in two passes; they come row by row with increasing columns.
// The first pass counts the entries of each column, the second writes each entry to the next place of its column. Rows
// are read in order, so a column has its entries in that order. Columns are distributed over threads: each thread
// searches every row for the start of its own columns, so no entry's place depends on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mind {

struct SortArguments {
    std::int64_t bags, vocabulary;
    const std::int64_t* order;    // (bags,) which bag comes first, and so on
    const std::int64_t* rows;     // (bags,) the number of the row whose entries a bag has
    const std::int64_t* offsets;  // (bags + 1,)
    const std::int32_t* columns;  // (total,) increasing in a bag
    const float* values;          // (total,)
    float least;                  // entries whose value is no larger are left out
    std::int64_t* next;           // (V,) entries of each column; then where the next one goes
    std::int32_t* indices;        // (total,) the rows of the entries, by column
    float* sorted;                // (total,) and their values
};

// Calls visit(row, entry) for the entries of columns [begin, end) that are not left out.
template <typename F>
inline void each_entry(const SortArguments& args, std::int64_t begin, std::int64_t end, F visit) {
    for (std::int64_t b = 0; b < args.bags; ++b) {
        const std::int64_t bag = args.order[b], last = args.offsets[bag + 1];
        const std::int32_t* from = args.columns + args.offsets[bag];
        std::int64_t i = std::lower_bound(from, args.columns + last, begin) - args.columns;
        for (; i < last && args.columns[i] < end; ++i) {
            if (!(std::fabs(args.values[i]) <= args.least)) visit(static_cast<std::int32_t>(args.rows[bag]), i);
        }
    }
}

inline void count_columns(const SortArguments& args, std::int64_t begin, std::int64_t end) {
    each_entry(args, begin, end, [&](std::int32_t, std::int64_t i) { ++args.next[args.columns[i]]; });
}

inline void place_entries(const SortArguments& args, std::int64_t begin, std::int64_t end) {
    each_entry(args, begin, end, [&](std::int32_t row, std::int64_t i) {
        const std::int64_t place = args.next[args.columns[i]]++;
        args.indices[place] = row;
        args.sorted[place] = args.values[i];
    });
}

}  // namespace mind
