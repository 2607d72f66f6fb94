"""Which of the paper's claims hold on its own hardware, as far as that is simulated."""

from collections.abc import Mapping

import pandas as pd

from analysis.labels import system_name
from analysis.model_error import model_error, model_sentence
from analysis.studies.paper.judges import (
    HOLDS,
    HOLDS_NOT,
    NOT_MEASURED,
    NOT_VALIDATED,
    NOTHING,
    WITHIN_ERROR,
    Points,
    apply_within,
)
from analysis.studies.paper.reference import AS_PUBLISHED
from analysis.summary import FLOOR_OF

VERDICTS = (HOLDS, HOLDS_NOT, WITHIN_ERROR, NOT_VALIDATED)


def on_device(claim: dict, metric: str, found: Mapping[str, Points], device: str) -> dict[str, str]:
    """What a claim's rule gives for simulated points: of the form of the method that is nearest to the authors'.

    found: points by the name of their series. Times are judged with the device's error, counts are exact.
    """
    row = {"simulated": NOTHING, "on simulated": NOTHING, "simulated series": NOTHING, "device": device}
    if not found:
        return row
    series = min(found, key=nearness)
    timed = metric in FLOOR_OF
    error = model_error(device).get(FLOOR_OF[metric]) if timed else None
    text, verdict = apply_within(claim, found[series], error.ratio if error else 0.0)
    if verdict == NOT_MEASURED:
        return row
    verdict = NOT_VALIDATED if timed and error is None else verdict
    return row | {"simulated": text, "on simulated": verdict, "simulated series": series}


def nearness(series: str) -> int:
    """Place of a series among the forms of the paper's method."""
    names = [system_name(form) for form in AS_PUBLISHED]  # one of them has a comma, as what follows a name begins with
    places = (i for i, name in enumerate(names) if series == name or series.startswith((f"{name}, ", f"{name} / ")))
    return next(places, len(names))


def hardware_sentence(claims: pd.DataFrame) -> str:
    """How many claims of `claims_table` hold on the described device, and which do not; "" where none was simulated."""
    judged = claims.loc[claims["on simulated"].isin(VERDICTS)].drop_duplicates(["id", "metric"])
    if judged.empty:
        return ""
    said = {str(verdict): list(rows["claim"]) for verdict, rows in judged.groupby("on simulated")}
    device, series = judged["device"].iloc[0], ", ".join(dict.fromkeys(judged["simulated series"]))
    held = f"{len(said.get(HOLDS, []))} of {len(judged)} claims of the paper hold"
    lists = [f"{name.capitalize()}: {'; '.join(together(said[name]))}." for name in VERDICTS if name in said]
    return " ".join([f"Simulated on {device} ({series}), {held}.", *lists, model_sentence(device)])


def together(claims: list[str]) -> list[str]:
    """Claims whose metrics stand in brackets, each once with all of them: `faster at 8 (layer, TTFT)`."""
    metrics: dict[str, list[str]] = {}
    for claim in claims:
        text, _, metric = claim.partition(" (")
        metrics.setdefault(text, []).append(metric.removesuffix(")"))
    return [f"{text} ({', '.join(found)})" if any(found) else text for text, found in metrics.items()]
