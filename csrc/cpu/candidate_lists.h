// The entries that a pass may keep, a list per strip of rows and span of the vocabulary; the kernels call `grow`.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "kernels.h"

namespace mind {

inline void grow(Candidates& found) {
    found.capacity = std::max<std::int64_t>(1024, 2 * found.capacity);
    void* data = std::realloc(found.data, found.capacity * sizeof(Candidate));
    if (data == nullptr) throw std::bad_alloc();
    found.data = static_cast<Candidate*>(data);
}

struct CandidateLists : std::vector<Candidates> {
    using std::vector<Candidates>::vector;
    CandidateLists(const CandidateLists&) = delete;
    ~CandidateLists() {
        for (Candidates& list : *this) std::free(list.data);
    }
};

}  // namespace mind
