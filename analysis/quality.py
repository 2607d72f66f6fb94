"""What outputs are worth: the measures of a system's guesses against the dense model's, and their tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.frames import select
from analysis.labels import system_name
from analysis.tables import Table

# What all rows have alike stands in a table's title.
SETTING = {
    "checkpoint": "str",
    "world_size": "int64",
    "batch_size": "int64",
    "seq_len": "int64",
    "precision": "str",
    "guesses": "Int64",
    "dense_perplexity": "float64",
}
HEADINGS = {
    "checkpoint": "model",
    "world_size": "ranks",
    "batch_size": "sequences a rank and pass",
    "seq_len": "tokens a sequence",
    "precision": "precision",
    "guesses": "guesses",
    "dense_perplexity": "dense perplexity",
}
COLUMNS = {
    "system": "str",
    "options": "str",
    "exactness": "str",
    "engine": "str",
    **SETTING,
    "state": "str",
    "reason": "str",
    "perplexity": "float64",
    "agreement": "float64",
    "kl_nats": "float64",
    "dropped_share": "float64",
}
LAYER_COLUMNS = {
    "system": "str",
    "options": "str",
    **SETTING,
    "block": "int64",
    "relative_error": "float64",
    "dropped_share": "float64",
}


def measures(sums: Mapping[str, float], top_k: int) -> dict[str, float]:
    """The measures of a system's guesses, from the sums of `experiments.quality_rank.compare` over a text.

    perplexity: exp of the mean cross-entropy of the right tokens. agreement: share of guesses whose likeliest token is
    the dense model's. kl_nats: mean of KL(dense || system). dropped_share: token copies that no expert computed.
    """
    guesses, blocks = sums["guesses"], blocks_of(sums)
    copies = top_k * sum(sums[f"tokens.{block}"] for block in blocks)
    return {
        "perplexity": math.exp(sums["nats"] / guesses),
        "agreement": sums["agreed"] / guesses,
        "kl_nats": sums["kl_nats"] / guesses,
        "dropped_share": sum(sums[f"dropped.{block}"] for block in blocks) / copies,
    }


def layer_measures(sums: Mapping[str, float], top_k: int) -> list[dict[str, float]]:
    """By MoE block: |y - dense| / |dense| over all tokens (Frobenius norms), and the share of copies dropped there."""
    return [
        {
            "block": block,
            "relative_error": math.sqrt(sums[f"error.{block}"] / sums[f"scale.{block}"]),
            "dropped_share": sums[f"dropped.{block}"] / (top_k * sums[f"tokens.{block}"]),
        }
        for block in blocks_of(sums)
    ]


def blocks_of(sums: Mapping[str, float]) -> list[int]:
    """The MoE blocks that sums are of."""
    return [int(name.partition(".")[2]) for name in sums if name.startswith("scale.")]


def quality_tables(rows: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What each system's outputs are worth, the same by MoE layer, and what could not be measured, with the reason.

    rows: dicts of COLUMNS; layers: of LAYER_COLUMNS; of both, what a system lacks may be absent.
    """
    every, by_layer = _typed(rows, COLUMNS), _typed(layers, LAYER_COLUMNS)
    measured, lacking = select(every, state="ok"), every.loc[every["state"] != "ok"]
    keys = ["system", "options", *SETTING]
    errors = {key: list(own["relative_error"]) for key, own in by_layer.groupby(keys, dropna=False)}
    varied = [name for name in SETTING if len(measured[[name]].drop_duplicates()) > 1]
    shown = [
        named(row) | placed(row, varied) | _shown(row, errors[tuple(row[key] for key in keys)])
        for row in measured.to_dict("records")
    ]
    refused = [named(row) | {"state": row["state"], "reason": row["reason"]} for row in lacking.to_dict("records")]
    return [
        Table("quality", _title(measured, varied), every, pd.DataFrame(shown)),
        Table("quality_layers", "Relative error by MoE layer", by_layer, _pivot(by_layer)),
        Table("quality_refused", "Systems that could not be measured", lacking, pd.DataFrame(refused)),
    ]


def _typed(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame([{name: row.get(name) for name in columns} for row in rows], columns=list(columns))
    return frame.astype({name: kind for name, kind in columns.items() if kind != "str"})


def named(row: Mapping[Any, Any]) -> dict[str, str]:
    """A system as tables call it, with its options."""
    return {"system": system_name(row["system"]), "options": row["options"]}


def placed(row: Mapping[Any, Any], names: Sequence[str]) -> dict[str, str]:
    """A part of the setting as tables call it."""
    return {HEADINGS[name]: f"{row[name]:.2f}" if SETTING[name] == "float64" else str(row[name]) for name in names}


def _shown(row: Mapping[Any, Any], errors: Sequence[float]) -> dict[str, str]:
    change = row["perplexity"] / row["dense_perplexity"] - 1
    return {
        "perplexity": f"{row['perplexity']:.2f}",
        "beyond dense": f"{100 * change:+.2f} %".replace("-0.00", "+0.00"),
        "same likeliest token": f"{100 * row['agreement']:.2f} %",
        "KL, nats": f"{max(row['kl_nats'], 0):.2g}",
        "copies dropped": f"{100 * row['dropped_share']:.2f} %",
        "error by MoE layer": ", ".join(f"{error:.2g}" for error in errors),
    }


def _title(rows: pd.DataFrame, varied: Sequence[str]) -> str:
    """The setting that all rows share, in words."""
    alike = placed(rows.iloc[0], [name for name in SETTING if name not in varied]) if len(rows) else {}
    return f"Quality of outputs: {', '.join(f'{name} {value}' for name, value in alike.items())}"


def _pivot(by_layer: pd.DataFrame) -> pd.DataFrame:
    rows = by_layer.to_dict("records")
    return pd.DataFrame(
        [
            {**named(row), "block": str(row["block"]), "relative error": f"{row['relative_error']:.2g}"}
            | {"copies dropped": f"{100 * row['dropped_share']:.2f} %"}
            for row in rows
        ]
    )
