"""The conformance kit: a system must compute what the dense model computes, whatever the routing.

`experiments.judge` is its command, the tests are its other user.
"""

import faulthandler
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from clusters.clocks import VirtualClock
from clusters.launch import launch
from clusters.network import Network
from clusters.session import ClusterSpec, Session, connect
from experiments.configuration import find_class, layer_shape_of, options
from routers.base import Routing
from routers.scores import scores_of
from systems.base import LayerShape, System
from systems.collectives import all_gather
from systems.dense import Dense
from systems.engines import ACTIVATIONS, Engine, find_engine
from systems.engines.auto import preferred
from systems.planners.base import Profile, Rates
from workloads.model import ModelShape
from workloads.weights import SeededLayer

TOLERANCE = 1e-5  # fp32, IEEE, relative to the largest output
D_MODEL, D_FF, MAX_TOKENS = 16, 32, 24
NUM_EXPERTS = (4, 8, 16)
ROUTINGS = ("uniform", "skewed", "all_to_one", "empty_experts", "ragged")
GATED = [name for name, activation in ACTIVATIONS.items() if activation.gated]
BIASED = ("clamped_swiglu",)  # whose experts have biases, as gpt-oss's


@dataclass(frozen=True)
class Case:
    """One layer call on every rank."""

    num_experts: int
    routing: str
    top_k: int = 1
    activation: str = "relu"

    @property
    def name(self) -> str:
        activation = "" if self.activation == "relu" else f"-{self.activation}"
        return f"E{self.num_experts}-{self.routing}-k{self.top_k}{activation}"

    @property
    def model(self) -> ModelShape:
        """A model with such layers."""
        experts = {"top_k": self.top_k, "activation": self.activation, "biased": self.activation in BIASED}
        return ModelShape(self.num_experts, D_MODEL, D_FF, 4, 4, 2, 2, 32, **experts)

    @property
    def shape(self) -> LayerShape:
        return layer_shape_of(self.model, MAX_TOKENS)

    def tokens(self, rank: int) -> int:
        """How many tokens a rank brings; ragged: another number on each, none on rank 1."""
        return MAX_TOKENS if self.routing != "ragged" else (MAX_TOKENS, 0, 7, 13)[rank % 4]

    def draw(self, rank: int) -> tuple[torch.Tensor, Routing]:
        """x_TD and its routing on one rank."""
        generator = torch.Generator().manual_seed(1000 * self.num_experts + rank)
        num_tokens = self.tokens(rank)
        popularity_E = torch.ones(self.num_experts)
        if self.routing == "skewed":
            popularity_E[0] = 20.0
        elif self.routing == "empty_experts":
            popularity_E[1::2] = 0.0
        elif self.routing == "all_to_one":
            popularity_E[: -self.top_k] = 0.0
        expert_TK = torch.multinomial(popularity_E.expand(MAX_TOKENS, -1), self.top_k, generator=generator)[:num_tokens]
        weight_TK = torch.rand(MAX_TOKENS, self.top_k, generator=generator)[:num_tokens] + 0.1
        x_TD = torch.randn(MAX_TOKENS, D_MODEL, generator=generator)[:num_tokens]
        score_TE = scores_of(expert_TK.numpy(), self.num_experts, np.random.default_rng(rank))
        return x_TD, Routing(expert_TK, weight_TK, torch.from_numpy(score_TE))


def cases(max_top_k: int = 1) -> Iterator[Case]:
    """Of top-1 and top-2 every number of experts and routing, and every gated activation with one; one of top-8."""
    for top_k in range(1, min(max_top_k, 2) + 1):
        yield from (Case(num_experts, routing, top_k) for num_experts in NUM_EXPERTS for routing in ROUTINGS)
        yield from (Case(8, "ragged", top_k, activation) for activation in GATED)
    if max_top_k >= 8:
        yield Case(16, "ragged", 8, "swiglu")


@torch.inference_mode()
def judge_case(case: Case, node: dict[str, Any], session: Session) -> tuple[dict[str, Any], torch.Tensor]:
    """This rank's verdict on one case, and its output [T, D]. Tokens that the system drops are only counted, and where
    it has a rule of its own, which says what they are, they are compared.

    The layer runs twice: what a system remembers of a batch may change where it computes the next, not what.
    """
    weights = SeededLayer(case.model, block=1, seed=0, dtype=torch.float32, device=session.device)
    x_TD, routing = case.draw(session.rank)
    routing = replace(routing, earlier=(routing.expert_TK.flip(0),))  # as if a layer before had chosen these
    tokens_GE = all_gather(routing.tokens_per_expert(case.num_experts).unsqueeze(0), session.group)
    shape = replace(case.shape, max_expert_tokens=int(tokens_GE.max()))
    layer = {"shape": shape, "weights": weights, "group": session.group}
    kind, given = find_class(node), options(node, "system")
    needed = {"profile": _profile(case, session.world_size), "rates": _rates(session.world_size)}
    given |= {name: needed[name] for name in kind.needs(**kind.every_option(**given)) & needed.keys()}
    system: System = kind(**given, **layer, engine=_engine(node, shape, session))
    dense = Dense(**layer, engine=find_engine("loop", case.activation))
    error_TD = (called(system, x_TD, routing) - system.expected(x_TD, routing, dense)).abs()
    with _bytes_on_the_wire(session) as sent:
        y_TD = called(system, x_TD, routing)
    expected_TD = system.expected(x_TD, routing, dense)
    dropped_T = (y_TD == 0).all(1) & (expected_TD != 0).any(1) & (not kind.own_rule)
    error_TD = torch.maximum((y_TD - expected_TD).abs(), error_TD)[~dropped_T]
    scale = float(expected_TD.abs().max()) if len(expected_TD) else 1.0
    account = system.account(tokens_GE, 4)
    return {
        "error": float(error_TD.max()) / scale if error_TD.numel() else 0.0,
        "tolerance": TOLERANCE + kind.slack,
        "dropped": int(dropped_T.sum()),
        "accounted": 0 if kind.own_rule else account.dropped,
        "bytes_sent": sum(sent),
        "bytes_accounted": account.bytes_sent,
    }, y_TD


def called(system: System, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
    """A call as a model makes it, where nothing lies between a block and the next."""
    if system.looks_ahead:
        system.begin(x_TD, routing)
        system.go_on()
    return system.forward(x_TD, routing)


def _refusal(case: Case, node: dict[str, Any], session: Session) -> str:
    """Why the system cannot run these sizes, which is no fault; "" where it can."""
    kind = find_class(node)
    try:
        kind.check(case.shape, session.world_size, **kind.every_option(**options(node, "system")))
    except ValueError as refusal:
        return str(refusal)
    return ""


def _rates(world_size: int) -> Rates:
    """Those of ranks on two nodes."""
    return Rates(1e11, 2e11, ranks_per_node=max(1, world_size // 2))


def _profile(case: Case, world_size: int) -> Profile:
    """Other tokens than those of the case, the first expert hot, in two layers of which the case is the second."""
    generator = np.random.default_rng(case.num_experts)
    popularity_E = np.ones(case.num_experts)
    popularity_E[0] = 20
    shape_LGM = (2, world_size, 5 * MAX_TOKENS)
    expert_LGM = generator.choice(case.num_experts, shape_LGM, p=popularity_E / popularity_E.sum())
    return Profile(lambda: expert_LGM, layer=1)


def _engine(node: dict[str, Any], shape: LayerShape, session: Session) -> Engine:
    """The engine that a system's configuration names; of auto the preferred one, since nothing is timed in a rank."""
    name = node.get("engine") or "loop"
    if name == "auto":
        widths = (shape.d_model, find_class(node).hidden_width(shape, session.world_size))
        name = preferred(session.device.type, "fp32", widths)
    return find_engine(name, shape.activation)


@contextmanager
def _bytes_on_the_wire(session: Session) -> Iterator[list[float]]:
    """What this rank sends to others in every collective meanwhile, which only an emulated cluster tells."""
    sent: list[float] = []
    if isinstance(session.clock, VirtualClock):
        session.clock.on_exchange = lambda exchange: sent.append(sum(exchange.sent_to_G))
    yield sent
    if isinstance(session.clock, VirtualClock):
        session.clock.on_exchange = None


def judge_rank(spec_path: str) -> None:
    """Entry point of a rank: all cases of all systems; leaves verdicts.<rank>.json and outputs.<rank>.safetensors."""
    spec = json.loads(Path(spec_path).read_text())
    folder = Path(spec_path).parent
    verdicts: dict[str, Any] = {}
    outputs: dict[str, torch.Tensor] = {}
    with connect(ClusterSpec(**spec["cluster"]), Network("none"), folder / "device_lock") as session:
        for name, node in spec["systems"].items():
            for case in cases(spec["max_top_k"].get(name, 1)):
                faulthandler.dump_traceback_later(spec["cluster"]["timeout_s"], exit=True)
                key = f"{name}/{case.name}"
                if refusal := _refusal(case, node, session):
                    verdicts[key] = {"unsupported": refusal}
                else:
                    verdicts[key], outputs[key] = judge_case(case, node, session)
    faulthandler.cancel_dump_traceback_later()
    (folder / f"verdicts.{session.rank}.json").write_text(json.dumps(verdicts))
    save_file({key: y.contiguous() for key, y in outputs.items()}, folder / f"outputs.{session.rank}.safetensors")


def judge(
    systems: dict[str, dict[str, Any]], cluster: ClusterSpec, folder: Path, max_top_k: dict[str, int] | None = None
) -> list[dict[str, dict[str, Any]]]:
    """Verdicts of each rank: "system/case" -> error, tolerance, dropped, accounted (0 where a rule of its own says what
    is dropped), bytes_sent (0 unless emulated) and bytes_accounted, or unsupported: why it cannot run these sizes.
    Raises LaunchFailed if a rank dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"cluster": vars(cluster), "systems": systems, "max_top_k": max_top_k or {}}
    (folder / "spec.json").write_text(json.dumps(spec))
    launch(cluster, judge_rank, str(folder / "spec.json"))
    return [json.loads((folder / f"verdicts.{rank}.json").read_text()) for rank in range(cluster.world_size)]
