"""Where practice lies on a map of imbalance: recorded loads of a real router and the paper's synthetic skew.

Shape letters: I iterations, L MoE layers, E experts, G ranks.
"""

import numpy as np
import pandas as pd

from analysis.load import Campaign
from analysis.studies.paper.reference import load_reference, recorded_loads

PAPER_SKEW = {"alpha": 0.6, "share": 0.1}  # the paper's synthetic router: extra weight and share of the hot experts
RECORDED_BATCH = 250  # of 120 tokens, per GPU: what the published loads were recorded with
LEARNED, SPREAD, SYNTHETIC = "real loads, contiguous", "real loads, round-robin", "paper's skew, contiguous"


def rank_imbalance(tokens_ILE: np.ndarray, ranks: int) -> dict[str, np.ndarray]:
    """Max / mean load of G ranks in each MoE layer, [L]: medians over iterations, by placement of the experts."""
    iterations, layers, experts = tokens_ILE.shape
    loads = {
        LEARNED: tokens_ILE.reshape(iterations, layers, ranks, experts // ranks).sum(axis=3),
        SPREAD: tokens_ILE.reshape(iterations, layers, experts // ranks, ranks).sum(axis=2),
    }
    return {placement: np.median(g.max(axis=-1) / g.mean(axis=-1), axis=0) for placement, g in loads.items()}


def paper_imbalance(experts: int, ranks: int) -> float:
    """Max / mean load of G ranks under the paper's synthetic router, hot experts first and placed contiguously."""
    hot = int(np.ceil(PAPER_SKEW["share"] * experts))
    weights_E = 1 / experts + PAPER_SKEW["alpha"] * (np.arange(experts) < hot)
    loads_G = weights_E.reshape(ranks, -1).sum(axis=1)
    return float(loads_G.max() / loads_G.mean())


def known_loads(campaign: Campaign, panel: dict) -> pd.DataFrame:
    """Where practice lies on a map of imbalance x batch size: columns x, y, group, label.

    Each MoE layer of the paper's learned router (recorded at a batch of 250, which the scale divides) under two
    placements, and the paper's synthetic skew. Empty on other maps, for experts that were not recorded, before a cell
    has been measured, and where the points of the map differ in experts or ranks.
    """
    empty = pd.DataFrame(columns=["x", "y", "group", "label"])
    runs = [campaign.runs[c] for point in panel["points"] for c in point["cells"] if c in campaign.frames]
    shapes = {(run["point"]["num_experts"], run["point"]["world_size"]) for run in runs}
    if (panel["x_name"], panel.get("y_name")) != ("imbalance", "batch_size") or len(shapes) != 1:
        return empty
    ((experts, ranks),) = shapes
    tokens_ILE, blocks = recorded_loads(load_reference().traces, experts)
    if not blocks or experts % ranks:
        return empty
    y = RECORDED_BATCH / runs[0]["config"].get("scale", {}).get("batch_divisor", 1)
    rows = [
        (float(x), y, placement, f"block {block}")
        for placement, x_L in rank_imbalance(tokens_ILE, ranks).items()
        for block, x in zip(blocks, x_L, strict=True)
    ]
    return pd.DataFrame([*rows, (paper_imbalance(experts, ranks), y, SYNTHETIC, "")], columns=empty.columns)


def loads_sentence(loads: pd.DataFrame) -> str:
    """`Real loads lie at 1.10-1.60 (contiguous), 1.02-1.10 (round-robin); the paper's skew at 3.66.`"""
    if loads.empty:
        return ""
    spans = {group: (rows["x"].min(), rows["x"].max()) for group, rows in loads.groupby("group")}
    (a, b), (c, d) = spans[LEARNED], spans[SPREAD]
    practice = f"{a:.2f}–{b:.2f} with contiguous placement, {c:.2f}–{d:.2f} round-robin"
    return f"Loads of the paper's learned router lie at {practice}; its synthetic skew at {spans[SYNTHETIC][0]:.2f}."
