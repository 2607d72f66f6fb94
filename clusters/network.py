"""Network models: how long a collective takes for the bytes it moves.

A flat network is one kind of link. What was measured on the machine at hand decides, where there is a table for it:

    t = table[collective][ranks](V)

else a model of the link does, with h = G - 1 steps of a ring (twice as many for an all-reduce):

    t = base + h * hop + points(V)

V is the number of bytes that a rank sends or receives off itself, the larger of the two, and the largest over ranks;
of a broadcast those that it receives. Where sending and receiving share what moves the data (`duplex` below 1), an
uneven exchange counts their mean by so much. Ranks that come apart may have tables of their own (`late`).
sent_GG[i, j]: the bytes that a collective moves from its rank i to j.
Tables are read by linear interpolation: on a doubling grid log-log interpolation is biased by more than 10 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

COLLECTIVES = ("all_gather", "reduce_scatter", "all_to_all", "all_reduce", "broadcast", "barrier")
Table = Sequence[Sequence[float]]


class NetworkModel(Protocol):
    """What the emulator asks of a network: the largest volume over each kind of link, and the time that takes."""

    @property
    def name(self) -> str: ...

    @property
    def ranks_per_node(self) -> int | None:
        """None: all ranks are near one another."""
        ...

    def links(self, members: Sequence[int]) -> tuple[str, ...]:
        """The links of a rank that such a collective takes: of `near` and `far`."""
        ...

    def when(self, collective: str, members: Sequence[int], spread_s: float) -> "NetworkModel":
        """The model of a collective of these ranks, whose last comes spread_s after the first."""
        ...

    def volumes(self, collective: str, sent_GG: np.ndarray, members: Sequence[int]) -> tuple[float, ...]:
        """V over each kind of link; members are the ranks of the collective in the whole cluster."""
        ...

    def seconds(self, collective: str, volumes: Sequence[float], ranks: int) -> float:
        """Seconds of a collective of so many ranks."""
        ...


@dataclass(frozen=True)
class Network:
    """One kind of link between all ranks, fitted to measured collectives.

    base_us, hop_us: latency of one collective and of each step of its ring.
    points: ((bytes, microseconds), ...) beyond that latency, ascending, starting where bytes are 0.
    bandwidth_gbs: GB/s (1e9) beyond the last point.
    duplex: how little sending and receiving hinder one another: 1, V of an exchange is the larger of the two; 0, their
    mean (the same where both are equal).
    tables: {collective: {ranks: ((bytes, microseconds), ...)}}, latency included; beyond the last point its last slope.
    late: the network of collectives whose last rank comes later after the first than the collective's latency, where
    that differs, with tables of the same kind (gloo's ranks send at once to who waits, before they can receive).
    source: where the constants come from.

    Raises ValueError for points that do not ascend, an unknown collective or a bandwidth that is not positive.
    """

    name: str
    base_us: float = 0.0
    hop_us: float = 0.0
    points: Table = ((0, 0),)
    bandwidth_gbs: float = float("inf")
    duplex: float = 1.0
    tables: Mapping[str, Mapping[int, Table]] = field(default_factory=dict)
    late: "Network | None" = None
    source: str = ""

    def __post_init__(self) -> None:
        self._check("points", self.points)
        if self.points[0][0] != 0:
            raise ValueError(f"network {self.name}: points must start at 0 bytes, got {self.points[0][0]}")
        if self.bandwidth_gbs <= 0:
            raise ValueError(f"network {self.name}: bandwidth_gbs must be positive, got {self.bandwidth_gbs}")
        if not 0 <= self.duplex <= 1:
            raise ValueError(f"network {self.name}: duplex must be between 0 and 1, got {self.duplex}")
        for collective, by_ranks in self.tables.items():
            if collective not in COLLECTIVES:
                raise ValueError(
                    f"network {self.name}: no collective is called {collective!r}; they are {', '.join(COLLECTIVES)}"
                )
            for ranks, table in by_ranks.items():
                self._check(f"tables.{collective}.{ranks}", table)
        # JSON has no whole numbers as keys.
        tables = {name: {int(ranks): table for ranks, table in found.items()} for name, found in self.tables.items()}
        object.__setattr__(self, "tables", tables)
        if self.late and _measured(self) != _measured(self.late):
            raise ValueError(f"network {self.name}: late must have tables of the same collectives and numbers of ranks")

    def _check(self, what: str, table: Table) -> None:
        sizes = [size for size, _ in table]
        if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 0:
            raise ValueError(f"network {self.name}: {what} must ascend from 0 bytes or more, got sizes {sizes}")

    @property
    def ranks_per_node(self) -> None:
        """All ranks are near one another."""

    def links(self, members: Sequence[int]) -> tuple[str, ...]:
        return ("near",)

    def when(self, collective: str, members: Sequence[int], spread_s: float) -> "Network":
        """`late` where the last rank comes more than the latency after the first, if there is one; else itself."""
        ranks = len(members)
        if self.late is None or ranks == 1 or spread_s <= 1e-6 * self.latency_us(collective, ranks):
            return self
        return self.late

    def volumes(self, collective: str, sent_GG: np.ndarray, members: Sequence[int]) -> tuple[float, ...]:
        if collective != "all_to_all":
            return (_largest(collective, sent_GG),)
        sent_G, received_G = sent_GG.sum(axis=1), sent_GG.sum(axis=0)
        larger_G, mean_G = np.maximum(sent_G, received_G), (sent_G + received_G) / 2
        return (float((self.duplex * larger_G + (1 - self.duplex) * mean_G).max(initial=0.0)),)

    def seconds(self, collective: str, volumes: Sequence[float], ranks: int) -> float:
        """Seconds of a collective; ValueError where this network was measured, but not with so many ranks."""
        if ranks == 1:
            return 0.0
        return 1e-6 * (self.latency_us(collective, ranks) + self.beyond_latency_us(collective, volumes[0], ranks))

    def latency_us(self, collective: str, ranks: int) -> float:
        """What a collective costs that moves nothing."""
        if (table := self._table(collective, ranks)) is not None:
            return float(table[0][1])
        hops = 2 * (ranks - 1) if collective == "all_reduce" else ranks - 1
        return self.base_us + hops * self.hop_us

    def beyond_latency_us(self, collective: str, volume_bytes: float, ranks: int) -> float:
        """What the bytes add to the latency."""
        if (table := self._table(collective, ranks)) is None:
            last, slope = self.points[-1][0], 1 / (self.bandwidth_gbs * 1e3)
            return _interpolated(self.points, volume_bytes) + max(0.0, volume_bytes - last) * slope
        slope = 0.0
        if len(table) > 1:
            (size, time), (last, slowest) = table[-2:]
            slope = (slowest - time) / (last - size)
        beyond = max(0.0, volume_bytes - table[-1][0]) * slope
        return _interpolated(table, volume_bytes) + beyond - float(table[0][1])

    def _table(self, collective: str, ranks: int) -> Table | None:
        name = "all_reduce" if collective == "barrier" else collective
        if name not in self.tables:
            return None
        if ranks not in self.tables[name]:
            known = ", ".join(map(str, sorted(self.tables[name])))
            raise ValueError(
                f"network {self.name} was measured with {known} ranks, not {ranks}; measure it "
                f"(scripts/calibrate_network.py --ranks {ranks}) or choose another network="
            )
        return self.tables[name][ranks]


@dataclass(frozen=True)
class HierarchicalNetwork:
    """Nodes of `ranks_per_node` ranks: one network inside them, another between them, one adapter per rank.

    Collectives whose result every node needs once (all-gather, reduce-scatter, all-reduce, broadcast) cross between
    nodes once per node, over all its adapters; an all-to-all sends each pair's bytes directly. Both kinds of link
    work at the same time, so the slower one decides, after the latency of both.

    Raises ValueError unless ranks_per_node is a whole number of at least 1; `volumes` does for ranks of several nodes
    that do not fill them.
    """

    name: str
    ranks_per_node: int
    intra: Network
    inter: Network
    source: str = ""

    def __post_init__(self) -> None:
        if type(self.ranks_per_node) is not int or self.ranks_per_node < 1:
            raise ValueError(f"network {self.name}: ranks_per_node is {self.ranks_per_node!r}; it must be at least 1")
        if self.intra.late or self.inter.late:
            raise ValueError(
                f"network {self.name}: networks of nodes do not tell ranks that come late, but a part does"
            )

    def links(self, members: Sequence[int]) -> tuple[str, ...]:
        """Ranks of one node take the link within it, and those of which each is on another node that between nodes."""
        nodes = {rank // self.ranks_per_node for rank in members}
        if len(nodes) == 1:
            return ("near",)
        return ("far",) if len(nodes) == len(members) else ("near", "far")

    def when(self, collective: str, members: Sequence[int], spread_s: float) -> "Network | HierarchicalNetwork":
        """The network between nodes for ranks of which each is on another one; no part has a `late` one."""
        return self.inter if self.links(members) == ("far",) else self

    def volumes(self, collective: str, sent_GG: np.ndarray, members: Sequence[int]) -> tuple[float, ...]:
        """V inside nodes and between them; ValueError for ranks of several nodes that do not fill them."""
        node_G = np.asarray(members) // self.ranks_per_node
        nodes, counts = np.unique(node_G, return_counts=True)
        if len(nodes) > 1 and (counts != self.ranks_per_node).any():
            raise ValueError(
                f"network {self.name}: ranks {list(members)} are neither in one node nor all of several nodes of "
                f"{self.ranks_per_node}; such groups are not modelled"
            )
        near_GG = node_G[:, None] == node_G
        if collective == "all_to_all":
            return (_largest(collective, sent_GG * near_GG), _largest(collective, sent_GG * ~near_GG))
        total = _largest(collective, sent_GG)
        if collective == "broadcast":  # each adapter of a node brings its part
            return (total, total / self.ranks_per_node if len(nodes) > 1 else 0.0)
        # Of the G-1 parts of a rank one per other node comes over its own adapter and is passed on inside the node.
        far = total * (len(nodes) - 1) / max(1, len(members) - 1)
        return (total - far, far)

    def seconds(self, collective: str, volumes: Sequence[float], ranks: int) -> float:
        if ranks <= self.ranks_per_node:
            return self.intra.seconds(collective, volumes[:1], ranks)
        near, far = (
            (self.intra, volumes[0], self.ranks_per_node),
            (self.inter, volumes[1], ranks // self.ranks_per_node),
        )
        parts = [part for part in (near, far) if part[2] > 1]
        latency_us = sum(network.latency_us(collective, count) for network, _, count in parts)
        slowest_us = max(network.beyond_latency_us(collective, volume, count) for network, volume, count in parts)
        return 1e-6 * (latency_us + slowest_us)


def _measured(network: Network) -> set[tuple[str, int]]:
    return {(collective, ranks) for collective, by_ranks in network.tables.items() for ranks in by_ranks}


def _largest(collective: str, sent_GG: np.ndarray) -> float:
    received = float(sent_GG.sum(axis=0).max(initial=0.0))
    return received if collective == "broadcast" else max(received, float(sent_GG.sum(axis=1).max(initial=0.0)))


def _interpolated(table: Table, volume_bytes: float) -> float:
    sizes, times_us = np.asarray(table, dtype=float).T
    return float(np.interp(volume_bytes, sizes, times_us))
