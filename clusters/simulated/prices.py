"""What an operation is to a device: matrix products by their sizes, everything else by bytes and kernel launches."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

aten = torch.ops.aten


class Prices(Protocol):
    """What a described device (`devices.Device`) says of kernels: seconds."""

    def matmul_s(self, batch: int, m: int, n: int, k: int, precision: str) -> float: ...

    def grouped_s(self, kernel: str, rows_e: Sequence[int], n: int, k: int, precision: str) -> float: ...

    def is_one_kernel(self, kernel: str, precision: str) -> bool: ...

    def attention_s(self, batch: int, heads: int, query: int, key: int, head_dim: int, precision: str) -> float: ...

    def memory_s(self, num_bytes: float) -> float: ...

    def scan_s(self, num_rows: int) -> float: ...

    def transfer_s(self, num_bytes: float) -> float: ...


class GroupedProduct(Protocol):
    """What a kernel of ours declares: a product of rows_e[e] rows with expert e's matrix [k, n], by a kind of kernel.

    weight: for its type.
    """

    @property
    def kernel(self) -> str: ...

    @property
    def rows_e(self) -> torch.Tensor: ...

    @property
    def n(self) -> int: ...

    @property
    def k(self) -> int: ...

    @property
    def weight(self) -> torch.Tensor: ...


# Reads as many elements of its first argument as it writes, but none twice from memory.
GATHERS = {
    aten.index.Tensor,
    aten.index_select.default,
    aten.embedding.default,
    aten.gather.default,
    aten.take.default,
}
# Writes, in place, as many elements as it is given.
SCATTERS = {
    aten.index_copy_.default,
    aten.index_put_.default,
    aten.index_add_.default,
    aten.scatter_.src,
    aten.scatter_.value,
    aten.scatter_add_.default,
    aten.scatter_reduce_.two,
    aten._index_put_impl_.default,
}
# Several kernels: (times that the first argument's bytes are moved, launches). Radix sorts move keys and places once
# to and fro for each of their eight digits.
SEVERAL = {
    aten.sort.default: (32, 10),
    aten.sort.stable: (32, 10),
    aten.argsort.stable: (32, 10),
    aten.topk.default: (16, 6),
    aten.cumsum.default: (4, 3),
    aten.cumsum_.default: (4, 3),
    aten.nonzero.default: (3, 4),
    aten.searchsorted.Tensor: (2, 1),
    aten.repeat_interleave.Tensor: (3, 3),
    aten.cat.default: (2, 1),
}


SCANS = {aten.cumsum.default, aten.cumsum_.default}


class Work(NamedTuple):
    """Bytes that an operation reads and writes, and by how many kernels."""

    num_bytes: float
    launches: int


def work_of(func: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> Work:
    """The work of an operation that is no matrix product."""
    if func in SEVERAL:
        times, launches = SEVERAL[func]
        return Work(times * sum(map(stored_bytes, inputs)), launches)
    if func in GATHERS:
        read = min(outputs[0].nbytes, stored_bytes(inputs[0]))
        return Work(read + outputs[0].nbytes + sum(map(stored_bytes, inputs[1:])), 1)
    if func in SCATTERS:
        given = sum(map(stored_bytes, inputs[1:]))
        return Work(given + max([each.nbytes for each in inputs[1:]], default=0), 1)
    return Work(sum(map(stored_bytes, inputs)) + sum(map(stored_bytes, outputs)), 1)


def scanned_rows(func: Any, args: Sequence[Any]) -> int:
    """Rows that a cumulative sum adds up one after the other: those of columns, not numbers that stand in a row."""
    if func not in SCANS:
        return 0
    shape, dim = args[0].shape, args[1]
    return shape[dim] if math.prod(shape[dim % len(shape) + 1 :]) > 1 else 0


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements that a tensor has in memory; an expanded dimension has one."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride or size == 0:
            elements *= size
    return elements * tensor.element_size()


def product_of(func: Any, args: Sequence[Any]) -> tuple[int, int, int, int] | None:
    """(batch, m, n, k) of a matrix product; None for any other operation."""
    first = PRODUCTS.get(func)
    if first is None:
        return None
    a, b = args[first].shape, args[first + 1].shape
    return (a[0] if len(a) == 3 else 1, a[-2], b[-1], a[-1])


# Which argument the left matrix is.
PRODUCTS = {
    aten.mm.default: 0,
    aten.mm.out: 0,
    aten.bmm.default: 0,
    aten.bmm.out: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}
FREE = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.empty_like.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh.default,
    aten.alias.default,
    aten._unsafe_view.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
}
