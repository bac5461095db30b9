#!/usr/bin/env bash
# Random calls of all operators (tests/fuzz) on a build of csrc/cpu with ThreadSanitizer, whose loops run on four threads of
# tests/sanitize/parallel.cpp, once for each instruction set that this processor has. The first finding, such as a race or
# a result that depends on which thread did what, ends it with 1. The build stays in build/tsan and is never installed.
#   PYTHON=python CAPABILITIES='baseline avx2 avx512' tests/sanitize/threads.sh [ARGUMENTS of tests.fuzz]
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}
export CXX=${CXX:-g++}
[ $# -gt 0 ] || set -- --minutes 3 --operators public_functions
mkdir -p build/tsan
torch=$("$PYTHON" -c 'import torch.utils.cpp_extension as e; print(e.include_paths()[0])')
$CXX -std=c++20 -O1 -g -fPIC -fsanitize=thread -isystem "$torch" -c tests/sanitize/parallel.cpp -o build/tsan/parallel.o
LDFLAGS="$PWD/build/tsan/parallel.o -Wl,-Bsymbolic ${LDFLAGS:-}" \
    "$PYTHON" setup.py -q build_ext --variant tsan --build-lib build/tsan | grep '^mind-kernels:'

export MIND_KERNELS_LIBRARIES=$PWD/build/tsan/mind_kernels PYTHONPATH=. OMP_NUM_THREADS=1 SANITIZER=threads
export TSAN_OPTIONS="halt_on_error=1 suppressions=$PWD/tests/sanitize/threads.supp"
# Memory is laid out as the runtime expects it.
run=(env LD_PRELOAD="$($CXX -print-file-name=libtsan.so)" "$PYTHON")
if setarch "$(uname -m)" -R true 2>/dev/null; then run=(setarch "$(uname -m)" -R "${run[@]}"); fi
for capability in ${CAPABILITIES:-baseline avx2 avx512}; do
    export MIND_KERNELS_CPU_CAPABILITY=$capability
    has='from mind_kernels import extension as e; print(e.unavailable("cpp") or e.capability())'
    if ! found=$("${run[@]}" -c "$has" 2>&1); then
        echo "$capability: not run: ${found##*$'\n'}"
        [ "$capability" != baseline ] || exit 1
        continue
    fi
    echo "== $found"
    "${run[@]}" -m tests.fuzz "$@"
done
