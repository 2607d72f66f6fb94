"""The paper's point: 128 experts, 4 GPUs, 30,000 tokens a rank of which 13 experts get nine tenths."""

import numpy as np
import pytest

from routers.synthetic import skewed_probabilities
from systems.planners.base import Costs, as_replicas


@pytest.fixture
def costs() -> Costs:
    """Rows of 9.44 MFLOP at 60 TFLOP/s; rows of 3,072 bytes and experts of 18.87 MB at 200 GB/s."""
    return Costs(row_s=9.44e6 / 60e12, move_row_s=3072 / 200e9, move_expert_s=18.87e6 / 200e9)


@pytest.fixture
def contiguous_EG() -> np.ndarray:
    return as_replicas(np.arange(128) // 32, 4)


@pytest.fixture(params=range(3))
def tokens_GE(request: pytest.FixtureRequest) -> np.ndarray:
    return np.random.default_rng(request.param).multinomial(30_000, skewed_probabilities(128, 0.6, 13), size=4)
