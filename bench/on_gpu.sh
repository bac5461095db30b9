#!/usr/bin/env bash
# One call on a machine with a CUDA device: first the tests, then the benchmark, then a short table.
#   OUT=folder PYTHON=python bench/on_gpu.sh [options of bench.linear_cross_entropy]
# Results, picture and logs go to $OUT (default: bench/results). Peers are run where $PYTHON can import them.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=${OUT:-bench/results}
TESTS=${TESTS:-cuda linear_cross_entropy sparse_gradient linear_log_prob triton_rows triton_gather triton_stream}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"

# With a device present these tests run on it, the Triton kernels compiled instead of interpreted: hundreds of
# specialisations, so the files run side by side.
declare -A running
logs=$(mktemp -d)
for name in $TESTS; do
    timeout "${TEST_SECONDS:-240}" "$PYTHON" -m pytest -q "tests/kernels/test_$name.py" >"$logs/$name" 2>&1 &
    running[$name]=$!
done
failed=0
for name in $TESTS; do
    if ! wait "${running[$name]}"; then
        failed=1
        tail -n 30 "$logs/$name"
    fi
    echo "$name: $(tail -n 1 "$logs/$name")"
done
cat "$logs"/* >"$OUT/tests.log"
rm -r "$logs"
if [ $failed -ne 0 ]; then
    echo "the kernels' tests failed: nothing is measured"
    exit 1
fi

"$PYTHON" -m bench.linear_cross_entropy --device cuda --output "$OUT" --minutes "${MINUTES:-4}" "$@" \
    >"$OUT/bench.log" 2>&1
status=$?
[ $status -eq 0 ] || tail -n 15 "$OUT/bench.log"
[ -f "$OUT/linear_cross_entropy_cuda.jsonl" ] || exit $status
"$PYTHON" -m bench.linear_cross_entropy --device cuda --output "$OUT" --models budget --draw
exit $status
