"""Winners and borders of a map in words and as a table."""

from collections.abc import Iterable, Mapping

import pandas as pd

from analysis.labels import axis_name, number, system_name, times, with_interval, x_text
from analysis.stats import Floor
from analysis.studies.maps.borders import ALWAYS, NOT_MEASURED, SEVERAL, UNCLEAR, borders
from analysis.studies.maps.winners import ALONE, TIE, winners


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
