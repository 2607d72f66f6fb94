"""A campaign whose ranks take exactly what known coefficients say, so that a fit can be held against the truth."""

import numpy as np
import pytest

from routers.synthetic import SyntheticRouter
from simulation.work import FEATURES, MODELLED, Load
from systems.base import LayerShape
from tests.simulation.emulator import Layers, Step, write, write_panel

SYSTEMS = {
    "ep": {"_target_": "systems.expert_parallel.ExpertParallel", "placement": "contiguous", "engine": "grouped"},
    "ep_round_robin": {
        "_target_": "systems.expert_parallel.ExpertParallel",
        "placement": "round_robin",
        "engine": "grouped",
    },
    "moeshard": {"_target_": "systems.moeshard.MoEShard", "engine": "grouped"},
}
# Milliseconds of each stretch; the third computes the experts.
CONSTANT, BUSY, FLOPS = 0.05, 0.02, 1e-6
TOKENS = {"batch_size": 4, "seq_len": 30}


def steps_of(system: dict, num_experts: int, ranks: int) -> tuple[list[Step], np.ndarray]:
    """The program of a layer, and its expected tokens, which are what every rank really brings."""
    shape = LayerShape(num_experts, 16, 64, 120)
    share_E = SyntheticRouter(num_experts=num_experts, rank=0, seed=0, alpha=0.6).probabilities_E
    tokens_GE = np.tile(120 * share_E, (ranks, 1))
    options = {key: value for key, value in system.items() if key == "placement"}
    work = MODELLED[system["_target_"]][1](Load(shape, tokens_GE, 4), **options)
    flops_G, busy_G = (work.features_GN[:, FEATURES.index(name)] for name in ("flops", "busy experts"))
    steps = [Step(np.full(ranks, CONSTANT), transfer) for transfer in work.transfers]
    experts_G = CONSTANT + BUSY * busy_G + FLOPS * flops_G
    where = 2  # before the third collective, the way back
    steps[where] = steps[where]._replace(compute_G=experts_G)
    return [*steps, Step(np.full(ranks, CONSTANT))], tokens_GE


@pytest.fixture(scope="session")
def crossover(tmp_path_factory):
    """The folder of a campaign: three systems, 8 to 32 experts, 2 to 8 ranks, two launches of one pass and layer."""
    folder = tmp_path_factory.mktemp("crossover")
    cells = {}
    for num_experts in (8, 16, 32):
        for ranks in (2, 4, 8):
            point = TOKENS | {"num_experts": num_experts, "world_size": ranks}
            for name, system in SYSTEMS.items():
                steps, tokens_GE = steps_of(system, num_experts, ranks)
                one = Layers(system | {"name": name}, point, 0, {(0, 1): steps}, tokens_GE)
                names = [write(folder, one._replace(launch=launch), num_experts) for launch in (0, 1)]
                cells.setdefault((num_experts, ranks), []).extend(names)
    write_panel(folder, cells)
    return folder
