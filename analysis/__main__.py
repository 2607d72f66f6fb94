"""`python -m analysis results/fig3`: rebuild report.html, figures, tables and the summary of stored campaigns."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from analysis.report import render


def main(arguments: list[str] | None = None) -> int:
    """Render each folder given; 1, with a sentence, at the first that is no campaign."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("folder", nargs="+", type=Path, help="a campaign's folder, such as results/fig3")
    # A pipe or a log file has no width of its own, and the tables need more than the 80 columns assumed for it.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for folder in parser.parse_args(arguments).folder:
        try:
            if not (folder / "plan.json").exists():
                raise ValueError(f"{folder} is not a campaign's folder: it has no plan.json.")
            render(folder, console)
        except ValueError as error:
            console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
