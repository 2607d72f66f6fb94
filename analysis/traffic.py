"""`python -m analysis.traffic CAMPAIGN`: the bytes that ranks really exchanged, for communication benchmarks.

Of every recorded collective a matrix is written, row = source rank, column = destination rank, nothing to oneself:

name.csv        bytes, for anybody
*.nccl.csv      all-to-alls only, as fractions, which the alltoallv_perf of nccl-tests' pull request 157 reads (`-s FILE
                -b SIZE -e SIZE -d uint8`, SIZE as in the file's name); nccl-tests itself has no uneven all-to-all
cell.ptini      all all-to-alls of a cell in their order, counts of UINT8, which UCC's perftest reads
                (`ucc_perftest -c alltoallv -d uint8 --gen file:name=FILE`)
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Campaign, load_campaign

ALIGNED = 16  # bytes: nccl-tests rounds the data of a rank down to a multiple of this
INI_HEAD = "[format]\nversion = 1.0\ndescription = alltoallv of {cell}: {system}, {point}\n"
INI_COLLECTIVE = "\n[collective]\ntype = ALLTOALLV\nteam_size = {ranks}\ndatatype = UINT8\nflags = COUNT_32BIT\n"


def byte_matrix(sent_GG: np.ndarray) -> np.ndarray:
    """int64 [G, G]: whole bytes from rank to rank, the diagonal 0."""
    bytes_GG = np.rint(sent_GG).astype(np.int64)
    np.fill_diagonal(bytes_GG, 0)
    return bytes_GG


def comma_separated(bytes_GG: np.ndarray) -> str:
    """A line a sending rank."""
    return "".join(",".join(map(str, row)) + "\n" for row in bytes_GG.tolist())


def nccl_fractions(bytes_GG: np.ndarray) -> tuple[str, int]:
    """Fractions of the largest entry as text, and the bytes of the test (chunk x ranks) at which they are these bytes.

    The benchmark multiplies a fraction with its chunk and rounds down, so no fraction may fall below its bytes.
    """
    chunk = max(ALIGNED, -(-int(bytes_GG.max()) // ALIGNED) * ALIGNED)
    fraction_GG = bytes_GG / chunk
    short_GG = np.floor(chunk * fraction_GG) < bytes_GG
    fraction_GG = np.where(short_GG, np.nextafter(fraction_GG, 1), fraction_GG)
    text = "".join(",".join(format(value, ".17g") for value in row) + "\n" for row in fraction_GG.tolist())
    return text, chunk * len(bytes_GG)


def ucc_patterns(matrices: list[np.ndarray], cell: str, run: dict) -> str:
    """The file of UCC's perftest generator: every all-to-all as a pattern."""
    point = ", ".join(f"{name} {value}" for name, value in run["point"].items())
    parts = [INI_HEAD.format(cell=cell, system=run["system"], point=point)]
    for bytes_GG in matrices:
        rows = "".join(f"    {line}\n" for line in comma_separated(bytes_GG).splitlines())
        parts.append(f"{INI_COLLECTIVE.format(ranks=len(bytes_GG))}counts = {{\n{rows}}}\n")
    return "".join(parts)


def collectives_of(campaign: Campaign, cell: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, collective, bytes_GG) of every recorded collective; the name is its place in the run.

    Raises ValueError for a cell without recorded collectives, or with collectives of only some of its ranks.
    """
    frame, ranks = campaign.collectives(cell), campaign.runs[cell]["point"]["world_size"]
    if frame.empty:
        raise ValueError(f"cell {cell} has no recorded collectives; emulated and simulated cells have")
    if set(frame["ranks"]) != {ranks}:
        raise ValueError(f"cell {cell} has collectives among some of its {ranks} ranks; only those of all are exported")
    groups: Any = frame.groupby(["iteration", "layer"])
    for (iteration, layer), rows in groups:
        for k, (_, each) in enumerate(rows.groupby("sequence")):
            each = each.sort_values("rank")
            collective, section = each["collective"].iloc[0], each["section"].iloc[0]
            place = f"iteration{iteration}_layer{layer}_{k}_{'layer' if pd.isna(section) else section}_{collective}"
            yield place, collective, byte_matrix(np.stack(each["sent_to"].to_list()))


def export(campaign: Campaign, cell: str, folder: Path) -> pd.DataFrame:
    """Write the matrices of one cell under folder/cell and index.csv beside them; returns the index.

    Raises ValueError as `collectives_of`.
    """
    run, target = campaign.runs[cell], folder / cell
    found = list(collectives_of(campaign, cell))
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, collective, bytes_GG in found:
        (target / f"{name}.csv").write_text(comma_separated(bytes_GG))
        fractions, size = nccl_fractions(bytes_GG)
        if collective == "all_to_all":
            (target / f"{name}.{size}bytes.nccl.csv").write_text(fractions)
        total, most = int(bytes_GG.sum()), int(max(bytes_GG.sum(0).max(), bytes_GG.sum(1).max()))
        rows.append({"file": f"{name}.csv", "collective": collective, "bytes": total, "bytes_of_busiest_rank": most})
    uneven = [bytes_GG for _, collective, bytes_GG in found if collective == "all_to_all"]
    if uneven:
        (target / "cell.ptini").write_text(ucc_patterns(uneven, cell, run))
    index = pd.DataFrame(rows).assign(system=run["system"], **run["point"])
    index.to_csv(target / "index.csv", index=False)
    return index


def chosen(campaign: Campaign, cell: str | None, system: str | None, x: float | None) -> list[str]:
    """The measured cells that were asked for, those of the first launch where a system is named.

    Raises ValueError where nothing measured fits.
    """
    wanted = [cell] if cell else []
    if system:
        points = [point for panel in campaign.plan["panels"] for point in panel["points"] if x in (None, point["x"])]
        mine = {name: campaign.runs[name] for point in points for name in point["cells"] if name in campaign.frames}
        mine = {name: run for name, run in mine.items() if run["system"] == system and not run["twin"]}
        first = min((run["launch"] for run in mine.values()), default=0)
        wanted = [name for name, run in mine.items() if run["launch"] == first]
    if not wanted or not set(wanted) <= campaign.frames.keys():
        raise ValueError(f"{campaign.folder} has no measured cell {cell or f'of system {system} at x = {x}'}")
    return wanted


def main(arguments: list[str] | None = None) -> int:
    """Write byte matrices and say how many; 2 where the campaign or the cell cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m analysis.traffic", description="Export byte matrices.")
    parser.add_argument("campaign", type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--cell", help="a cell's id")
    which.add_argument("--system", help="all cells of a system in the first launch")
    parser.add_argument("--x", type=float, help="with --system: the point on its panel's x axis")
    parser.add_argument("--out", type=Path, required=True, help="where the matrices go")
    given = parser.parse_args(arguments)
    try:
        campaign = load_campaign(given.campaign)
        for cell in chosen(campaign, given.cell, given.system, given.x):
            index = export(campaign, cell, given.out)
            print(f"{given.out / cell}: {len(index)} collectives, {index['bytes'].sum():.4g} bytes")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
