#!/usr/bin/env bash
# One call on a machine with a CUDA device: first the tests, then the benchmark, then a short table.
#   OUT=folder PYTHON=python bench/on_gpu.sh [options of bench.linear_cross_entropy]
# Results, picture and logs go to $OUT (default: bench/results). Peers are run where $PYTHON can import them.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=${OUT:-bench/results}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"

# With a device present these tests run on it: those marked gpu, and the Triton kernels compiled instead of interpreted.
if ! timeout "${TEST_SECONDS:-180}" "$PYTHON" -m pytest -q tests/kernels >"$OUT/tests.log" 2>&1; then
    tail -n 40 "$OUT/tests.log"
    echo "the kernels' tests failed: nothing is measured"
    exit 1
fi
tail -n 1 "$OUT/tests.log"

"$PYTHON" -m bench.linear_cross_entropy --device cuda --output "$OUT" --minutes "${MINUTES:-5}" "$@" \
    >"$OUT/bench.log" 2>&1
status=$?
[ $status -eq 0 ] || tail -n 15 "$OUT/bench.log"
[ -f "$OUT/linear_cross_entropy_cuda.jsonl" ] || exit $status
"$PYTHON" -m bench.linear_cross_entropy --device cuda --output "$OUT" --models budget --draw
exit $status
