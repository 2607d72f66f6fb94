"""What routers share that replay what a real model's router did: which file, which layers, and what is held out."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from routers.drawn import PROFILE_FROM, DrawnRouter


def spread(num_blocks: int, num_layers: int) -> list[int]:
    """The recorded layer of each MoE block: evenly spaced, the first and the last among them where there are two."""
    return [round(block * (num_layers - 1) / max(num_blocks - 1, 1)) for block in range(num_blocks)]


def layers_of(moe_blocks: Sequence[int], recorded: Sequence[int], layers: Sequence[int] | None) -> dict[int, int]:
    """The recorded layer of each MoE block: `layers` in order, or if None evenly spaced ones.

    Raises ValueError, naming router.layers, unless there is a recorded one for every block.
    """
    if layers is None:
        layers = [recorded[index] for index in spread(len(moe_blocks), len(recorded))]
    if len(layers) != len(moe_blocks) or not set(layers) <= set(recorded):
        raise ValueError(
            f"router.layers is {list(layers)}; it must name, for each of the model's {len(moe_blocks)} MoE blocks, "
            f"one of the recorded layers {', '.join(map(str, recorded))}"
        )
    return dict(zip(moe_blocks, layers, strict=True))


def parts_of(record: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """What of a record is measured, and the last `held_out` share of it, for profiles; all for both where that is none.

    Raises ValueError unless the share is a number from 0 up to less than 1 that leaves something to measure.
    """
    number = isinstance(held_out, int | float) and not isinstance(held_out, bool) and 0 <= held_out < 1
    first = len(record) - round(held_out * len(record)) if number else 0
    if first == 0:
        raise ValueError(f"router.held_out is {held_out!r}; it must be a share of the record, at least 0 and below 1")
    return record[:first], record[first:] if first < len(record) else record


class RecordedRouter(DrawnRouter):
    """Replays the record of one layer in each MoE block.

    `path` None is the record that comes with this repository. `layers` names the recorded layer of each MoE block; None
    takes them evenly spaced from the first to the last. The last `held_out` share of the record is kept for profiles;
    where that is none they come from all of it.
    """

    default_path: ClassVar[Path]

    def __init__(
        self,
        *,
        num_experts: int,
        moe_blocks: Sequence[int],
        path: str | None = None,
        layers: Sequence[int] | None = None,
        held_out: float = 0.25,
        **workload: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, moe_blocks=moe_blocks, **workload)
        records = self.read(self.trace_file(path), num_experts)
        chosen = layers_of(moe_blocks, list(records), layers)
        self._parts = {block: parts_of(records[layer], held_out) for block, layer in chosen.items()}

    @staticmethod
    @abstractmethod
    def read(path: Path, num_experts: int) -> dict[int, np.ndarray]:
        """The record of each layer, its parts to replay along the first axis.

        Raises ValueError, naming router.path, for a file that is no record or one of another number of experts.
        """

    @classmethod
    def trace_file(cls, path: str | None = None, **unused: object) -> Path:
        """The file that decides the routing; its content is part of what a cell is."""
        return cls.default_path if path is None else Path(path)

    def replayed(self, *, layer: int, iteration: int) -> np.ndarray:
        """What of the record of a block belongs to an iteration: what is measured, or what is held out for profiles."""
        measured, held_out = self._parts[layer]
        return held_out if iteration >= PROFILE_FROM else measured
