"""`python -m scripts.expert_affinity [TRACE.npz]`: what placement by affinity could save on recorded tokens, offline.

ExFlow's question, without running anything: how often would a token's next expert be on another rank, and how many rows
would travel? Placements are made from one part of the tokens and judged on the rest. What counts as affinity is how far
crossings are below those of layers that had nothing in common: under skew they also fall where one rank is crowded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from routers.token_trace import DEFAULT_PATH, TokenTrace
from systems.planners.base import Costs, as_replicas, imbalance, owner_of, tokens_per_expert
from systems.planners.dispatch import to_owner
from systems.planners.exflow import ExFlow, crossing_fraction, independent_crossing, modelled_traffic
from systems.planners.moetuner import MoETuner
from systems.planners.placement import PLACEMENTS

COLUMNS = """crossings: the share of steps from layer to layer that lead to another rank; if independent: the same if
layers had nothing in common. Rows a token: round trip, to the experts and back in every layer; single, from expert to
expert only; one context, what each exchange of all tokens among all ranks adds to that."""
FREE = Costs(0.0, 0.0, 0.0)  # neither planner weighs anything


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, a row a placement."""
    parser = argparse.ArgumentParser(
        description="What affinity placement could save on a trace.", epilog=COLUMNS, allow_abbrev=False
    )
    parser.add_argument("trace", nargs="?", type=Path, default=DEFAULT_PATH, help="of scripts.record_token_trace")
    parser.add_argument("--ranks", type=int, default=4, help="which must divide the number of experts (default 4)")
    parser.add_argument("--held-out", type=float, default=0.25, help="share that placements are made of (0.25)")
    given = parser.parse_args(arguments)
    try:
        table = judged(TokenTrace.read(given.trace), given.ranks, given.held_out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return 0


def judged(trace: TokenTrace, ranks: int, held_out: float) -> pd.DataFrame:
    """A row a placement: crossings, imbalance (mean over layers), rows per token.

    Raises ValueError for a trace that cannot be split, or experts that cannot be shared among the ranks.
    """
    num_experts, (layers, tokens) = int(trace.num_experts), trace.expert_LTK.shape[:2]
    if layers < 2:
        raise ValueError(f"the trace has {layers} MoE layer; affinity is between two")
    if ranks < 1:
        raise ValueError(f"--ranks is {ranks}; it must be at least 1")
    if not 0 < held_out < 1 or min(held_out, 1 - held_out) * tokens < ranks:
        raise ValueError(f"--held-out {held_out} of {tokens} tokens on {ranks} ranks leaves nothing on one side")
    if num_experts % ranks:
        raise ValueError(f"--ranks is {ranks}; it must divide the {num_experts} experts of the trace")
    expert_LT = trace.expert_LTK[:, :, 0].astype(np.int64)
    measured_LGM, profile_LGM = (
        part_LT[:, : part_LT.shape[1] // ranks * ranks].reshape(layers, ranks, -1)
        for part_LT in np.split(expert_LT, [round((1 - held_out) * tokens)], axis=1)
    )
    return pd.DataFrame(
        {"placement": name} | verdict(measured_LGM, owner_LE)
        for name, owner_LE in placements(profile_LGM, num_experts, ranks).items()
    )


def placements(profile_LGM: np.ndarray, num_experts: int, ranks: int) -> dict[str, np.ndarray]:
    """owner_LE by name: two that know nothing and two made from the profile."""
    static = {name: place(num_experts, ranks).numpy() for name, place in PLACEMENTS.items()}
    current_EG = as_replicas(static["contiguous"], ranks)
    made = {
        name: np.stack(list(map(owner_of, planner.place_layers(profile_LGM, current_EG, FREE))))
        for name, planner in (("exflow", ExFlow()), ("moetuner", MoETuner()))
    }
    return {name: np.tile(owner_E, (len(profile_LGM), 1)) for name, owner_E in static.items()} | made


def verdict(expert_LGM: np.ndarray, owner_LE: np.ndarray) -> dict[str, float]:
    """What a placement means for these tokens. `single` and `context` are as in `modelled_traffic`."""
    _, ranks, num_tokens = expert_LGM.shape
    traffic = modelled_traffic(expert_LGM, owner_LE)
    loads = [
        imbalance(to_owner(tokens_per_expert(expert_GM, owner_LE.shape[1]), as_replicas(owner_E, ranks), owner_E))
        for expert_GM, owner_E in zip(expert_LGM, owner_LE, strict=True)
    ]
    rows = {"round trip": traffic.round_trip, "single": traffic.single, "one context": traffic.context}
    return {
        "crossings": crossing_fraction(expert_LGM, owner_LE),
        "if independent": independent_crossing(expert_LGM, owner_LE),
        "max/mean rows": float(np.mean(loads)),
        **{f"{name}, rows a token": count / (ranks * num_tokens) for name, count in rows.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
