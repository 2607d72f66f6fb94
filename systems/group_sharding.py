"""Ours: each expert sharded among as many neighbouring ranks as its load wants, in the memory of whole experts.

Between expert parallelism (every expert whole on one rank) and MoEShard (every expert cut for all ranks): which experts
are cut, and for whom, is chosen from a profile (systems/planners/shard_groups.py). A token goes once to every node and
rank that has a part of any of its experts, and the parts' weighted sums come back the same way, added up on it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import all_gather, reduce_scatter
from systems.costs import costs_of
from systems.engines import Copies
from systems.hops import Hop
from systems.permute import filled_up, packed_choices, summed_copies, unpacked_choices
from systems.planners.base import Costs, Profile, Rates, tokens_per_expert
from systems.planners.shard_groups import ShardGroups, powers_of_two

TRAVELS = ("auto", "once", "gather")
ONCE_OPERATIONS = 40  # that travelling once issues and an all-gather does not, or so: they count, wait and look up


class Part(NamedTuple):
    """What this rank has of the experts that are cut into equally many parts.

    slot_E: where an expert's part is among the weights; their number, where there is none. E + 1 of them.
    """

    experts: list[int]
    slot_E: torch.Tensor
    weights: tuple[torch.Tensor, ...]


class Sent(NamedTuple):
    """Rows that a call sent to other ranks, to be computed and back."""

    there: int
    back: int


class GroupSharding(System):
    """Experts in parts, by a profile's loads.

    sizes: the numbers of parts that an expert may be cut into; if not given, all powers of two that the ranks and d_ff
    can be divided by, of which those above a node's ranks are not used but that of all ranks. [1] leaves every expert
    whole: expert parallelism that packs experts by their load.
    travel: how tokens get to experts: `once` to each node and rank that has a part of theirs; to all ranks by an
    all-gather, as in MoEShard, which needs no counts before (`gather`); or what costs less by the profile (`auto`).
    """

    stateful = False

    def __init__(
        self,
        *,
        sizes: Sequence[int] | None = None,
        travel: str = "auto",
        rates: Rates,
        profile: Profile,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        none = layer["weights"].experts([])[0]  # for its type and device
        costs = costs_of(self.shape, none.element_size(), rates)
        self._per_node = costs.ranks_per_node or self.world_size
        sizes = _sizes(self.shape, self.world_size) if sizes is None else sizes
        if travel == "once" and min(sizes) > self._per_node:
            raise ValueError(f"system.sizes is {list(sizes)}; a node has {self._per_node} ranks, and parts stay on one")
        planner = ShardGroups(tuple(sizes))
        chosen = np.empty((self.shape.num_experts + 1, self.world_size), np.int64)
        if self.rank == 0:  # for all, because they have to agree
            chosen[:-1], chosen[-1] = self._chosen(planner, travel, profile, costs)
        shared = torch.from_numpy(chosen).to(none.device)
        dist.broadcast(shared, group=self.group, group_src=0)
        self._gathers, shared = bool(shared[-1, 0]), shared[:-1]
        self._parts_E = shared.amax(1).cpu().numpy()
        self._holds_EG = shared > 0
        own_E = shared[:, self.rank].cpu().numpy()
        self._parts = [self._part(own_E, size, layer["weights"]) for size in np.unique(own_E[own_E > 0]).tolist()]

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, sizes: Sequence[int] | None, travel: str, **_: Any) -> None:
        if travel not in TRAVELS:
            raise ValueError(f"system.travel is {travel!r}; it must be one of {', '.join(TRAVELS)}")
        divisible("model.num_experts", shape.num_experts, world_size, "every rank holds the weights of E/G experts")
        if sizes is not None and (not isinstance(sizes, list | tuple) or not sizes):
            raise ValueError(f"system.sizes is {sizes!r}; it must be null or a list of numbers of parts, such as [1,2]")
        for size in sizes or ():
            if size not in powers_of_two(world_size) or shape.d_ff % size:
                raise ValueError(
                    f"system.sizes has {size!r}; an expert is cut into 1, 2, 4, ... parts, by which the number of "
                    f"ranks ({world_size}) and model.d_ff ({shape.d_ff}) can be divided"
                )

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        """The narrowest part that there can be."""
        return shape.d_ff // max(_sizes(shape, world_size))

    @classmethod
    def needs(cls, **_: Any) -> frozenset[str]:
        return frozenset({"rates", "profile"})

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        return self._gather(x_TD, routing) if self._gathers else self._send_once(x_TD, routing)

    def _gather(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """All tokens to all ranks, and the sums of what each of them computes."""
        with self.span("dispatch"):
            padding = self.shape.max_tokens - len(x_TD)
            choices_T2K = packed_choices(routing.expert_TK, routing.weight_TK)
            choices_R2K = all_gather(filled_up(choices_T2K, padding, self.shape.num_experts), self.group)
            x_RD = all_gather(filled_up(x_TD, padding, 0), self.group)
        with self.span("experts"):
            y_RD = self._compute(x_RD, choices_R2K)
        with self.span("combine"):
            return reduce_scatter(y_RD, self.group)[: len(x_TD)]

    def _send_once(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Tokens to the nodes, and there to the ranks, that have a part of one of their experts."""
        with self.span("metadata"):
            choices_R2K = packed_choices(routing.expert_TK, routing.weight_TK)
            wanted_TG = self._holds_EG[routing.expert_TK].any(1)
            wanted_TN = wanted_TG.unflatten(1, (-1, self._per_node)).any(2)
            counts = torch.cat([wanted_TG.sum(0), wanted_TN.sum(0)])
            counts_GX = all_gather(counts.unsqueeze(0), self.group).cpu().numpy()
            visits_GG, crossings_GN = np.split(counts_GX, [self.world_size], 1)
        with self.span("dispatch"):
            hops, x_RD = [], x_TD
            if crossings_GN.shape[1] > 1:
                hops.append(self._between_nodes(wanted_TN, crossings_GN))
                x_RD, choices_R2K = hops[-1].there(x_RD), hops[-1].there(choices_R2K)
            if self._per_node > 1:
                hops.append(self._within_node(choices_R2K, visits_GG))
                x_RD, choices_R2K = hops[-1].there(x_RD), hops[-1].there(choices_R2K)
        with self.span("experts"):
            y_RD = self._compute(x_RD, choices_R2K)
        with self.span("combine"):
            for hop in reversed(hops):
                y_RD = hop.back(y_RD)
        sent = [hop.rows_sent(self.rank) for hop in hops]
        self.plan = Sent(sum(there for there, _ in sent), sum(back for _, back in sent))
        return y_RD

    def _between_nodes(self, wanted_TN: torch.Tensor, crossings_GN: np.ndarray) -> Hop:
        """To the rank of the same place in each node that a token has an expert on, its own among them."""
        node, place = divmod(self.rank, self._per_node)
        peers = list(range(place, self.world_size, self._per_node))
        return Hop(wanted_TN, peers, crossings_GN[self.rank].tolist(), crossings_GN[peers, node].tolist(), self.group)

    def _within_node(self, choices_R2K: torch.Tensor, visits_GG: np.ndarray) -> Hop:
        """From the rank at which a token came into the node to those that have a part of its experts."""
        node, place = divmod(self.rank, self._per_node)
        mates = list(range(node * self._per_node, (node + 1) * self._per_node))
        expert_RK = choices_R2K[:, : self.shape.top_k].long()
        wanted_RM = self._holds_EG[:, mates[0] : mates[-1] + 1][expert_RK].any(1)
        through_MG = visits_GG.reshape(-1, self._per_node, self.world_size).sum(0)  # by the place that they come in at
        sent_M, received_M = through_MG[place, mates], through_MG[:, self.rank]
        return Hop(wanted_RM, mates, sent_M.tolist(), received_M.tolist(), self.group)

    def _compute(self, x_RD: torch.Tensor, choices_R2K: torch.Tensor) -> torch.Tensor:
        """y_RD: what this rank's parts add to each row, weighted."""
        expert_N, weight_N = unpacked_choices(choices_R2K)
        top_k = self.shape.top_k
        if len(self._parts) == 1 and len(self._parts[0].experts) == self.shape.num_experts:  # nothing to pick out
            copies = Copies(*self.engine.group(expert_N, self.shape.num_experts), top_k, weight_N)
            return summed_copies(self.engine(x_RD, copies, *self._parts[0].weights), top_k)
        grouped = [self.engine.group(part.slot_E[expert_N], len(part.experts)) for part in self._parts]
        rows_P = torch.stack([rows_e.sum() for _, rows_e in grouped]).tolist()  # here the host waits
        y_RD = torch.zeros_like(x_RD)
        for part, (order_N, rows_e), rows in zip(self._parts, grouped, rows_P, strict=True):
            order_n = order_N[:rows]
            row_n = order_n // top_k
            y_nD = self.engine.of_sorted(x_RD[row_n], rows_e, *part.weights)
            y_RD.index_add_(0, row_n, y_nD.mul_(weight_N[order_n].to(y_nD.dtype).unsqueeze(1)))
        return y_RD

    def _chosen(self, planner: ShardGroups, travel: str, profile: Profile, costs: Costs) -> tuple[np.ndarray, bool]:
        """parts_EG by the profile's loads, in the number of a full batch, and whether tokens are gathered."""
        load_E = tokens_per_expert(profile.expert_LGM[profile.layer], self.shape.num_experts).sum(0)
        num_tokens = self.shape.max_tokens * self.world_size
        given = load_E * (num_tokens * self.shape.top_k / load_E.sum()), num_tokens, self.world_size, costs
        gathered = planner.gathered(*given)
        if travel == "gather" or min(planner.sizes) > self._per_node:
            return gathered.parts_EG, True
        once = planner.travelling(*given).later(ONCE_OPERATIONS * costs.operation_s)
        gathers = travel == "auto" and gathered.seconds < once.seconds
        return (gathered if gathers else once).parts_EG, gathers

    def _part(self, own_E: np.ndarray, size: int, weights: Any) -> Part:
        experts = np.flatnonzero(own_E == size).tolist()
        given = weights.shard(self.rank % size, size, experts) if size > 1 else weights.experts(experts)
        slot_E = torch.full((len(own_E) + 1,), len(experts))  # one more for tokens that only fill up
        slot_E[experts] = torch.arange(len(experts))
        return Part(experts, slot_E.to(given[0].device), tuple(self.engine.prepare(*given)))

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """Of the call whose `plan` it has: how many ranks a token visits is not told by counts."""
        rows_E = tokens_GE.sum(0).cpu().numpy()
        here = [np.array(part.experts) for part in self._parts]
        rows = float(sum((rows_E[experts] / self._parts_E[experts]).sum() for experts in here))
        row_bytes, choice_bytes = self.shape.d_model * element_size, 8 * self.shape.top_k
        others = self.world_size - 1
        if self._gathers:
            bytes_sent = others * self.shape.max_tokens * (2 * row_bytes + choice_bytes)
        else:
            counts = self.world_size + self.world_size // self._per_node
            there, back = self.plan
            bytes_sent = 8 * counts * others + (there + back) * row_bytes + there * choice_bytes
        memory_bytes = sum(self._bytes(rows_E[experts], self._parts_E[experts], element_size) for experts in here)
        return Account(rows, rows, dropped=0, bytes_sent=float(bytes_sent), memory_bytes=memory_bytes)

    def _bytes(self, rows_e: np.ndarray, parts_e: np.ndarray, element_size: int) -> float:
        """Of parts of one size."""
        active, width = int(np.count_nonzero(rows_e)), self.shape.d_ff // int(parts_e[0])
        return self.ffn_bytes(float(rows_e.sum()), active, element_size, width)


def _sizes(shape: LayerShape, ranks: int) -> list[int]:
    return [size for size in powers_of_two(ranks) if shape.d_ff % size == 0]
