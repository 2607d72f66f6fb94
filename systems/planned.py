"""One executor for every system that decides where experts are and where tokens go: expert parallelism with a plan.

A planner (systems/planners/) says which ranks hold which experts and how many of each rank's tokens go where; a
migration (systems/migration.py) brings weights there; this moves rows. Counts are gathered by all ranks, so that all
make the same plan without talking. With every expert and its tokens at its owner it is dropless expert parallelism.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from routers.base import Routing
from systems.base import Account, LayerShape, System
from systems.collectives import all_gather, all_to_all
from systems.costs import costs_of
from systems.engines import Copies
from systems.migration import Broadcast, Held, Migration, Persistent, PointToPoint, Static, SwapIn
from systems.permute import experts_of_arrivals, transposed_blocks, weighted_sum
from systems.planners.base import Planner, Profile, Rates, as_replicas, owner_of
from systems.planners.bound import least_rows
from systems.planners.placement import PLACEMENTS
from systems.sharded_weights import Sharded

LOADS = ("none", "oracle", "lagged", "profiled")
MIGRATIONS: dict[str, type[Migration]] = {
    "static": Static,
    "broadcast": Broadcast,
    "point_to_point": PointToPoint,
    "persistent": Persistent,
    "swap": Persistent,  # of planners without replicas: every rank keeps as many experts as it has
    "swap_in": SwapIn,
    "sharded": Sharded,
}


class Plan(NamedTuple):
    """before_EG, replicas_EG: where experts were and are (`Planner.place`); sent_GEG: where tokens go (`dispatch`).

    predicted: whether the loads that experts were placed by were predicted, where they should have been.
    """

    before_EG: np.ndarray
    replicas_EG: np.ndarray
    sent_GEG: np.ndarray
    predicted: bool | None = None


class PlannedExpertParallel(System):
    """Expert parallelism by plan.

    planner: decides. loads: what it places experts by: nothing, they stay where they are (none); this batch's counts
    (oracle); those of the last `window` batches, after the first one and every `every` batches from then on (lagged); a
    profile of other data, once, before anything is timed (profiled). migration: how weights travel. placement: where
    experts are before any plan. rates: of this machine, by which the planner weighs costs.
    """

    def __init__(
        self,
        *,
        planner: Planner,
        loads: str = "none",
        migration: str = "static",
        placement: str = "contiguous",
        every: int = 1,
        window: int = 1,
        rates: Rates,
        profile: Profile | None = None,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        shape, ranks = self.shape, self.world_size
        if loads == "profiled" and profile is None:
            raise ValueError("system.loads is 'profiled' and there is no profile")
        self._planner, self._loads, self._every = planner, loads, every
        self._owner_E = PLACEMENTS[placement](shape.num_experts, ranks).numpy()
        self._replicas_EG = as_replicas(self._owner_E, ranks)  # where experts are by the last plan
        none = layer["weights"].experts([])[0]  # for its type and device
        self._costs = costs_of(shape, none.element_size(), rates, every)
        if profile:
            self._replicas_EG = self._placed_by(profile, none.device)
        given = {name: layer[name] for name in ("weights", "engine", "group")}
        self._migration: Migration = MIGRATIONS[migration](replicas_EG=self._replicas_EG, **given)
        self.stateful = loads == "lagged" or migration != "static"
        self._past: deque[np.ndarray] = deque(maxlen=window)
        self._calls = self._most_held = 0

    @classmethod
    def check(
        cls,
        shape: LayerShape,
        world_size: int,
        *,
        planner: Planner,
        loads: str,
        migration: str,
        placement: str,
        **others: Any,
    ) -> None:
        """ValueError for unknown loads, migration or placement, counts below 1, pairs that do not go together, and what
        the planner cannot place.
        """
        for name, value, known in (
            ("loads", loads, LOADS),
            ("migration", migration, MIGRATIONS),
            ("placement", placement, PLACEMENTS),
        ):
            if value not in known:
                raise ValueError(f"system.{name} is {value!r}; it must be one of {', '.join(known)}")
        for name in ("every", "window"):
            if others[name] < 1:
                raise ValueError(f"system.{name} is {others[name]!r}; it must be a whole number of at least 1")
        if migration == "static" and loads in ("oracle", "lagged"):
            raise ValueError(
                f"system.migration is 'static' and system.loads {loads!r}; experts that stay where they are cannot "
                "follow the batches: use system.loads=profiled, or another +system.migration"
            )
        if not isinstance(planner, Planner):
            raise ValueError(f"system.planner is {planner!r}; it must name a class of planners in its _target_")
        if migration == "swap" and planner.replicates:
            raise ValueError(
                f"system.migration is 'swap' and {type(planner).__name__} makes replicas, for which ranks that change "
                "experts one for one have no room; use system.migration=persistent"
            )
        planner.check(shape.num_experts, world_size)

    @classmethod
    def needs(cls, *, loads: str, **_: Any) -> frozenset[str]:
        return frozenset({"rates", "profile"} if loads == "profiled" else {"rates"})

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """All ranks gather all counts, so all make the same plan; then weights and rows travel."""
        with self.span("metadata"):
            order_N, rows_E = self.engine.group(routing.expert_TK.flatten(), self.shape.num_experts)
            tokens_GE = all_gather(rows_E.unsqueeze(0), self.group).cpu().numpy()
        with self.span("plan"):
            self.plan = plan = self._plan(tokens_GE, routing)
        with self.span("weights"):
            held = self._migration.bring(plan.replicas_EG)
            self._most_held = max(self._most_held, len(held.experts))
        with self.span("dispatch"):
            order_N, sent_G, received_G = self._addressed(order_N, plan.sent_GEG)
            x_RD = all_to_all(x_TD[order_N // self.shape.top_k], self.group, received_G, sent_G)
        with self.span("experts"):
            y_RD = self._compute(x_RD, held, plan.sent_GEG[:, :, self.rank])
        with self.span("combine"):
            y_ND = all_to_all(y_RD, self.group, sent_G, received_G)
            y_ND = torch.empty_like(y_ND).index_copy_(0, order_N, y_ND)
            return weighted_sum(y_ND, routing.weight_TK)

    def _plan(self, tokens_GE: np.ndarray, routing: Routing) -> Plan:
        loads_GE = self._expected(tokens_GE, routing)
        before_EG = self._migration.replicas_EG
        if loads_GE is not None:
            self._replicas_EG = self._planner.place(loads_GE, _unwritable(before_EG), self._costs)
            self._planner.check_counts("place", self._replicas_EG, before_EG.shape)
        plan = self._plan_of(tokens_GE, before_EG, routing)
        if not self._calls:  # only the first, because it takes time
            self._planner.check_sent(plan.sent_GEG, tokens_GE, plan.replicas_EG)
        self._past.append(tokens_GE)
        self._calls += 1
        return plan

    def _expected(self, tokens_GE: np.ndarray, routing: Routing) -> np.ndarray | None:
        """The loads to place experts by; None: they stay where the last plan put them."""
        if self._loads == "oracle":
            return tokens_GE
        if self._loads == "lagged" and self._past and (self._calls - 1) % self._every == 0:
            return np.mean(self._past, axis=0)
        return None

    def _plan_of(self, tokens_GE: np.ndarray, before_EG: np.ndarray, routing: Routing | None = None) -> Plan:
        replicas_EG = self._replicas_EG
        still_owned_E = replicas_EG[np.arange(len(replicas_EG)), self._owner_E] > 0
        owner_E = np.where(still_owned_E, self._owner_E, owner_of(replicas_EG))
        return Plan(before_EG, replicas_EG, self._dispatched(tokens_GE, owner_E, routing))

    def _dispatched(self, tokens_GE: np.ndarray, owner_E: np.ndarray, routing: Routing | None) -> np.ndarray:
        """sent_GEG. routing: of this rank's tokens, None where a plan is only accounted for."""
        return self._planner.dispatch(tokens_GE, self._replicas_EG, owner_E)

    def _addressed(self, order_N: torch.Tensor, sent_GEG: np.ndarray) -> tuple[torch.Tensor, list[int], list[int]]:
        """Copies by (rank they go to, expert), and how many rows go to and come from each rank."""
        sent_EG, received_GE = sent_GEG[self.rank], sent_GEG[:, :, self.rank]
        rank_of_block = sent_EG.nonzero()[1]
        if (rank_of_block[1:] < rank_of_block[:-1]).any():  # else experts' order is ranks' order already
            blocks_EG = torch.from_numpy(sent_EG).to(order_N.device)
            order_N = order_N[transposed_blocks(blocks_EG, len(order_N))]
        return order_N, sent_EG.sum(0).tolist(), received_GE.sum(1).tolist()

    def _compute(self, x_RD: torch.Tensor, held: Held, received_GE: np.ndarray) -> torch.Tensor:
        """Rows that arrive by (rank, expert), each through the slot of its expert."""
        experts = sorted(held.experts)
        rows_Ge = torch.from_numpy(received_GE[:, experts]).to(x_RD.device)
        slot_e = None
        if experts != held.experts:
            slot_e = torch.from_numpy(np.argsort(held.experts)).to(x_RD.device)
        slot_R = experts_of_arrivals(rows_Ge, len(x_RD), slot_e)
        return self.engine(x_RD, Copies(*self.engine.group(slot_R, len(held.experts))), *held.weights)

    def _placed_by(self, profile: Profile, device: torch.device) -> np.ndarray:
        """Rank 0's placement on all ranks: a solver with a time limit may find another one elsewhere."""
        placed_EG = np.empty_like(self._replicas_EG)
        if self.rank == 0:
            placed_EG[:] = profile.placed(self._planner, self._replicas_EG, self._costs)
        shared = torch.from_numpy(placed_EG).to(device)
        dist.broadcast(shared, group=self.group, group_src=0)
        placed_EG = shared.cpu().numpy()
        if (placed_EG > 0).any(0).all() and (placed_EG > 0).any(1).all():
            return placed_EG
        raise ValueError("the planner's placement leaves a rank without an expert, or an expert without a rank")

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """By `plan`; before the first call by what would be planned now."""
        here = self.rank
        plan: Plan = self.plan or self._plan_of(tokens_GE.cpu().numpy(), self._migration.replicas_EG)
        received_GE = plan.sent_GEG[:, :, here]
        rows, stay = float(received_GE.sum()), float(received_GE[here].sum())
        leaving, returning = float(plan.sent_GEG[here].sum()) - stay, rows - stay
        experts = self._migration.experts_sent(plan.before_EG, plan.replicas_EG)
        counts = 8 * self.shape.num_experts * (self.world_size - 1)
        moved = (leaving + returning) * self.shape.d_model * element_size
        moved += experts * sum(w[0].numel() * w.element_size() for w in self._migration.held.weights)
        memory_bytes = self.ffn_bytes(rows, int(np.count_nonzero(received_GE.sum(0))), element_size)
        # Milliseconds of a number that all ranks would find alike.
        least = 0 if here else least_rows(plan.sent_GEG.sum((0, 2)), plan.replicas_EG)[0]
        counted = {"bytes_sent": counts + moved, "memory_bytes": memory_bytes, "least_rows": float(least)}
        return Account(rows, rows, dropped=0, **counted)

    def experts_held(self) -> float:
        return max(self._most_held, len(self._migration.held.experts)) + self._migration.kept_beside


def _unwritable(array: np.ndarray) -> np.ndarray:
    """A view that a planner cannot change by mistake."""
    view = array.view()
    view.flags.writeable = False
    return view
