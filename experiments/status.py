"""`python -m experiments.status results/all`: where a campaign stands; `--resume` and `--retry` go on with it."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis.schema import FAILURES, STATES
from experiments.pack import forget
from experiments.store import Store, StoreBusy

RETRY = "measure cells in these states again, with all that took turns with them, and go on"
ORDER = ("planned", "running", *STATES, "damaged")


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or replace this process by the campaign's own command; 2 where there is no campaign."""
    parser = argparse.ArgumentParser(prog="python -m experiments.status", description=__doc__)
    parser.add_argument("folder", type=Path, help="a campaign's folder, such as results/all")
    parser.add_argument("--resume", action="store_true", help="run the campaign's own command again")
    parser.add_argument("--retry", nargs="+", default=[], choices=[*FAILURES, "all"], help=RETRY)
    given = parser.parse_args(arguments)
    store = Store(given.folder)
    try:
        plan = store.read_plan()
        if given.retry:
            _forget(FAILURES if "all" in given.retry else given.retry, plan, store)
    except (ValueError, StoreBusy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.resume or given.retry:
        command = [sys.executable, "-m", "experiments.run", *plan["command"], f"out='{given.folder}'"]
        os.execv(sys.executable, command)
    show(plan, store, Console())
    return 0


def _forget(failures: Collection[str], plan: dict[str, Any], store: Store) -> None:
    """Make planned cells of those that failed so."""
    with store.writing():
        forget(store.folder, {cell for cell, state in states_of(plan, store).items() if state in failures})


def show(plan: dict[str, Any], store: Store, console: Console) -> None:
    """Cells by panel and state and how to go on."""
    states = states_of(plan, store)
    present = [state for state in ORDER if state in states.values()]
    table = Table(title=f"{plan['campaign']} in {store.folder}", title_justify="left", box=SIMPLE_HEAD)
    for name in ("panel", *present):
        table.add_column(name, justify="left" if name == "panel" else "right")
    for panel in plan["panels"]:
        cells = {cell for point in panel["points"] for cell in point["cells"]}
        counts = Counter(states[cell] for cell in cells)
        table.add_row(panel["title"], *(str(counts[state]) for state in present))
    counts = Counter(states.values())
    table.add_row("all, shared cells once", *(str(counts[state]) for state in present), style="bold")
    console.print(table)
    if counts["running"]:
        console.print("A process is measuring now.")
        return
    resume = f"make resume CAMPAIGN={store.folder}"
    if counts["planned"] or counts["damaged"]:
        console.print(f"It goes on with: {resume}", soft_wrap=True)
    if any(counts[state] for state in FAILURES):
        console.print(f"What has no numbers is measured again with: {resume} RETRY=all", soft_wrap=True)


def states_of(plan: dict[str, Any], store: Store) -> dict[str, str]:
    """The state of every planned cell, running ones included."""
    cells = {cell for panel in plan["panels"] for point in panel["points"] for cell in point["cells"]}
    return store.states(cells) | dict.fromkeys(cells & set(store.running_cells()), "running")


if __name__ == "__main__":
    sys.exit(main())
