"""A process group of this process alone, for layers that call collectives."""

import pytest
import torch.distributed as dist


@pytest.fixture(scope="module")
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
