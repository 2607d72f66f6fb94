"""The tables of the machine at hand, as devices/tables has them; scripts/describe_device.py says what is timed.

Letters in names: m rows, n columns, k depth of a product; E experts; D d_model, F hidden width; B batch, H heads,
L sequence, d width of a head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from experiments.configuration import set_precision
from scripts.description.tables import ascending, ascending_grid
from scripts.description.timing import in_program_s, issue_in_program_s, issue_s, seconds_of
from scripts.measure_overheads import collective_us
from systems.engines.base import DTYPES

PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}
MEASURED = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16")}
ROWS = {
    "cpu": (1, 4, 16, 64, 256, 1024, 4096),
    "cuda": (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
}
WIDTHS = {"cpu": (16, 64, 256, 768, 3072), "cuda": (64, 256, 768, 1024, 3072, 4096)}
MOST_FLOPS = {"cpu": 5e9, "cuda": 2e12}  # of one call; larger products go on at the rate of the largest timed
COPIED = {"cpu": [1 << s for s in range(11, 28, 2)], "cuda": [1 << s for s in range(12, 32, 2)]}
KEYS, HEADS = (16, 64, 120, 256, 512), {"cpu": (16, 64), "cuda": (64, 128)}
QUERIES = {"cpu": 1 << 10, "cuda": 1 << 18}
LARGE_FLOPS = 1e8
HOST_S = 1.0  # of measuring what issuing costs
LEAST_US = 0.05  # of a kernel beyond its issuing


class Machine:
    """A device, and what is to be taken off every call there: on a CPU the host waits, so issuing shows in it."""

    def __init__(self, device: torch.device, budget_s: float) -> None:
        self.device, self.budget_s = device, budget_s
        self.host = measure_host(device)
        self._issuing_us = 1e6 * issue_s([torch.zeros(4, 4).neg], device) if self.host["synchronous"] else 0.0

    def us(self, call: Callable[..., Any], operands: Sequence[Any], share: float) -> float:
        """Microseconds of call(*operands) beyond issuing it, timed for this share of the whole budget."""
        if self.device.type == "cpu":
            own_s = in_program_s(call, operands, share * self.budget_s)
        else:
            own_s = seconds_of(lambda: call(*operands), self.device, share * self.budget_s)
        return max(LEAST_US, own_s * 1e6 - self._issuing_us)

    def rand(self, *shape: int, precision: str = "fp32") -> torch.Tensor:
        """Normal numbers, as activations and weights are: power, and so the clock, depends on them."""
        return torch.randn(shape, device=self.device).to(DTYPES[precision])


def measure_host(device: torch.device) -> dict[str, Any]:
    """The arguments of `Host`."""
    x, order = torch.zeros(4, 4, device=device), torch.zeros(2, dtype=torch.long, device=device)
    synchronous = device.type == "cpu"
    operations, views = [x.neg, lambda: x + 1.0, lambda: x.sum(-1)], [lambda: x.view(2, 8), x.t, lambda: x[1:]]
    if not synchronous:
        operations += [lambda: x.index_select(0, order), lambda: torch.cat([x, x])]
    operation_us, view_us = (
        1e6 * (issue_in_program_s(calls, HOST_S) if synchronous else issue_s(calls, device))
        for calls in (operations, views)
    )
    return {
        "operation_us": round(operation_us, 2),
        "launch_us": 0.0 if synchronous else round(operation_us / 2, 2),  # stated: half of an operation's
        "view_us": round(view_us, 2),
        "collective_us": round(collective_us() if synchronous else _nccl_us(device), 1),
        "synchronise_us": round(_item_us(x), 2),
        "synchronous": synchronous,
    }


def _nccl_us(device: torch.device) -> float:
    """What the host pays to issue a collective of NCCL, of one rank: the path through torch is the same."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    x, y = torch.zeros(2, 1 << 10, device=device)
    calls = [
        lambda: dist.all_gather_into_tensor(y, x),
        lambda: dist.reduce_scatter_tensor(y, x),
        lambda: dist.all_to_all_single(y, x),
    ]
    for call in calls:
        call()
    found_s = issue_s(calls, device)
    dist.destroy_process_group()
    return 1e6 * found_s


def _item_us(x: torch.Tensor) -> float:
    one = x[0, 0]
    if not x.is_cuda:
        return 1e6 * seconds_of(one.item, x.device, 0.0)
    torch.cuda.synchronize()
    return 1e6 * seconds_of(one.item, torch.device("cpu"), 0.01)


def measure_matmul(machine: Machine, precision: str, share: float) -> dict[str, Any]:
    """{m, n, k, us}: [m, k] @ [k, n] on a grid, to which larger products than MOST_FLOPS are extended."""
    kind = machine.device.type
    axes = ROWS[kind], WIDTHS[kind], WIDTHS[kind]
    sizes = [size for size in product(*axes) if 2 * np.prod(size) <= MOST_FLOPS[kind]]
    log_us = np.full([len(axis) for axis in axes], np.nan)
    for m, n, k in sizes:
        x, w = machine.rand(m, k, precision=precision), machine.rand(k, n, precision=precision)
        at = tuple(axis.index(size) for axis, size in zip(axes, (m, n, k), strict=True))
        log_us[at] = np.log(machine.us(torch.mm, (x, w), share / len(sizes)))
    times = np.exp(ascending_grid(extended(log_us, np.log(axes[0])))).round(2)
    return dict(zip("mnk", map(list, axes), strict=True)) | {"us": times.tolist()}


def extended(log_us: np.ndarray, log_m: np.ndarray) -> np.ndarray:
    """Where rows are missing, as much longer than the most that were timed as there are more of them."""
    log_us = log_us.copy()
    for m in range(1, len(log_m)):
        missing = np.isnan(log_us[m])
        log_us[m][missing] = log_us[m - 1][missing] + log_m[m] - log_m[m - 1]
    return log_us


def measure_memory(machine: Machine, share: float) -> list[list[float]]:
    """[[bytes read and written, us], ...]: the median of a copy, a sum and a gather of rows, outputs allocated."""
    points = []
    for num_bytes in COPIED[machine.device.type]:
        x = machine.rand(max(1, num_bytes // 2048), 256)  # half is read, half is written
        order = torch.randperm(len(x), device=machine.device)
        calls = (torch.clone, lambda x: x + 1.0, lambda x, order=order: x.index_select(0, order))
        part = share / (len(calls) * len(COPIED[machine.device.type]))
        points.append([2 * x.nbytes, float(np.median([machine.us(call, (x,), part) for call in calls]))])
    return ascending(points, digits=2)


def measure_transfer(machine: Machine, memory: list[list[float]], share: float) -> list[list[float]]:
    """[[bytes, us], ...] from the host's ordinary memory; of a CPU, which copies nothing, a copy in memory."""
    if machine.device.type == "cpu":
        return memory
    sizes = [1 << s for s in range(10, 29, 3)]
    held = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    times_us = [machine.us(lambda x: x.to(machine.device), (x,), share / len(sizes)) for x in held]
    return ascending([[x.nbytes, us] for x, us in zip(held, times_us, strict=True)])


def measure_attention(machine: Machine, precision: str, share: float) -> dict[str, list[list[float]]]:
    """{head_dim: [[keys, microseconds of a million numbers of the query], ...]}, with an additive bias."""
    kind, found = machine.device.type, {}
    for width in HEADS[kind]:
        points = []
        for keys in KEYS:
            batch = max(1, QUERIES[kind] // (4 * keys))
            q_BHLd = machine.rand(batch, 4, keys, width, precision=precision)
            bias_1HLL = machine.rand(1, 4, keys, keys, precision=precision)
            us = machine.us(_attention, (q_BHLd, bias_1HLL), share / (len(HEADS[kind]) * len(KEYS)))
            points.append([keys, us * 1e6 / q_BHLd.numel()])
        found[str(width)] = ascending(points, digits=3)
    return found


def _attention(q_BHLd: torch.Tensor, bias_1HLL: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q_BHLd, q_BHLd, q_BHLd, attn_mask=bias_1HLL)


def peaks_of(matmul: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The best TFLOP/s of a large product in each precision's table."""
    return {precision: round(max(_rates(table)), 4) for precision, table in matmul.items()}


def _rates(table: Mapping[str, Any]) -> Iterator[float]:
    for (i, m), (j, n), (h, k) in product(*(list(enumerate(table[letter])) for letter in "mnk")):
        if 2 * m * n * k >= LARGE_FLOPS:
            yield 2e-6 * m * n * k / table["us"][i][j][h]


def measure_tables(machine: Machine, precisions: Sequence[str]) -> dict[str, Any]:
    """All tables of a device but its network; kernels for experts, which are fitted, follow."""
    matmul, attention = {}, {}
    for precision in precisions:
        print(f"describe_device: products and attention in {precision}", flush=True)
        set_precision(precision)
        matmul[precision] = measure_matmul(machine, precision, 0.6 / len(precisions))
        attention[precision] = measure_attention(machine, precision, 0.1 / len(precisions))
    print("describe_device: memory and transfers", flush=True)
    memory = measure_memory(machine, 0.1)
    transfer = measure_transfer(machine, memory, 0.05)
    return {"memory": memory, "transfer": transfer, "attention": attention, "matmul": matmul}
