"""What a planner is: pure functions from loads to who holds which expert and which tokens go where.

Letters in names: G ranks, E experts, L MoE layers, M tokens of a profile. tokens_GE[g, e]: token copies of rank g for
expert e. replicas_EG[e, g]: replicas of expert e on rank g. sent_GEG[s, e, d]: how many of rank s's copies for expert e
go to rank d. All int64, but loads, which may be estimates (float64).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

NO_EXPERT = -1  # fills up the profile of a rank that has fewer tokens than others, in all layers alike


class Rates(NamedTuple):
    """How fast a rank is: FLOP/s of its matrix products, bytes/s that it sends to others. The same on all ranks.

    near_bytes_per_s: what it sends to ranks of its own node, of which there are ranks_per_node; None: all are near.
    memory_bytes_per_s: how fast it reads its own memory. operation_s: what issuing an operation costs its host.
    """

    flops_per_s: float
    bytes_per_s: float
    near_bytes_per_s: float | None = None
    ranks_per_node: int | None = None
    memory_bytes_per_s: float = float("inf")
    operation_s: float = 0.0


@dataclass(frozen=True)
class Costs:
    """What planners weigh, in seconds of one forward pass.

    row_s: a row through an expert. move_row_s: a row from rank to rank, one way. move_expert_s: an expert's weights
    from rank to rank. read_expert_s: an expert's weights from memory, which it takes however few rows there are.
    touch_row_s: a row read from or written to memory. near_row_s: a row to a rank of the same node, of ranks_per_node
    ranks; None: all are on one. operation_s: what issuing an operation costs the host. batches: how many forward
    passes a placement serves before the next.
    """

    row_s: float
    move_row_s: float
    move_expert_s: float
    read_expert_s: float = 0.0
    touch_row_s: float = 0.0
    near_row_s: float | None = None
    ranks_per_node: int | None = None
    operation_s: float = 0.0
    batches: int = 1


class Planner(ABC):
    """`place` decides where experts are from loads (this batch's, earlier ones', or a profile's), `dispatch` where this
    batch's tokens go. Both are the same on all ranks because their arguments are. `replicates`: whether an expert may
    be on several ranks.
    """

    replicates = True

    @abstractmethod
    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """replicas_EG, at least one of each expert. current_EG: where experts are now.

        Raises ValueError, in one sentence, for numbers of experts and ranks that it cannot place.
        """

    @abstractmethod
    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        """sent_GEG, with sum_d sent_GEG[s, e, d] = tokens_GE[s, e] and tokens only where a replica is.

        owner_E: the rank that each expert lives on whatever this batch brings.
        """

    def check(self, num_experts: int, world_size: int) -> None:
        """Raise what `place` raises for these numbers, before anything is launched: by trying it.

        No planner here places experts that ranks do not divide, because the executor starts from E/G on each.
        """
        per_rank(num_experts, world_size)
        owner_EG = as_replicas(np.arange(num_experts) * world_size // num_experts, world_size)
        self.place(np.ones((world_size, num_experts), np.int64), owner_EG, Costs(1.0, 1.0, 1.0))

    def check_counts(self, method: str, counts: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a method of an author's planner did not return whole numbers of this shape."""
        if counts.shape != shape or counts.dtype.kind not in "iu":
            name = type(self).__name__
            raise ValueError(f"planner {name}.{method} returns {counts.dtype} {counts.shape}; it must be int64 {shape}")

    def check_sent(self, sent_GEG: np.ndarray, tokens_GE: np.ndarray, replicas_EG: np.ndarray) -> None:
        """Raise ValueError, with the first expert that is wrong, for a plan that breaks the rules of this class."""
        num_experts, ranks = replicas_EG.shape
        self.check_counts("dispatch", sent_GEG, (ranks, num_experts, ranks))
        planner = f"planner {type(self).__name__}"
        for expert in np.flatnonzero(~(replicas_EG > 0).any(1)):
            raise ValueError(f"{planner} places expert {expert} nowhere; every expert needs a replica")
        for rank, expert in np.argwhere(sent_GEG.sum(2) != tokens_GE):
            had, sent = tokens_GE[rank, expert], sent_GEG[rank, expert].sum()
            raise ValueError(f"{planner} sends {sent} of rank {rank}'s {had} tokens for expert {expert}")
        for expert, rank in np.argwhere((sent_GEG.sum(0) > 0) & (replicas_EG == 0)):
            raise ValueError(f"{planner} sends tokens for expert {expert} to rank {rank}, which has no replica of it")

    def place_layers(self, expert_LGM: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """replicas_LEG from a token-level profile: expert_LGM[l, g, m] is the expert of rank g's token m in layer l, or
        NO_EXPERT where the rank has no more.
        """
        num_experts = len(current_EG)
        loads_LGE = np.stack([tokens_per_expert(expert_GM, num_experts) for expert_GM in expert_LGM])
        return np.stack([self.place(loads_GE, current_EG, costs) for loads_GE in loads_LGE])


@dataclass(frozen=True)
class Profile:
    """Other data than what is measured, for placements made offline: expert_LGM (`Planner.place_layers`) and which of
    its layers a system is. Layers that share `known` share what was solved for all of them.

    tell: gives expert_LGM to the ranks that ask for it, because it is too much for all of many simulated ones.
    """

    tell: Callable[[], np.ndarray]
    layer: int
    known: dict[int, tuple[Planner, np.ndarray]] = field(default_factory=dict)

    @property
    def expert_LGM(self) -> np.ndarray:
        return self.tell()

    def placed(self, planner: Planner, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """replicas_EG of this layer."""
        if id(planner) not in self.known:
            self.known[id(planner)] = planner, planner.place_layers(self.expert_LGM, current_EG, costs)
        return self.known[id(planner)][1][self.layer]


def per_rank(num_experts: int, world_size: int) -> int:
    """E/G; ValueError unless it is a whole number, which planners and their executor say in the same words."""
    if num_experts % world_size:
        raise ValueError(
            f"model.num_experts ({num_experts}) must be divisible by cluster.world_size ({world_size}): "
            "every rank owns E/G experts"
        )
    return num_experts // world_size


def tokens_per_expert(expert_GM: np.ndarray, num_experts: int) -> np.ndarray:
    """int64 [G, E]: how many of each rank's tokens go to each expert."""
    return np.stack([np.bincount(expert_M[expert_M != NO_EXPERT], minlength=num_experts) for expert_M in expert_GM])


def paths(expert_LGM: np.ndarray) -> np.ndarray:
    """int64 [L, N]: the experts of all ranks' tokens of a profile, in the layers one after another."""
    expert_LN = expert_LGM.reshape(len(expert_LGM), -1)
    return expert_LN[:, expert_LN[0] != NO_EXPERT].astype(np.int64)


def owner_of(replicas_EG: np.ndarray) -> np.ndarray:
    """int64 [E]: the first rank with a replica."""
    return (replicas_EG > 0).argmax(1)


def as_replicas(owner_E: np.ndarray, world_size: int) -> np.ndarray:
    """replicas_EG of experts that live on one rank each."""
    return (owner_E[:, None] == np.arange(world_size)).astype(np.int64)


def rows_per_rank(sent_GEG: np.ndarray) -> np.ndarray:
    """int64 [G]: the rows that each rank computes."""
    return sent_GEG.sum((0, 1))


def imbalance(sent_GEG: np.ndarray) -> float:
    """Largest / mean number of rows of a rank; 1 where there are none."""
    rows_G = rows_per_rank(sent_GEG)
    return float(rows_G.max() / rows_G.mean()) if rows_G.any() else 1.0
