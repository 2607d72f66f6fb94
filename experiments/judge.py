"""`python -m experiments.judge SYSTEM`: does a system compute what the dense model computes?

SYSTEM: its .yaml, its name in conf/system, or the dotted name of its class.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from clusters.launch import LaunchFailed, prepare
from clusters.session import ClusterSpec
from experiments.configuration import find_class, options
from experiments.conformance import judge
from systems.base import System
from systems.engines.auto import preferred

CONF = Path(__file__).parents[1] / "conf/system"


def read_system(system: str) -> Any:
    """The configuration that a file, a name in conf/system or a class stands for."""
    named = CONF / f"{system}.yaml"
    if not system.endswith((".yaml", ".yml")) and not named.exists():
        if "." not in system:
            known = ", ".join(sorted(path.stem for path in CONF.glob("*.yaml")))
            raise ValueError(f"there is no system {system!r}; it is one of {known}, a .yaml, or package.module.Class")
        return {"_target_": system, "name": system.rpartition(".")[2], "engine": "loop"}
    return OmegaConf.to_container(OmegaConf.load(named if named.exists() else system), resolve=True)


def main() -> int:
    """Judge one system on 1, 2 and 4 ranks and print what fails."""
    parser = argparse.ArgumentParser(description="Does a system compute what the dense model does?")
    parser.add_argument("system", help="its .yaml, its name in conf/system, or package.module.Class")
    parser.add_argument("--top-k", type=int, default=1, help="largest number of experts per token to try")
    arguments = parser.parse_args()
    try:
        node = read_system(arguments.system)
        if not issubclass(find_class(node), System):
            raise ValueError(f"{node['_target_']} is no System; a planner is judged by the .yaml of a system with it")
        options(node, "system")
    except (OSError, ValueError, KeyError, TypeError, YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    preferred("cpu", "fp32", (16, 32))  # may compile, for which ranks have no time
    prepare(ClusterSpec(), ["experiments.conformance", "deepspeed.moe.layer"])
    failures, compared, refused = 0, 0, []
    for kind, world_size in (("gloo", 1), ("gloo", 2), ("gloo", 4), ("emulated", 4)):
        with tempfile.TemporaryDirectory() as name:
            cluster = ClusterSpec(kind, world_size, timeout_s=30)
            try:
                ranks = judge({"system": node}, cluster, Path(name), {"system": arguments.top_k})
            except LaunchFailed as failure:
                print(f"{failure.traceback}\n{kind}, G={world_size}: {failure}", file=sys.stderr)
                return 1
        judged = [(rank, key, verdict) for rank, verdicts in enumerate(ranks) for key, verdict in verdicts.items()]
        told = [f"rank {rank} {key}: {verdict}" for rank, key, verdict in judged if is_wrong(verdict, kind)]
        refused = sorted({verdict["unsupported"] for *_, verdict in judged if "unsupported" in verdict})
        failures += len(told)
        num_refused = sum("unsupported" in verdict for verdict in ranks[0].values())
        compared += len(ranks[0]) - num_refused
        counts = f"{len(ranks[0])} cases, {num_refused} refused, {len(told)} wrong"
        print(f"{kind}, G={world_size}: {counts}", *told, *refused, sep="\n  ")
    if not compared:
        print(f"error: no case could run: {'; '.join(refused)}", file=sys.stderr)
        return 2
    return int(failures > 0)


def is_wrong(verdict: dict[str, Any], kind: str) -> bool:
    """Another result than the dense model's, drops that are not accounted for, or, where bytes are known, bytes."""
    if "unsupported" in verdict:
        return False
    bytes_off = abs(verdict["bytes_sent"] - verdict["bytes_accounted"])
    off_the_account = kind == "emulated" and bytes_off > 1e-6 * max(1, verdict["bytes_sent"])
    return verdict["error"] > verdict["tolerance"] or verdict["dropped"] != verdict["accounted"] or off_the_account


if __name__ == "__main__":
    sys.exit(main())
