"""Loads drawn from what was fitted to those of a real model, layer by layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routers.drawn import PROFILE_FROM, DrawnRouter
from routers.fits import SHIPPED, Fit, read_fits
from routers.options import check_switch
from routers.recorded import layers_of

SEQUENCES = 1  # the purpose of the numbers by which sequences differ


class LikeRouter(DrawnRouter):
    """Experts as popular as in a real model's layers, drawn for each sequence from a distribution of its own.

    `of` names the fit; None takes the one of the model's experts, top_k and regime. `run` says which run is played, in
    standard deviations of the recorded runs from their mean, and `profiled_run` which one placements are made from.
    With `sequences_differ` off all tokens of a layer are drawn alike. `layers` and `path` are as in `RecordedRouter`.

    A prompt is another one in each iteration; a sequence that is being decoded stays the same over all of them.
    Experts are drawn for each layer by itself. Source of the loads: docs/loads.md.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        moe_blocks: Sequence[int],
        top_k: int = 1,
        sequences: int = 1,
        regime: str = "prefill",
        of: str | None = None,
        run: float = 0.0,
        profiled_run: float = 1.4,
        sequences_differ: bool = True,
        layers: Sequence[int] | None = None,
        path: str | None = None,
        **workload: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, moe_blocks=moe_blocks, top_k=top_k, **workload)
        check_switch("sequences_differ", sequences_differ)
        for name, value in (("run", run), ("profiled_run", profiled_run)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not -3 <= value <= 3:
                raise ValueError(f"router.{name} is {value!r}; it must be a number from -3 to 3")
        self.fit = _chosen(read_fits(self.trace_file(path)), of, num_experts, top_k, regime)
        self._runs, self._differ = (run, profiled_run), sequences_differ
        self._sequences, self._lasting = sequences, regime == "decode"
        self._layers = layers_of(moe_blocks, range(self.fit.num_layers), layers)

    @classmethod
    def trace_file(cls, path: str | None = None, **unused: object) -> Path:
        """The file that decides the routing; its content is part of what a cell is."""
        return SHIPPED if path is None else Path(path)

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        weight_SE = self.fit.weights(self._layers[layer], self._run(iteration), self._deviations(layer, iteration))
        return self.fit.draw(weight_SE, num_tokens, self.generator(layer=layer, iteration=iteration))

    def _deviations(self, layer: int, iteration: int) -> np.ndarray:
        """float64 [S, E], standard normal: how each sequence's experts differ from the layer's."""
        if not self._differ:
            return np.zeros((1, self.num_experts))
        drawn_at = PROFILE_FROM * _is_profile(iteration) if self._lasting else iteration
        generator = self.generator(SEQUENCES, layer=layer, iteration=drawn_at)
        return generator.standard_normal((self._sequences, self.num_experts))

    def _run(self, iteration: int) -> float:
        run, profiled_run = self._runs
        return profiled_run if _is_profile(iteration) else run

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> None:
        """None: the load that a batch gets depends on its sequences, which are drawn too; `fit.shares` has the mean."""


def _is_profile(iteration: int) -> bool:
    return PROFILE_FROM <= iteration < 2 * PROFILE_FROM


def _chosen(fits: Mapping[str, Fit], of: str | None, num_experts: int, top_k: int, regime: str) -> Fit:
    """The fit that `of` names or, of None, the only one of this model and regime."""
    model = f"num_experts={num_experts} and top_k={top_k}"
    known = "; ".join(
        f"{name} (num_experts={one.num_experts}, top_k={one.top_k}, {one.regime})" for name, one in fits.items()
    )
    of_model = {name: one for name, one in fits.items() if (one.num_experts, one.top_k) == (num_experts, top_k)}
    if of is None:
        same = [one for one in of_model.values() if one.regime == regime]
        if len(same) != 1:
            raise ValueError(f"router.of is null and {len(same)} fits are of {model} in {regime}; name one of {known}")
        return same[0]
    if of not in fits:
        raise ValueError(f"router.of is {of}; it must be one of {known}")
    if of not in of_model:
        raise ValueError(f"router.of is {of}, and the model has {model}; the fits are {known}")
    return of_model[of]
