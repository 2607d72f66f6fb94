"""How far emulated times are from real ones: the same cells on real processes and emulated, side by side.

`python -m analysis.studies.fidelity CAMPAIGN` pairs each panel P of a campaign with P_emulated; `--emulated OTHER`
pairs equal panels of two campaigns (a launch that exists already, as under torchrun, cannot be part of the same one).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.load import load_campaign
from analysis.studies.fidelity.compare import compare, held_against, orderings, real_floor
from analysis.studies.fidelity.figure import plot_fidelity
from analysis.studies.fidelity.words import markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write fidelity.csv, fidelity.md and the figure into the campaign's folder."""
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.fidelity", description=__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--emulated", type=Path, help="a second campaign, with the same panels emulated")
    given = parser.parse_args(argv)
    try:
        campaign = load_campaign(given.campaign)
        real, emulated = held_against(campaign, load_campaign(given.emulated) if given.emulated else None)
        errors = compare(real, emulated)
        if errors.empty:
            raise ValueError(f"{given.campaign}: no cell was measured on both clusters")
        table = markdown(errors, orderings(real, emulated), real_floor(real))
        errors.to_csv(given.campaign / "fidelity.csv", index=False)
        (given.campaign / "fidelity.md").write_text(table + "\n")
        picture = plot_fidelity(errors, given.campaign / "fidelity", note="")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table, f"\nwrote {', '.join(str(p) for p in (given.campaign / 'fidelity.csv', picture.png, picture.svg))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
