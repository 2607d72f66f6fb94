"""The same cells on real processes and emulated, side by side: errors of times, and the order of systems."""

import itertools
import json

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from analysis.load import Campaign
from analysis.series import launch_medians, time_ratio
from analysis.stats import Floor, noise_floor_of, outside

SHARED = ("model", "router", "corpus", "tier", "batch_size", "batch_shares", "seq_len", "precision", "seed")
METRICS = {"ttft_ms": "TTFT", "layer_moe_ms": "MoE layer"}
EMULATED = "_emulated"
KEYS = ["panel", "x", "system", "metric"]


def paired(times: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Real and emulated times of one campaign, under the real panel's name; ValueError where there is no pair."""
    emulated = times.loc[times["panel"].str.endswith(EMULATED)]
    emulated = emulated.assign(panel=emulated["panel"].str.removesuffix(EMULATED))
    real = times.loc[times["panel"].isin(emulated["panel"])]
    if real.empty:
        raise ValueError(
            f"no panel has times on both clusters: a panel P needs P{EMULATED}; "
            f"there are {', '.join(times['panel'].unique()) or 'none'}"
        )
    return real, emulated


def held_against(campaign: Campaign, other: Campaign | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Real and emulated times; ValueError where the two differ in more than the cluster."""
    times = launch_medians(campaign, campaign.plan["panels"])
    if other is not None:
        if differing := sorted(differences(campaign, other)):
            raise ValueError(
                f"{campaign.folder} and {other.folder} differ in {', '.join(differing)}: not the same cells"
            )
        return times, launch_medians(other, other.plan["panels"])
    return paired(times)


def differences(one: Campaign, other: Campaign) -> set[str]:
    """Keys of the workload, but for cluster and network, in which two campaigns do not agree."""
    values = [{key: set() for key in SHARED} for _ in (one, other)]
    for campaign, found in zip((one, other), values, strict=True):
        for cell in campaign.frames:
            for key in SHARED:
                found[key].add(json.dumps(campaign.runs[cell]["config"].get(key), sort_keys=True))
    return {key for key in SHARED if values[0][key] != values[1][key]}


def compare(real: pd.DataFrame, emulated: pd.DataFrame) -> pd.DataFrame:
    """Emulated over real, less 1, of each panel, point, system and metric that both have, with a 95 % interval.

    Columns: KEYS, real and emulated (geometric means over launches, ms), error, low, high. Launches of the two are
    independent, so the interval is Welch's on the logarithms of their medians. Twins are left out.
    """
    for frame, source in ((real, "measured"), (emulated, "emulated")):
        if wrong := set(frame["source"]) - {source}:
            raise ValueError(f"times that should be {source} are {', '.join(sorted(wrong))}")
    theirs = {key: rows["value"] for key, rows in emulated.loc[~emulated["twin"]].groupby(KEYS)}
    rows = [
        dict(zip(KEYS, key, strict=True)) | one_error(rows["value"].to_numpy(), theirs[key].to_numpy())
        for key, rows in real.loc[~real["twin"]].groupby(KEYS)
        if key in theirs
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "real", "emulated", "error", "low", "high"])


def one_error(real_S: np.ndarray, emulated_S: np.ndarray) -> dict[str, float]:
    """The columns of `compare` but its keys, from one median a launch; nan without an interval."""
    real, emulated = np.log(real_S), np.log(emulated_S)
    low, high = np.nan, np.nan
    if min(len(real), len(emulated)) > 1 and max(np.ptp(real), np.ptp(emulated)) > 1e-12:
        interval = ttest_ind(emulated, real, equal_var=False).confidence_interval(0.95)
        low, high = np.expm1(interval.low), np.expm1(interval.high)
    means = {"real": float(np.exp(real.mean())), "emulated": float(np.exp(emulated.mean()))}
    error = means["emulated"] / means["real"] - 1
    return means | {"error": error, "low": float(low), "high": float(high)}


def real_floor(real: pd.DataFrame) -> dict[str, Floor]:
    """What two real runs of one system differ by within a launch, by metric; {} without twins."""
    floors = {}
    for metric in METRICS:
        rows = real.loc[real["metric"] == metric]
        keys = ["panel", "x", "system", "launch"]
        twins = rows.loc[rows["twin"]].set_index(keys)["value"]
        ratios = (twins / rows.loc[~rows["twin"]].set_index(keys)["value"]).dropna()
        if len(ratios):
            floors[metric] = noise_floor_of(ratios.to_list())
    return floors


def orderings(real: pd.DataFrame, emulated: pd.DataFrame) -> pd.DataFrame:
    """Every pair of systems at a point: real and emulated ratio, whether the real one is beyond the A/A floor, and
    whether both name the same system the faster one."""
    floors, rows, keys = real_floor(real), [], ["panel", "x", "metric"]
    theirs = dict(iter(emulated.loc[~emulated["twin"]].groupby(keys)))
    for place, here in real.loc[~real["twin"] & real["metric"].isin(METRICS)].groupby(keys):
        there = theirs.get(place, emulated.iloc[:0])
        for one, other in itertools.combinations(sorted({*here["system"]} & {*there["system"]}), 2):
            ratio, low, high = time_ratio(here, one, other)
            emulated_ratio = time_ratio(there, one, other)[0]
            known = outside(low, high, floors.get(str(place[2])))
            rows.append(
                dict(zip(keys, place, strict=True))
                | {"one": one, "other": other, "real": ratio}
                | {"emulated": emulated_ratio, "beyond_floor": known, "agree": (ratio > 1) == (emulated_ratio > 1)}
            )
    return pd.DataFrame(rows)
