"""The machine and software a cell ran on, as stored with it; only named variables, never the whole environment."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy", "triton", "stanford-stk")
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "HARNESS_MARCH")  # which a processor may be held to
VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "NCCL_", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "GLOO_"),
    *INSTRUCTIONS,
)


@cache
def describe() -> dict[str, Any]:
    """Versions, processor, memory, GPUs, git commit and the variables that change speed."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        **_commit(),
        "lock_sha256": _lock_digest(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }


@cache
def identity() -> dict[str, Any]:
    """The part of `describe` that decides what is measured: versions, hardware, and instructions if they are chosen."""
    known = {key: describe()[key] for key in ("python", "packages", "cpu", "cores", "gpus")}
    return known | {name: os.environ[name] for name in INSTRUCTIONS if name in os.environ}


def _lock_digest() -> str | None:
    path = Path(__file__).parents[1] / "requirements.lock"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> dict[str, Any]:
    """Commit and whether there are changes on top; of a copy without .git, what HARNESS_COMMIT says of it, or else the
    version that is installed.
    """
    if commit := _git("rev-parse", "HEAD"):
        return {"git_commit": commit, "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    commit, dirty, _ = os.environ.get("HARNESS_COMMIT", "").partition("-dirty")
    return {"git_commit": commit or _version("moe-inference-harness"), "git_dirty": bool(dirty)}


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where the code is none, though it may lie in the folder of another one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, cwd=root)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
