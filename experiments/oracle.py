"""Is the output right? Every MoE layer of a system against the dense model, expert by expert in float32."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from experiments.bench import Bench
from experiments.configuration import TOLERANCES, set_precision
from experiments.schedule import iterations_of
from routers.base import Routing
from systems.base import System
from systems.collectives import all_gather
from workloads.weights import MOST_THREADS


@torch.inference_mode()
def verify(bench: Bench, cell: str) -> dict[str, Any]:
    """Compare every MoE layer's output with the dense model's on the same input and routing, on all ranks.

    Dropped tokens must be as many as the system's account says and are left out of the comparison. A system with a rule
    of its own is compared, in all tokens, with what that rule gives on whole experts (`System.expected`). This forward
    pass is recorded as the system's first; one that learns its rule from a first pass has had that before.
    """
    systems = bench.systems[cell]
    iteration = iterations_of(bench.workload.tier)["warmup"].start
    own_rule = any(system.own_rule for system in systems.values())
    if own_rule and any(system.stateful for system in systems.values()):
        bench.program.prefetch(iteration)
        with bench.session.clock.running():
            bench.timed_forward(cell, iteration, phase="warmup")
    for layer in bench.program.layers.values():
        layer.remember = True
    bench.program.prefetch(iteration)
    if bench.program.keeps_every_expert:
        _draw_weights(bench)
    with bench.session.clock.running():
        bench.timed_forward(cell, iteration, phase="first")
    errors, dropped = zip(*(_layer_error(bench, systems[block], block) for block in bench.program.layers), strict=True)
    for layer in bench.program.layers.values():
        layer.remember, layer.seen = False, None
    accounts = bench.accountant.accounts([(cell, block, iteration) for block in bench.program.layers])
    accounted = [account.dropped for _, account in accounts]
    largest = float(torch.tensor(errors).max())  # keeps NaN, which Python's max may lose
    other_drops = not own_rule and list(dropped) != accounted
    mine = torch.tensor([[largest, float(other_drops)]], device=bench.session.device)
    worst, miscounted = all_gather(mine, bench.session.group).amax(0).tolist()
    tolerance = TOLERANCES[bench.workload.precision] + max(system.slack for system in systems.values())
    passed = worst <= tolerance and not miscounted
    return {
        "relative_error": worst,
        "tolerance": tolerance,
        "dropped_as_accounted": not miscounted,
        "own_rule": own_rule,
        "passed": passed,
    }


def _draw_weights(bench: Bench) -> None:
    """Make what the checks keep before ranks take turns: all at once, not one rank after the other."""
    experts = [[expert] for expert in range(bench.workload.model.num_experts)]
    with ThreadPoolExecutor(MOST_THREADS) as threads:
        for layer in bench.program.oracle_weights.values():
            list(threads.map(layer.experts, experts))


def _layer_error(bench: Bench, system: System, block: int) -> tuple[float, int]:
    """(largest error relative to the largest output, number of zero rows where there should be none)."""
    seen = bench.program.layers[block].seen
    assert seen is not None
    x_TD, routing, y_TD = seen
    exact = Routing(routing.expert_TK, routing.weight_TK.float())
    set_precision("fp32")
    expected_TD = system.expected(x_TD.float(), exact, bench.program.references[block])
    set_precision(bench.workload.precision)
    dropped_T = (y_TD == 0).all(1) & (expected_TD != 0).any(1) & (not system.own_rule)
    error = (y_TD.float() - expected_TD)[~dropped_T].abs().max() if not dropped_T.all() else torch.zeros(())
    return float(error / expected_TD.abs().max()), int(dropped_T.sum())
