"""The sample campaigns under results/: measure them anew, and say of each what it is of.

    python -m scripts.samples               # all, one after the other; the same command goes on where it was stopped
    python -m scripts.samples fig3 league      # some
    python -m scripts.samples --manifest    # measure nothing, write results/samples.json anew

Times are those of two cores. Samples of other machines (an H100, two hosts joined by wires) stay as they are.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.files import read_json, read_runs
from analysis.schema import CORRUPT, RUNS
from experiments.identity import code_digest
from experiments.main import INTERRUPTED
from experiments.records import Config, read
from experiments.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
MANIFEST = RESULTS / "samples.json"
FIDELITY = "cluster.world_size=2 tier.launches=6 tier.rounds=4"
EXECUTOR = "tier.launches=16 tier.rounds=8"
TWO_FORMS = "experiment.systems=[ep,ep_planned] experiment.baseline=ep experiment.twin=ep"
# By name of the folder: minutes, and what is typed.
CAMPAIGNS = {
    "fig3": (14, "experiment=fig3"),
    "paper": (25, "experiment=all"),
    "league": (20, "experiment=league"),
    "decoders": (40, "experiment=decoders"),
    "attribution": (12, "experiment=attribution tier.launches=3 tier.rounds=2"),
    "crossover": (20, "experiment=crossover scale=laptop cluster=emulated tier.launches=3"),
    "fidelity": (12, f"experiment=fidelity {FIDELITY}"),
    "executor": (8, f"experiment=sections {TWO_FORMS} {EXECUTOR}"),
    "bench-layer": (5, "experiment=bench_layer tier.launches=3 experiment.panels.bench_layer.values=[32,64]"),
}
THEN = {"fidelity": "analysis.studies.fidelity"}  # what makes of a campaign's cells the table that a page shows
DERIVED = ("summary.csv", "validity.json", "report.html", "tables", "*.svg", ".lock")  # which `make report` makes again


def measure(name: str) -> int:
    """Run one campaign to its end; its exit status."""
    minutes, typed = CAMPAIGNS[name]
    folder = RESULTS / f"sample-{name}"
    print(f"samples: {name}, about {minutes} min", flush=True)
    if not is_current(folder):
        _remove(folder, ["*"])
    command = [sys.executable, "-m", "experiments.run", *typed.split(), "tier=quick", f"out={folder}"]
    status = subprocess.run(command, cwd=RESULTS.parent, check=False).returncode
    if status == 0:
        if name in THEN:
            subprocess.run([sys.executable, "-m", THEN[name], str(folder)], cwd=RESULTS.parent, check=True)
        _remove(folder, [*DERIVED, *_not_shown(folder)])
    return status


def _not_shown(folder: Path) -> list[str]:
    """The figures of a sample that no page shows; `make report` makes them again."""
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    return [path.name for path in folder.glob("*.png") if f"{folder.name}/{path.name}" not in pages]


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def folders() -> list[Path]:
    """The folders of all packed samples."""
    return sorted(path.parent for path in RESULTS.glob(f"sample-*/**/{RUNS}"))


def described(folder: Path) -> dict[str, Any]:
    """What a sample is of: command, cells, commits, days, machines, and its code (none where it is not recorded)."""
    runs, plan = list(read_runs(folder).values()), read_json(folder / "plan.json")
    environments = [run["environment"] for run in runs]
    machines = {(one["cpu"], one["cores"], *one["gpus"]) for one in environments}
    codes = {run["code"] for run in runs if "code" in run}
    return {
        "command": [typed for typed in plan["command"] if not typed.startswith("out=")],
        "cells": len(runs),
        "commits": sorted({one["git_commit"][:8] + "+" * one["git_dirty"] for one in environments}),
        "days": sorted({run["started"][:10] for run in runs}),
        "machines": sorted(" x ".join(map(str, machine)) for machine in machines),
        "code": sorted(codes) or None,
    }


def is_current(folder: Path) -> bool:
    """Whether all cells of a sample that can be read were measured by the code that is here now."""
    return all(_is_of_this_code(run) for run in Store(folder).runs().values() if run["state"] != CORRUPT)


def _is_of_this_code(run: dict[str, Any]) -> bool:
    try:
        return run.get("code") == code_digest(read(Config, run["config"]))
    except ValueError:  # a key of older code
        return False


def caption(folder: Path) -> str:
    """When, where and by which code a sample was measured, for what shows it."""
    about = described(folder)
    days, machines, commits = ("; ".join(about[key]) for key in ("days", "machines", "commits"))
    older = "" if is_current(folder) else " The code has changed since."
    return f"Measured on {days} at commit {commits} ({machines}).{older}"


def write_manifest() -> None:
    """results/samples.json, from the samples themselves."""
    known = {str(folder.relative_to(RESULTS)): described(folder) for folder in folders()}
    MANIFEST.write_text(json.dumps(known, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, then describe all; 1 where a campaign failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CAMPAIGNS)}; all if none is given")
    parser.add_argument("--manifest", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - CAMPAIGNS.keys():
        print(f"samples: there is no sample {', '.join(sorted(unknown))}, only {', '.join(CAMPAIGNS)}")
        return 2
    names = [] if options.manifest else options.names or list(CAMPAIGNS)
    print(f"samples: {len(names)} campaigns, about {sum(CAMPAIGNS[name][0] for name in names)} min")
    failed = []
    try:
        for name in names:
            if (status := measure(name)) == INTERRUPTED:
                raise KeyboardInterrupt
            failed += [name] * (status != 0)
    except KeyboardInterrupt:
        print("samples: interrupted; the same command goes on")
        return INTERRUPTED
    write_manifest()
    print(f"samples: {MANIFEST.name} describes {len(folders())}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
