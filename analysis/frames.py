"""Selecting rows of a table."""

import numpy as np
import pandas as pd


def select(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns have the given values."""
    # One mask for all columns: rows are copied once.
    keep = np.ones(len(frame), dtype=bool)
    for column, value in values.items():
        keep &= (frame[column] == value).to_numpy(dtype=bool, na_value=False)
    return frame.loc[keep]
