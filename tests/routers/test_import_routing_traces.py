"""The importer of the authors' raw data, on a folder laid out like theirs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from routers.trace import read_trace
from scripts.import_routing_traces import main

COLUMNS = "iteration,latency (ms),total number of bytes sent,total number of bytes recv"


def add_run(checkout: Path, name: str, tokens: dict[str, list[list[int]]], **settings: Any) -> None:
    """outputs/mgblcks/<name>/data.json and 0/<file>.csv, iterations from 3 on because three warmed up."""
    ranks = checkout / "outputs/mgblcks" / name / "0"
    ranks.mkdir(parents=True)
    ran = {"dataset": "cocktail", "world_size": 1, "num_experts": 2, "enable_router_skew": False} | settings
    (ranks.parent / "data.json").write_text(json.dumps(ran))
    (ranks / "e2e.csv").write_text("iteration,latency (s)\n0,0.2\n")
    for file, rows in tokens.items():
        lines = [f'{i},6.8,0,92160000,"{row}"' for i, row in enumerate(rows, start=3)]
        (ranks / f"{file}.csv").write_text("\n".join([f"{COLUMNS},tokens per expert", *lines, ""]))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    layers = {"moe_l1": [[3, 1], [2, 2]], "moe_l11": [[0, 4], [1, 3]], "moe_l1_decode": [[1, 0], [1, 0]]}
    add_run(tmp_path, "encoder_2", layers)
    add_run(tmp_path, "encoder_4", {"moe_l1": [[1, 1, 1, 1], [4, 0, 0, 0]]}, num_experts=4)
    add_run(tmp_path, "encoder_2_books", {"moe_l1": [[9, 9]]}, dataset="bookcorpus")
    add_run(tmp_path, "encoder_2_skewed", {"moe_l1": [[9, 0]]}, enable_router_skew=True)
    add_run(tmp_path, "encoder_2_on_four", {"moe_l1": [[9, 1]]}, world_size=4)
    silent = tmp_path / "outputs/mgblcks/encoder_2_silent/0"  # a run that did not note tokens per expert
    add_run(tmp_path, silent.parent.name, {})
    (silent / "moe_l1.csv").write_text(f"{COLUMNS}\n3,6.8,0,92160000\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr(sys, "argv", ["import_routing_traces", *map(str, arguments)])
    main()


def loads(path: Path, num_experts: int) -> dict[int, list[list[int]]]:
    return {layer: tokens_IE.tolist() for layer, tokens_IE in read_trace(path, num_experts).items()}


def test_the_learned_routers_loads_of_the_encoder_are_imported(checkout, monkeypatch, capsys):
    out = checkout / "trace.csv.gz"
    run(monkeypatch, checkout, out)
    assert loads(out, 2) == {1: [[3, 1], [2, 2]], 11: [[0, 4], [1, 3]]}
    assert loads(out, 4) == {1: [[1, 1, 1, 1], [4, 0, 0, 0]]}
    assert "6 rows of num_experts 2, 4" in capsys.readouterr().out


def test_the_same_data_give_the_same_bytes(checkout, monkeypatch):
    for name in ("first.csv.gz", "second.csv.gz"):
        run(monkeypatch, checkout, checkout / name)
    assert (checkout / "first.csv.gz").read_bytes() == (checkout / "second.csv.gz").read_bytes()


def test_dataset_and_number_of_iterations_can_be_chosen(checkout, monkeypatch):
    out = checkout / "trace.csv.gz"
    run(monkeypatch, checkout, out, "--dataset", "bookcorpus")
    assert loads(out, 2) == {1: [[9, 9]]}
    run(monkeypatch, checkout, out, "--iterations", "1")
    assert loads(out, 2) == {1: [[3, 1]], 11: [[0, 4]]}


def test_a_folder_without_such_runs_is_told_what_is_expected(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: .* has no outputs/\*/\*/data\.json with dataset 'cocktail'"):
        run(monkeypatch, tmp_path, tmp_path / "trace.csv.gz")


def test_two_runs_of_one_size_are_not_mixed(checkout, monkeypatch):
    add_run(checkout, "encoder_2_again", {"moe_l1": [[1, 1]]})
    with pytest.raises(SystemExit, match=r"encoder_2 and .*encoder_2_again are both on cocktail with 2 experts"):
        run(monkeypatch, checkout, checkout / "trace.csv.gz")
