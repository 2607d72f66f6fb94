#!/usr/bin/env bash
# Two hosts that this machine plays: for each rate measure the wire, run the cells on it, predict them, compare.
# usage: scripts/fidelity_hosts.sh PYTHON TIER [Hydra overrides ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 tier=$2
shift 2

for rate in 1gbit 100mbit; do
    network=wire_${rate}_here out=results/fidelity-$rate
    largest=$([ "$rate" = 1gbit ] && echo 8M || echo 4M)
    [ -f "conf/network/$network.yaml" ] ||
        "$python" -m scripts.two_hosts --rate "$rate" -m scripts.calibrate_network --name "$network" --max-bytes "$largest"
    cells="experiment=hosts tier=$tier $*"
    # shellcheck disable=SC2086
    "$python" -m scripts.two_hosts --rate "$rate" -m experiments.run $cells cluster=torchrun cluster.device=cpu network=none out="$out"
    # shellcheck disable=SC2086
    "$python" -m experiments.run $cells cluster=emulated cluster.at_once=null network="$network" out="$out-emulated"
    "$python" -m analysis.fidelity "$out" --emulated "$out-emulated" --document README.md --block "$rate"
done
