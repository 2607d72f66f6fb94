#!/usr/bin/env bash
# Two hosts that this machine plays: for each rate measure the wire, run the cells on it, predict them, compare.
# usage: scripts/fidelity_hosts.sh PYTHON TIER [Hydra overrides ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 tier=$2
shift 2
calibration="scripts/calibrate_network.py scripts/calibration/*.py clusters/session.py"

for rate in 1gbit 100mbit; do
    network=wire_${rate}_here out=results/fidelity-$rate
    largest=$([ "$rate" = 1gbit ] && echo 8M || echo 4M)
    # shellcheck disable=SC2086
    # What measures it is newer than what it measured: measure again.
    if [ ! -f "conf/network/$network.yaml" ] || [ -n "$(find $calibration -newer "conf/network/$network.yaml")" ]; then
        "$python" -m scripts.two_hosts --rate "$rate" -m scripts.calibrate_network --name "$network" --max-bytes "$largest"
    fi
    # Real and predicted launches take turns, because the machine is not equally fast all the time.
    for launches in 2 4 6; do
        cells="experiment=hosts tier=$tier tier.launches=$launches $*"
        # shellcheck disable=SC2086
        "$python" -m scripts.two_hosts --rate "$rate" -m experiments.run $cells cluster=torchrun cluster.device=cpu network=none out="$out"
        # shellcheck disable=SC2086
        "$python" -m experiments.run $cells cluster=emulated cluster.concurrent_ranks=null network="$network" out="$out-emulated"
    done
    "$python" -m analysis.studies.fidelity "$out" --emulated "$out-emulated"
done
