"""Is the baseline slowed by the harness? Times `deepspeed` through the harness against DeepSpeed's layer by itself.

    python -m scripts.compare_bare_deepspeed [--num-experts 128] [--batch-size 25] [--world-size 2]

Both run in the same gloo processes, one thread each, on the same weights, tokens and routing, in turns (A B B A ...).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import one_hot

from analysis.stats import ratio_interval
from clusters.launch import launch, prepare
from clusters.network import Network
from clusters.session import ClusterSpec, connect
from experiments.moe_layer import MoELayer
from experiments.recorder import Recorder
from routers.synthetic import SyntheticRouter
from systems.base import LayerShape
from systems.deepspeed_moe import LOGIT, DeepSpeedMoE, ExpertMLP, paper_capacity_factor
from systems.engines.loop import LoopEngine
from workloads.model import ModelShape
from workloads.weights import SeededLayer

SEQ_LEN = 120


def bare_layer(
    shape: LayerShape, expert_T: torch.Tensor, weights: SeededLayer, group: dist.ProcessGroup
) -> torch.nn.Module:
    """DeepSpeed's MoE as its documentation builds it, with a gate that has the logits ready."""
    from deepspeed.moe.layer import MoE
    from deepspeed.moe.sharded_moe import TopKGate, top1gating

    logits_TE = one_hot(expert_T, shape.num_experts).float() * LOGIT

    class ReadyGate(TopKGate):
        def forward(self, input, used_token=None, sparse_routes=False, use_tutel=False):
            factor, least = self.eval_capacity_factor, self.min_capacity
            all_used: Any = None
            return top1gating(
                logits_TE, factor, least, all_used, None, True, False, self.ep_group, sparse_routes, use_tutel
            )

    factor = paper_capacity_factor(shape.num_experts)
    expert = ExpertMLP(shape)
    moe: Any = MoE(shape.d_model, expert, shape.num_experts, ep_size=group.size(), k=1, eval_capacity_factor=factor)
    ready = ReadyGate(shape.d_model, shape.num_experts, 1, 1.0, factor, 4, use_rts=False)
    moe.deepspeed_moe.gate = ready
    num_local = shape.num_experts // group.size()
    wi_eDF, wo_eFD = weights.experts(list(range(group.rank() * num_local, (group.rank() + 1) * num_local)))
    for local, mlp in enumerate(moe.deepspeed_moe.experts.deepspeed_experts):
        mlp.wi.weight.data, mlp.wo.weight.data = wi_eDF[local].T.contiguous(), wo_eFD[local].T.contiguous()
    moe.set_deepspeed_parallelism()
    return moe.eval()


@torch.inference_mode()
def time_rank(folder: str) -> None:
    """Rank entry: leaves times.<rank>.json, {"harness": [...], "bare": [...]} in ms."""
    spec = json.loads((Path(folder) / "spec.json").read_text())
    num_experts, num_tokens = spec["num_experts"], spec["batch_size"] * SEQ_LEN
    with connect(ClusterSpec("gloo", spec["world_size"]), Network("none"), Path(folder) / "device_lock") as session:
        model = ModelShape(num_experts, 64, 256, 16, 4, 4, 2, 8000)
        shape = LayerShape(num_experts, model.d_model, model.d_ff, num_tokens)
        weights = SeededLayer(model, 1, 0, torch.float32, session.device)
        router = SyntheticRouter(num_experts=num_experts, rank=session.rank, seed=0)
        recorder = Recorder(session.clock, lambda: None)  # nothing is observed
        layer = MoELayer(1, router, recorder)
        common = {"weights": weights, "group": session.group, "engine": LoopEngine(), "span": recorder.span}
        layer.system = DeepSpeedMoE(shape=shape, **common)
        x_BLD = torch.randn(spec["batch_size"], SEQ_LEN, model.d_model)
        routing = router.route(x_BLD.flatten(0, 1), layer=1, iteration=0)
        moe = bare_layer(shape, routing.expert_TK.squeeze(1), weights, session.group)
        torch.testing.assert_close(layer(x_BLD), moe(x_BLD)[0])
        arms: dict[str, Callable] = {"harness": layer, "bare": lambda x: moe(x)[0]}
        times: dict[str, list[float]] = {name: [] for name in arms}
        for iteration in range(spec["iterations"]):
            for name in sorted(arms, reverse=bool(iteration % 2)):
                dist.barrier()
                start = time.perf_counter()
                arms[name](x_BLD)
                times[name].append((time.perf_counter() - start) * 1e3)
    (Path(folder) / f"times.{session.rank}.json").write_text(json.dumps(times))


def main() -> None:
    """Launch, reduce over ranks by the maximum, print the ratio with its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-experts", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=60)
    spec = vars(parser.parse_args())
    cluster = ClusterSpec("gloo", spec["world_size"])
    prepare(cluster, ["scripts.compare_bare_deepspeed", "deepspeed.moe.layer"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spec.json").write_text(json.dumps(spec))
        launch(cluster, time_rank, folder)
        ranks = [json.loads((Path(folder) / f"times.{rank}.json").read_text()) for rank in range(spec["world_size"])]
    slowest = {name: np.max([rank[name][5:] for rank in ranks], axis=0) for name in ("harness", "bare")}
    ratio, low, high = ratio_interval([slowest["harness"]], [slowest["bare"]])
    medians = ", ".join(f"{name} {np.median(ms):.2f} ms" for name, ms in slowest.items())
    print(f"{spec}: {medians}; harness / bare = {ratio:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    from scripts import compare_bare_deepspeed  # ranks cannot import a function of the main module

    compare_bare_deepspeed.main()
