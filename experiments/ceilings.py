"""Upper bounds of the machine, measured in the launch that they are held against: a matrix product and a copy."""

from typing import Any

import torch
from torch.utils.benchmark import Timer

# Large enough to be compute or memory bound, small enough for a tenth of a second: (matrix side, bytes copied).
SIZES = {"cpu": (1024, 1 << 26), "cuda": (8192, 1 << 30)}
SECONDS = 0.1


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The best of repeated runs on this rank alone, with its threads; a copy counts bytes read and written."""
    side, num_bytes = SIZES[device.type]
    a, b, c = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matmul_s = _best_s("torch.mm(a, b, out=c)", a=a, b=b, c=c)
    copy_s = _best_s("target.copy_(source)", target=target, source=source)
    return {
        "matmul_flops_per_s": 2 * side**3 / matmul_s,
        "copy_bytes_per_s": 2 * num_bytes / copy_s,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _best_s(statement: str, **names: Any) -> float:
    timer = Timer(statement, globals={"torch": torch, **names}, num_threads=torch.get_num_threads())
    timer.timeit(1)
    return min(timer.blocked_autorange(min_run_time=SECONDS).times)
