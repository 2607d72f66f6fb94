"""What a device's description consists of beside its tables: its host, and its grouped kernels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ITEMSIZE = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True)
class Host:
    """What the processor that issues work pays, in microseconds.

    operation_us: issuing one operation that launches a kernel (Python, dispatcher and launch). launch_us: each further
    kernel of an operation that launches several. view_us: one that launches nothing (views, shape arithmetic).
    collective_us: issuing one collective. synchronise_us: reading a value back, from the end of the device's work until
    the host goes on. synchronous: True of a CPU, whose host is the device and waits for every operation. unrepeated:
    what an operation costs that stands on a line which the host has not just executed, as it does in a loop, in parts
    of one that does: the code is in no cache.
    """

    operation_us: float
    launch_us: float
    view_us: float
    collective_us: float
    synchronise_us: float
    synchronous: bool
    unrepeated: float = 1.0


@dataclass(frozen=True)
class Grouped:
    """A kernel that multiplies each expert's rows by that expert's weights.

    share: with the best tile, of the rate of a dense product of the same size, or of_peak: of the highest rate there
    is, where weights are packed for the kernel. tiles: {rows of a tile: its rate in parts of the best tile's}; each
    expert's rows are filled up to whole tiles. precisions: in which it is one kernel; in others, one product an expert.
    expert_us: what each expert with rows costs beyond that.
    """

    share: float = 1.0
    of_peak: bool = False
    tiles: Mapping[int, float] = field(default_factory=lambda: {16: 1.0})
    precisions: Sequence[str] = tuple(ITEMSIZE)
    expert_us: float = 0.0

    def __post_init__(self) -> None:
        if self.share <= 0 or not self.tiles:
            raise ValueError(f"a grouped kernel needs a positive share and tiles, got {self.share} and {self.tiles}")
        tiles = {int(rows): float(rate) for rows, rate in self.tiles.items()}  # JSON has no whole numbers as keys
        object.__setattr__(self, "tiles", tiles)
        object.__setattr__(self, "precisions", tuple(self.precisions))


def how_to_describe(name: str) -> str:
    """The command that makes what is missing."""
    return f"`python -m scripts.describe_device {name}` describes the machine at hand under that name"
