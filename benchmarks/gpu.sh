#!/bin/sh
# Everything that is run once on a machine with an NVIDIA GPU.
#
#   benchmarks/gpu.sh prepare    where the project is installed: bundles, weights and a clip into .gpu/ (ignored by git), to be carried
#   benchmarks/gpu.sh            on the GPU machine, from a copy of the tree with .gpu/: tests, measurements, doctor; a table last
#   benchmarks/gpu.sh PART...    these measurements alone (python -m benchmarks gpu --help names them), for what the first had no time
#
# Half an hour of a GPU is enough for both: the first says at the end which parts were not begun, and the second takes those, such as
#   LIMIT_S=560 benchmarks/gpu.sh device-frames auto swap audit rtx-sm80 torch-compile
# Part "decoding" says without TensorRT whether --decode cuda works; device-frames, auto and swap need one that runs on this GPU. The
# last row of device-frames needs NVENC, which GPUs for data centers such as A100, H100 and H200 lack: there it says so.
#
# Needs no package index and no make there. Everything is also written into $OUT, or benchmarks/results without it. Each part has its
# own time limit, and all of it $LIMIT_S seconds (500); a part that fails does not stop the others. Status: 0 if every part ended
# well, 2 if not.
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}

if [ "${1:-}" = prepare ]; then
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
    exec "$PYTHON" -m benchmarks.gpu.prepare .gpu
fi

parts=$*
start_s=$(date +%s)
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT" || exit 2
export PYTHONPATH="$PWD/.gpu/site:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
export EDGEMASK_CACHE="${EDGEMASK_CACHE:-/tmp/edgemask-gpu}"
status=0
summary=

# limit SECONDS: the smaller of it and what is left of all the time; at least 1.
limit() {
    left=$((${LIMIT_S:-500} - $(date +%s) + start_s))
    [ "$left" -lt 1 ] && left=1
    if [ "$1" -lt "$left" ]; then echo "$1"; else echo "$left"; fi
}

# ended PART STATUS TEXT: a line for the summary.
ended() {
    [ "$2" -eq 0 ] || status=2
    case $2 in
        0) word=ok ;;
        124 | 137) word="TIME LIMIT" ;;
        *) word="FAILED ($2)" ;;
    esac
    summary="$summary$1: $word, $3
"
}

if [ -f .gpu/unpack ]; then
    # Once with a time limit, for it builds PyCUDA; then for its variables, which is quick.
    timeout "$(limit 170)" sh -c '. .gpu/unpack ready' unpack ready > "$OUT/gpu_unpack.log" 2>&1
    unpacked=$?
    grep -q 'something failed' "$OUT/gpu_unpack.log" && unpacked=2
    # shellcheck source=/dev/null
    [ -d /tmp/gpu ] && set -- ready && . .gpu/unpack >> "$OUT/gpu_unpack.log" 2>&1
    ended unpack "$unpacked" "$(tail -n 1 "$OUT/gpu_unpack.log" | cut -c 1-90)"
fi

name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1 | tr -c 'A-Za-z0-9\n' '_' | tr '[:upper:]' '[:lower:]')
json="$OUT/gpu_${name:-none}${parts:+_more}.json"

if [ -n "$parts" ]; then
    ended tests 0 "not run again"
elif [ -z "$name" ]; then
    ended tests 2 "not run: no GPU (nvidia-smi names none)"
else
    # Each file that has such a test, by name: what other files import need not be here. Plug-ins and new warnings of another machine's
    # packages are not what is tested.
    # shellcheck disable=SC2046
    FAIL_WITHOUT_GPU=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 timeout -k 5 "$(limit 110)" "$PYTHON" -m pytest -m gpu -W default \
        --continue-on-collection-errors \
        -p no:cacheprovider $(grep -rl --include='test_*.py' 'mark\.gpu' tests) \
        > "$OUT/gpu_tests.log" 2>&1
    ended tests $? "$(tail -n 1 "$OUT/gpu_tests.log" | cut -c 1-100)"
fi

rm -f "$json"
spare=$(limit "$([ -n "$parts" ] && echo 540 || echo 360)")
# shellcheck disable=SC2086
timeout -k 5 "$spare" "$PYTHON" -m benchmarks gpu --limit "$((spare > 40 ? spare - 20 : spare))" --json "$json" \
    ${parts:+--parts $parts} > "$OUT/gpu_benchmark.log" 2>&1
ended benchmark $? "$(grep -E '^(FAILED|error)' "$OUT/gpu_benchmark.log" | head -n 1 | cut -c 1-110)"

timeout -k 5 "$(limit 30)" "$PYTHON" -m pipeline.doctor > "$OUT/gpu_doctor.txt" 2>&1
ended doctor $? "$(grep -- '--backend auto' "$OUT/gpu_doctor.txt" | tail -n 1 | cut -c 1-100)"

echo "all files are in $OUT; $(($(date +%s) - start_s)) s"
printf '%s' "$summary"
[ -f "$json" ] && "$PYTHON" -m benchmarks.gpu.rows "$json"
exit "$status"
