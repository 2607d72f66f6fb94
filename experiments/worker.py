"""What a rank does in one launch: build, check, warm up, measure, hand its rows to rank 0."""

import faulthandler
import gc
import io
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from clusters.session import Session, connect
from experiments.configuration import instantiate
from experiments.records import Launch, read
from experiments.schedule import interleave, iterations_of, turns_of

# What the fork server imports once, so that a launch's ranks start in a second.
PRELOAD = [
    "experiments.oracle",
    "experiments.evidence",
    "experiments.simulate",
    "experiments.worker",
    "deepspeed.moe.layer",
]


def run_rank(path: str) -> None:
    """Entry point of a process started for one launch; `path` is that of a Launch, written as JSON by the parent."""
    gc.freeze()  # collecting what the fork server has imported, before each turn, would copy all its memory
    launch = read(Launch, json.loads(Path(path).read_text()))
    threading.Thread(target=follow_parent, args=(launch.parent,), daemon=True).start()
    workload = launch.workload
    faulthandler.dump_traceback_later(workload.cluster.timeout_s, exit=True)
    network = instantiate(workload.network, "network")
    with connect(workload.cluster, network, Path(launch.folder) / "device_lock") as session:
        run_launch(launch, session)


def run_launch(launch: Launch, session: Session) -> None:
    """Measure the cells of one launch; rank 0 leaves outcome.json and the tables behind."""
    from experiments.bench import Bench  # the parent only names this function: transformers would cost it seconds
    from experiments.oracle import verify
    from experiments.profiler import ceilings_here

    progress, stopwatch = Progress(launch, session.rank), Stopwatch()
    with stopwatch("ceilings"):
        ceilings = ceilings_here(launch.workload, session)
    with stopwatch("build"):
        bench = Bench(launch.workload, session, launch.cache_dir, ceilings)
        for cell, member in launch.cells.items():
            progress(cell)
            bench.add(cell, member)
        bench.built()
    correctness = {}
    with stopwatch("verify"):
        for cell in launch.cells:
            progress(cell)
            correctness[cell] = verify(bench, cell)
    passed = [cell for cell in launch.cells if correctness[cell]["passed"]]
    schedule = _measure(bench, passed, launch, progress, stopwatch)
    with stopwatch("account"):
        outcome = _account(bench, passed, launch, schedule, session)
    if session.rank == 0:
        for cell in passed:
            correctness[cell]["agreement"] = outcome["agreement"].get(cell)
        shared = {"schedule": schedule, "ceilings": ceilings, "seconds": stopwatch.seconds}
        known = {"correctness": correctness, "inputs": outcome["inputs"], "ranks_cpu_s": outcome["cpu_s"]}
        (Path(launch.folder) / "outcome.json").write_text(json.dumps(shared | known))
    faulthandler.cancel_dump_traceback_later()


def _measure(
    bench: Any, cells: list[str], launch: Launch, progress: "Progress", stopwatch: "Stopwatch"
) -> dict[str, dict[str, int]]:
    """Warm up, then rounds in which every system runs end to end and then instrumented.

    So slow drift of the machine meets both passes alike, and their ratio is the observer's cost. Returns each cell's
    iterations of a pass and of a round.
    """
    tier, seed = launch.workload.tier, launch.number
    phases = iterations_of(tier)

    def run(turns: list[tuple[str, int]], phase: str) -> None:
        with stopwatch(phase):
            bench.measure(turns, phase, progress)

    if warmup := tier.warmup:
        for visits in interleave(dict.fromkeys(cells, warmup), 1, seed, phases["warmup"].start + 1):
            run(visits, "warmup")
    turns = turns_of(bench.last_ttft_s(cells, "warmup" if warmup else "first"), tier)
    observed = interleave(turns, tier.rounds, seed, phases["instrumented"].start)
    for visits in interleave(turns, tier.rounds, seed):
        run(visits, "measure")
        run(next(observed), "instrumented")
    return {cell: {"iterations": tier.rounds * turn, "turn": turn} for cell, turn in turns.items()}


def _account(
    bench: Any, cells: list[str], launch: Launch, schedule: dict[str, dict[str, int]], session: Session
) -> dict[str, Any]:
    """Everything that is known once the clock has stopped: rows to files on rank 0, and what goes into run.json."""
    from experiments import evidence

    counted, routed = [], []
    phases = iterations_of(launch.workload.tier)
    for cell in cells:
        count = schedule[cell]["iterations"]
        rows = evidence.accounts(bench, cell, {name: phases[name][:count] for name in ("measure", "instrumented")})
        counted += rows[0]
        routed += rows[1]
    started, folder = f"launch/{launch.name}", Path(launch.folder)
    agreement, mine = evidence.agreement(bench, cells), evidence.inputs(bench, cells)
    samples = _gather(f"{started}/samples", bench.recorder.rows() + counted, session)
    routing = _gather(f"{started}/routing", routed, session)
    collectives = _gather(f"{started}/collectives", bench.recorder.collectives(), session)
    ranks = _gather_json(f"{started}/ranks", {"inputs": mine, "cpu_s": time.process_time()}, session)
    if session.rank > 0:
        return {}
    samples.to_parquet(folder / "samples.parquet")
    routing.to_parquet(folder / "routing.parquet")
    collectives.to_parquet(folder / "collectives.parquet")
    inputs = {cell: {name: [rank["inputs"][cell][name] for rank in ranks] for name in mine[cell]} for cell in cells}
    return {"agreement": agreement, "inputs": inputs, "cpu_s": sum(rank["cpu_s"] for rank in ranks)}


class Stopwatch:
    """Wall seconds of the parts of a launch on this rank; a part that is entered again adds to its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start_s


def follow_parent(pid: int) -> None:
    """End this rank when the parent is gone: an orphan would compute beside the next campaign."""
    while psutil.pid_exists(pid):
        time.sleep(2)
    os._exit(1)


class Progress:
    """Notes on which cell this rank is at, for the parent's bar and to know who was guilty; winds up the watchdog."""

    def __init__(self, launch: Launch, rank: int) -> None:
        tier = launch.workload.tier
        self._steps, self._done = len(launch.cells) * (2 + tier.warmup + 2 * tier.rounds * tier.longest_turn), 0
        self._file = Path(launch.folder) / f"progress.{rank}"
        self._timeout_s = launch.workload.cluster.timeout_s

    def __call__(self, cell: str) -> None:
        faulthandler.dump_traceback_later(self._timeout_s, exit=True)
        if self._file.parent.is_dir():  # on other nodes of a torchrun launch there is no parent to read it
            scratch = self._file.with_name(f"{self._file.name}.new")
            scratch.write_text(json.dumps({"cell": cell, "done": self._done / self._steps}))
            os.replace(scratch, self._file)
        self._done += 1


def read_progress(folder: Path, rank: int = 0) -> dict[str, Any]:
    """Where a rank is: {"cell": id or None, "done": 0..1}."""
    try:
        return json.loads((folder / f"progress.{rank}").read_text())
    except FileNotFoundError:
        return {"cell": None, "done": 0.0}


def _gather(key: str, rows: list[dict[str, Any]], session: Session) -> pd.DataFrame:
    """All ranks' rows on rank 0, each with its rank; they travel as Parquet through the session's store."""
    store: Any = session.store  # torch's stubs take its bytes for str
    buffer = io.BytesIO()
    pd.DataFrame(rows).assign(rank=session.rank).to_parquet(buffer)
    store.set(f"{key}/{session.rank}", buffer.getvalue())
    return pd.concat(list(_received(key, session)), ignore_index=True) if session.rank == 0 else pd.DataFrame()


def _received(key: str, session: Session) -> Iterator[pd.DataFrame]:
    for rank in range(session.world_size):
        yield pd.read_parquet(io.BytesIO(session.store.get(f"{key}/{rank}")))
        session.store.delete_key(f"{key}/{rank}")


def _gather_json(key: str, document: dict[str, Any], session: Session) -> list[dict[str, Any]]:
    """All ranks' documents on rank 0, in the order of ranks; nothing on the others."""
    session.store.set(f"{key}/{session.rank}", json.dumps(document))
    if session.rank > 0:
        return []
    return [json.loads(session.store.get(f"{key}/{rank}")) for rank in range(session.world_size)]
