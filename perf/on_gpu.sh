#!/usr/bin/env bash
# All that a GPU can show, in under nine minutes: bash perf/on_gpu.sh OUT
#
# OUT gets a log for each step, the rows and plots of the sweep and the peers, and summary.txt, the table that is printed last.
# Exit status: 0 all that could be done is well, 1 a step failed, 2 there is no GPU or no OUT.
set -uo pipefail

readonly usage='usage: bash perf/on_gpu.sh OUT'
if [ $# -ne 1 ] || [ -z "$1" ] || [ "${1#-}" != "$1" ]; then
    echo "$usage" >&2
    exit 2
fi
python=$(command -v python || command -v python3) || {
    echo "perf/on_gpu.sh: needs Python on the PATH" >&2
    exit 2
}
unset TRITON_INTERPRET
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "perf/on_gpu.sh: torch sees no GPU here; python -m perf.sweep and python -m perf.peers measure the CPU" >&2
    exit 2
fi

mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# As automake has it; pytest and others use the small numbers.
readonly not_done=77 out python
readonly deadline=$((SECONDS + 525))
summary=$out/summary.txt
printf '%-22s%8s  %s\n' step seconds result | tee "$summary"

has() { "$python" -c "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" "$@"; }

# step NAME LIMIT COMMAND...: runs it for at most LIMIT seconds, and no longer than the whole has left. Its log is OUT/NAME.log.
step() {
    local name=$1 limit=$2 started=$SECONDS left=$((deadline - SECONDS)) status=0 verdict
    shift 2
    local log=$out/$name.log
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo 'no time was left' >"$log"
        status=$not_done
    else
        # An interrupted command still says what it has. In the background it does not hear that, and is killed.
        timeout --signal=INT --kill-after=5 "$limit" "$@" >"$log" 2>&1 </dev/null || status=$?
    fi
    case $status in
    0) verdict=ok ;;
    "$not_done") verdict="not done: $(last "$log")" ;;
    124 | 137) verdict="failed: stopped after $limit s" ;;
    *) verdict="failed: $(last "$log")" ;;
    esac
    printf '%-22s%8d  %s\n' "$name" $((SECONDS - started)) "$verdict" | tee -a "$summary"
}

last() { grep -v '^[[:space:]]*$' "$1" | tail -n 1 | sed -E 's/^[a-z]+: (failed|not done): //' | cut -c 1-160; }

lacking() {
    echo "$1"
    return "$not_done"
}

tests() {
    has pytest hypothesis numba || { lacking 'needs pytest, hypothesis and numba'; return; }
    # Some cores are left to the checks that run meanwhile.
    local workers=()
    ! has xdist || workers=(-n "$("$python" -c 'import os; print(min(max((os.cpu_count() or 2) - 4, 2), 12))')")
    # pytest-benchmark, where it is installed, warns beside xdist, and a warning is an error here.
    "$python" -m pytest tests/ -q -p no:cacheprovider -p no:benchmark --durations=10 "${workers[@]}"
}

sanitizer() {
    local tool=compute-sanitizer log=$out/sanitizer_$1.tmp status=0
    command -v "$tool" >/dev/null || tool=/usr/local/cuda/bin/compute-sanitizer
    [ -x "$(command -v "$tool")" ] || { lacking 'compute-sanitizer is not installed'; return; }
    local options=(--tool "$1" --target-processes application-only --error-exitcode 9 --kernel-name kernel_substring=_kernel)
    # torch asks the driver for what it may refuse; that is no fault of a kernel.
    [ "$1" = racecheck ] || options+=(--report-api-errors no)
    # Without torch's cache each tensor is an allocation of its own, beyond which nothing may be touched.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" "${options[@]}" "$python" -m perf.gpu_checks touched 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    if grep -q -i 'device not supported\|not supported on this' "$log"; then
        rm -f "$log"
        lacking "compute-sanitizer does not serve this device"
        return
    fi
    rm -f "$log"
    return "$status"
}

counters() {
    local tool=ncu log=$out/counters.tmp status=0
    command -v "$tool" >/dev/null || tool=/usr/local/cuda/bin/ncu
    [ -x "$(command -v "$tool")" ] || { lacking 'ncu is not installed'; return; }
    # Triton's kernels are those that begin with an underscore. The clocks are left as they are.
    "$tool" --profile-from-start off --clock-control none --kernel-name regex:^_ --print-summary per-kernel --metrics \
        gpu__time_duration.sum,dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed \
        "$python" -m perf.gpu_checks traced 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    if grep -q 'ERR_NVGPUCTRPERM\|Failed to initialize the profiler\|LibraryNotLoaded' "$log"; then
        rm -f "$log"
        lacking 'ncu may not read the counters here'
        return
    fi
    rm -f "$log"
    return "$status"
}

calibration() {
    has fused_bilagrid || { lacking 'fused_bilagrid is not installed'; return; }
    timeout 55 "$python" -m fused_bilagrid.calibration || lacking 'its calibration did not end; it keeps the one that it came with'
}

sweep() {
    local guides=(random) status=0
    ! has skimage || guides=(photograph random)
    # What is composed of the operators needs less: at one size, in one type.
    "$python" -m perf.sweep --device cuda --overwrite --out "$out" --resolutions 1080p 4k --dtypes float32 float16 \
        --grids 16x16x8 sigma8 --guides "${guides[@]}" --seconds 0.1 --operators splat blur slice slice_points slice_apply \
        slice_apply_luma slice_apply_bank curves total_variation bilateral_filter_gray bilateral_filter_colour \
        joint_bilateral_upsample || status=$?
    "$python" -m perf.sweep --device cuda --resume --out "$out" --resolutions 4k --dtypes float32 --grids 16x16x8 \
        --guides "${guides[0]}" --seconds 0.1 --operators fit guided_upsample tonemap equalize_histogram merge_flash colorize || status=$?
    return "$status"
}

hdrnet() {
    has safetensors skimage || { lacking 'needs safetensors and scikit-image'; return; }
    "$python" -m perf.hdrnet --device cuda --overwrite --out "$out"
}

plots() {
    has matplotlib || { lacking 'needs matplotlib'; return; }
    # A sweep or peers that failed must not cost the other its plots.
    local files=() file
    for file in "$out"/rows.csv "$out"/peers.csv; do
        ! [ -f "$file" ] || files+=("$file")
    done
    [ ${#files[@]} -gt 0 ] || { lacking 'there are no rows'; return; }
    "$python" -m perf.sweep --out "$out" --plot "${files[@]}"
}

export -f has lacking tests sanitizer counters calibration sweep hdrnet plots
export out python not_done

# What is timed has the GPU to itself.
step sweep 170 bash -c sweep
step calibration 60 bash -c calibration
step peers 75 bash -c '"$python" -m perf.peers --device cuda --overwrite --out "$out"'
step hdrnet 30 bash -c hdrnet
step plots 20 bash -c plots
step overhead 50 "$python" -m perf.overhead
step profile 30 "$python" -m perf.gpu_checks profile
step counters 40 bash -c counters

# What is not runs beside the tests, which take longest. These stay in the foreground: an interrupt reaches nothing else.
{
    # Compiles each kernel in every type.
    step correct 150 "$python" -m perf.gpu_checks correct
    for name in twice stream graph compiled; do
        step "$name" 90 "$python" -m perf.gpu_checks "$name"
    done
} &
{
    step large 60 "$python" -m perf.gpu_checks large
    step memcheck 75 bash -c 'sanitizer memcheck'
    step racecheck 75 bash -c 'sanitizer racecheck'
} &
step tests 240 bash -c tests
wait

printf '\n'
! [ -f "$out/tests.log" ] || grep -E '[0-9]+ (passed|failed|error)' "$out/tests.log" | tail -n 1
cat "$summary"
! grep -q ' failed: ' "$summary"
