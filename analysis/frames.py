"""Selecting rows of a table, and writing a file whole."""

import os
from pathlib import Path

import numpy as np
import pandas as pd


def select(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns have the given values."""
    # One mask for all columns: rows are copied once.
    keep = np.ones(len(frame), dtype=bool)
    for column, value in values.items():
        keep &= (frame[column] == value).to_numpy(dtype=bool, na_value=False)
    return frame.loc[keep]


def write_whole(path: Path, text: str) -> Path:
    """Write a file whole or not at all: a reader sees the old one or the new one, never half of one."""
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial_path.write_text(text)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
    return path
