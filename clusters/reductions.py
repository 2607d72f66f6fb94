"""The reductions that emulated and simulated ranks know."""

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import torch
import torch.distributed as dist

REDUCTIONS = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.PRODUCT: torch.mul,
    dist.ReduceOp.MIN: torch.minimum,
    dist.ReduceOp.MAX: torch.maximum,
    dist.ReduceOp.BAND: torch.bitwise_and,
    dist.ReduceOp.BOR: torch.bitwise_or,
    dist.ReduceOp.BXOR: torch.bitwise_xor,
}


def reduction(opts: Any, ranks: str) -> Callable[[Iterable[torch.Tensor]], torch.Tensor]:
    """What reduces tensors, in their order. Raises ValueError for what these ranks do not know."""
    op = opts.reduceOp.op
    if op not in REDUCTIONS:
        known = ", ".join(known.name for known in REDUCTIONS)
        raise ValueError(f"{ranks} ranks reduce with {known}; not with {op.name}")
    return partial(reduce, REDUCTIONS[op])
