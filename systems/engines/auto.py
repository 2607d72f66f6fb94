"""engine=auto: the fastest engine that was measured nearest to the work at hand and can run here."""

import csv
from collections.abc import Sequence
from functools import cache
from math import log
from pathlib import Path

import torch

from systems.engines import find_engine

MEASURED = Path(__file__).with_name("measured.csv")  # scripts/bench_engines.py --record
PREFERRED = {"cpu": ("cpu", "grouped", "loop"), "cuda": ("triton", "grouped", "loop")}  # where nothing was measured


@cache
def choose(device: str, dtype: torch.dtype, num_experts: int, rows: int, widths: tuple[int, int]) -> str:
    """Name of the engine for `rows` rows over `num_experts` experts of widths (d_model, hidden layer here).

    Nearest is the measured point of this kind of device and type with the least sum of ratios' logarithms.
    """
    usable = [name for name in PREFERRED.get(device, ()) if _can_run(name, device, dtype, widths)]
    points = [row for row in _measured() if row["device"] == device and row["dtype"] == str(dtype)]
    points = [row for row in points if row["engine"] in usable]
    if not points:
        return usable[0] if usable else "loop"

    def distance(row: dict) -> float:
        pairs = ((row["num_experts"], num_experts), (row["tokens"], rows), (row["width"], widths[1]))
        return round(sum(abs(log(float(measured) / asked)) for measured, asked in pairs), 6)

    nearest = min(map(distance, points))
    return max((row for row in points if distance(row) == nearest), key=lambda row: float(row["share"]))["engine"]


def _can_run(name: str, device: str, dtype: torch.dtype, widths: Sequence[int]) -> bool:
    try:
        find_engine(name).check(torch.device(device), dtype, widths)
    except ValueError:
        return False
    return True


@cache
def _measured() -> list[dict]:
    if not MEASURED.exists():
        return []
    with MEASURED.open() as file:
        return list(csv.DictReader(file))
