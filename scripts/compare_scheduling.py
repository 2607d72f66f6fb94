"""How long gloo's collectives take with its threads scheduled as they come and as the harness schedules them.

    python -m scripts.compare_scheduling

Two real ranks compute and then call, as in an MoE layer; the two policies take turns. By default a thread that wakes
up may preempt another (`other`); the harness's may not (`batch`: `let_threads_finish` in clusters/session.py).
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from clusters.launch import launch, prepare
from clusters.network import Network
from clusters.session import ClusterSpec, connect
from scripts.calibration.cases import Case
from scripts.calibration.timing import Timer, durations, make_call

SPEC = ClusterSpec("gloo", 2, "cpu", threads=1)
POLICIES = {"other": os.SCHED_OTHER, "batch": os.SCHED_BATCH}
ELEMENTS = {"150 KB": 38400, "1.5 MB": 384000}  # of a rank's part
ROUNDS, CALLS = 10, 10  # calls of each collective, size and policy a round


def run_rank(folder: str) -> None:
    """Rank entry; rank 0 leaves times.csv: collective, size, policy, milliseconds."""
    with connect(SPEC, Network("none"), Path(folder) / "baton") as session:
        timer, x = Timer(session, session.group, common_clock=True), torch.ones(2 * max(ELEMENTS.values()))
        calls = {
            (collective, size): make_call(Case(collective, 2, elements), x, session.group)
            for collective in ("all_gather", "reduce_scatter", "all_to_all")
            for size, elements in ELEMENTS.items()
        }
        rows = [row for _ in range(ROUNDS) for policy in POLICIES for row in _time(timer, calls, policy)]
    if session.rank == 0:
        columns = ["collective", "size", "policy", "milliseconds"]
        pd.DataFrame(rows, columns=columns).to_csv(Path(folder) / "times.csv", index=False)


def _time(timer: Timer, calls: dict[tuple[str, str], Any], policy: str) -> list[tuple[str, str, str, float]]:
    for task in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(task), POLICIES[policy], os.sched_param(0))
    keys = [key for _ in range(CALLS) for key in calls]
    seconds = durations(timer.gather([timer.time(calls[key]) for key in keys]), "", common_clock=True)
    return [(*key, policy, float(second) * 1e3) for key, second in zip(keys, seconds, strict=True)]


def main() -> None:
    """Print median, mean and 90th percentile of each collective, size and policy, in ms."""
    prepare(SPEC, [__name__])
    with tempfile.TemporaryDirectory() as folder:
        launch(SPEC, run_rank, folder)
        times = pd.read_csv(Path(folder) / "times.csv")
    grouped = times.groupby(["collective", "size", "policy"])["milliseconds"]
    table = grouped.agg(median="median", mean="mean", p90=lambda values: np.quantile(values, 0.9), calls="size")
    print(table.unstack("policy").round(2).to_string())


if __name__ == "__main__":
    from scripts import compare_scheduling  # ranks cannot import a function of the main module

    compare_scheduling.main()
