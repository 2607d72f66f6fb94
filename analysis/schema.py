"""How results are stored: what writers (`experiments.store`) and readers (`analysis.load`) share.

A campaign's folder holds plan.json and one file of each kind:

    runs.json            configuration, state, environment of each cell; what all have in common once (`split_shared`)
    samples.parquet      one row one observation (of cells in state ok, as all rows)
    routing.parquet      tokens per layer, iteration, rank and expert
    collectives.parquet  what each rank moved when, in every observed layer (emulated, simulated clusters)

While it runs, what it measures stands beside them in cells/<id>/: run.json and the same tables of one cell, so that
nothing that was measured is lost. When it is through, it packs them (experiments/pack.py).
"""

import json
from typing import Any

SCHEMA = 2
# invalid: it ran, but its output or its inputs are not what they must be, so it has no numbers.
FAILURES = ("failed", "oom", "timeout", "unsupported", "invalid")
STATES = ("ok", *FAILURES)
CORRUPT = "corrupt"  # what is read of a cell that is not what was written
TABLES = ("samples", "routing", "collectives")
SAMPLE_COLUMNS = {
    "campaign": "str",
    "cell": "str",
    "launch": "int64",
    "iteration": "int64",
    "phase": "str",  # first, warmup, measure, instrumented
    "rank": "int64",
    "metric": "str",
    "layer": "Int64",  # a block of the model; none for a whole forward pass
    "section": "str",  # of a layer: route, metadata, dispatch, experts, combine
    "value": "float64",  # a time in ms has seven digits, more than a stopwatch
    "unit": "str",
    "order": "Int64",  # of the forward passes of a phase
    "time": "float64",  # seconds since 1970
    "source": "str",  # measured, emulated, simulated
    "schema": "int64",
}
ROUTING_COLUMNS = ["layer", "iteration", "rank", "expert", "tokens", "intended"]
COLLECTIVE_COLUMNS = [
    *("iteration", "layer", "section", "sequence", "rank", "collective", "ranks"),
    *("resumed_ms", "issued_ms", "waited_ms", "started_ms", "finished_ms"),
    *("bytes_sent", "bytes_received", "sent_to", "asynchronous"),
]
COLUMNS = {"samples": list(SAMPLE_COLUMNS), "routing": ROUTING_COLUMNS, "collectives": COLLECTIVE_COLUMNS}
MILLISECONDS = ("value", *(name for name in COLLECTIVE_COLUMNS if name.endswith("_ms")))  # columns with times
CELLS, RUNS = "cells", "runs.json"
NEW = ".new"  # ends the name of a packed file until runs.json knows it


def split_shared(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What all documents have alike, at any depth of keys, is kept once; so is each object that several of them have.

    Example: {"a": {"x": 1, "y": {"z": 2}}, "b": {"x": 1, "y": {"z": 3}}} -> {"shared": {"x": 1},
    "objects": [{"z": 2}, {"z": 3}], "runs": {"a": {"objects": {"y": 0}}, "b": {"objects": {"y": 1}}}}
    `join_shared` undoes it.
    """
    shared, places, runs = _alike(list(documents.values())), {}, {}
    for name, document in documents.items():
        rest = _less(document, shared)
        objects = {key: value for key, value in rest.items() if isinstance(value, dict)}
        numbers = {key: places.setdefault(json.dumps(value), len(places)) for key, value in objects.items()}
        runs[name] = {key: value for key, value in rest.items() if key not in objects} | {"objects": numbers}
    return {"shared": shared, "objects": [json.loads(text) for text in places], "runs": runs}


def join_shared(packed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The documents that `split_shared` was given."""
    joined = {}
    for name, rest in packed["runs"].items():
        objects = {key: packed["objects"][number] for key, number in rest["objects"].items()}
        own = {key: value for key, value in rest.items() if key != "objects"}
        joined[name] = _joined(packed["shared"], own | objects)
    return joined


def _alike(documents: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = documents or [{}]
    found = {}
    for key, value in first.items():
        values = [other.get(key, _MISSING) for other in others]
        if all(each is not _MISSING and _text(each) == _text(value) for each in values):
            found[key] = value
        elif all(isinstance(each, dict) and each for each in (value, *values)):
            part = _alike([value, *values])  # pyright: ignore[reportArgumentType]
            found |= {key: part} if part else {}
    return found


def _less(document: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    rest = {}
    for key, value in document.items():
        if key not in shared:
            rest[key] = value
        elif isinstance(value, dict) and (part := _less(value, shared[key])):
            rest[key] = part
    return rest


def _joined(shared: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    joined = dict(shared)
    for key, value in rest.items():
        both = isinstance(value, dict) and isinstance(shared.get(key), dict)
        joined[key] = _joined(shared[key], value) if both else value
    return joined


def _text(value: Any) -> str:
    """1, 1.0 and True are equal, and not the same in a file."""
    return json.dumps(value, sort_keys=True)


_MISSING = object()
