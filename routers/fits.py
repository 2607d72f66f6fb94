"""Distributions that were fitted to recorded loads: how popular a real model's experts are, and how that changes.

`scripts/fit_loads.py` makes them, docs/loads.md says how. Letters in names: L MoE layers, E experts, S sequences,
T tokens, K experts of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from routers.sampling import one_after_another

SHIPPED = Path(__file__).parents[1] / "results/reference/fitted_loads.npz"


@dataclass(frozen=True)
class Fit:
    """The loads of one model in one phase.

    popularity_LE: log of an expert's share of a layer's token copies, the mean over runs. between_runs_LE: what one
    standard deviation of the runs adds to it; runs differ along one line. chances_LE: what is to be added for the log
    of an expert's weight in a draw, because a token's experts are different ones of few groups. sequence_sd_L:
    standard deviation over sequences of the log of an expert's weight. top_k experts a token, of at most most_groups
    of `groups` equal groups of neighbours. regime: encode, prefill or decode. source: where the loads are from.
    """

    popularity_LE: np.ndarray
    between_runs_LE: np.ndarray
    chances_LE: np.ndarray
    sequence_sd_L: np.ndarray
    top_k: int
    groups: int
    most_groups: int
    regime: str
    source: str

    @property
    def num_layers(self) -> int:
        return self.popularity_LE.shape[0]

    @property
    def num_experts(self) -> int:
        return self.popularity_LE.shape[1]

    def shares(self, layer: int, run: float) -> np.ndarray:
        """float64 [E]: each expert's share of the token copies, in a run so many standard deviations from the mean."""
        share_E = np.exp(self.popularity_LE[layer].astype(np.float64) + run * self.between_runs_LE[layer])
        return share_E / share_E.sum()

    def weights(self, layer: int, run: float, deviation_SE: np.ndarray) -> np.ndarray:
        """float64 [S, E]: each expert's weight in a draw for each sequence; deviation_SE: standard normal."""
        chance_E = self.shares(layer, run) * np.exp(self.chances_LE[layer].astype(np.float64))
        return chance_E * np.exp(float(self.sequence_sd_L[layer]) * deviation_SE)

    def draw(self, weight_SE: np.ndarray, num_tokens: int, generator: np.random.Generator) -> np.ndarray:
        """int64 [T, K]: the experts of tokens that come one sequence after another, equally many of each."""
        groups = {"groups": self.groups, "most_groups": self.most_groups}
        return one_after_another(weight_SE, num_tokens, self.top_k, generator, **groups)


def write_fits(path: Path, fits: Mapping[str, Fit]) -> None:
    """The same fits give the same bytes."""
    np.savez_compressed(
        path, **{f"{name}/{key}": value for name, fit in fits.items() for key, value in vars(fit).items()}
    )


def read_fits(path: Path) -> dict[str, Fit]:
    """By name; ValueError, naming router.path, for a file that has none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(dict.fromkeys(key.rpartition("/")[0] for key in arrays.files))
            return {
                name: Fit(**{field.name: _value(arrays[f"{name}/{field.name}"]) for field in fields(Fit)})
                for name in names
            }
    except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"router.path is {path}, which scripts.fit_loads did not write: {problem}") from error


def _value(array: np.ndarray) -> Any:
    return array if array.ndim else array.item()
