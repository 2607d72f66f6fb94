"""A cost model fitted to measured cells: what each rank computes between collectives, plus the network's transfers.

    layer = sum over collectives k of [ max over ranks of compute_k + transfer_k ] + max over ranks of the last stretch

compute_k is a non-negative combination of the features of `simulation.work`, fitted for each system and stretch between
two collectives (finer than a section: no stretch contains a wait). Noise of the machine is not modelled: the slowest
rank is slow because it has more to do.
Shape letters: K collectives, S = K+1 stretches, G ranks, N features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from analysis.load import Campaign
from analysis.stats import median_of
from clusters.network import NetworkModel
from routers.synthetic import SyntheticRouter
from simulation.networks import build_network
from simulation.recorded import LayerRun, as_IL, layer_runs
from simulation.replay import replay, transfer_ms
from simulation.work import MODELLED, Load, Work
from systems.base import LayerShape
from systems.engines import find_engine

ELEMENT_SIZES = {"ieee": 4, "tf32": 4, "bf16": 2, "fp16": 2}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROUTER = "routers.synthetic.SyntheticRouter"
FLOOR = 0.05  # of a layer: errors of shorter stretches count as if they were this long


class NotModelled(ValueError):
    """The model does not cover this system, router or size; the sentence says why."""


@dataclass(frozen=True)
class Observation:
    """One measured cell: its workload, what each rank computed in each stretch, and the layer's time, in ms."""

    cell: str
    run: dict[str, Any]
    runs: list[LayerRun]
    work: Work
    stretches_SG: np.ndarray

    @property
    def system(self) -> str:
        return self.run["system"]

    @property
    def layer_ms(self) -> float:
        """The layer's measured time: the slowest rank's."""
        return layer_median_ms(self.runs, [float(run.layer_G.max()) for run in self.runs])

    def quiet_ms(self) -> float:
        """The layer's time if every rank took its median in every stretch."""
        return float(self.stretches_SG.max(axis=1).sum()) + moved_ms(self.work, self.network())

    def layer_ms_on(self, network: NetworkModel) -> float:
        """What was computed, with its transfers on another network."""
        return layer_median_ms(self.runs, [float(replay(run, network).max()) for run in self.runs])

    def network(self) -> NetworkModel:
        """The network that the cell was recorded on."""
        return build_network(self.run["config"]["network"])


def layer_median_ms(runs: list[LayerRun], values: list[float]) -> float:
    """Median over iterations of one value a run, layers taken as one observation."""
    return median_of(as_IL(runs, values))


def observe(campaign: Campaign, cell: str) -> Observation:
    """A stored cell as the model sees it; NotModelled where the model has no form for it."""
    run = campaign.runs[cell]
    tokens_GE = mean_tokens(campaign, cell)
    work = work_of(run["config"], tokens_GE)
    runs = layer_runs(campaign, cell)
    known, seen = [transfer.collective for transfer in work.transfers], runs[0].collectives
    if known != seen or any(one.asynchronous_K.any() for one in runs):
        raise NotModelled(f"{run['system']} issued {', '.join(seen)}; the model knows {', '.join(known)}, one by one")
    return Observation(cell, run, runs, work, np.median([stretches(one) for one in runs], axis=0))


def mean_tokens(campaign: Campaign, cell: str) -> np.ndarray:
    """float64 [G, E]: tokens of each rank for each expert, the mean over layers and iterations."""
    routing, point = campaign.routing(cell), campaign.runs[cell]["point"]
    passes = len(routing[["iteration", "layer"]].drop_duplicates())
    tokens_GE = np.zeros((point["world_size"], point["num_experts"]))
    np.add.at(tokens_GE, (routing["rank"].to_numpy(), routing["expert"].to_numpy()), routing["tokens"].to_numpy())
    return tokens_GE / passes


def stretches(run: LayerRun) -> np.ndarray:
    """[S, G]: what each rank computed before each collective and after the last, in ms."""
    resumed_SG = np.vstack([run.entered_G, run.finished_KG])
    return np.vstack([run.issued_KG, run.left_G]) - resumed_SG


def expected_tokens(config: dict[str, Any], num_experts: int, ranks: int) -> np.ndarray:
    """float64 [G, E]: what the configuration's router sends on average; NotModelled unless it draws from one p_E."""
    options = {key: value for key, value in config["router"].items() if key not in ("_target_", "name")}
    if config["router"]["_target_"] != ROUTER:
        raise NotModelled(f"the model takes loads from {ROUTER} only, not from {config['router']['_target_']}")
    router = SyntheticRouter(num_experts=num_experts, rank=0, seed=config["seed"], **options)
    tokens = config["batch_size"] * config["seq_len"]
    return np.tile(tokens * router.probabilities_E, (ranks, 1))


def work_of(config: dict[str, Any], tokens_GE: np.ndarray) -> Work:
    """The work of the configuration's system under these loads; NotModelled where it could not run."""
    system, model = config["system"], config["model"]
    if system["_target_"] not in MODELLED:
        raise NotModelled(f"the model has no form for {system['name']} ({system['_target_']})")
    kind, form = MODELLED[system["_target_"]]
    options = {key: value for key, value in system.items() if key not in ("_target_", "name", "engine")}
    if options.pop("chunks", 1) > 1:
        raise NotModelled(f"the model has no form for the overlapped exchanges of {system['name']}")
    ranks, num_experts = tokens_GE.shape
    shape = LayerShape(num_experts, model["d_model"], model["d_ff"], config["batch_size"] * config["seq_len"])
    try:
        kind.check(shape, ranks, **options)
        check_engine(config, kind.hidden_width(shape, ranks), own=kind.own_engine)
    except ValueError as error:
        raise NotModelled(str(error)) from error
    return form(Load(shape, tokens_GE, ELEMENT_SIZES[config["precision"]]), **options)


def check_engine(config: dict[str, Any], width: int, *, own: str | None) -> None:
    """Raise ValueError where the engine cannot take shards as narrow as these."""
    if own is None:
        name = config["engine"] or config["system"]["engine"]
        engine = find_engine("loop" if name == "auto" else name)  # auto finds one for any width
        dtype = HALVES.get(config["precision"], torch.float32)
        engine.check(torch.device(config["cluster"]["device"]), dtype, [config["model"]["d_model"], width])


@dataclass(frozen=True)
class CostModel:
    """coefficients_SN: milliseconds per feature of each stretch between collectives, of one system."""

    coefficients_SN: np.ndarray

    def compute_ms(self, work: Work) -> float:
        """What the slowest rank of each stretch computes, all stretches together."""
        return float((self.coefficients_SN @ work.features_GN.T).max(axis=1).sum())

    def layer_ms(self, work: Work, network: NetworkModel) -> float:
        """The layer's time; ValueError where the network does not know so many ranks."""
        return self.compute_ms(work) + moved_ms(work, network)


def moved_ms(work: Work, network: NetworkModel) -> float:
    """All transfers of a layer, one after the other, in ms."""
    return sum(transfer_ms(network, one.collective, one.sent_GG) for one in work.transfers)


def fit(observations: Iterable[Observation]) -> CostModel:
    """Non-negative least squares on relative errors, stretch by stretch, every rank of every cell a row.

    Raises ValueError without an observation.
    """
    seen = list(observations)
    if not seen:
        raise ValueError("a cost model needs at least one measured cell")
    features_RN = np.concatenate([one.work.features_GN for one in seen])
    target_SR = np.concatenate([one.stretches_SG for one in seen], axis=1)
    floor_R = np.concatenate([np.full(one.work.features_GN.shape[0], FLOOR * one.layer_ms) for one in seen])
    scale_N = features_RN.max(axis=0)
    scale_N[scale_N == 0] = 1
    rows = [weighted(features_RN / scale_N, target_R, 1 / (target_R + floor_R)) for target_R in target_SR]
    return CostModel(np.array([nnls(a_RN, b_R)[0] for a_RN, b_R in rows]) / scale_N)


def weighted(features_RN: np.ndarray, target_R: np.ndarray, weight_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and target of a least-squares problem, each row times its weight."""
    return features_RN * weight_R[:, None], target_R * weight_R
