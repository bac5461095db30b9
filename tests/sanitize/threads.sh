#!/usr/bin/env bash
# Builds tests/sanitize/threads.cpp with the CPU kernels under ThreadSanitizer, and runs it with each instruction set that
# this processor has; the build stays in build/tsan. A finding, or results that depend on the threads, end it with 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
mkdir -p build/tsan
declare -A flags=([baseline]="")
dispatch=
if [[ $($CXX -dumpmachine) == x86_64* ]]; then # as in build_tools/libraries.py
    flags[avx2]="-mavx2 -mfma -mf16c"
    flags[avx512]="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c"
    dispatch=-DMIND_HAS_X86
fi
compile="$CXX -std=c++20 -O1 -g -fsanitize=thread -ffp-contract=fast -Wno-psabi -Wno-maybe-uninitialized"
for capability in "${!flags[@]}"; do
    $compile -DMIND_CAPABILITY="$capability" ${flags[$capability]} -c csrc/cpu/kernels.cpp -o "build/tsan/$capability.o"
done
$compile $dispatch -c csrc/cpu/dispatch.cpp -o build/tsan/dispatch.o
$compile -c tests/sanitize/threads.cpp -o build/tsan/threads.o
$CXX -fsanitize=thread build/tsan/*.o -o build/tsan/threads

# Some kernels lay memory out in a way that the runtime does not expect, unless the layout is not random.
run=()
if setarch "$(uname -m)" -R true 2>/dev/null; then run=(setarch "$(uname -m)" -R); fi
for capability in "${!flags[@]}"; do
    status=0
    MIND_KERNELS_CPU_CAPABILITY=$capability TSAN_OPTIONS=halt_on_error=1 "${run[@]}" build/tsan/threads || status=$?
    [ $status -ne 3 ] || echo "$capability: not run: this processor does not have it"
    [ $status -eq 0 ] || [ $status -eq 3 ] || exit 1
done
