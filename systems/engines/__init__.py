"""The local expert FFN: y = act(x W_i + b_i) W_o + b_o, each row by its expert; no communication."""

from systems.engines.activations import ACTIVATIONS
from systems.engines.base import Copies, Engine
from systems.engines.cpu import CpuEngine
from systems.engines.grouped import GroupedEngine
from systems.engines.loop import LoopEngine
from systems.engines.megablocks import MegaBlocksEngine
from systems.engines.triton_grouped import TritonGroupedEngine

__all__ = ["ACTIVATIONS", "ENGINES", "Copies", "Engine", "find_engine"]

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (LoopEngine, GroupedEngine, CpuEngine, MegaBlocksEngine, TritonGroupedEngine)
}


def find_engine(name: str, activation: str = "relu") -> Engine:
    """The engine called `name` for experts with this activation; ValueError names the ones there are."""
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; it must be auto or one of {', '.join(ENGINES)}")
    return ENGINES[name](ACTIVATIONS[activation])
