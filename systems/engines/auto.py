"""engine=auto: the fastest engine that was measured nearest to the work at hand and can run here."""

import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from math import log
from pathlib import Path
from statistics import mean

import torch

from systems.engines import ENGINES, find_engine

MEASURED = Path(__file__).with_name("measured.csv")  # scripts/bench_engines.py --record
PREFERRED = ("triton", "cpu", "grouped", "loop")  # where nothing was measured
DTYPES = {"ieee": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def choose(device: str, precision: str, num_experts: int, rows: int, widths: tuple[int, int]) -> str:
    """Name of the engine for `rows` rows over `num_experts` experts of widths (d_model, hidden layer here).

    Nearest is the measured point of this kind of device and precision with the least sum of ratios' logarithms; an
    engine's share there is the mean over routings. Says on stderr why our own engine cannot run, where it cannot.
    """
    if device not in ("cpu", "cuda"):
        return "loop"  # whatever it is, it is no engine that decides whether it can be used
    refused = {name: _refusal(name, device, precision, widths) for name in ENGINES}
    shares = _shares_near(device, precision, (num_experts, rows, widths[1]))
    known = {name: share for name, share in shares.items() if not refused[name]}
    chosen = max(known, key=known.__getitem__) if known else next(name for name in PREFERRED if not refused[name])
    _say_once({"cpu": refused["cpu"], "cuda": refused["triton"]}.get(device, ""), chosen)
    return chosen


def _refusal(name: str, device: str, precision: str, widths: Sequence[int]) -> str:
    try:
        find_engine(name).check(torch.device(device), DTYPES[precision], widths)
    except ValueError as reason:
        return str(reason)
    return ""


def _shares_near(device: str, precision: str, sizes: tuple[int, int, int]) -> dict[str, float]:
    """Each engine's share at the measured point nearest to (experts, rows, hidden width)."""
    points = defaultdict(lambda: defaultdict(list))
    for row in _measured():
        if (row["device"], row["precision"]) == (device, precision):
            at = tuple(float(row[name]) for name in ("num_experts", "tokens", "width"))
            points[at][row["engine"]].append(float(row["share"]))
    if not points:
        return {}
    nearest = min(points, key=lambda at: sum(abs(log(a / max(1, b))) for a, b in zip(at, sizes, strict=True)))
    return {name: mean(shares) for name, shares in points[nearest].items()}


@cache
def _measured() -> list[dict]:
    if not MEASURED.exists():
        return []
    with MEASURED.open() as file:
        return list(csv.DictReader(file))


@cache
def _say_once(refusal: str, chosen: str) -> None:
    if refusal:
        print(f"engine=auto takes {chosen}: {refusal}", file=sys.stderr)
