"""What each operation of a program costs host and device on one rank, by torch's profiler.

    python -m scripts.profile_programs deepspeed ep --device cuda --overrides batch_size=10 precision=bf16

Writes OUT/operations.csv: a row a system and operation, in microseconds of a forward pass. Where a simulated device is
wrong (docs/validation.md), this tells by which operations.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from clusters.launch import launch, prepare
from clusters.session import connect
from experiments.cells import Cell
from experiments.composition import configuration
from experiments.configuration import instantiate
from experiments.records import Launch, Member, document, read
from experiments.schedule import iterations_of

WORKLOAD = ("scale=paper", "scale.hidden_as_run=null", "model.num_blocks=2", "cluster.world_size=1", "network=none")
PASSES = 3  # that are profiled, and as many before them that are not


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", help="names of conf/system")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/profile"))
    parser.add_argument("--overrides", nargs="*", default=[], help="of the workload, as in batch_size=10")
    return parser.parse_args(arguments)


def launch_of(options: argparse.Namespace, folder: str) -> Launch:
    """What the one rank is told: the systems by their names."""
    tier = {"rounds": 2 * PASSES}
    typed = [*WORKLOAD, f"cluster={'nccl' if options.device == 'cuda' else 'gloo'}", *options.overrides]
    typed += [f"tier.{name}={value}" for name, value in tier.items()]
    cells = [Cell(configuration([*typed, f"system={name}"]), 0) for name in options.systems]
    members = {cell.system: Member(cell.config.system, cell.engine) for cell in cells}
    return Launch(workload=cells[0].config.workload, cells=members, folder=folder, cache_dir=folder)


def profile_rank(path: str) -> None:
    """Entry point of the rank: every system's passes, profiled, as operations.csv beside the Launch at `path`."""
    from experiments.bench import Bench
    from experiments.profiler import ceilings_here

    told = read(Launch, json.loads(Path(path).read_text()))
    workload, folder, rows = told.workload, Path(told.folder), []
    with connect(workload.cluster, instantiate(workload.network, "network"), folder / "device_lock") as session:
        bench = Bench(workload, session, told.cache_dir, ceilings_here(workload, session))
        for name, member in told.cells.items():
            bench.add(name, member)
            rows += [{"system": name} | row for row in _profiled(bench, name)]
    pd.DataFrame(rows).to_csv(folder / "operations.csv", index=False)


def _profiled(bench: Any, system: str) -> Iterator[dict[str, Any]]:
    iterations = list(iterations_of(bench.workload.tier)["measure"])
    bench.measure([(system, i) for i in iterations[:PASSES]], "warmup", lambda cell: None)
    on_gpu = bench.session.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as seen:
        bench.measure([(system, i) for i in iterations[PASSES:]], "measure", lambda cell: None)
        if on_gpu:
            torch.cuda.synchronize()
    for operation in seen.key_averages():
        yield {
            "operation": operation.key,
            "calls": operation.count / PASSES,
            "host_us": operation.self_cpu_time_total / PASSES,
            "device_us": operation.self_device_time_total / PASSES,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile and write the table; 2 where a system or an override is wrong."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            told = launch_of(options, folder)
            told.workload.cluster.check()
        except ValueError as error:
            print(f"profile_programs: {error}")
            return 2
        prepare(told.workload.cluster, ["experiments.bench", "deepspeed.moe.layer"])
        path = Path(folder) / "launch.json"
        path.write_text(json.dumps(document(told)))
        launch(told.workload.cluster, profile_rank, str(path))
        options.out.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder) / "operations.csv", options.out / "operations.csv")
    print(f"wrote {options.out / 'operations.csv'}")
    return 0


if __name__ == "__main__":
    from scripts import profile_programs  # the rank imports its entry by the module's own name

    raise SystemExit(profile_programs.main())
