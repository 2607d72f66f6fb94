"""The paper's skew with a hot set that moves during the run: what a placement made once does not follow."""

from typing import Any

import numpy as np

from routers.options import check_whole_number
from routers.synthetic import SyntheticRouter


class DriftRouter(SyntheticRouter):
    """After every `period` iterations the hot ids move up by `step`, around the experts.

    Hot at an iteration: (first hot ids + step x floor(iteration / period)) mod E. `step` None moves by as many ids as
    are hot, so that a set and the next have none in common while twice as many experts fit in E; 0 stands still.
    """

    def __init__(self, *, period: int = 5, step: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_whole_number("period", period, 1)
        if step is not None:
            check_whole_number("step", step, 0)
        self.period, self.step = period, self.num_skewed if step is None else step

    def probabilities(self, *, layer: int, iteration: int) -> np.ndarray:
        return np.roll(self.probabilities_E, self.step * (iteration // self.period))
