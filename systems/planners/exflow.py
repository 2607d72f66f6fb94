"""ExFlow's placement: experts that tokens visit one after another on one rank, found by assignments in turn."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from systems.planners.base import Costs, Planner, as_replicas, paths, per_rank
from systems.planners.dispatch import to_owner
from systems.planners.options import check_whole_number
from systems.planners.placement import contiguous


class ExFlow(Planner):
    """ExFlow, placement only: offline, from where tokens go from layer to layer, E/G experts a rank in every layer.

    Source: "Exploiting Inter-Layer Expert Affinity", IPDPS'24 (arXiv 2401.08383): an integer program, least transitions
    that cross ranks, solved by Gurobi in bisections. Our interpretation: the same objective for all ranks at once;
    one layer after another is placed as well as its neighbours allow (an assignment problem, exact), until none
    improves; best of `starts`, the contiguous placement and seeded random first layers. Unconfirmed: how near this is
    to their solutions.
    Left out: context-coherent parallelism, the half that saves traffic. Attention over whole sequences wants every
    token back in every layer, and then placement by affinity saves nothing on the wire (`scripts.expert_affinity`).
    Under skewed loads transitions also stay where hot experts of all layers crowd one rank, at the price of imbalance:
    only what `crossing_fraction` is below `independent_crossing` is affinity.
    """

    replicates = False

    def __init__(self, starts: int = 16, seed: int = 0) -> None:
        check_whole_number("starts", starts, 1)
        check_whole_number("seed", seed, 0)
        self.starts, self.seed = starts, seed

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """Contiguous: one layer has no transitions."""
        ranks, num_experts = loads_GE.shape
        per_rank(num_experts, ranks)
        return as_replicas(contiguous(num_experts, ranks).numpy(), ranks)

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return to_owner(tokens_GE, replicas_EG, owner_E)

    def place_layers(self, expert_LGM: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        num_experts, ranks = current_EG.shape
        per_rank(num_experts, ranks)
        moves_LEE, draw = transitions(expert_LGM, num_experts), np.random.default_rng(self.seed)
        owner_E = contiguous(num_experts, ranks).numpy()
        starts = [np.tile(owner_E, (len(expert_LGM), 1))]
        starts += [follow(draw.permutation(owner_E), moves_LEE, ranks) for _ in range(self.starts - 1)]
        found = [improve(owner_LE, moves_LEE, ranks) for owner_LE in starts]
        best_LE = max(found, key=lambda owner_LE: staying(moves_LEE, owner_LE))
        return np.stack([as_replicas(owner_E, ranks) for owner_E in best_LE])


def transitions(expert_LGM: np.ndarray, num_experts: int) -> np.ndarray:
    """int64 [L-1, E, E]: A_l[i, j], the tokens that go to expert i in MoE layer l and to j in the next."""
    expert_LM = paths(expert_LGM)
    pair_LM = expert_LM[:-1] * num_experts + expert_LM[1:]
    counts = [np.bincount(pair_M, minlength=num_experts**2) for pair_M in pair_LM]
    return np.array(counts, np.int64).reshape(-1, num_experts, num_experts)


def staying(transitions_LEE: np.ndarray, owner_LE: np.ndarray) -> int:
    """Tokens that the next layer leaves on their rank, over all layers."""
    return int(transitions_LEE[owner_LE[:-1, :, None] == owner_LE[1:, None, :]].sum())


def follow(owner_E: np.ndarray, transitions_LEE: np.ndarray, ranks: int) -> np.ndarray:
    """owner_LE with `owner_E` in the first layer, and each later layer placed as well as the one before it allows."""
    owner_LE = [owner_E]
    for moves_EE in transitions_LEE:
        owner_LE.append(assign(moves_EE.T @ as_replicas(owner_LE[-1], ranks)))
    return np.stack(owner_LE)


def improve(owner_LE: np.ndarray, transitions_LEE: np.ndarray, ranks: int) -> np.ndarray:
    """owner_LE after placing layer after layer anew, given its neighbours, until no token more stays on its rank."""
    owner_LE, best = owner_LE.copy(), -1
    while (stay := staying(transitions_LEE, owner_LE)) > best:
        best = stay
        for layer in range(len(owner_LE)):
            owner_LE[layer] = assign(_ties(owner_LE, transitions_LEE, layer, ranks))
    return owner_LE


def assign(ties_EG: np.ndarray) -> np.ndarray:
    """owner_E with E/G experts a rank and the largest sum of ties_EG[e, owner_E[e]]: exact, a rank being E/G places."""
    num_experts, ranks = ties_EG.shape
    places_EE = np.repeat(ties_EG, num_experts // ranks, axis=1)
    return linear_sum_assignment(places_EE, maximize=True)[1] // (num_experts // ranks)


def _ties(owner_LE: np.ndarray, transitions_LEE: np.ndarray, layer: int, ranks: int) -> np.ndarray:
    """int64 [E, G]: the tokens that an expert of `layer` shares with those that its neighbours have on each rank."""
    ties_EG = np.zeros((owner_LE.shape[1], ranks), np.int64)
    if layer > 0:
        ties_EG += transitions_LEE[layer - 1].T @ as_replicas(owner_LE[layer - 1], ranks)
    if layer + 1 < len(owner_LE):
        ties_EG += transitions_LEE[layer] @ as_replicas(owner_LE[layer + 1], ranks)
    return ties_EG


def crossing_fraction(expert_LGM: np.ndarray, owner_LE: np.ndarray) -> float:
    """The share of steps from one MoE layer to the next that lead a token to another rank; 0 where there are none."""
    rank_LM = np.take_along_axis(owner_LE, expert_LGM.reshape(len(expert_LGM), -1), axis=1)
    crosses_LM = rank_LM[1:] != rank_LM[:-1]
    return float(crosses_LM.mean()) if crosses_LM.size else 0.0


def independent_crossing(expert_LGM: np.ndarray, owner_LE: np.ndarray) -> float:
    """The crossing fraction of layers with these loads of ranks in which a token's experts had nothing in common."""
    rank_LM = np.take_along_axis(owner_LE, expert_LGM.reshape(len(expert_LGM), -1), axis=1)
    share_LG = np.stack([np.bincount(rank_M, minlength=owner_LE.max() + 1) for rank_M in rank_LM]) / rank_LM.shape[1]
    return float(1 - (share_LG[1:] * share_LG[:-1]).sum(1).mean())


@dataclass(frozen=True)
class Traffic:
    """Rows between ranks in a forward pass.

    round_trip: to the experts and back, layer by layer. single: ExFlow's one all-to-all a layer, from expert to expert.
    context: what each exchange of all tokens among all ranks adds to `single`; ExFlow's decoders need one for the
    prompts, an encoder one for every attention between two MoE layers.
    """

    round_trip: int
    single: int
    context: int


def modelled_traffic(expert_LGM: np.ndarray, owner_LE: np.ndarray) -> Traffic:
    """What a trace would send: the paper's 2GNLp and GN(Lp* + G), counted token by token."""
    _, ranks, num_tokens = expert_LGM.shape
    rank_LGM = np.take_along_axis(owner_LE, expert_LGM.reshape(len(expert_LGM), -1), axis=1).reshape(expert_LGM.shape)
    source_GM = np.broadcast_to(np.arange(ranks)[:, None], (ranks, num_tokens))
    from_LGM = np.concatenate([source_GM[None], rank_LGM[:-1]])
    return Traffic(
        round_trip=2 * int((rank_LGM != source_GM).sum()),
        single=int((rank_LGM != from_LGM).sum()),
        context=(ranks - 1) * ranks * num_tokens,
    )
