"""Which engine this machine runs fastest: timed once for each kind of size, kept in the user's cache folder.

The file is named by all that a time depends on (processor, torch, instruction sets, threads, the engines' sources), so
that all processes of a campaign read the same choice and another machine's, or another version's, is never read.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import cache
from math import log
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from systems.engines import ACTIVATIONS, Copies, find_engine
from systems.engines.cpu import MARCH, cache_folder, processor

SECONDS = 0.4  # of rounds for each kind of size
BUDGET = 20.0  # seconds of all probes; afterwards the nearest that was timed decides (one in fp16 takes 4)
NARROWEST, WIDEST = 64, 2048  # widths that are timed
MOST_BYTES = 1 << 27  # of weights, more than caches hold
MOST_FLOPS = 1 << 31  # of a call
VARIABLES = (MARCH, "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


class Work(NamedTuple):
    """One expert FFN: rows of d_model, all experts' together, and experts of `hidden` units; dtype: torch's name."""

    dtype: str
    num_experts: int
    rows: int
    d_model: int
    hidden: int
    activation: str = "relu"


def on_grid(num_experts: int, rows: int, widths: Sequence[int], dtype: torch.dtype, activation: str = "relu") -> Work:
    """Work like this that is quick to time: powers of two, and of many experts only some, with as many rows each."""
    d_model, hidden = (min(WIDEST, max(NARROWEST, _power_of_two(width))) for width in widths)
    elements = d_model * (ACTIVATIONS[activation].in_width(hidden) + hidden)
    row_flops, expert_bytes = 2 * elements, elements * dtype.itemsize
    rows_each = min(_power_of_two(rows / num_experts), MOST_FLOPS // row_flops)
    most = min(MOST_BYTES // expert_bytes, MOST_FLOPS // (row_flops * rows_each))
    experts = max(1, min(_power_of_two(num_experts), most))
    return Work(str(dtype).removeprefix("torch."), experts, experts * rows_each, d_model, hidden, activation)


def _power_of_two(value: float) -> int:
    """The nearest, at least 1."""
    return 1 << max(0, round(log(value, 2)))


def fastest(engines: Sequence[str], work: Work, threads: int) -> str:
    """The name of the fastest engine; all can run here. Times them unless they were timed, one process at a time.

    Where nothing can be kept it is the first, so that all processes still choose the same; says so on stderr.
    """
    file = cache_folder() / f"engines_{_digest(threads)}.json"
    try:
        if (chosen := _known(_read(file), engines, work)) is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                found = _read(file)
                if (chosen := _known(found, engines, work)) is None:
                    found.append(_entry(found, engines, work, threads))
                    _write(file, found)
                    chosen = found[-1]["engine"]
    except OSError as error:
        print(f"engine=auto takes {engines[0]}: it cannot keep what it measures ({error})", file=sys.stderr)
        return engines[0]
    return chosen


def _known(found: list[dict[str, Any]], engines: Sequence[str], work: Work) -> str | None:
    same = (entry for entry in found if entry["engines"] == list(engines) and entry["work"] == list(work))
    return next((entry["engine"] for entry in same), None)


def _entry(found: list[dict[str, Any]], engines: Sequence[str], work: Work, threads: int) -> dict[str, Any]:
    """Timed, or the choice of the nearest entry where enough time was spent on probes."""
    like = [entry for entry in found if entry["engines"] == list(engines) and entry["work"][0] == work.dtype]
    entry = {"engines": list(engines), "work": list(work)}
    if like and sum(entry["spent"] for entry in found) > BUDGET:
        nearest = min(like, key=lambda entry: _distance(entry["work"], work))
        return entry | {"engine": nearest["engine"], "like": nearest["work"], "spent": 0.0}
    _announce(threads)
    start = perf_counter()
    seconds = measure(engines, work, threads)
    spent = perf_counter() - start
    return entry | {"engine": min(seconds, key=seconds.__getitem__), "seconds": seconds, "spent": spent}


def _distance(sizes: Sequence[Any], work: Work) -> float:
    return sum(abs(log(a / b)) for a, b in zip(sizes[1:5], work[1:5], strict=True))


def measure(engines: Sequence[str], work: Work, threads: int) -> dict[str, float]:
    """Each engine's least seconds for the work on so many threads, in turns, SECONDS long, at least one round."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            calls = _calls(engines, work)
            rounds, end = [], perf_counter() + SECONDS
            while not rounds or perf_counter() < end:
                rounds.append({name: _timed(call) for name, call in calls.items()})
    finally:
        torch.set_num_threads(before)
    return {name: min(times[name] for times in rounds) for name in calls}


def _calls(engines: Sequence[str], work: Work) -> dict[str, Callable[[], torch.Tensor]]:
    """From the experts of the rows, drawn evenly, to the weighted results, as systems call an engine."""
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, work.dtype)
    x_ND = torch.randn(work.rows, work.d_model, generator=generator).to(dtype)
    expert_N = torch.randint(work.num_experts, (work.rows,), generator=generator)
    weight_N = torch.ones(work.rows)
    in_width = ACTIVATIONS[work.activation].in_width(work.hidden)
    wi_eDI = torch.full((work.num_experts, work.d_model, in_width), work.d_model**-0.5, dtype=dtype)
    wo_eFD = torch.full((work.num_experts, work.hidden, work.d_model), work.hidden**-0.5, dtype=dtype)

    def call_of(name: str) -> Callable[[], torch.Tensor]:
        engine = find_engine(name, work.activation)
        weights = engine.prepare(wi_eDI, wo_eFD)

        def call() -> torch.Tensor:
            order_N, rows_e = engine.group(expert_N, work.num_experts)
            return engine(x_ND, Copies(order_N, rows_e, weight_N=weight_N), *weights)

        return call

    return {name: call_of(name) for name in engines}


def _timed(call: Callable[[], torch.Tensor]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


@cache
def _digest(threads: int) -> str:
    """Of all that decides how fast the engines are here; memory and other processes are left to chance."""
    here = Path(__file__).parent
    sources = [path.read_text() for path in sorted(here.iterdir()) if path.suffix in (".py", ".cpp")]
    variables = [os.environ.get(name, "") for name in VARIABLES]
    machine = [platform.machine(), _model(), processor(), str(threads), torch.__version__]
    return hashlib.sha256("\n".join([*machine, *variables, *sources]).encode()).hexdigest()[:16]


def _model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith("model name")), platform.processor())


@cache
def _announce(threads: int) -> None:
    if sys.stderr.isatty():  # for who waits; it is no part of what a command answers
        print(f"engine=auto: timing engines on {threads} thread(s), once for each kind of size", file=sys.stderr)


def _read(file: Path) -> list[dict[str, Any]]:
    """What was kept; nothing if the file is not there or is broken."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def _write(file: Path, found: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(found, indent=1))
    unfinished.replace(file)
