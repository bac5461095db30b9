// Memory of an operator call, for vectors.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace mind {

struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
template <typename T>
using Memory = std::unique_ptr<T[], Free>;

// Not initialized: a page that is never touched costs nothing.
template <typename T>
Memory<T> allocate(std::int64_t count) {
    return Memory<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))));
}

}  // namespace mind
