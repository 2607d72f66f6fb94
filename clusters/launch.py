"""Start the ranks of one launch with torch's elastic launcher and say in one sentence how it ended."""

import json
import logging
import multiprocessing
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from clusters.session import ClusterSpec

# Ranks keep freed memory, as a GPU's caching allocator does: without it every large CPU buffer is mapped, zeroed and
# unmapped again in the timed region.
PROCESS_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "TOKENIZERS_PARALLELISM": "false",
}
# Idle threads of an emulated rank (cluster.threads > 1) sleep at once: the next rank needs their cores.
EMULATED_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class LaunchFailed(RuntimeError):
    """Rank `rank` died. `kind` is failed, oom or timeout; str() is one sentence; `traceback` shows where."""

    def __init__(self, kind: str, sentence: str, traceback: str, rank: int = 0) -> None:
        super().__init__(sentence)
        self.kind, self.traceback, self.rank = kind, traceback, rank


def prepare(spec: ClusterSpec, preload: list[str]) -> None:
    """Set the environment that ranks inherit and have the fork server import `preload` (call once, in the parent)."""
    for name, value in (PROCESS_ENVIRONMENT | (EMULATED_ENVIRONMENT if spec.kind == "emulated" else {})).items():
        os.environ.setdefault(name, value)
    _choose_accelerator(spec)
    multiprocessing.set_forkserver_preload(preload)
    for noisy in ("torch.distributed.elastic", "torch.multiprocessing"):  # LaunchFailed says it better
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def _choose_accelerator(spec: ClusterSpec) -> None:
    """Tell DeepSpeed what new processes compute on."""
    os.environ["DS_ACCELERATOR"] = "cpu" if spec.kind == "simulated" else spec.device


def launch(spec: ClusterSpec, entry: Callable[..., None], *args: str) -> None:
    """Run `entry(*args)` on world_size new processes of this machine and wait; `entry` must not be of the main module.

    Raises LaunchFailed when a rank dies; the other ranks are stopped first.
    """
    _choose_accelerator(spec)
    with tempfile.TemporaryDirectory(prefix="ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=spec.processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.05,
            # A process forked after anything has touched CUDA cannot use it, so GPU ranks start from scratch.
            start_method="spawn" if spec.device == "cuda" and spec.kind != "simulated" else "forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
        )
        try:
            with _without_main():
                elastic_launch(config, entry)(*args)
        except ChildFailedError as error:
            raise _diagnose(error, Path(logs)) from None


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from importing the parent's main module in every rank: Hydra and plotting cost seconds."""
    original = spawn.get_preparation_data

    def preparation(name: str) -> dict[str, Any]:
        data = original(name)
        return {key: value for key, value in data.items() if not key.startswith("init_main_")}

    spawn.get_preparation_data = preparation
    try:
        yield
    finally:
        spawn.get_preparation_data = original


def _diagnose(error: ChildFailedError, logs: Path) -> LaunchFailed:
    """Tell a hang (faulthandler's dump), an exception, a lack of memory and a kill apart.

    The exception written first is the cause: the other ranks only see their connection close.
    """
    stderr = {path.parent.name: path.read_text(errors="replace") for path in sorted(logs.rglob("stderr.log"))}
    hung = re.search(r"Timeout \((.*?)\)!", "".join(stderr.values()))
    if hung:
        stacks = "\n".join(f"rank {rank}:\n{text[-4000:]}" for rank, text in stderr.items())
        return LaunchFailed("timeout", f"no progress for {hung.group(1)} (h:mm:ss): the ranks were stopped", stacks)
    written = sorted(logs.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    errors = [(path.parent.name, message) for path in written if (message := _read_error(path))]
    if not errors:
        rank, failure = error.get_first_failure()
        return LaunchFailed(
            "failed", f"rank {rank} died with exit code {failure.exitcode}", stderr.get(str(rank), "")[-8000:], rank
        )
    rank, message = errors[0]
    sentence, traceback = message["message"].strip(), message["extraInfo"]["py_callstack"]
    if "Connection closed by peer" in sentence or "Connection reset by peer" in sentence:
        lost = f"a rank died without an exception (killed, or out of memory): rank {rank} saw its connection close"
        return LaunchFailed("failed", lost, traceback, int(rank))
    kind = "oom" if "OutOfMemoryError" in sentence or "can't allocate memory" in sentence else "failed"
    return LaunchFailed(kind, f"rank {rank}: {sentence.splitlines()[0]}", traceback, int(rank))


def _read_error(path: Path) -> dict[str, Any] | None:
    """A rank's last words; None where it was stopped while it wrote them."""
    try:
        return json.loads(path.read_text())["message"]
    except ValueError:
        return None
