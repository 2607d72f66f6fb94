"""Which system wins where, by how much, and where the border between two of them runs: maps over two factors.

A map's frame is tidy: columns x, y, system, launch, value (a time; less is better) and source, one row for each launch
of a system at a point. docs/maps.md has the rules. Shape letters: I iterations, L MoE layers, X points along x.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.labels import axis_name, number, short_axis_name, system_name, times, with_interval, x_text
from analysis.load import SIMULATED, Campaign
from analysis.reduce import reduce_cell
from analysis.series import collect_series
from analysis.stats import Floor, median_of, outside, ratio_interval, t_interval

COLUMNS = ["x", "y", "system", "launch", "value", "source"]
METRICS = {"layer_moe_ms": "one MoE layer", "ttft_ms": "full forward pass (TTFT)"}
WINS, TIE, ALONE = "wins", "tie", "alone"
CROSSES, ALWAYS, UNCLEAR, SEVERAL, NOT_MEASURED = "crosses", "always", "unclear", "several", "not measured"
WIDE = 10  # an axis that spans more than this factor is interpolated in its logarithm


def map_frames(campaign: Campaign, panel: dict) -> dict[str, pd.DataFrame]:
    """A map's frame by metric (METRICS): medians of the slowest rank; twins and outputs not verified are left out."""
    rows = {metric: [] for metric in METRICS}
    for point in panel["points"]:
        cells = [cell for cell in point["cells"] if cell in campaign.frames]
        sizes = {cell: campaign.runs[cell]["point"]["world_size"] for cell in cells}
        reduced = {cell: reduce_cell(campaign.frames[cell], sizes[cell]) for cell in cells}
        for one in collect_series(campaign, reduced, cells):
            if one.twin or not one.passed:
                continue
            for metric, found in rows.items():
                for launch, values_IL in one.arrays(metric).items():
                    place = (point["x"], point.get("y"), one.system, launch)
                    found.append((*place, median_of(values_IL), one.source))
    return {metric: pd.DataFrame(found, columns=COLUMNS) for metric, found in rows.items()}


def winners(frame: pd.DataFrame, floor: Floor | None = None) -> pd.DataFrame:
    """One row a point: the fastest system, the second, and by how much, with its 95 % interval over launches.

    Columns: x, y, winner, second, margin (time of the second / time of the winner), low, high, verdict (wins; tie where
    the interval, or a simulated margin, reaches into 1x +- the floor; alone where only one system has a time), without
    (systems of the frame that have none here).
    """
    systems = set(frame["system"])
    rows = [
        {"x": x, "y": y} | winner(here, floor) | {"without": sorted(systems - set(here["system"]))}
        for (x, y), here in by_place(frame)
    ]
    columns = ["x", "y", "winner", "second", "margin", "low", "high", "verdict", "without"]
    return pd.DataFrame(rows, columns=columns)


def by_place(frame: pd.DataFrame) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """((x, y), its rows), in the order of the frame; y may be None, which groupby would drop."""
    places = pd.Series(list(zip(frame["x"], frame["y"], strict=True)), index=frame.index, dtype=object)
    return ((place, frame.loc[places == place]) for place in dict.fromkeys(places))


def winner(here: pd.DataFrame, floor: Floor | None) -> dict:
    """The row of one point."""
    times = here.pivot(index="launch", columns="system", values="value")[list(dict.fromkeys(here["system"]))]
    shared = times.dropna() if len(times.dropna()) else times  # launches that all systems have
    centre = np.log(shared).mean().to_dict()
    first, second = [*sorted(centre, key=lambda system: centre[system]), None][:2]
    margin, low, high = time_ratio(here, second, first) if second else (np.nan, np.nan, np.nan)
    verdict = (WINS if told_apart(low, high, floor) else TIE) if second else ALONE
    return {"winner": first, "second": second, "margin": margin, "low": low, "high": high, "verdict": verdict}


def time_ratio(here: pd.DataFrame, above: str, below: str) -> tuple[float, float, float]:
    """Time of `above` / time of `below` at one point, with its interval over the launches that both have."""
    pairs = launch_pairs(here, (above, below))
    if pairs.empty:
        return np.nan, np.nan, np.nan
    if "source" in here and set(here["source"]) == {SIMULATED}:  # repeats exactly
        ratio = float((pairs[above] / pairs[below]).iloc[0])
        return ratio, ratio, ratio
    return ratio_interval(*([[value] for value in pairs[system]] for system in (above, below)))


def launch_pairs(here: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Times of two systems, a row a launch that both have."""
    return here.pivot(index="launch", columns="system", values="value").reindex(columns=list(pair)).dropna()


def told_apart(low: float, high: float, floor: Floor | None) -> bool:
    """Whether a ratio's interval lies wholly outside the floor, or outside 1x where there is none."""
    return outside(low, high, floor or Floor(0.0, 0))


def rivals(frame: pd.DataFrame) -> tuple[str, str] | None:
    """The two systems between which a border is looked for: EP and MoEShard, else the two that win most points."""
    systems = list(dict.fromkeys(frame["system"]))
    if {"ep", "moeshard"} <= set(systems):
        return "ep", "moeshard"
    won = winners(frame)
    votes = Counter([*won["winner"], *won["winner"], *won["second"]])  # a second place is half a win
    ranked = sorted(systems, key=lambda system: -votes[system])
    return (ranked[0], ranked[1]) if len(ranked) > 1 else None


def borders(frame: pd.DataFrame, pair: tuple[str, str] | None = None, floor: Floor | None = None) -> pd.DataFrame:
    """One row for each y: the x from which the other of two systems is faster, with its interval over launches.

    The zero of log(time ratio), geometric mean over launches, interpolated between neighbouring x; the interval is
    Student's t over the zeros of each launch, nan where a launch has none or several. Columns: y, first, second, state,
    below and above (who is faster on either side), crossing, low, high, crossings (all, as a list), launches,
    crossing_launches, points, told_below and told_above (points on either side at which the two are told apart).
    state: crosses; always (no zero); unclear (no point told apart); several; not measured (fewer than two x).
    Empty when x is not a number or there is no pair.
    """
    pair = pair or rivals(frame)
    numeric = pd.api.types.is_numeric_dtype(frame["x"])
    in_log = numeric and geometric(set(frame["x"]))
    each = (frame.loc[frame["y"] == y] for y in frame["y"].unique())
    rows = [border(here, pair, floor, in_log) for here in each] if pair and numeric else []
    return pd.DataFrame(rows, columns=list(nothing(0, ("", ""))))


def border(here: pd.DataFrame, pair: tuple[str, str], floor: Floor | None, in_log: bool) -> dict:
    """The row of one y."""
    row = nothing(here["y"].iloc[0], pair)
    ratios_X = {x: launch_pairs(at, pair) for x, at in here.groupby("x")}
    logs = pd.DataFrame({x: np.log(pairs[pair[0]] / pairs[pair[1]]) for x, pairs in ratios_X.items() if len(pairs)})
    if len(logs.columns) < 2:
        return row
    xs, mean_X = logs.columns.to_numpy(dtype=float), logs.mean().to_numpy()
    found = zeros(xs, mean_X, in_log)
    told_X = np.array([told_apart(*time_ratio(select(here, x=x), *pair)[1:], floor) for x in xs])
    split = found[0] if len(found) == 1 else np.inf
    row |= {"below": pair[int(mean_X[0] > 0)], "above": pair[int(mean_X[-1] > 0)], "crossings": found}
    row |= {"told_below": int(told_X[xs < split].sum()), "told_above": int(told_X[xs >= split].sum())}
    row["points"] = len(xs)
    each = [zeros(xs, launch_X, in_log) for launch_X in logs.dropna().to_numpy()]
    row |= {"launches": len(each), "crossing_launches": sum(len(one) == 1 for one in each)}
    row["state"] = UNCLEAR if not told_X.any() else {0: ALWAYS, 1: CROSSES}.get(len(found), SEVERAL)
    if len(found) == 1:
        row["crossing"] = split
        if row["crossing_launches"] == len(each) > 0:
            row["low"], row["high"] = t_interval([one[0] for one in each], split)[1:]
    return row


def nothing(y: object, pair: tuple[str, str]) -> dict:
    """The row of a y without a border."""
    row = {"y": y, "first": pair[0], "second": pair[1], "state": NOT_MEASURED, "below": None, "above": None}
    row |= {"crossing": np.nan, "low": np.nan, "high": np.nan, "crossings": []}
    return row | {"launches": 0, "crossing_launches": 0, "told_below": 0, "told_above": 0, "points": 0}


def geometric(values: Collection[float]) -> bool:
    """Whether an axis is one of factors (8, 32, 128) rather than of steps (1, 1.5, 2)."""
    low, high = min(values), max(values)
    return bool(low > 0 and high > WIDE * low)


def zeros(xs: np.ndarray, logs_X: np.ndarray, in_log: bool = False) -> list[float]:
    """Where a curve through points changes its sign, linear between neighbours (in log x if `in_log`)."""
    places = np.log(xs) if in_log else xs
    left = np.flatnonzero((logs_X[:-1] >= 0) != (logs_X[1:] >= 0))
    share = logs_X[left] / (logs_X[left] - logs_X[left + 1])
    found = places[left] + share * (places[left + 1] - places[left])
    return [float(x) for x in (np.exp(found) if in_log else found)]


def border_text(row: Mapping) -> str:
    """One border in a table: `MoEShard from 1.90 [1.70, 2.20]`, or why there is none."""
    faster = {side: system_name(row[side]) if row[side] else "" for side in ("below", "above")}
    if row["state"] == NOT_MEASURED:
        return "fewer than two points measured"
    if row["state"] == UNCLEAR:
        return "not told apart"
    if row["state"] == ALWAYS:
        told, points = row["told_below"] + row["told_above"], row["points"]
        where = f" (told apart at {told} of {points} points)" if told < points else ""
        return f"{faster['below']} everywhere{where}"
    if row["state"] == SEVERAL:
        return f"no single border (ratio of 1 at {', '.join(map(number, row['crossings']))})"
    text = f"{faster['above']} from {with_interval(row['crossing'], row['low'], row['high'])}"
    if row["crossing_launches"] < row["launches"]:
        text += f" (in {row['crossing_launches']} of {row['launches']} launches)"
    side = "below" if not row["told_below"] else "above" if not row["told_above"] else ""
    return text + (f" ({side} it not told apart)" if side else "")


def border_sentence(found: pd.DataFrame, x_name: str, y_name: str) -> str:
    """All borders of a map in one sentence; "" without any."""
    if found.empty:
        return ""
    one = found.iloc[0]
    places = [f"{border_text(row)} at {x_text(y_name, row['y'])}" for row in found.to_dict("records")]
    pair = f"{system_name(one['first'])} or {system_name(one['second'])}"
    return f"{pair}, by {axis_name(x_name)}, at {axis_name(y_name)}: {'; '.join(places)}."


def winner_text(row: Mapping) -> str:
    """One point in a table: `EP 1.84× [1.71, 1.98]`, `tie (EP 1.02× ...)`, or `only MoEShard`."""
    name = system_name(row["winner"])
    if row["verdict"] == ALONE:
        return f"only {name}"
    margin = f"{name} {with_interval(row['margin'], row['low'], row['high'], times)}"
    return f"tie ({margin})" if row["verdict"] == TIE else margin


def map_rows(frame: pd.DataFrame, floor: Floor | None) -> pd.DataFrame:
    """A row a y, a column an x with the winner and its margin, the border last."""
    won, found = winners(frame, floor), borders(frame, floor=floor)
    xs = sorted_values(won["x"])
    text = {(row["x"], row["y"]): winner_text(row) for row in won.to_dict("records")}
    last = {row["y"]: border_text(row) for row in found.to_dict("records")}
    rows = [[y, *(text.get((x, y), "–") for x in xs), last.get(y, "–")] for y in sorted_values(won["y"])]
    return pd.DataFrame(rows, columns=["y", *xs, "border"])


def sorted_values(values: Iterable) -> list:
    """The values of an axis once: numbers in ascending order, names in the order in which they come."""
    found = list(dict.fromkeys(values))
    return found if any(isinstance(value, str) for value in found) else sorted(found)


def place_text(row: Mapping) -> str:
    """A point's place: `experts 64`, or `experts 64, world size 8` where the panel has two axes."""
    first = f"{short_axis_name(row['x_name'])} {x_text(row['x_name'], row['x'])}"
    if not isinstance(row.get("y_name"), str):
        return first
    return f"{first}, {short_axis_name(row['y_name'])} {x_text(row['y_name'], row['y'])}"
