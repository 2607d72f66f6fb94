#!/usr/bin/env bash
# What needs a GPU, on one device that plays four ranks in turns; nothing measured is lost if it is stopped.
# Figure 1 and the layers want a checkpoint from the hub: experiment=fig1 and layers with scale=paper.
# usage: scripts/gpu_campaign.sh PYTHON TIER   (results in results/gpu; the same command goes on)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 tier=$2
common="scale=paper cluster=emulated cluster.device=cuda tier=$tier network=nvlink4 engine=auto"

"$python" -m pytest -m gpu -q
[ -f results/gpu/engines/tables/engines.csv ] || "$python" -m scripts.bench_engines --device cuda --precisions tf32 bf16 --tokens 1200 120000 --widths 768 --seconds 2 \
    --out results/gpu/engines
for precision in tf32 bf16; do
    for experiment in fig3 fig4 skew sections attribution; do
        # shellcheck disable=SC2086
        "$python" -m experiments.run experiment="$experiment" $common precision="$precision" "out=results/gpu/$precision-$experiment"
    done
done
