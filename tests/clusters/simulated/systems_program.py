"""One rank runs systems on a cluster of any kind and tells what it moved and which rows its engine was given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clusters.network import Network
from clusters.session import ClusterSpec, Session, connect
from clusters.simulated import Simulated
from clusters.simulated.timeline import Timeline
from experiments.configuration import find_class, options
from experiments.conformance import D_FF, D_MODEL, Case, _profile, _rates, _refusal, called, cases
from routers.base import Routing
from systems.base import LayerShape
from systems.collectives import all_gather
from systems.engines import find_engine
from systems.engines.base import Engine
from systems.engines.declared import DECLARED
from systems.engines.loop import LoopEngine
from systems.expert_parallel import ExpertParallel
from systems.moeshard import MoEShard
from tests.clusters.simulated.stub import Device
from workloads.model import ModelShape
from workloads.weights import SeededLayer, ShapedLayer

SIZES = (8,)  # numbers of experts
KINDS = {"ep": ExpertParallel, "moeshard": MoEShard}
EXPERTS_GT = [[0, 0, 0, 0, 2, 3], [0, 0, 1, 0, 0, 0]]  # what the ranks' tokens choose


class Spy(Engine):
    """The loop engine, telling of every call how many rows each expert gets and in which order they come."""

    name = "spy"

    def __init__(self, activation: str) -> None:
        self.engine, self.calls = find_engine("loop", activation), []

    def __call__(self, x_MD, copies, *weights):
        self.calls.append((copies.rows_e.tolist(), copies.order_N.tolist(), tuple(x_MD.shape)))
        return self.engine(x_MD, copies, *weights)


def trace(case: Case, node: dict[str, Any], session: Session) -> dict[str, Any]:
    """What this rank moved, said it would move, and computed in the second of two calls of one layer."""
    of_shape, device = session.device.type == "meta", session.device
    weights = (ShapedLayer if of_shape else SeededLayer)(
        **{"model": case.model, "dtype": torch.float32, "device": device}
        | ({} if of_shape else {"block": 1, "seed": 0})
    )
    x_TD, routing = case.draw(session.rank)
    x_TD = torch.empty(x_TD.shape, device=device) if of_shape else x_TD
    expert_TK, weight_TK = routing.expert_TK.to(device), routing.weight_TK.to(device)
    routing = Routing(expert_TK, weight_TK, routing.logits_TE.to(device), (expert_TK.flip(0),))
    tokens_GE = all_gather(routing.tokens_per_expert(case.num_experts).unsqueeze(0), session.group).cpu()
    shape, spy = replace(case.shape, max_expert_tokens=int(tokens_GE.max())), Spy(case.activation)
    kind, given = find_class(node), options(node)
    needed = {"profile": _profile(case, session.world_size), "rates": _rates(session.world_size)}
    given |= {name: needed[name] for name in kind.needs(**kind.every_option(**given)) & needed.keys()}
    engine = spy.engine if kind.own_engine else spy
    system = kind(**given, shape=shape, weights=weights, group=session.group, engine=engine)
    called(system, x_TD, routing)
    spy.calls.clear()
    exchanges: list[list[Any]] = []
    session.clock.on_exchange = lambda e: exchanges.append(  # pyright: ignore[reportAttributeAccessIssue]
        [e.collective, e.sent_to_G, e.received, e.asynchronous]
    )
    y_TD = called(system, x_TD, routing)
    session.clock.on_exchange = None  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "exchanges": exchanges,
        "engine": spy.calls,
        "output": list(y_TD.shape),
        "bytes_sent": sum(sum(sent_to_G) for _, sent_to_G, _, _ in exchanges),
        "bytes_accounted": system.account(tokens_GE, 4).bytes_sent,
    }


def trace_all(spec: dict[str, Any], session: Session) -> dict[str, Any]:
    """By system and case; a case that a system refuses is left out."""
    found = {}
    for name, node in spec["systems"].items():
        for case in cases(spec["max_top_k"][name]):
            wanted = case.num_experts in SIZES and case.routing not in spec["skipped"].get(name, ())
            if wanted and not _refusal(case, node, session):
                found[f"{name}/{case.name}"] = trace(case, node, session)
    return found


def simulated(spec: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """What simulated ranks tell, in this process."""
    cluster = Simulated(Device(), Network("free"), ranks, "fp32", DECLARED)

    def program(session: Session, timeline: Timeline) -> dict[str, Any]:
        with torch.no_grad():
            return trace_all(spec, session)

    return json.loads(json.dumps(cluster.run(program)))


def emulated(spec_path: str) -> None:
    """Entry point of an emulated rank; leaves traces.<rank>.json beside the specification."""
    spec, folder = json.loads(Path(spec_path).read_text()), Path(spec_path).parent
    cluster = ClusterSpec("emulated", spec["ranks"], timeout_s=60)
    with connect(cluster, Network("free"), folder / "device_lock") as session, torch.inference_mode():
        (folder / f"traces.{session.rank}.json").write_text(json.dumps(trace_all(spec, session)))


def layer_time(kind: str, device: Device, network: Network, ranks: int) -> list[float]:
    """When each rank is through with one layer: T = 6 tokens a rank for E = 4 experts, D = 16, F = 32."""
    cluster = Simulated(device, network, ranks, "fp32", DECLARED)

    def program(session: Session, timeline: Timeline) -> float:
        with torch.no_grad():
            system, x_TD, routing = _layer(kind, session)
            session.clock.align()  # pyright: ignore[reportAttributeAccessIssue]
            start_s = timeline.now_s
            system.forward(x_TD, routing)
            return timeline.now_s - start_s

    return cluster.run(program)


def _layer(kind: str, session: Session) -> tuple[Any, torch.Tensor, Routing]:
    shape = LayerShape(4, D_MODEL, D_FF, 6)
    model = ModelShape(4, D_MODEL, D_FF, 4, 4, 2, 2, 32)
    weights = ShapedLayer(model, torch.float32, session.device)
    system = KINDS[kind](shape=shape, weights=weights, group=session.group, engine=LoopEngine())
    expert_TK = torch.tensor(EXPERTS_GT[session.rank], device=session.device).unsqueeze(1)
    weight_TK = torch.ones(6, 1, device=session.device)
    return system, torch.empty(6, D_MODEL, device=session.device), Routing(expert_TK, weight_TK)
