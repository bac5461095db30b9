// PyTorch's parallel_for with threads that ThreadSanitizer sees, for the build of tests/sanitize/threads.sh: its own
// are OpenMP's, whose runtime is not instrumented, so that every loop would be reported.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {
constexpr std::uint32_t kThreads = 4;
}

extern "C" AOTITorchError torch_get_num_threads(std::uint32_t* out) {
    *out = kThreads;
    return 0;
}

// Pieces of [begin, end), each taken by whichever of the threads is free: the ranges differ from call to call.
extern "C" AOTITorchError torch_parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                             ParallelFunc func, void* context) {
    const std::int64_t share = (end - begin + 2 * kThreads - 1) / (2 * kThreads);
    const std::int64_t piece = std::max<std::int64_t>({1, share, std::min(grain, end - begin)});
    std::atomic<std::int64_t> next{begin};
    const auto work = [&] {
        for (std::int64_t from; (from = next.fetch_add(piece, std::memory_order_relaxed)) < end;)
            func(from, std::min(end, from + piece), context);
    };
    std::vector<std::thread> others;
    for (std::uint32_t i = 1; i < kThreads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    return 0;
}
