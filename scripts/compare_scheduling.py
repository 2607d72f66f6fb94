"""How long gloo's collectives take with its threads scheduled as they come and as the harness schedules them.

    python -m scripts.compare_scheduling

Two real ranks compute and then call, as in an MoE layer; the two policies take turns. By default a thread that wakes
up may preempt another (`other`); the harness's may not (`batch`: `forbid_wakeup_preemption` in clusters/session.py).
Slow calls are those that last LOST_MS longer than the median under `batch`.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from clusters.launch import launch, prepare
from clusters.network import Network
from clusters.session import ClusterSpec, connect
from scripts.calibration.cases import Case
from scripts.calibration.timing import Timer, durations, make_call

SPEC = ClusterSpec("gloo", 2, "cpu", threads=1)
ELEMENTS = {"150 KB": 38400, "1.5 MB": 384000}  # of a rank's part
ROUNDS, CALLS = 10, 10  # calls of each collective, size and policy a round
LOST_MS = 1.5
KEYS = ["collective", "size", "policy"]

Calls = dict[tuple[str, str], Callable[[], Any]]  # by collective and size


def run_rank(folder: str) -> None:
    """Rank entry; rank 0 leaves times.csv: KEYS and milliseconds."""
    with connect(SPEC, Network("none"), Path(folder) / "device_lock") as session:
        timer, x = Timer(session, session.group, common_clock=True), torch.ones(2 * max(ELEMENTS.values()))
        calls: Calls = {
            (collective, size): make_call(Case(collective, 2, elements), x, session.group)
            for collective in ("all_gather", "reduce_scatter", "all_to_all")
            for size, elements in ELEMENTS.items()
        }
        for call in calls.values():  # connections and buffers
            timer.time(call)
        orders = [("other", "batch"), ("batch", "other")] * (ROUNDS // 2)
        rows = [row for order in orders for policy in order for row in _time(timer, calls, policy)]
    if session.rank == 0:
        pd.DataFrame(rows, columns=[*KEYS, "milliseconds"]).to_csv(Path(folder) / "times.csv", index=False)


def _time(timer: Timer, calls: Calls, policy: str) -> list[tuple[str, str, str, float]]:
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(
                int(task), {"other": os.SCHED_OTHER, "batch": os.SCHED_BATCH}[policy], os.sched_param(0)
            )
    keys = [key for _ in range(CALLS) for key in calls]
    times_NR2 = timer.gather([timer.time(calls[key]) for key in keys])
    seconds = durations(times_NR2, "", common_clock=True)  # the same of all three collectives
    return [(*key, policy, float(second) * 1e3) for key, second in zip(keys, seconds, strict=True)]


def table(times: pd.DataFrame) -> pd.DataFrame:
    """Median, mean and 90th percentile in ms and the share of slow calls, by collective with size and by policy."""
    rows = []
    for key, both in times.groupby(times["collective"] + ", " + times["size"]):
        slow_ms = both.loc[both["policy"] == "batch", "milliseconds"].median() + LOST_MS
        for policy, found in both.groupby("policy")["milliseconds"]:
            slow = (found > slow_ms).mean()
            rows.append([key, policy, found.median(), found.mean(), found.quantile(0.9), slow])
    return pd.DataFrame(rows, columns=["call", "policy", "median", "mean", "p90", "slow"])


def main() -> None:
    """Measure and print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    prepare(SPEC, [__name__])
    with tempfile.TemporaryDirectory() as folder:
        launch(SPEC, run_rank, folder)
        print(table(pd.read_csv(Path(folder) / "times.csv")).round(2).to_string(index=False))


if __name__ == "__main__":
    from scripts import compare_scheduling  # ranks cannot import a function of the main module

    compare_scheduling.main()
