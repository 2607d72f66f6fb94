"""MoEShard's layer on one GPU: the host never waits for the device, and a CUDA graph holds the layer."""

import pytest
import torch
import torch.distributed as dist

from routers.base import Routing
from systems.base import LayerShape
from systems.dense import Dense
from systems.engines import find_engine
from systems.moeshard import MoEShard

pytestmark = pytest.mark.gpu
E, D, F, T = 16, 128, 256, 400


class Weights:
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.wi_EDF = torch.randn(E, D, F, generator=generator).cuda() / D**0.5
        self.wo_EFD = torch.randn(E, F, D, generator=generator).cuda() / F**0.5

    def shard(self, index: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.wi_EDF.chunk(count, 2)[index].contiguous(), self.wo_EFD.chunk(count, 1)[index].contiguous()

    def experts(self, expert_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.wi_EDF[expert_ids], self.wo_EFD[expert_ids]


@pytest.fixture(scope="module")
def layer():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("triton", reason="Triton is not installed")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield {"shape": LayerShape(E, D, F, T), "weights": Weights(), "group": dist.group.WORLD}
    dist.destroy_process_group()


def draw(seed: int) -> tuple[torch.Tensor, Routing]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(T, D, generator=generator).cuda()
    return x_TD, Routing(torch.randint(E, (T, 1), generator=generator).cuda(), torch.ones(T, 1).cuda())


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_host_never_waits_for_the_device(layer, chunks: int):
    system, (x_TD, routing) = MoEShard(**layer, chunks=chunks, engine=find_engine("triton")), draw(0)
    system.forward(x_TD, routing)  # tunes tiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y_TD = system.forward(x_TD, routing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected_TD = Dense(**layer, engine=find_engine("loop")).forward(x_TD, routing)
    assert (y_TD - expected_TD).norm() < 2e-3 * expected_TD.norm()


def test_a_cuda_graph_replays_with_another_routing(layer):
    system, (x_TD, routing) = MoEShard(**layer, engine=find_engine("triton")), draw(0)
    with torch.cuda.stream(torch.cuda.Stream()):
        system.forward(x_TD, routing)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_TD = system.forward(x_TD, routing)
    another_TD, other = draw(1)
    x_TD.copy_(another_TD)
    routing.expert_TK.copy_(other.expert_TK)
    graph.replay()
    expected_TD = Dense(**layer, engine=find_engine("loop")).forward(another_TD, other)
    assert (y_TD - expected_TD).norm() < 2e-3 * expected_TD.norm()


def test_peak_memory_is_at_most_three_times_the_gathered_tokens(layer):
    system, (x_TD, routing) = MoEShard(**layer, engine=find_engine("triton")), draw(0)
    system.forward(x_TD, routing)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    system.forward(x_TD, routing)
    hidden_share = F / D  # one rank holds the whole hidden layer, G ranks 1/G of it each
    gathered_bytes = x_TD.numel() * x_TD.element_size()
    assert torch.cuda.max_memory_allocated() - before <= (3 + hidden_share) * gathered_bytes
