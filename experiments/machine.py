"""What the machine is doing: before and after a launch, and how much of it was ours meanwhile.

Nothing here runs while ranks measure: polling a GPU or reading /proc would disturb them.
"""

import os
import subprocess
import time
from typing import Any

import psutil

SAMPLE_S = 0.2
GPU_QUERY = ("clocks.sm", "power.draw", "temperature.gpu", "clocks_event_reasons.active")


def state(device: str) -> dict[str, Any]:
    """Load average, busy share of all cores over the next 0.2 s, and each GPU's clock, power and throttle reasons."""
    return {
        "load_1min": os.getloadavg()[0],
        "busy_share": psutil.cpu_percent(interval=SAMPLE_S) / 100,
        "gpus": _gpus() if device == "cuda" else [],
    }


class Meter:
    """CPU seconds of the whole machine from here to `read`: busy, and stolen by the host of a virtual machine."""

    def __init__(self) -> None:
        self._start, self._own_s, self._started_s = psutil.cpu_times(), time.process_time(), time.monotonic()

    def read(self, ranks_cpu_s: float) -> dict[str, float]:
        """`ranks_cpu_s`: what the ranks used, to which this process's share is added as our own."""
        now = psutil.cpu_times()
        passed = {name: getattr(now, name) - getattr(self._start, name) for name in now._fields}
        idle_s = sum(passed.get(name, 0.0) for name in ("idle", "iowait"))
        steal_s = passed.get("steal", 0.0)
        # guest times stand in user and nice already
        all_s = sum(value for name, value in passed.items() if not name.startswith("guest"))
        return {
            "busy_cpu_s": all_s - idle_s - steal_s,
            "own_cpu_s": ranks_cpu_s + time.process_time() - self._own_s,
            "steal_s": steal_s,
            "wall_s": time.monotonic() - self._started_s,
            "cores": psutil.cpu_count() or 1,
        }


def _gpus() -> list[dict[str, Any]]:
    """One dict per GPU as `nvidia-smi` sees it; empty where it is not installed."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(*(part.strip() for part in line.split(","))) for line in lines]


def _gpu(clock_mhz: str, power_w: str, temperature_c: str, reasons: str) -> dict[str, Any]:
    return {
        "clock_mhz": _number(clock_mhz),
        "power_w": _number(power_w),
        "temperature_c": _number(temperature_c),
        "throttle": _throttle_reasons(reasons),
    }


# Bits of NVML's clocksEventReasons that slow a busy GPU down; idle, application clocks and display are not among them.
SLOWING = {0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x20: "sw_thermal", 0x40: "hw_thermal", 0x80: "hw_power_brake"}


def _throttle_reasons(mask: str) -> list[str]:
    try:
        bits = int(mask, 16)
    except ValueError:
        return [mask]
    return [name for bit, name in SLOWING.items() if bits & bit]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
