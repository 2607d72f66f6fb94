"""The local expert FFN: y = relu(x W_i) W_o, each row by its expert; no communication."""

from systems.engines.base import Copies, Engine
from systems.engines.cpu import CpuEngine
from systems.engines.grouped import GroupedEngine
from systems.engines.loop import LoopEngine
from systems.engines.megablocks import MegaBlocksEngine
from systems.engines.triton_grouped import TritonGroupedEngine

__all__ = ["ENGINES", "Copies", "Engine", "find_engine"]

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (LoopEngine, GroupedEngine, CpuEngine, MegaBlocksEngine, TritonGroupedEngine)
}


def find_engine(name: str) -> Engine:
    """The engine called `name`; ValueError names the ones there are."""
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; it must be auto or one of {', '.join(ENGINES)}")
    return ENGINES[name]()
