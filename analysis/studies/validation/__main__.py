"""How far a described device is from the real one: real runs beside the same runs, simulated.

    python -m analysis.studies.validation results/validate                     # the published runs
    python -m analysis.studies.validation SIMULATED... --measured MEASURED...  # campaigns of experiment=alone
    python -m analysis.studies.validation results/validate_here                # one campaign that has both

Table, figure and errors go into the first campaign's folder, and where `--document` and `--errors` say.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from analysis.load import Campaign, load_campaign
from analysis.studies.paper.reference import load_reference
from analysis.studies.validation.compare import (
    chosen_by_us,
    compare,
    fitted_by_authors,
    published_times,
    run_times,
    summary,
)
from analysis.studies.validation.figure import plot_validation
from analysis.studies.validation.words import by_system, replace_block, sentences, table

HERE = "validate_here"  # the experiment that measures and simulates the same cells


def against_published(campaign: Campaign) -> pd.DataFrame:
    """Rows of `compare` of the published runs; ValueError for one that was not simulated."""
    for run in campaign.runs.values():
        if run["state"] != "ok":
            raise ValueError(f"{run['system']} at {run['point']} has no times: {run['reason']}")
    ours, runs = run_times([campaign], simulated=True), load_reference().runs
    return compare({run: published_times(runs, run) for run in ours}, ours, fitted_by_authors)


def against_measured(simulated: list[Campaign], measured: list[Campaign]) -> pd.DataFrame:
    """Rows of `compare` of runs of our own; ValueError where none was measured."""
    real = run_times(measured, simulated=False)
    if not real:
        raise ValueError(f"{measured[0].folder} has no cells that are both measured and simulated")
    return compare(real, run_times(simulated, simulated=True), chosen_by_us)


def main(arguments: list[str] | None = None) -> int:
    """Write table, figure and errors; 2 where the campaigns cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.studies.validation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("campaign", type=Path, nargs="+")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], help="what the campaigns simulate")
    parser.add_argument("--document", type=Path, help="a page that has a block for the table, beside figures/")
    parser.add_argument("--errors", type=Path, help="devices/validated.json, which reports go by")
    given = parser.parse_args(arguments)
    try:
        campaigns = [load_campaign(path) for path in given.campaign]
        if here := campaigns[0].plan["experiment"] == HERE:
            runs = against_measured(campaigns, campaigns)
        elif given.measured:
            runs = against_measured(campaigns, [load_campaign(path) for path in given.measured])
        else:
            runs = against_published(campaigns[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = "here" if here else next(iter(campaigns[0].runs.values()))["config"]["device"]["name"]
    real = "measured" if here or given.measured else "published"
    text = by_system(runs) if here else f"{sentences(runs)}\n\n{table(runs, real)}"
    folders = [given.campaign[0], *([given.document.parent / "figures"] if given.document else [])]
    (given.campaign[0] / "validation.md").write_text(f"{text}\n")
    for folder in folders if real == "published" else ():
        plot_validation(runs, folder / f"validation_{device}")
    if not here:
        for path in filter(None, [given.campaign[0] / "validated.json", given.errors]):
            known = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(known | {device: summary(runs)}, indent=1) + "\n")
    if given.document:
        given.document.write_text(replace_block(given.document.read_text(), device, text))
    print(text if here else sentences(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
