"""The reference of what is stored and of the metrics as Markdown, from the code that writes and checks them.

Types of columns that the code does not declare are those of a sample campaign.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import pyarrow.parquet as pq

from analysis.checks.timing import METRICS
from analysis.files import read_json, read_packed_runs
from analysis.quality import COLUMNS as QUALITY
from analysis.quality import LAYER_COLUMNS
from analysis.schema import COLUMNS as STORED
from analysis.schema import SAMPLE_COLUMNS
from analysis.summary import AA_RATIOS, COLUMNS, MEANS, MEDIANS, OBSERVER, RATIOS
from scripts.docs_site.keys import ROOT, meanings

SAMPLE = ROOT / "results/sample-fig3"
PLAIN = {
    "large_string": "str",
    "string": "str",
    "double": "float64",
    "Int64": "int64 or empty",
    "list": "list of float64",
}
CSV = {"summary": dict.fromkeys(COLUMNS, ""), "quality": QUALITY, "quality_layers": LAYER_COLUMNS}
SUFFIXES = {"_ms": "ms", "bytes_sent": "bytes", "bytes_received": "bytes", "sent_to": "bytes", "tokens": "tokens"}


def column_table(name: str) -> str:
    """The columns of a parquet or CSV file: types, units, meanings."""
    types = CSV[name] if name in CSV else _stored_types(name)
    types |= SAMPLE_COLUMNS if name == "samples" else {}
    columns = STORED.get(name) or list(types)
    shown = ((f"`{one}`", PLAIN.get(types.get(one, ""), types.get(one, "")), _unit(one)) for one in columns)
    rows = [[*cells, meanings()[name][one]] for one, cells in zip(columns, shown, strict=True)]
    titles = ["column", "type", "unit", "meaning"]
    kept = [at for at, title in enumerate(titles) if title in ("column", "meaning") or any(row[at] for row in rows)]
    return table([titles[at] for at in kept], ([row[at] for at in kept] for row in rows))


def _unit(column: str) -> str:
    return next((unit for suffix, unit in SUFFIXES.items() if column.endswith(suffix)), "")


def _stored_types(name: str) -> dict[str, str]:
    schema = pq.read_schema(SAMPLE / f"{name}.parquet")
    return {field.name: str(field.type).partition("<")[0] for field in schema}


def document_table(name: str) -> str:
    """The keys of plan.json or run.json: types, meanings."""
    told: dict[str, Any] = meanings()[name]
    stored = stored_document(name)
    known = {key: (one["type"], one["meaning"]) for key, one in told.items() if isinstance(one, dict)}
    known |= {key: (type(value).__name__, told[key]) for key, value in stored.items() if key not in known}
    order = [key for key in told if key in known]
    kinds = {"NoneType": "str or null", "dict": "mapping"}
    rows = ([f"`{key}`", kinds.get(known[key][0], known[key][0]), known[key][1]] for key in order)
    return table(["key", "type", "meaning"], rows)


@cache
def stored_document(name: str) -> dict[str, Any]:
    """plan.json of the sample campaign, or run.json of its first cell."""
    return read_json(SAMPLE / "plan.json") if name == "plan" else min(read_packed_runs(SAMPLE).items())[1]


def metric_table() -> str:
    """The metrics that are stored: units, passes, meanings."""
    passes = {1: "instrumented", 2: "measure, instrumented", 4: "all"}
    rows = (
        [f"`{name}`", unit, passes[len(which)], meanings()["metrics"][name]] for name, (unit, which) in METRICS.items()
    )
    return table(["metric", "unit", "pass", "meaning"], rows)


def derived() -> dict[str, str]:
    """The metrics of summary.csv that are not stored, with their units."""
    ratios = dict.fromkeys([*RATIOS, *AA_RATIOS, *OBSERVER], "ratio")
    return {name: unit for name, unit in (MEDIANS | MEANS | ratios).items() if name not in METRICS}


def derived_table() -> str:
    """The metrics that are derived: units, meanings."""
    return table(
        ["metric", "unit", "meaning"],
        ([f"`{name}`", unit, meanings()["metrics"][name]] for name, unit in derived().items()),
    )


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', 'or') for cell in line)} |" for line in lines)


TABLES: Mapping[str, Callable[[], str]] = {
    **{name: (lambda name=name: column_table(name)) for name in (*STORED, *CSV)},
    **{name: (lambda name=name: document_table(name)) for name in ("plan", "run")},
    "metrics": metric_table,
    "derived": derived_table,
}
