"""How well fitted loads have the imbalance of those that they were fitted to, at several numbers of ranks.

Letters in names: R runs or batches, L layers, E experts, T tokens.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from routers.fits import Fit

RANKS = (4, 8, 12, 16, 32, 64)  # those that divide the experts
BATCHES = 8  # drawn of each layer
RUN_TOKENS, RUN_SEQUENCES = 65_536, 1024  # where the sums over a run are compared


def shares(counts_XE: np.ndarray) -> np.ndarray:
    """Each expert's share of the copies, at least a millionth: one that no token chose has some chance."""
    return (counts_XE / counts_XE.sum(-1, keepdims=True)).clip(min=1e-6)


def imbalance(counts_XE: np.ndarray, ranks: int) -> np.ndarray:
    """max / mean over ranks of the token copies, experts placed in blocks of neighbours."""
    rank_XG = counts_XE.reshape(*counts_XE.shape[:-1], ranks, -1).sum(-1)
    return rank_XG.max(-1) / rank_XG.mean(-1)


def judge_runs(fit: Fit, counts_RLE: np.ndarray, held_out: list[Fit]) -> pd.DataFrame:
    """A row for each number of ranks: every layer of every run against draws of the mean run.

    held_out: for each run the fit to all others, whose line is followed to the place nearest to the run; none where
    there is one run.
    """
    drawn_LE = drawn_counts(fit, RUN_TOKENS, RUN_SEQUENCES, 1)[0]
    if not held_out:
        return _compared(counts_RLE, drawn_LE, {})
    nearest_RLE = np.stack([nearest(one, counts_LE) for one, counts_LE in zip(held_out, counts_RLE, strict=True)])
    return _compared(counts_RLE, drawn_LE, {"held_out": nearest_RLE})


def judge_batches(fit: Fit, counts_ILE: np.ndarray, sequences: int, held_out: Fit) -> pd.DataFrame:
    """The same, the median over batches of as many tokens and sequences as were recorded.

    held_out: the fit to the first half of the batches, held against the second.
    """
    num_tokens = round(counts_ILE.sum(-1).mean() / fit.top_k)
    drawn_ILE = drawn_counts(fit, num_tokens, sequences, BATCHES)
    second_ILE = counts_ILE[len(counts_ILE) // 2 :]
    table = _compared(counts_ILE, drawn_ILE, {})
    others = _compared(second_ILE, drawn_counts(held_out, num_tokens, sequences, BATCHES), {})
    return table.assign(held_out_error=others["error"], held_out_worst=others["worst"])


def drawn_counts(fit: Fit, num_tokens: int, sequences: int, batches: int) -> np.ndarray:
    """int64 [I, L, E]: token copies of drawn batches."""
    generator = np.random.default_rng(0)
    counts_ILE = np.zeros((batches, fit.num_layers, fit.num_experts), np.int64)
    for batch, layer in np.ndindex(counts_ILE.shape[:2]):
        weight_SE = fit.weights(layer, 0, generator.standard_normal((sequences, fit.num_experts)))
        expert_TK = fit.draw(weight_SE, num_tokens, generator)
        counts_ILE[batch, layer] = np.bincount(expert_TK.ravel(), minlength=fit.num_experts)
    return counts_ILE


def nearest(fit: Fit, counts_LE: np.ndarray) -> np.ndarray:
    """float64 [L, E]: the shares of the fit's run that is nearest to a recorded one."""
    log_LE = np.log(shares(counts_LE))
    line_LE = fit.between_runs_LE.astype(np.float64)
    run = ((log_LE - fit.popularity_LE) * line_LE).sum() / max((line_LE**2).sum(), 1e-12)
    return np.stack([fit.shares(layer, float(run)) for layer in range(fit.num_layers)])


def _compared(real_RLE: np.ndarray, drawn_ILE: np.ndarray, others: dict[str, np.ndarray]) -> pd.DataFrame:
    """By ranks: medians over all, and errors of the drawn ones by run and layer."""
    rows = []
    for ranks in (ranks for ranks in RANKS if real_RLE.shape[-1] % ranks == 0):
        real_RL, drawn_RL = imbalance(real_RLE, ranks), imbalance(drawn_ILE, ranks)
        if drawn_RL.ndim > 1:  # batches, which have no counterparts
            real_RL, drawn_RL = np.median(real_RL, 0), np.median(drawn_RL, 0)
        row = {"ranks": ranks, "real": np.median(real_RL), "drawn": np.median(drawn_RL)}
        row |= _errors("", drawn_RL, real_RL)
        for name, other_RLE in others.items():
            row |= _errors(f"{name}_", imbalance(other_RLE, ranks), real_RL)
        rows.append(row)
    return pd.DataFrame(rows)


def _errors(prefix: str, drawn: np.ndarray, real: np.ndarray) -> dict[str, float]:
    error = np.abs(drawn / real - 1)
    return {f"{prefix}error": float(np.median(error)), f"{prefix}worst": float(error.max())}


def draw_layers(path: Path, fit: Fit, counts_RLE: np.ndarray, name: str, sequences: int) -> None:
    """A figure: imbalance by layer, all that was recorded as a band and what is drawn as a line."""
    num_tokens = round(min(counts_RLE.sum(-1).mean() / fit.top_k, RUN_TOKENS))
    drawn_ILE = drawn_counts(fit, num_tokens, sequences, 1)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for ranks, colour in zip(
        [one for one in RANKS if fit.num_experts % one == 0][1::2], ("C0", "C1", "C2"), strict=False
    ):
        real_RL, layer_L = imbalance(counts_RLE, ranks), np.arange(fit.num_layers)
        axes.fill_between(layer_L, real_RL.min(0), real_RL.max(0), color=colour, alpha=0.3, lw=0)
        axes.plot(layer_L, imbalance(drawn_ILE, ranks)[0], color=colour, label=f"{ranks} ranks")
    axes.set(xlabel="MoE layer", ylabel="max / mean load of ranks", title=name, ylim=(1, None))
    axes.legend(title="line: drawn, band: recorded", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
