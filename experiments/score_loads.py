"""The loads that planners are scored on: how many token copies each rank has for each expert, and no tensors.

The routers draw or replay them, as in a run of the harness, of several layers and batches of a model. Letters: G ranks,
E experts, L layers, M token copies of a rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from experiments.configuration import layer_shape_of
from routers.drawn import PROFILE_FROM, DrawnRouter
from routers.fits import SHIPPED, read_fits
from routers.like import LikeRouter
from routers.recorded import RecordedRouter
from routers.token_trace import TokenTrace, TokenTraceRouter
from routers.trace import TraceRouter, read_rows
from systems.base import LayerShape
from workloads.model import ModelShape

CONF = Path(__file__).parents[1] / "conf"
LAYERS, BATCHES = 4, 2  # of each model (fewer where fewer are recorded): layers evenly spaced, first and last included
RANKS, FEW_RANKS = (8, 32, 64), 4  # the latter where none of the former divides the experts
BATCH = {"prefill": (4, 1024), "decode": (64, 1), "encode": (25, 120)}  # sequences of a rank, tokens of each in a pass
MODELS = {"deepseek_v3": "deepseek_v3", "qwen1.5_moe": "qwen2_moe", "switch_base_128": "switch"}  # of shipped fits


@dataclass(frozen=True, eq=False)
class Source:
    """The loads of one model in one phase, on any number of ranks: the first ranks of many are those of few.

    What has been drawn is kept, for the next planner.
    """

    name: str
    model: ModelShape
    phase: str
    router: DrawnRouter
    num_layers: int
    _drawn: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)

    @property
    def tokens_per_rank(self) -> int:
        return int(np.prod(BATCH[self.phase]))

    @property
    def shape(self) -> LayerShape:
        return layer_shape_of(self.model, self.tokens_per_rank)

    @property
    def group(self) -> str:
        """Model and phase, whatever the text."""
        return f"{self.name.rpartition('.')[0] or self.name}, {self.phase}"

    def ranks(self, wanted: Sequence[int]) -> list[int]:
        """Those of the wanted numbers of ranks that divide the experts; none wanted: the usual ones."""
        dividing = [ranks for ranks in wanted or RANKS if self.model.num_experts % ranks == 0]
        return dividing or ([] if wanted else [FEW_RANKS])

    def tokens(self, layer: int, batch: int, ranks: int) -> np.ndarray:
        """tokens_GE, int64, of one batch in one layer."""
        num_experts = self.model.num_experts
        return self._of_ranks((layer, batch), ranks, lambda expert_M: np.bincount(expert_M, minlength=num_experts))

    def profile(self, ranks: int) -> np.ndarray:
        """expert_LGM of a batch that is held out: of another run and other sequences, or of the record's last part."""
        layers = range(self.num_layers)
        return np.stack([self._of_ranks((layer, PROFILE_FROM), ranks, lambda expert_M: expert_M) for layer in layers])

    def _of_ranks(self, drawn: tuple[int, int], ranks: int, kept: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What is kept of the draws of a layer and batch, rank by rank."""
        found = self._drawn.setdefault(drawn, [])
        found += [kept(self._experts(*drawn, rank)) for rank in range(len(found), ranks)]
        return np.stack(found[:ranks])

    def _experts(self, layer: int, batch: int, rank: int) -> np.ndarray:
        self.router.rank = rank  # all that a router of another rank differs in
        return self.router.draw(self.tokens_per_rank, layer=layer, iteration=batch).ravel()


def sources(path: Path | None, model: str | None, phase: str | None, seed: int) -> list[Source]:
    """What a file has, or of None the fits that come with the project.

    path: fits (.npz of scripts.fit_loads), tokens (.npz of scripts.import_routing) or counts (.csv of the same). model:
    a name of conf/model, for the layer's sizes; needed for what does not come with the project. phase: of a record,
    prefill or decode; a fit tells its own. Raises ValueError, in one sentence, for a file or a model that cannot be
    read.
    """
    if path is not None and not path.is_file():
        raise ValueError(f"loads is {path}; there is no such file")
    try:
        if path is None or (path.suffix == ".npz" and not _has_tokens(path)):
            return list(_of_fits(path or SHIPPED, model, seed))
        shape = read_model(_needed(model, path))
        router = TokenTraceRouter if path.suffix == ".npz" else TraceRouter
        return list(_of_record(router, path, shape, shape.regime(phase), seed))
    except ValueError as error:
        raise ValueError(str(error).replace("router.path is", "loads is")) from error


def read_model(name: str, **changes: int) -> ModelShape:
    """The model of conf/model/NAME.yaml at the paper's scale; ValueError names those there are."""
    path = CONF / f"model/{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.yaml")))
        raise ValueError(f"model is {name!r}; it must be one of {known}")
    both = {"scale": OmegaConf.load(CONF / "scale/paper.yaml"), "model": OmegaConf.load(path)}
    values = OmegaConf.to_container(OmegaConf.create(both), resolve=True)
    return ModelShape(**values["model"] | changes)  # pyright: ignore


def _of_fits(path: Path, model: str | None, seed: int) -> Iterator[Source]:
    for name, fit in read_fits(path).items():
        known = model or MODELS.get(name.rpartition(".")[0])
        shape = read_model(_needed(known, path), num_experts=fit.num_experts, top_k=fit.top_k)
        layers = min(LAYERS, fit.num_layers)
        given = {"num_experts": fit.num_experts, "top_k": fit.top_k, "regime": fit.regime, "of": name}
        given |= {"sequences": BATCH[fit.regime][0], "path": str(path), "rank": 0, "seed": seed}
        yield Source(name, shape, fit.regime, LikeRouter(moe_blocks=range(layers), **given), layers)


def _of_record(kind: type[RecordedRouter], path: Path, shape: ModelShape, phase: str, seed: int) -> Iterator[Source]:
    """One for each number of experts that was recorded; a record of tokens may have more experts of each than count."""
    counts = kind is TraceRouter
    numbers = sorted(set(read_rows(path).num_experts)) if counts else [TokenTrace.read(path).num_experts]
    for num_experts in map(int, numbers):
        layers = min(LAYERS, len(kind.read(path, num_experts)))
        given = {"num_experts": num_experts, "top_k": shape.top_k, "path": str(path), "rank": 0, "seed": seed}
        name = f"{path.name.partition('.')[0]}.E{num_experts}"
        router = kind(moe_blocks=range(layers), **given)
        yield Source(name, replace(shape, num_experts=num_experts), phase, router, layers)


def _has_tokens(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "expert_LTK" in arrays.files
    except Exception:  # no .npz at all, of which the readers say what is wrong
        return False


def _needed(model: str | None, path: Path) -> str:
    if model is None:
        raise ValueError(f"loads is {path}, which does not say how wide its model is; add model=, a name of conf/model")
    return model
