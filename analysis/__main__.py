"""`python -m analysis results/fig3`: rebuild the summary, figures and tables of stored campaigns."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from analysis.report import render


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("folder", nargs="+", type=Path, help="a campaign's folder, such as results/fig3")
    # A pipe or a log file has no width of its own, and the tables need more than the 80 columns assumed for it.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for folder in parser.parse_args(arguments).folder:
        try:
            render(folder, console)
        except ValueError as error:
            console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
