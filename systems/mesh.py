"""Ranks as a mesh of nodes: each expert is on one node, cut among the ranks of that node.

A row crosses to the node of its expert by an all-to-all between ranks of the same place, and reaches all ranks of that
node by an all-gather; a reduce-scatter and an all-to-all bring the sum of the parts' results back. So the link between
nodes and that within one can be busy at once, which is what FSMoE and MoNTA (systems/fsmoe.py, systems/monta.py) are
about. Letters beside those of `systems.padded`: N nodes, P ranks of a node, e experts of a node.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from systems.base import Account, LayerShape, LayerWeights, divisible
from systems.collectives import InFlight, start_all_gather, start_all_to_all, start_reduce_scatter
from systems.engines import ACTIVATIONS
from systems.engines.activations import batched_ffn
from systems.padded import PaddedExpertParallel
from systems.planners.base import Rates

# A program has one mesh for all its layers. The group is kept beside it, so that no other one gets its id.
_known: dict[Any, tuple[dist.ProcessGroup, "Mesh"]] = {}


class Mesh(NamedTuple):
    """One rank's place: across are the ranks of its place in all nodes, within are those of its node."""

    nodes: int
    per_node: int
    across: dist.ProcessGroup
    within: dist.ProcessGroup


def mesh_of(group: dist.ProcessGroup, nodes: int) -> Mesh:
    """The ranks of the group in so many nodes, one after another; all ranks call it alike."""
    key = id(group), group.rank(), nodes
    if key not in _known:
        ranks = dist.get_process_group_ranks(group)
        per_node = len(ranks) // nodes
        within, _ = dist.new_subgroups_by_enumeration([ranks[n * per_node : (n + 1) * per_node] for n in range(nodes)])
        across, _ = dist.new_subgroups_by_enumeration([ranks[place::per_node] for place in range(per_node)])
        assert isinstance(within, dist.ProcessGroup) and isinstance(across, dist.ProcessGroup)
        _known[key] = group, Mesh(nodes, per_node, across, within)
    return _known[key][1]


def nodes_of(rates: Rates, world_size: int) -> int:
    """As many as the network has; two, if it has one and ranks can be halved, so that there is a mesh at all."""
    if rates.ranks_per_node is not None and rates.ranks_per_node < world_size:
        return world_size // rates.ranks_per_node
    return 2 if world_size % 2 == 0 else 1


class MeshExpertParallel(PaddedExpertParallel):
    """Padded expert parallelism over nodes, with a capacity that drops nothing.

    nodes: how many; if not given, see `nodes_of`.
    """

    adaptive_capacity = True

    def __init__(self, *, nodes: int | None = None, rates: Rates, **layer) -> None:
        self.rates = rates
        self.mesh = mesh_of(layer["group"], nodes or nodes_of(rates, layer["group"].size()))
        super().__init__(**layer)
        self._activation = ACTIVATIONS[self.shape.activation]
        self._row_bytes = self.shape.d_model * self._weights[0].element_size()

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, nodes: int | None, **_: Any) -> None:
        if nodes is not None and (not isinstance(nodes, int) or nodes < 1 or world_size % nodes):
            raise ValueError(f"system.nodes is {nodes!r}; it must be null or divide the number of ranks ({world_size})")
        divisible("model.num_experts", shape.num_experts, nodes or world_size, "each expert is on one node")
        divisible("model.d_ff", shape.d_ff, world_size // (nodes or 1), "the ranks of a node share its experts")

    @classmethod
    def needs(cls, **_: Any) -> frozenset[str]:
        return frozenset({"rates"})

    def _placed(self, weights: LayerWeights) -> tuple[list[int], tuple[torch.Tensor, ...]]:
        node, place = divmod(self.rank, self.mesh.per_node)
        num_experts = self.shape.num_experts // self.mesh.nodes
        mine = list(range(node * num_experts, (node + 1) * num_experts))
        return mine, weights.shard(place, self.mesh.per_node, mine)

    # The five steps of a chunk [E, c, D]; each is nothing where the mesh has one rank in that direction.

    def _cross(self, x_EcD: torch.Tensor, into_EcD: torch.Tensor | None = None) -> InFlight:
        """Experts' rows to and from their nodes: [E, c, D] to [N * e, c, D], and the same back."""
        if self.mesh.nodes > 1:
            return start_all_to_all(x_EcD, self.mesh.across, into=into_EcD)
        return InFlight(x_EcD if into_EcD is None else into_EcD.copy_(x_EcD))

    def _gather(self, arriving: InFlight) -> InFlight:
        """[P * N * e, c, D]: what all ranks of the node have got."""
        x_EcD = arriving.wait()
        return start_all_gather(x_EcD, self.mesh.within) if self.mesh.per_node > 1 else InFlight(x_EcD)

    def _compute(self, x_RcD: torch.Tensor) -> torch.Tensor:
        """This rank's part of what the experts make of them; rows by (rank, node, expert)."""
        x_SecD = x_RcD.unflatten(0, (-1, len(self._mine)))
        x_eRD = x_SecD.transpose(0, 1).flatten(1, 2)
        y_eRD = batched_ffn(x_eRD, self._activation, *self._weights)
        return y_eRD.unflatten(1, (-1, x_RcD.shape[1])).transpose(0, 1).flatten(0, 1)

    def _sum(self, y_RcD: torch.Tensor) -> InFlight:
        """[N * e, c, D]: the whole results of the rows that crossed to this rank."""
        return start_reduce_scatter(y_RcD, self.mesh.within) if self.mesh.per_node > 1 else InFlight(y_RcD)

    def volumes(self, capacity: int) -> tuple[float, float, float]:
        """Bytes that a rank sends across and within its node, one way, and FLOPs of its experts, in one call."""
        nodes, per_node = self.mesh.nodes, self.mesh.per_node
        rows = self.shape.num_experts * capacity
        flops = rows * per_node * self.shape.row_flops(self.shape.d_ff // per_node)
        return rows * self._row_bytes * (nodes - 1) / nodes, rows * self._row_bytes * (per_node - 1), flops

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """Rows count in parts of whole experts; each of two links is taken there and back."""
        capacity = self.capacity(int(tokens_GE.max()))
        crossing, gathered, _ = self.volumes(capacity)
        rows = self.shape.num_experts * capacity
        width = self.shape.d_ff // self.mesh.per_node
        return Account(
            rows_computed=float(rows),
            rows_useful=float(tokens_GE[:, self._mine].sum()) / self.mesh.per_node,
            dropped=0,
            bytes_sent=2 * (crossing + gathered) + self.agreement_bytes(),
            memory_bytes=self.ffn_bytes(
                rows * self.mesh.per_node, self.chunks * len(self._mine), element_size, width=width
            ),
        )
