"""What a rank does in one launch: build, check, warm up, measure, hand its rows to rank 0."""

import faulthandler
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from clusters.session import ClusterSpec, Session, connect
from experiments.cells import instantiate
from experiments.schedule import interleave

# What the fork server imports once, so that a launch's ranks start in a second.
PRELOAD = ["experiments.bench", "experiments.worker", "deepspeed.moe.layer"]


def run_rank(spec_path: str) -> None:
    """Entry point of a process started for one launch; `spec_path` is a JSON file written by the parent."""
    spec = json.loads(Path(spec_path).read_text())
    threading.Thread(target=_follow_parent, args=(spec["parent"],), daemon=True).start()
    faulthandler.dump_traceback_later(spec["cluster"]["timeout_s"], exit=True)
    folder = Path(spec["folder"])
    network = instantiate(spec["workload"]["network"])
    with connect(ClusterSpec(**spec["cluster"]), network, folder / "baton") as session:
        run_launch(spec, session)


def run_launch(spec: dict[str, Any], session: Session) -> None:
    """Measure the cells of one launch; rank 0 leaves outcome.json, samples.parquet and routing.parquet behind."""
    from experiments.bench import Bench  # the parent only names this function: transformers would cost it seconds

    progress = Progress(spec, session.rank)
    tier, cells = spec["workload"]["tier"], spec["cells"]
    bench = Bench(spec["workload"], session, spec["cache_dir"])
    for cell, system in cells.items():
        progress(cell)
        bench.add(cell, system["node"], system["engine"])
    correctness = {}
    for cell in cells:
        progress(cell)
        correctness[cell] = bench.verify(cell)
    passed = [cell for cell in cells if correctness[cell]["passed"]]
    for phase, iterations, block in (
        ("warmup", tier["warmup"], tier["warmup"]),
        ("measure", tier["iterations"], tier["block"]),
        ("sections", tier["section_iterations"], tier["block"]),
    ):
        schedule = interleave(passed, iterations, max(1, block), seed=spec["workload"]["launch"])
        bench.measure(schedule, phase, progress)
    counted, routed = [], []
    for cell in passed:
        rows = bench.accounts(cell, tier["iterations"])
        counted += rows[0]
        routed += rows[1]
    started = f"launch/{spec['launch_id']}"
    samples = _gather(f"{started}/samples", bench.recorder.rows() + counted, session)
    routing = _gather(f"{started}/routing", routed, session)
    if session.rank == 0:
        _write(Path(spec["folder"]), samples, routing, correctness)
    faulthandler.cancel_dump_traceback_later()


def _follow_parent(pid: int) -> None:
    """End this rank when the parent is gone: an orphan would compute beside the next campaign."""
    while psutil.pid_exists(pid):
        time.sleep(2)
    os._exit(1)


class Progress:
    """Notes on which cell this rank is at, for the parent's bar and to know who was guilty; winds up the watchdog."""

    def __init__(self, spec: dict[str, Any], rank: int) -> None:
        tier, num_cells = spec["workload"]["tier"], len(spec["cells"])
        visits = sum(_num_blocks(tier[key], tier["block"]) for key in ("iterations", "section_iterations"))
        self._steps, self._done = num_cells * (2 + (tier["warmup"] > 0) + visits), 0
        self._file = Path(spec["folder"]) / f"progress.{rank}"
        self._timeout_s = spec["cluster"]["timeout_s"]

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


def _num_blocks(iterations: int, block: int) -> int:
    return -(-iterations // block)


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


def _write(folder: Path, samples: pd.DataFrame, routing: pd.DataFrame, correctness: dict[str, Any]) -> None:
    samples.to_parquet(folder / "samples.parquet")
    routing.to_parquet(folder / "routing.parquet")
    (folder / "outcome.json").write_text(json.dumps(correctness))
