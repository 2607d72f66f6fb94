"""Mirrors of a campaign outside its folder; the files stay the truth, and no mirror disturbs a measurement."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import pandas as pd

MODES = ("offline", "online", None)
LAYER_METRICS = ("layer_moe_ms", "section_ms", "entry_skew_ms")
COUNTED = ("rows_computed", "rows_useful", "dropped", "bytes_sent", "flops", "memory_bytes")
FACTS = ("cell", "launch", "twin", "engine", "precision", "source", "tier", "point", "seed")
SECRET_NAME = re.compile(r"(^|_)(token|key|secret|password|passwd|credentials?)$", re.IGNORECASE)
URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
# Nothing of the machine, the terminal, the repository or the environment goes along, and no call waits for ever.
SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "symlink": False,
    "save_code": False,
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": 30,
    "finish_timeout": 120,
    "finish_timeout_raises": True,
}


class Logger(Protocol):
    """Told of every cell once its launch is over and its files are written; called by the parent only."""

    def cell(self, run: dict[str, Any], samples: pd.DataFrame | None) -> None:
        """One cell: its run.json and, in state ok, its rows (the stored schema). Never raises for the mirror's sake."""
        ...

    def close(self) -> None:
        """The campaign is over, or interrupted."""
        ...


class NoLogger:
    """Files only."""

    def cell(self, run: dict[str, Any], samples: pd.DataFrame | None) -> None:
        pass

    def close(self) -> None:
        pass


class WandbLogger:
    """One Weights & Biases run per cell, grouped by campaign.

    Its process lives as long as a call of `cell`, so that it computes beside no rank. The first failure (no network,
    no login) is said in one sentence on stderr and ends the mirror, not the campaign.

    mode: offline, online, or None for wandb's own default (WANDB_MODE); `dir` gets the folder `wandb`.
    Raises ValueError for another mode.
    """

    def __init__(self, project: str, entity: str | None, mode: str | None, dir: str) -> None:
        if mode not in MODES:
            raise ValueError(f"logger.mode is {mode!r}; it must be offline, online or null")
        self._where = {"project": project, "entity": entity, "dir": dir}
        self._mode, self._failed = mode, False

    def cell(self, run: dict[str, Any], samples: pd.DataFrame | None) -> None:
        if self._failed:
            return
        try:
            self._mirror(run, samples)
        except Exception as error:  # whatever breaks in a mirror, the measurement goes on
            self._failed = True
            reason = " ".join(_redacted(str(error)).split()) or type(error).__name__
            print(f"warning: Weights & Biases gets no more cells of this campaign ({reason})", file=sys.stderr)

    def close(self) -> None:
        """Nothing is open between cells."""

    def _mirror(self, run: dict[str, Any], samples: pd.DataFrame | None) -> None:
        Path(self._where["dir"]).mkdir(parents=True, exist_ok=True)  # wandb would take a temporary folder instead
        with _session(self._mode) as wandb:
            mirrored = wandb.init(**self._where, **describe(run))
            if samples is not None:
                for iteration, ttft_ms in slowest_ttft_ms(samples).items():
                    mirrored.log({"iteration/ttft_ms": ttft_ms}, step=iteration)
                mirrored.summary.update(medians(samples))
            mirrored.summary.update(without_secrets({"state": run["state"], "reason": run.get("reason")}))
            mirrored.finish(exit_code=0 if run["state"] == "ok" else 1)


@contextmanager
def _session(mode: str | None) -> Iterator[Any]:
    """wandb, from the start of its process to its end; RuntimeError if it would have to ask for a key."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb

    chosen: dict[str, Any] = {} if mode is None else {"mode": mode}
    try:
        settings = wandb.setup(wandb.Settings(**SETTINGS, **chosen)).settings
        if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no API key; run `wandb login`, or use logger.mode=offline")
        yield wandb
    finally:
        wandb.teardown()


def describe(run: dict[str, Any]) -> dict[str, Any]:
    """What a run of Weights & Biases is called, where it stands, and how it was configured."""
    point, twin = run["point"], " twin" if run.get("twin") else ""
    config = {**run["config"], "run": {name: run.get(name) for name in FACTS}}
    return {
        "group": run["campaign"],
        "job_type": run["system"],
        "name": f"{run['system']} E={point['num_experts']} batch={point['batch_size']} launch {run['launch']}{twin}",
        "tags": [run["source"], run["tier"], run["config"]["scale"]["name"]],
        "config": without_secrets(config),
    }


def slowest_ttft_ms(samples: pd.DataFrame) -> dict[int, float]:
    """ms of the slowest rank, by iteration of the end-to-end pass."""
    rows = samples.query("metric == 'ttft_ms' and phase == 'measure'")
    return rows.pivot_table(index="iteration", values="value", aggfunc="max")["value"].to_dict()


def medians(samples: pd.DataFrame) -> dict[str, float]:
    """One number per metric (`section_ms/<section>` per section): the median over iterations, and layers where timed.

    Times are those of the slowest rank, ttft_ms of the end-to-end and the others of the instrumented pass; counts are
    summed over layers and ranks.
    """
    named = samples.assign(name=(samples["metric"] + "/" + samples["section"]).fillna(samples["metric"]))
    timed = named.query("metric in @LAYER_METRICS and phase == 'instrumented'")
    counted = named.query("metric in @COUNTED and phase == 'measure'")
    found = _median(timed, ["name", "iteration", "layer"], "max") | _median(counted, ["name", "iteration"], "sum")
    return {"ttft_ms": median(slowest_ttft_ms(samples).values()), **found}


def _median(rows: pd.DataFrame, by: list[str], how: str) -> dict[str, float]:
    reduced: Any = rows.groupby(by)["value"].agg(how)
    return reduced.groupby("name").median().to_dict()


def without_secrets(value: Any) -> Any:
    """A configuration without the keys whose name says secret, and without secrets of the environment in its texts."""
    if isinstance(value, dict):
        return {key: without_secrets(kept) for key, kept in value.items() if not SECRET_NAME.search(str(key))}
    if isinstance(value, list):
        return [without_secrets(kept) for kept in value]
    return _redacted(value) if isinstance(value, str) else value


def _redacted(text: str) -> str:
    for name, secret in os.environ.items():
        if SECRET_NAME.search(name) and len(secret) >= 8:
            text = text.replace(secret, "***")
    return URL_LOGIN.sub("***@", text)
