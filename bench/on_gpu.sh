#!/usr/bin/env bash
# One call on a machine with a CUDA device: the compiled libraries, `check` beside the tests, `tune`, the benchmarks of the
# losses and of a whole training step, short tables.
#   OUT=folder PYTHON=python MINUTES=4 bench/on_gpu.sh [options that all of $BENCHES have, such as --repeats 3]
# Results, pictures and logs go to $OUT (default: runs/bench), in place of those that are there. Peers are run where $PYTHON can import them. Without the
# student's package TOKENS names the file that `python -m bench.train_step --save-tokens` wrote elsewhere.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=${OUT:-runs/bench}
TESTS=${TESTS:-cuda backend linear_cross_entropy sparse_gradient linear_log_prob listed_log_prob extra_stats linear_pairwise_jsd \
    linear_mind_loss linear_divergence linear_divergence_contract operations row_kernels gather_rows group_kernels divergence_kernels triton_rows \
    triton_stream triton_pairs triton_math prompt_sharing}
BENCHES=${BENCHES:-row_kernels linear_pairwise_jsd linear_mind_loss train_step linear_cross_entropy}
MINUTES=${MINUTES:-4}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"

# In place, so that the tests and benchmarks of this tree use them. MIND_KERNELS_BUILD=auto goes on without what cannot be
# built.
MIND_KERNELS_BUILD=${MIND_KERNELS_BUILD:-cuda} "$PYTHON" setup.py -q build_ext --inplace >"$OUT/build.log" 2>&1 || { tail -n 30 "$OUT/build.log"; exit 1; }
tail -n 1 "$OUT/build.log"

# With a device present these tests run on it, the Triton kernels compiled instead of interpreted: hundreds of
# specializations, so the files run side by side.
declare -A running
logs=$(mktemp -d)
timeout "${TEST_SECONDS:-240}" "$PYTHON" -m mind_kernels check >"$OUT/check.log" 2>&1 &
check=$!
for name in $TESTS; do
    timeout "${TEST_SECONDS:-240}" "$PYTHON" -m pytest -q -k "not real_model" tests/*/"test_$name.py" >"$logs/$name" 2>&1 &
    running[$name]=$!
done
failed=0
wait $check || failed=1
cat "$OUT/check.log"
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
    echo "check or the kernels' tests failed: nothing is measured"
    exit 1
fi

# The minutes are shared out: what a benchmark leaves goes to the ones after it, and the last has the most cases. A case
# that has begun may overrun its share by a minute; then it is stopped, and the cases before it are kept.
end=$((SECONDS + $(awk "BEGIN {print int(60 * $MINUTES)}")))
status=0
# What "auto" would take by a measurement, for the head of the budgets; the table stays in $OUT. It comes out of the minutes.
MIND_KERNELS_TUNING="$OUT/tuning" timeout 60 "$PYTHON" -m mind_kernels tune --device cuda --hidden-size 3584 \
    --vocabulary 151936 >"$OUT/tune.log" 2>&1 || status=$?
cat "$OUT/tune.log"
: >"$OUT/bench.log"
left=$(wc -w <<<"$BENCHES")
for name in $BENCHES; do
    share=$(((end - SECONDS) / left))
    [ $share -ge 1 ] || share=1
    only=()
    [ "$name" != train_step ] || [ -z "${TOKENS:-}" ] || only=(--tokens "$TOKENS")
    timeout $((share + 60)) "$PYTHON" -m "bench.$name" --device cuda --output "$OUT" --overwrite "${only[@]}" "$@" \
        --minutes "$(awk "BEGIN {print $share / 60}")" >>"$OUT/bench.log" 2>&1 || {
        status=$?
        echo "bench.$name ended with status $status:"
        tail -n 15 "$OUT/bench.log"
    }
    left=$((left - 1))
done
for name in $BENCHES; do
    [ -f "$OUT/${name}_cuda.jsonl" ] || continue
    only=()
    [ "$name" != linear_cross_entropy ] || only=(--models budget) # the others are too many for a short table
    "$PYTHON" -m "bench.$name" --device cuda --output "$OUT" "${only[@]}" --draw
done
exit $status
