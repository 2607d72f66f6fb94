"""Selecting rows of a table."""

import pandas as pd


def select(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns have the given values."""
    for column, value in values.items():
        frame = frame.loc[frame[column] == value]
    return frame
