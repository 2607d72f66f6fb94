"""engine=auto: of the engines that can run, the one that this machine measured to be fastest at about the work at hand.

On GPUs, which must not be touched before ranks are, nothing is timed: there the first of PREFERRED that can run.
"""

import sys
from functools import cache

import torch

from systems.engines import find_engine, probe
from systems.engines.base import DTYPES

PREFERRED = ("triton", "cpu", "grouped", "loop")  # where nothing is measured
OURS = {"cpu": "cpu", "cuda": "triton"}  # on each device


@cache
def choose(
    device: str,
    precision: str,
    num_experts: int,
    rows: int,
    widths: tuple[int, int],
    threads: int | None = None,
    activation: str = "relu",
) -> str:
    """Name of the engine for `rows` rows over `num_experts` experts of widths (d_model, hidden layer here).

    threads: of a rank; None: as many as this process has. On a CPU the first call for sizes of a kind times the engines
    (`systems.engines.probe`). Says on stderr why our own engine cannot run, where it cannot.
    """
    engines = _able(device, precision, widths)
    if device == "cpu" and len(engines) > 1:
        work = probe.on_grid(num_experts, rows, widths, DTYPES[precision], activation)
        chosen = probe.fastest(engines, work, threads or torch.get_num_threads())
        _say_once(_refusal_of_ours(device, precision, widths), chosen)
        return chosen
    return preferred(device, precision, widths)


def preferred(device: str, precision: str, widths: tuple[int, int]) -> str:
    """The first of PREFERRED that can run; nothing is timed. Says on stderr why it is not our own, where it is not."""
    chosen = _able(device, precision, widths)[0]
    _say_once(_refusal_of_ours(device, precision, widths), chosen)
    return chosen


def _able(device: str, precision: str, widths: tuple[int, int]) -> tuple[str, ...]:
    """The engines of PREFERRED that can run, in this order."""
    if device not in OURS:
        return ("loop",)  # whatever it is, it is no engine that decides whether it can be used
    return tuple(name for name in PREFERRED if not _refusal(name, device, precision, widths))


def _refusal_of_ours(device: str, precision: str, widths: tuple[int, int]) -> str:
    return _refusal(OURS[device], device, precision, widths) if device in OURS else ""


@cache
def _refusal(name: str, device: str, precision: str, widths: tuple[int, int]) -> str:
    try:
        find_engine(name).check(torch.device(device), DTYPES[precision], widths)
    except ValueError as reason:
        return str(reason)
    return ""


@cache
def _say_once(reason: str, chosen: str) -> None:
    if reason:
        print(f"engine=auto takes {chosen}: {reason}", file=sys.stderr)
