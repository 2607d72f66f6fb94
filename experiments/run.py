"""`python -m experiments.run [experiment=...] [key=value ...] [-m]`: compose, plan, run, show.

Hydra's jobs are collected and the campaign runs after Hydra has finished, so that all jobs of a multirun are one
interleaved campaign.
"""

import contextlib
import io
import sys
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.composition import known_keys, with_implied
from experiments.main import BAD_INPUT, run_points
from experiments.panels import Job, experiment_points, sweep_points
from experiments.plan import QUALITY, Point
from experiments.refusals import refusal

CONF = str(Path(__file__).parents[1] / "conf")
JOBS: list[Job] = []


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def compose(config: DictConfig) -> None:
    """Note one job; with a launcher that leaves this process (submitit, ray) run it there, in a folder of its own."""
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    multirun = settings.mode == RunMode.MULTIRUN
    stays_here = settings.launcher._target_.endswith("BasicLauncher")
    if multirun and config.experiment.name == "single":
        config.experiment.name = "sweep"
    leaves = multirun and not stays_here
    if leaves:
        config.out = f"{config.out}/{settings.job.num}"
    try:
        points = experiment_points(config, overrides)
    except ValueError as error:
        sys.exit(str(error))
    if leaves:
        sys.exit(run_points(points, overrides))
    pairs = [override.lstrip("+~").partition("=") for override in overrides]
    JOBS.append(Job({key: value for key, _, value in pairs}, config, points))


def run(points: list[Point], command: list[str]) -> int:
    """Measure these points: as a campaign, or the quality of outputs, of which nothing is timed."""
    if QUALITY not in {point.kind for point in points}:
        return run_points(points, command)
    from experiments.quality import run_quality  # transformers costs seconds

    return run_quality(points, command)


def _compose_or_exit() -> None:
    """Run Hydra's jobs; what it refuses (unknown names and keys) is said in one sentence, with exit status 2."""
    said = io.StringIO()
    sys.argv[1:] = with_implied(sys.argv[1:])
    try:
        with contextlib.redirect_stderr(said):
            compose()
    except SystemExit as ended:
        if ended.code == 0:
            raise
        GlobalHydra.instance().clear()
        told = ended.code if isinstance(ended.code, str) else said.getvalue()
        print(f"error: {refusal(told, known_keys)}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def main() -> int:
    """Run one campaign of what was typed; the exit status."""
    JOBS.clear()
    _compose_or_exit()
    asked = JOBS[0].points if len(JOBS) == 1 else sweep_points(JOBS)
    return run(asked, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
