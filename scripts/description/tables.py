"""What is done to measured times before they become the tables of a device."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

SWEEPS = 40


def ascending(points: Sequence[Sequence[float]], digits: int = 1) -> list[list[float]]:
    """[[x, y], ...] in which more never takes less: where measurements say otherwise, their neighbours' mean."""
    times = isotonic_regression([y for _, y in points]).x
    return [[round(float(x)), round(float(y), digits)] for (x, _), y in zip(points, times, strict=True)]


def ascending_grid(values: np.ndarray) -> np.ndarray:
    """The nearest grid that descends along no axis (Dykstra's alternating projections, then what is left of descents).

    Example: [[2, 1], [3, 4]] -> [[1.5, 1.5], [3, 4]].
    """
    left = [np.zeros_like(values) for _ in range(values.ndim)]
    for _ in range(SWEEPS):
        for axis in range(values.ndim):
            wanted = values + left[axis]
            values = np.apply_along_axis(lambda line: isotonic_regression(line).x, axis, wanted)
            left[axis] = wanted - values
    for axis in range(values.ndim):
        values = np.maximum.accumulate(values, axis=axis)
    return values


def document(tables: Mapping[str, Any]) -> str:
    """JSON with a line for every innermost list of lists, so that a change shows in a diff."""
    return _text(tables, 0) + "\n"


def _text(value: Any, depth: int) -> str:
    lines = isinstance(value, Mapping) or (isinstance(value, list) and _nesting(value) > 2)
    if not lines or not value:
        return json.dumps(value)
    inner = "\n" + " " * (depth + 1)
    pairs = isinstance(value, Mapping)
    parts = [(json.dumps(str(key)) + ": ") * pairs + _text(value[key] if pairs else key, depth + 1) for key in value]
    return ("{" if pairs else "[") + inner + ("," + inner).join(parts) + "\n" + " " * depth + ("}" if pairs else "]")


def _nesting(value: Any) -> int:
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, list) else 0
