"""Distributions for `router=like`, fitted to how many token copies a real model's experts got.

    python -m scripts.fit_loads runs NAME FILE.npz --top-k 8 --sequence-cv 0.7 --regime decode --source WHO --out F.npz
    python -m scripts.fit_loads batches NAME F.csv --top-k 4 --sequences 24 --regime prefill --source WHO --out F.npz

runs: an .npz with an array [layers, E] for each run; layers that are all zeros have no experts and are left out. How
much runs differ is fitted. How much the sequences of a batch differ cannot be seen in sums over a run: it is given.
batches: a .csv with a row for each batch and layer, with a column layer_idx and one column for each expert that is
called by its number. How much batches differ says how much sequences do. Layers with fewer tokens than the others are
left out. A fit is added to what the file has, and its errors (scripts/judge_loads.py) to a .csv beside it.
Letters in names: R runs, I batches, L layers, E experts, S sequences, T tokens, K experts of a token.
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routers.fits import Fit, read_fits, write_fits
from scripts.judge_loads import RUN_SEQUENCES, draw_layers, judge_batches, judge_runs, shares

SEQUENCES, LENGTH = 2048, 32  # of the draws that a fit is corrected by
ROUNDS = 10  # of corrections; a later one counts less


def fit_runs(counts_RLE: np.ndarray, sequence_cv: float, *, correct: bool = True, **facts: Any) -> Fit:
    """The mean over runs and the one line along which they differ most.

    sequence_cv: standard deviation / mean over sequences of the number of an expert's tokens.
    """
    log_RLE = np.log(shares(counts_RLE))
    mean_LE = log_RLE.mean(0)
    _, strength_R, line_RN = np.linalg.svd((log_RLE - mean_LE).reshape(len(log_RLE), -1), full_matrices=False)
    runs_sd = strength_R[0] / np.sqrt(max(len(log_RLE) - 1, 1))
    sign = np.sign(line_RN[0].sum()) or 1.0  # of two directions always the same
    between_LE = (sign * runs_sd * line_RN[0]).reshape(mean_LE.shape)
    return _corrected(_uncorrected(mean_LE, between_LE, **facts), np.full(len(mean_LE), sequence_cv), correct)


def fit_batches(counts_ILE: np.ndarray, sequences: int, **facts: Any) -> Fit:
    """The mean over batches, and how much the sequences must differ for batches of so many to differ as they do."""
    mean_LE = np.log(shares(counts_ILE.sum(0, keepdims=True))[0])
    top_k = int(facts["top_k"])
    cv_L = np.array([sequence_cv(counts_ILE[:, layer], sequences, top_k) for layer in range(len(mean_LE))])
    return _corrected(_uncorrected(mean_LE, 0 * mean_LE, **facts), cv_L)


def _uncorrected(mean_LE: np.ndarray, between_LE: np.ndarray, **facts: Any) -> Fit:
    small: dict[str, Any] = {"groups": 1, "most_groups": 1} | facts
    arrays = (mean_LE.astype(np.float16), between_LE.astype(np.float16), np.zeros_like(mean_LE, np.float16))
    return Fit(*arrays, sequence_sd_L=np.zeros(len(mean_LE), np.float16), **small)


def sequence_cv(counts_IE: np.ndarray, sequences: int, top_k: int) -> float:
    """Standard deviation / mean, over sequences, of an expert's number of tokens: the median expert's.

    From batches of so many independent sequences, less what drawing single tokens would do by itself. Experts with less
    than a fifth of the mean are left out.
    """
    num_tokens = counts_IE.sum(1).mean() / top_k
    chosen_IE = counts_IE / num_tokens
    mean_E = chosen_IE.mean(0)
    beyond_E = chosen_IE.var(0, ddof=1) - mean_E * (1 - mean_E) / num_tokens
    common_E = mean_E > 0.2 * mean_E.mean()
    return float(np.sqrt(max(np.median(sequences * beyond_E[common_E] / mean_E[common_E] ** 2), 0)))


def _corrected(fit: Fit, cv_L: np.ndarray, correct: bool = True) -> Fit:
    """The fit whose draws have the popularity and the differences of sequences that are wanted, layer by layer."""
    if not correct:
        return fit
    layers = [_corrected_layer(fit, layer, cv) for layer, cv in enumerate(cv_L.tolist())]
    chances_LE, sd_L = (np.array(part, np.float16) for part in zip(*layers, strict=True))
    return replace(fit, chances_LE=chances_LE, sequence_sd_L=sd_L)


def _corrected_layer(fit: Fit, layer: int, cv: float) -> tuple[np.ndarray, float]:
    """chance_E and sequence_sd: raised where draws give an expert too few tokens, lowered where too many."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([layer, fit.num_experts])))
    share_E, chance_E, sd = fit.shares(layer, 0), np.zeros(fit.num_experts), float(np.sqrt(np.log1p(cv**2)))
    for turn in range(ROUNDS):
        deviation_SE = generator.standard_normal((SEQUENCES, fit.num_experts))
        weight_SE = share_E * np.exp(chance_E + sd * deviation_SE)
        counts_SE = _drawn(fit, weight_SE, generator)
        got_E = counts_SE.sum(0) + 0.5
        step = min(1.0, 3 / (turn + 1))
        chance_E += step * np.log(share_E * got_E.sum() / got_E)
        if cv and (drawn_cv := sequence_cv(counts_SE, 1, fit.top_k)):
            sd *= float(np.clip(cv / drawn_cv, 0.5, 2)) ** step
    return chance_E, sd


def _drawn(fit: Fit, weight_SE: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """int64 [S, E]: the token copies of sequences of `LENGTH` tokens."""
    expert_TK = fit.draw(weight_SE, SEQUENCES * LENGTH, generator)
    sequence_T = np.repeat(np.arange(SEQUENCES), LENGTH)
    cells_N = (sequence_T[:, None] * fit.num_experts + expert_TK).ravel()
    return np.bincount(cells_N, minlength=weight_SE.size).reshape(weight_SE.shape)


def read_runs(path: Path, arrays: str) -> np.ndarray:
    """float64 [R, L, E]; ValueError where no array is called so."""
    with np.load(path, allow_pickle=False) as stored:
        named = [name for name in stored.files if fnmatch.fnmatch(name, arrays)]
        if not named:
            raise ValueError(f"{path} has no array {arrays}; it has {', '.join(stored.files)}")
        counts_RLE = np.stack([stored[name] for name in named]).astype(np.float64)
    return counts_RLE[:, counts_RLE.sum((0, 2)) > 0]


def read_batches(path: Path, where: str | None) -> np.ndarray:
    """float64 [I, L, E]; ValueError where there are no rows, or layers of different numbers of batches."""
    rows = pd.read_csv(path)
    if where:
        column, _, value = where.partition("=")
        if column not in rows:
            raise ValueError(f"{path} has no column {column}; it has {', '.join(rows.columns)}")
        rows = rows[rows[column].astype(str) == value]
    experts = sorted((name for name in rows.columns if name.isdigit()), key=int)
    layers = [np.asarray(one[experts], np.float64) for _, one in rows.groupby("layer_idx")]
    if not layers or len({len(one) for one in layers}) > 1:
        raise ValueError(f"{path} where {where}: it must have the same number of rows, at least one, for every layer")
    most = max(one.sum() for one in layers)
    return np.stack([one for one in layers if one.sum() > most / 2], 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("runs", "batches"):
        one = kinds.add_parser(kind)
        one.add_argument("name")
        one.add_argument("counts", type=Path)
        one.add_argument("--top-k", type=int, required=True)
        one.add_argument("--groups", type=int, default=1, help="equal groups of neighbouring experts")
        one.add_argument("--most-groups", type=int, default=1, help="groups that a token's experts are of, at most")
        one.add_argument("--regime", choices=["encode", "prefill", "decode"], required=True)
        one.add_argument("--source", required=True, help="where the loads are from")
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--figure", type=Path, help="a .png of the imbalance by layer")
    kinds.choices["runs"].add_argument("--arrays", default="*", help="which arrays of the .npz")
    kinds.choices["runs"].add_argument("--sequence-cv", type=float, required=True)
    kinds.choices["batches"].add_argument("--where", help="COLUMN=VALUE of the rows")
    kinds.choices["batches"].add_argument("--sequences", type=int, required=True, help="of a batch")
    given = parser.parse_args(argv)
    facts = {name: getattr(given, name) for name in ("top_k", "groups", "most_groups", "regime", "source")}
    try:
        counts = (
            read_runs(given.counts, given.arrays) if given.kind == "runs" else read_batches(given.counts, given.where)
        )
        _check(given, counts.shape[-1])
        fit, errors = (_runs if given.kind == "runs" else _batches)(counts, given, facts)
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"error: {error}")
    fits = read_fits(given.out) if given.out.exists() else {}
    write_fits(given.out, fits | {given.name: fit})
    kept = given.out.with_suffix(".csv")
    others = pd.read_csv(kept).query("fit != @given.name") if kept.exists() else pd.DataFrame()
    errors.insert(0, "fit", given.name)
    pd.concat([others, errors]).to_csv(kept, index=False, float_format="%.4g")
    print(errors.to_string(index=False, float_format="%.3f"))
    if given.figure:
        draw_layers(given.figure, fit, counts, given.name, getattr(given, "sequences", RUN_SEQUENCES))


def _check(given: argparse.Namespace, num_experts: int) -> None:
    """Raise ValueError where no token can have so many experts of so few groups."""
    groups, most = given.groups, given.most_groups
    if groups < 1 or num_experts % groups or not 1 <= most <= groups:
        raise ValueError(f"--groups is {groups} and --most-groups {most}; {num_experts} experts must divide into them")
    if not 1 <= given.top_k <= (can := most * num_experts // groups):
        raise ValueError(f"--top-k is {given.top_k}; a token's experts are at most {can}, and at least 1")


def _runs(counts_RLE: np.ndarray, given: argparse.Namespace, facts: dict[str, Any]) -> tuple[Fit, pd.DataFrame]:
    fit = fit_runs(counts_RLE, given.sequence_cv, **facts)
    without = [np.delete(counts_RLE, run, 0) for run in range(len(counts_RLE))]
    held_out = [fit_runs(others, given.sequence_cv, correct=False, **facts) for others in without if len(others)]
    return fit, judge_runs(fit, counts_RLE, held_out)


def _batches(counts_ILE: np.ndarray, given: argparse.Namespace, facts: dict[str, Any]) -> tuple[Fit, pd.DataFrame]:
    fit = fit_batches(counts_ILE, given.sequences, **facts)
    half = fit_batches(counts_ILE[: len(counts_ILE) // 2], given.sequences, **facts)
    return fit, judge_batches(fit, counts_ILE, given.sequences, half)


if __name__ == "__main__":
    main()
