// Which table of kernels is used on this processor.
#include <atomic>
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

std::atomic<const Kernels*> chosen{nullptr};

// `setting` says in an error where the name came from; an empty name stands for the best.
const Kernels& table_of(const std::string& name, const char* setting) {
#ifdef MIND_HAS_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512 && (name.empty() || name == "avx512")) return avx512::table;
    if (has_avx2 && (name.empty() || name == "avx2")) return avx2::table;
#endif
    if (name.empty() || name == "baseline") return baseline::table;
    throw std::runtime_error(std::string(setting) + " is '" + name +
                             "': expected avx512, avx2 or baseline, and one that this processor has");
}

}  // namespace

const Kernels& kernels() {
    const Kernels* table = chosen.load(std::memory_order_acquire);
    if (table == nullptr) {
        const char* variable = std::getenv("MIND_KERNELS_CPU_CAPABILITY");
        table = &table_of(variable == nullptr ? "" : variable, "MIND_KERNELS_CPU_CAPABILITY");
        chosen.store(table, std::memory_order_release);
    }
    return *table;
}

void use_capability(const char* name) { chosen.store(&table_of(name, "capability"), std::memory_order_release); }

}  // namespace mind
