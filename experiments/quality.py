"""What an approximate system costs: systems guess the tokens of a text beside the dense model; nothing is timed.

`python -m experiments.run experiment=quality` (a panel of kind quality) is its command.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException

from analysis.labels import remember
from analysis.quality import layer_measures, measures, quality_tables
from analysis.tables import markdown, write_table
from clusters.launch import LaunchFailed, launch, prepare
from experiments import environment
from experiments.campaign import cache_dir
from experiments.cells import Cell, Unsupported, check
from experiments.configuration import digest, find_class
from experiments.main import BAD_INPUT, INTERRUPTED, SOME_FAILED, read_tokens
from experiments.plan import QUALITY, Point
from experiments.quality_rank import DENSE, dealt, quality_rank
from experiments.records import Config, Launch, Member, Node, document
from experiments.worker import read_progress
from routers.learned import LearnedRouter
from workloads.checkpoint import open_checkpoint
from workloads.model import DECODE

CLUSTERS = ("gloo", "nccl", "emulated")
PRELOAD = ["experiments.quality_rank", "deepspeed.moe.layer"]
UNSHOWN = ("_target_", "name", "engine", "about")  # of a system's options
Sums = dict[str, dict[str, float]]


def run_quality(points: Sequence[Point], command: Sequence[str] = ()) -> int:
    """Measure the systems of these points, write tables and the setting to `out`; returns the exit status.

    A system that cannot run the model, or fails, is a row with its reason.
    """
    configs = {digest(document(one)): _untimed(one) for point in points for one in point.configs}
    try:
        if others := sorted({point.kind for point in points} - {QUALITY}):
            raise ValueError(f"panels of kind quality are measured alone; the experiment has {', '.join(others)} too")
        lacking = _find_refused(configs)
        Path(next(iter(configs.values())).out).mkdir(parents=True, exist_ok=True)
        prepare(next(iter(configs.values())).cluster, PRELOAD)
        found: dict[str, Sums] = {}
        for together in _launches({name: one for name, one in configs.items() if name not in lacking}):
            sums, failed = _measure(together)
            found |= {name: {"own": sums[name], DENSE: sums[DENSE]} for name in together if name not in failed}
            lacking |= failed
    except LaunchFailed as failure:
        print(f"{failure.traceback}\nerror: {failure}", file=sys.stderr)
        return SOME_FAILED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (KeyboardInterrupt, SignalException):
        print("interrupted: nothing is written; the same command begins anew", file=sys.stderr)
        return INTERRUPTED
    _write(configs, found, lacking, command)
    return SOME_FAILED if any(state != "unsupported" for state, _ in lacking.values()) else 0


def _untimed(config: Config) -> Config:
    """`auto` is the loop here: it would time engines, and what is measured does not depend on how fast they are."""
    engines = {name: "loop" if name == "auto" else name for name in (config.engine, config.system.get("engine"))}
    system = Node(config.system | {"engine": engines[config.system.get("engine")]})
    return replace(config, engine=engines[config.engine], system=system)


def _find_refused(configs: Mapping[str, Config]) -> dict[str, tuple[str, str]]:
    """By name, the state and reason of systems that cannot run the model. ValueError for bad input, and if none can."""
    refused = {}
    for name, config in configs.items():
        _check_text(config)
        try:
            check(Cell(config, 0))
        except Unsupported as error:
            refused[name] = ("unsupported", str(error))
    if len(refused) == len(configs):
        raise ValueError(next(iter(refused.values()))[1])
    return refused


def _check_text(config: Config) -> None:
    """Raise ValueError, in one sentence, where guesses would say nothing of the model or there is too little text."""
    model, cluster = config.model, config.cluster
    if not model.checkpoint:
        raise ValueError("model.checkpoint is null: what untrained weights guess has no quality; use a trained model")
    if not issubclass(find_class(config.router), LearnedRouter):
        raise ValueError(f"router is {config.router.name!r}; it must be 'learned', by which the model was trained")
    if cluster.kind not in CLUSTERS:
        raise ValueError(f"cluster is {cluster.kind!r}; quality is measured on one of {', '.join(CLUSTERS)}")
    if model.regime(config.regime) == DECODE:
        raise ValueError("regime is 'decode'; quality is measured on whole sequences, with regime=prefill")
    held_out_PL = open_checkpoint(model.checkpoint).held_out()
    if held_out_PL is None:
        read_tokens(Cell(config, 0))
        return
    num_passages, length = held_out_PL.shape
    if config.seq_len > length:
        raise ValueError(f"seq_len is {config.seq_len}; held-out passages of {model.checkpoint} have {length} tokens")
    if not dealt(num_passages, 0, cluster.world_size, config.batch_size):
        raise ValueError(
            f"batch_size is {config.batch_size} on {cluster.world_size} ranks, which is more than the {num_passages} "
            f"held-out passages of {model.checkpoint}"
        )


def _launches(configs: Mapping[str, Config]) -> Iterator[dict[str, Config]]:
    """Those with the same workload, together."""
    keys = {name: digest(document(config.workload)) for name, config in configs.items()}
    for key in dict.fromkeys(keys.values()):
        yield {name: config for name, config in configs.items() if keys[name] == key}


def _measure(configs: Mapping[str, Config]) -> tuple[Sums, dict[str, tuple[str, str]]]:
    """Sums by name, with the dense model's; and the state and reason of those that made a rank die.

    Raises LaunchFailed where a rank dies while no system runs.
    """
    remaining, failed = dict(configs), {}
    while remaining:
        workload = next(iter(remaining.values())).workload
        cells = {name: Member(config.system, Cell(config, 0).engine) for name, config in remaining.items()}
        with tempfile.TemporaryDirectory() as folder:
            given = {"cache_dir": str(cache_dir()), "folder": folder, "parent": os.getpid()}
            path = Path(folder) / "launch.json"
            path.write_text(json.dumps(document(Launch(workload=workload, cells=cells, **given))))
            try:
                launch(workload.cluster, quality_rank, str(path))
                return json.loads((Path(folder) / "quality.json").read_text()), failed
            except LaunchFailed as failure:
                guilty = read_progress(Path(folder), failure.rank)["cell"]
                if not guilty:
                    raise
                failed[guilty] = (failure.kind, str(failure))
                del remaining[guilty]
    return {}, failed


def _write(
    configs: Mapping[str, Config],
    found: Mapping[str, Sums],
    lacking: Mapping[str, tuple[str, str]],
    command: Sequence[str],
) -> None:
    remember({"system": one.system.name, "config": {"system": one.system}} for one in configs.values())
    rows, layers = [], []
    for name, config in configs.items():
        row, top_k = _place(config), config.model.top_k
        if name in lacking:
            state, reason = lacking[name]
            rows.append(row | {"state": state, "reason": reason})
            continue
        own, dense = found[name]["own"], measures(found[name][DENSE], top_k)
        row |= {"guesses": int(own["guesses"]), "dense_perplexity": dense["perplexity"]}
        rows.append(row | {"state": "ok"} | measures(own, top_k))
        layers += [row | layer for layer in layer_measures(own, top_k)]
    tables = [table for table in quality_tables(rows, layers) if len(table.shown)]
    folder = Path(next(iter(configs.values())).out)
    written = [str(path) for table in tables for path in write_table(folder / table.name, table)]
    (folder / "setting.json").write_text(json.dumps(_setting(configs, command), indent=1) + "\n")
    shown = [markdown(table) for table in tables if table.name != "quality_layers"]
    print(*shown, f"wrote {', '.join(written)}", sep="\n")


def _place(config: Config) -> dict[str, Any]:
    """What a row is of."""
    plain = {name: value for name, value in config.system.items() if name not in UNSHOWN}
    options = (f"{name}={value}" for name, value in plain.items() if isinstance(value, bool | int | float | str))
    return {
        "system": config.system.name,
        "options": " ".join(options),
        "exactness": find_class(config.system).exactness,
        "engine": Cell(config, 0).engine,
        "checkpoint": config.model.checkpoint,
        "world_size": config.cluster.world_size,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "precision": config.precision,
    }


def _setting(configs: Mapping[str, Config], command: Sequence[str]) -> dict[str, Any]:
    """Command, time, machine, and each workload once."""
    workloads = {digest(stored): stored for stored in (document(one.workload) for one in configs.values())}
    told = {"command": list(command), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    return told | {"environment": environment.describe(), "workloads": list(workloads.values())}
