#!/usr/bin/env bash
# What one visit of ten minutes to one GPU can tell, on a bare machine without network or package registry: the GPU
# tests, the device's description, programs on it alone, the engines, and the MoE layer at the paper's width on four
# emulated ranks (docs/gpus.md).
# Start (after scripts/pack_wheels.sh at home; OUT is any folder):
#   python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .wheels/*.whl && PYTHONPATH=/tmp/site scripts/gpu_visit.sh python3 "$OUT" 560
#
# usage: scripts/gpu_visit.sh PYTHON OUT [SECONDS]    SECONDS (or VISIT_SECONDS): stop by then whatever happens
# VISIT_DEVICE=cpu rehearses it: tests that need no GPU, and a tiny layer. VISIT_STEPS: a file of other steps (tests).
# OUT gets summary.tsv (a line a step), log.txt, tests.xml, device.tar.gz, profile-*.csv, alone.tar.gz, engines.csv and
# layers.tar.gz, written as steps end.
# Exit status: 0 if every step did what it should, 1 if one failed, was stopped or left out, 2 for wrong arguments.
set -uo pipefail
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONUNBUFFERED=1

RESERVE=10  # seconds at the end: a step's last five after it was told to stop, and packing
LEAST=10  # seconds under which a step is not begun

[ $# -ge 2 ] && [ $# -le 3 ] || { echo "usage: scripts/gpu_visit.sh PYTHON OUT [SECONDS]" >&2; exit 2; }
python=$1 seconds=${3:-${VISIT_SECONDS:-560}} device=${VISIT_DEVICE:-cuda}
case $seconds in *[!0-9]* | '') echo "gpu_visit: SECONDS is '$seconds'; it must be a whole number" >&2; exit 2 ;; esac
case $device in cuda | cpu) ;; *) echo "gpu_visit: VISIT_DEVICE is '$device'; it must be cuda or cpu" >&2; exit 2 ;; esac
mkdir -p "$2" || exit 2
out=$(cd "$2" && pwd)
deadline=$((SECONDS + seconds)) outcome=0
cd "$(dirname "$0")/.." || exit 2
# A copy without .git says which commit it is.
[ -f .wheels/commit ] && [ -z "${HARNESS_COMMIT:-}" ] && HARNESS_COMMIT=$(cat .wheels/commit) && export HARNESS_COMMIT

note() {  # STEP STATE SECONDS DETAIL: one line of the summary
    [ "$2" = ok ] || outcome=1
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" | tee -a "$out/summary.tsv"
}

step() {  # NAME BUDGET COMMAND...: run it for BUDGET seconds at most, and never past the deadline
    local name=$1 limit=$2 left=$((deadline - SECONDS - RESERVE)) begun=$SECONDS status
    shift 2
    [ "$left" -lt "$LEAST" ] && { note "$name" skipped 0 "no time left"; return; }
    [ "$limit" -gt "$left" ] && limit=$left
    printf '\n=== %s: at most %s s\n' "$name" "$limit" >>"$out/log.txt"
    # SIGINT lets pytest write its report and a campaign keep its cells; a background shell would have it ignored.
    env --default-signal=INT timeout -s INT -k 5 "$limit" "$@" >>"$out/log.txt" 2>&1 </dev/null
    status=$?
    case $status in
        0) note "$name" ok $((SECONDS - begun)) "" ;;
        124 | 137) note "$name" stopped $((SECONDS - begun)) "after its $limit s" ;;
        *) note "$name" failed $((SECONDS - begun)) "exit status $status" ;;
    esac
}

pack() {  # ARCHIVE FOLDER NAME...: what is there of these, as one file
    local archive=$1 folder=$2 found
    shift 2
    found=$(cd "$folder" && ls -d "$@" 2>/dev/null)
    [ -z "$found" ] || { tar czf "$out/$archive.new" -C "$folder" -T - <<<"$found" && mv "$out/$archive.new" "$out/$archive"; }
}

gpu_tests() {  # first what proves most, then every other file with a GPU test
    local first=tests/systems/test_moeshard_gpu.py files mark=(-m gpu) workers=()
    files=$(grep -rl 'mark\.gpu' tests --include='test_*.py' | grep -vxF "$first")
    [ "$device" = cpu ] && mark=(-m "not gpu")
    # Triton compiles and tunes on the CPU: one process after the other takes five minutes.
    # -v: should it be stopped before its report is written, the log has what became of each test until then.
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) < 8 ? $(nproc) : 8))" --dist worksteal)
    # shellcheck disable=SC2086
    # Meanwhile what is imported later is compiled and read from disk.
    timeout 100 "$python" -c 'import experiments.run, experiments.bench, deepspeed.moe.layer' >/dev/null 2>&1 </dev/null &
    step tests "$1" "$python" -m pytest "${mark[@]}" "${workers[@]}" -p no:cacheprovider -v -rs --durations=10 \
        --junitxml="$out/tests.xml" $first $files
}

describe() {
    local name=cpu_here network=() found
    [ -e scripts/describe_device.py ] || { note device missing 0 "there is no scripts.describe_device"; return; }
    found=$(timeout 20 nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | grep -oE '[A-Z]+[0-9]{2,4}' | head -1)
    # It takes 1.3 times its seconds, and compiles before. Which links join four of it a single one cannot tell; the layers are measured with the same.
    [ "$device" = cuda ] && name=${found,,} && name=${name:-gpu}_here && network=(--network nvlink4)
    step device "$1" "$python" -m scripts.describe_device "$name" --device "$device" "${network[@]}" --seconds $(($1 * 55 / 100))
    pack device.tar.gz . "conf/device/$name.yaml" devices/tables/"$name".*
}

alone() {  # PRECISION SECONDS: whole programs on this device by itself, which the description is held against
    local sizes=() cluster=(cluster=nccl)
    [ "$device" = cpu ] && cluster=(cluster=gloo) && sizes=("experiment.systems=[deepspeed,ep]" model.d_model=64 model.d_ff=128 seq_len=8)
    step "alone-$1" "$2" "$python" -m experiments.run experiment=alone "${cluster[@]}" "precision=$1" cluster.timeout_s=100 \
        tier=smoke tier.rounds=10 "${sizes[@]}" "out=$work/alone/$1"
    pack alone.tar.gz "$work" alone
}

programs() {  # BATCH SECONDS: what each operation of the programs costs the host and the device
    local workload=("batch_size=$1" precision=bf16 model.num_experts=128)
    [ "$device" = cpu ] && workload=("batch_size=$1" model.num_experts=8 model.d_model=64 model.d_ff=128 seq_len=8)
    step "profile-$1" "$2" "$python" -m scripts.profile_programs deepspeed ep moeshard moeshard_no_megablocks moeshard_authors_loop \
        --device "$device" --out "$work/profile" --overrides "${workload[@]}"
    [ ! -f "$work/profile/operations.csv" ] || mv "$work/profile/operations.csv" "$out/profile-$1.csv"
}

engines() {  # SECONDS: each engine in percent of a dense product
    local sizes=(--precisions bf16 tf32 --tokens 1200 120000 --widths 768)
    [ "$device" = cpu ] && sizes=(--precisions fp32 --tokens 100 --widths 64)
    step engines "$1" "$python" -m scripts.bench_engines --device "$device" "${sizes[@]}" --seconds 0.2 --out "$work/engines"
    [ ! -f "$work/engines/tables/engines.csv" ] || cp "$work/engines/tables/engines.csv" "$out/engines.csv"
}

layer() {  # PRECISION BATCH ROUNDS SYSTEMS: one launch, then all so far as one file
    local sizes=(scale=paper model.num_experts=128 model.num_blocks=2 "batch_size=$2" seq_len=120)
    [ "$device" = cpu ] && sizes=(model.num_experts=16 model.d_model=64 model.d_ff=128 batch_size=4 seq_len=32)
    step "layer-$1-$2" 170 "$python" -m experiments.run experiment=bench_layer "${sizes[@]}" "precision=$1" \
        cluster=emulated "cluster.device=$device" cluster.timeout_s=100 network=nvlink4 \
        tier=smoke "tier.rounds=$3" "experiment.systems=[$4]" "out=$work/layers/$1-$2"
    pack layers.tar.gz "$work" layers
}

layers() {
    local others=moeshard,moeshard_published,ep,ep_round_robin gib
    local all=$others,deepspeed
    if [ "$device" = cpu ]; then
        layer bf16 250 3 "$all"
        layer fp32 250 3 "$all"
        return
    fi
    gib=$(timeout 20 nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
    gib=$((${gib:-0} / 1024))
    # At the paper's capacity factor DeepSpeed's buffers of 250 sequences take 14 GB a rank in float32, half in bf16, and
    # seconds on their way through the host's memory.
    layer bf16 250 3 "$all"
    if [ "$gib" -ge 100 ]; then layer tf32 250 3 "$all"; else layer tf32 250 5 "$others"; fi
    layer tf32 10 10 "$all"
    layer bf16 10 10 "$all"
    [ "$gib" -ge 100 ] || layer tf32 125 3 "$all"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf 'step\tstate\tseconds\tdetail\n' >"$out/summary.tsv"
{
    echo "commit ${HARNESS_COMMIT:-$(git rev-parse HEAD 2>/dev/null)}, $seconds s on $device, $(nproc) cores"
    timeout 20 nvidia-smi 2>&1
} >"$out/log.txt"
if [ -n "${VISIT_STEPS:-}" ]; then
    # shellcheck disable=SC1090
    . "$VISIT_STEPS"
else
    gpu_tests 90
    describe "$([ "$device" = cpu ] && echo 90 || echo 120)"
    programs 10 45
    programs 100 45
    for precision in bf16 tf32; do
        [ "$device" = cpu ] && precision=fp32
        alone $precision 100
    done
    engines 60
    layers
fi
note visit "$([ $outcome = 0 ] && echo ok || echo incomplete)" "$SECONDS" "of $seconds s"
exit $outcome
