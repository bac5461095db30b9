#!/usr/bin/env bash
# For a machine with an NVIDIA GPU: NVIDIA's compute-sanitizer over the tests of backend cuda, tool by tool. The package
# must be installed with its CUDA library and the test tools, and compute-sanitizer be on PATH (or in CUDA_HOME/bin).
#   PYTHON=python SELECT='cuda and float32' TOOLS='memcheck racecheck initcheck synccheck' tests/sanitize/cuda.sh
# Each tool makes kernels 10 to 100 times slower, and initcheck more so. Arguments go to pytest.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}
PATH=$PATH${CUDA_HOME:+:$CUDA_HOME/bin}
export PYTHONPATH=.
# torch's own allocator hands out parts of one large block, within which the tools would see no overrun.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
has='from mind_kernels import backends as b; import sys; sys.exit(b()["cuda"].reason or 0)'
"$PYTHON" -c "$has" || exit 1
command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH"; exit 1; }
failed=0
for tool in ${TOOLS:-memcheck racecheck initcheck synccheck}; do
    echo "== $tool"
    # Only this package's kernels: torch's are not ours to check, and initcheck takes its copies for findings.
    compute-sanitizer --tool "$tool" --target-processes all --kernel-regex kns=mind --error-exitcode 99 --print-limit 20 \
        "$PYTHON" -m pytest -q -x -p no:cacheprovider -k "${SELECT:-cuda}" \
        --ignore-glob="*/test_cuda_*.py" tests/kernels "$@" || failed=1
done
exit $failed
