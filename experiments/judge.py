"""`python -m experiments.judge conf/system/moeshard.yaml`: does a system compute what the dense model computes?"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from clusters.launch import LaunchFailed, prepare
from clusters.session import ClusterSpec
from experiments.cells import find_class
from experiments.conformance import TOLERANCE, judge
from systems.engines.auto import choose


def main() -> int:
    """Judge one system on 1, 2 and 4 ranks and print what fails."""
    parser = argparse.ArgumentParser(description="Does a system compute what the dense model does?")
    parser.add_argument("system", type=Path, help="its configuration, e.g. conf/system/moeshard.yaml")
    parser.add_argument("--top-k", type=int, default=1, help="largest number of experts per token to try")
    arguments = parser.parse_args()
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(arguments.system))
        find_class(node)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    choose("cpu", "ieee", 8, 100, (16, 32))  # may compile, for which ranks have no time
    prepare(ClusterSpec(), ["experiments.conformance", "deepspeed.moe.layer"])
    failures = 0
    for world_size in (1, 2, 4):
        with tempfile.TemporaryDirectory() as name:
            cluster = ClusterSpec("gloo", world_size, timeout_s=30)
            try:
                ranks = judge({"system": node}, cluster, Path(name), {"system": arguments.top_k})
            except LaunchFailed as failure:
                print(f"{failure.traceback}\nG={world_size}: {failure}", file=sys.stderr)
                return 1
        wrong = [
            f"G={world_size} rank {rank} {key}: {verdict}"
            for rank, verdicts in enumerate(ranks)
            for key, verdict in verdicts.items()
            if verdict["error"] > TOLERANCE or verdict["dropped"] != verdict["accounted"]
        ]
        failures += len(wrong)
        print(f"G={world_size}: {len(ranks[0])} cases, {len(wrong)} wrong", *wrong, sep="\n  ")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
