// Which table of kernels this processor takes.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace mind {

// "default" is a keyword: the capability without flags is called baseline.
namespace baseline {
extern const Kernels table;
}
#ifdef MIND_HAS_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

const Kernels& choose() {
    const char* variable = std::getenv("MIND_KERNELS_CPU_CAPABILITY");
    const std::string wanted = variable == nullptr ? "" : variable;
#ifdef MIND_HAS_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512 && (wanted.empty() || wanted == "avx512")) return avx512::table;
    if (has_avx2 && (wanted.empty() || wanted == "avx2")) return avx2::table;
#endif
    if (wanted.empty() || wanted == "baseline") return baseline::table;
    throw std::runtime_error("MIND_KERNELS_CPU_CAPABILITY is '" + wanted +
                             "': expected avx512, avx2 or baseline, and one that this processor has");
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace mind
