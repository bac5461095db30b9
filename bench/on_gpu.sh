#!/usr/bin/env bash
# One call on a machine with a CUDA device, in less than 8 minutes on 16 cores: the compiled libraries, `check` beside the
# tests, `tune`, the benchmarks of the losses and of a whole training step beside what products and bytes predict.
#   OUT=folder PYTHON=python MINUTES=7.5 WHEELS=folder bench/on_gpu.sh [--dry] [options that all of $BENCHES have, such as --repeats 3]
# Results, pictures and logs go to $OUT (default: runs/bench), in place of those that are there, each as soon as it is known:
# a call that is stopped keeps what it has. The status is not 0 if anything failed.
# BUILT=1: the compiled libraries of this folder are those to use, and nothing is compiled. One build serves every Python
# from 3.11 and every torch from 2.11 on, so they may come from another machine.
# COMMIT names the version in the results if this folder is a copy without git.
# Peers are run if $PYTHON can import them. WHEELS names a folder of wheels that are installed into
# $OUT/site-packages first, without an index and without what they depend on. Such a folder is made elsewhere, for the
# Python of the GPU, by
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d folder liger-kernel cut-cross-entropy trl quack-kernels ...
# with all that they need and the machine lacks, and neither torch nor triton.
# TOKENS names a step that `python -m bench.train_step --save-tokens` wrote (default: the one in bench/training_step).
# --dry: the same lines without a GPU, on the stand-in of bench/rehearsal.py, with tiny shapes, to $OUT (runs/rehearsal).
set -uo pipefail
cd "$(dirname "$0")/.."
DRY=0
[ "${1:-}" != --dry ] || { DRY=1; shift; }
PYTHON=${PYTHON:-python}
BENCHES=${BENCHES:-kernel_times row_kernels linear_pairwise_jsd linear_mind_loss train_step linear_cross_entropy}
declare -A SIZES
run=("$PYTHON")
if [ $DRY -eq 1 ]; then
    OUT=${OUT:-runs/rehearsal}
    TESTS=${TESTS:-cuda}
    TOKENS=${TOKENS:-tests/rehearsed_step.json}
    run=("$PYTHON" -m bench.rehearsal)
    MINUTES=${MINUTES:-40}
    slower=10
    build=(--version) # of setuptools: what is in place stays there
    select=(-k "cross_entropy and float32")
    check=(--backend cuda)
    tune=(--hidden-size 16 --vocabulary 128 --rows 8 --rounds 6)
    SIZES=([kernel_times]="--rows 2" [row_kernels]="--rows 2" [linear_pairwise_jsd]="--models budget --groups 1" [linear_mind_loss]="--rows 3 --groups 1"
        [train_step]="--pack-length 64" [linear_cross_entropy]="--models budget --rows 2")
else
    MINUTES=${MINUTES:-7.5}
    slower=1
    OUT=${OUT:-runs/bench}
    # Those whose cases run on the device if there is one, the ones of most kernels first.
    TESTS=${TESTS:-linear_cross_entropy linear_divergence linear_pairwise_jsd linear_mind_loss masked_vocabulary masked_rows spoilt_rows weights_of_any_size \
        masked_groups masked_divergences row_kernels shard_kernels sparse_gradient triton_stream triton_rows triton_pairs group_kernels \
        jeffreys_kernels linear_pairwise_jeffreys stream_tiles divergence_kernels confident_rows listed_log_prob linear_log_prob linear_top_k extra_stats gather_rows triton_math triton_scale cuda \
        backend linear_divergence_contract operations prompt_sharing exact_rows projected_logits dense_products sparse_shard_kernels}
    TOKENS=${TOKENS:-bench/training_step/step.json}
    build=(-q build_ext --inplace) # so that the tests and benchmarks of this tree use them
    select=(-k "not real_model and not cpp") # those of a CPU need no GPU
    check=()
    tune=(--hidden-size 3584 --vocabulary 151936)
fi
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
status=0
end=$(awk "BEGIN {print int(60 * $MINUTES)}")

# within SECONDS LOG command...: stopped after that long, and at the end of the minutes.
within() {
    local limit=$(($1 * slower)) log=$2 left=$((end - SECONDS))
    shift 2
    [ "$limit" -le $left ] || limit=$left
    [ "$limit" -ge 1 ] || limit=1
    timeout -k 5 "$limit" "$@" >>"$log" 2>&1
}

if [ -n "${WHEELS:-}" ]; then
    wheels=("$WHEELS"/*.whl)
    [ -f "${wheels[0]}" ] || { echo "WHEELS is $WHEELS: no wheel is in it"; exit 1; }
    site=$OUT/site-packages # QuACK takes functions elsewhere for a user's own
    rm -rf "$site"
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --target "$site" "${wheels[@]}" || exit 1
    export PYTHONPATH=$PYTHONPATH:$site
fi
"${run[@]}" -m bench.comparison.peers || exit 1

# MIND_KERNELS_BUILD=auto goes on without what cannot be built.
export MIND_KERNELS_BUILD=${MIND_KERNELS_BUILD:-cuda}
: >"$OUT/build.log"
[ "${BUILT:-0}" = 0 ] || build=(--version)
within 120 "$OUT/build.log" "$PYTHON" setup.py "${build[@]}" || { tail -n 30 "$OUT/build.log"; exit 1; }
echo "built after $SECONDS s: $(tail -n 1 "$OUT/build.log")"

# With a device present these tests run on it, the Triton kernels compiled instead of interpreted: hundreds of
# specializations, so as many files run side by side as there are processors, with one thread each.
logs=$OUT/tests
rm -rf "$logs" "$OUT/tests_cuda.jsonl" && mkdir -p "$logs"
export RAN=$OUT/tests_cuda.jsonl # see tests/ran.py
test_file() {
    local name=$1
    within "${TEST_SECONDS:-180}" "$logs/$name" "${run[@]}" -m pytest -q -p tests.ran "${select[@]}" tests/*/"test_$name.py"
    echo $? >"$logs/$name.status"
}
processors=$(nproc) # before the next line, which nproc obeys
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
: >"$OUT/check.log"
(
    within "${TEST_SECONDS:-180}" "$OUT/check.log" "${run[@]}" -m mind_kernels check --device cuda "${check[@]}"
    echo $? >"$logs/check.status"
) &
for name in $TESTS; do
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-$processors}" ]; do wait -n; done
    test_file "$name" &
done
wait
cat "$OUT/check.log"
[ "$(cat "$logs/check.status")" = 0 ] || status=1
for name in $TESTS; do
    if [ "$(cat "$logs/$name.status")" != 0 ]; then
        status=1
        tail -n 30 "$logs/$name"
    fi
    echo "$name: $(tail -n 1 "$logs/$name")"
done
echo "checked and tested after $SECONDS s"
[ $status -eq 0 ] || echo "check or the kernels' tests failed; what follows is measured where it is right"
unset OMP_NUM_THREADS

# What "auto" would take by a measurement, for the head of the budgets; the table stays in $OUT.
: >"$OUT/tune.log"
MIND_KERNELS_TUNING="$OUT/tuning" within "${TUNE_SECONDS:-60}" "$OUT/tune.log" "${run[@]}" -m mind_kernels tune --device cuda "${tune[@]}" || status=1
cat "$OUT/tune.log"
echo "tuned after $SECONDS s"

# What is left of the minutes is shared out: what a benchmark leaves goes to the ones after it, and the last has the most
# cases. Tables take the last seconds.
end=$((end - 15))
: >"$OUT/bench.log"
left=$(wc -w <<<"$BENCHES")
for name in $BENCHES; do
    share=$(((end - SECONDS) / left))
    [ $share -ge 1 ] || share=1
    read -ra only <<<"${SIZES[$name]:-}"
    [ "$name" != train_step ] || only+=(--tokens "$TOKENS")
    # A case that has begun may overrun its share by half a minute; then it is stopped, and what it had is kept.
    within $((share + 30)) "$OUT/bench.log" "${run[@]}" -m "bench.$name" --device cuda --output "$OUT" --overwrite "${only[@]}" "$@" \
        --minutes "$(awk "BEGIN {print $share / 60}")" || {
        echo "bench.$name ended with status $?:"
        status=1
        tail -n 15 "$OUT/bench.log"
    }
    left=$((left - 1))
done
end=$((end + 15))
"${run[@]}" -m bench.tables "$OUT" || status=1
echo "done after $SECONDS s, status $status"
exit $status
