import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from analysis.__main__ import main
from analysis.figures import spread
from analysis.labels import KNOWN, number, system_styles, times, with_interval
from analysis.report import render

ROOT = Path(__file__).parents[2]


def rendered(folder, width=220):
    console = Console(record=True, width=width)
    render(folder, console)
    return console.export_text()


def test_render_writes_figures_and_prints_verdicts(fig3):
    folder = fig3()
    text = rendered(folder)
    for name in ("fig3a", "fig3b"):
        image = imread(folder / f"{name}.png")
        assert image.shape[1] == 1000 and image[..., :3].std() > 0.05
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "peak at 64 experts" in text and "2.35×" in text and "1 (10)" in text
    assert "emulated" in text and "tier quick (not for claims)" in text and "G = 4 ranks" in text


def test_rendering_again_gives_the_same_files(fig3):
    folder = fig3(experts=(8, 64), batches=())
    rendered(folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    rendered(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    assert {"fig3a.png", "fig3a.pdf", "summary.csv", "plan.json"} == set(before)


def test_partly_failed_campaign_renders_and_says_so(fig3):
    oom = {"state": "oom", "reason": "Out of memory on rank 2, tensor [3, 4].", "correctness": None}
    wrong = {"correctness": {"relative_error": 0.3, "tolerance": 1e-4, "passed": False}}
    folder = fig3(
        launches=1, deepspeed_num_experts_256_0=oom, moeshard_num_experts_8_0=wrong, moeshard_batch_size_1_0=None
    )
    text = rendered(folder)
    assert "3 of 10 cells need attention" in text
    assert "tensor [3, 4]" in text and "relative error 0.3" in text and "It has not run." in text
    assert (folder / "fig3a.png").exists() and "not measured" in text


def test_campaign_in_which_nothing_ran_renders(fig3):
    cells = [f"{s}_num_experts_{e}_0" for s in ("deepspeed", "moeshard") for e in (8, 64)]
    text = rendered(fig3(experts=(8, 64), batches=(), launches=1, **dict.fromkeys(cells)))
    assert "No cell has been measured." in text and "4 of 4 cells need attention" in text


def write_sweep(folder, store, xs, baseline):
    write_cell, write_plan, point = store
    points = []
    for x in xs:
        cells = []
        for system, ms in (("ep_dropless", 50.0), ("moeshard", 20.0)):
            cells.append(f"{system}_{x}")
            values = {"ttft_ms": ms * x, "layer_moe_ms": ms, "rows_computed": 8.0, "rows_useful": 4.0}
            write_cell(folder, cells[-1], {"system": system, "point": point(batch_size=x), "values": values})
        points.append({"x": x, "published_x": None, "cells": cells})
    write_plan(folder, [{"name": "sweep", "title": "A sweep", "x_name": "batch_size", "points": points}], baseline)
    return folder


def test_single_point_prints_a_table_of_systems_and_no_figure(tmp_path, store):
    text = rendered(write_sweep(tmp_path, store, [4], None))
    assert "A sweep (emulated)" in text and "ep_dropless" in text and "200 [196, 204]" in text
    assert "1.6" in text and "published" not in text
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("baseline", [None, "ep_dropless"])
def test_sweep_without_published_points(tmp_path, store, baseline):
    text = rendered(write_sweep(tmp_path, store, [4, 8], baseline))
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    assert ("2.50×" in text) == bool(baseline) and "verdict" not in text


def test_command_line(fig3):
    folder = fig3(experts=(8, 64), batches=())
    done = subprocess.run(
        [sys.executable, "-m", "analysis", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "reproduced" in done.stdout and (folder / "summary.csv").exists()


def test_command_line_names_a_folder_without_a_plan(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "plan.json cannot be read" in capsys.readouterr().out


def test_labels_are_moved_apart_about_their_mean():
    assert spread([10, 0, 1], gap=4) == pytest.approx([9, -1, 3])
    assert spread([0.0, 100.0], gap=4) == [0, 100]
    assert spread([5, 5], gap=2) == [4, 6]
    assert spread([], gap=4) == []


def test_each_system_keeps_its_look():
    alone, together = system_styles(["moeshard"]), system_styles(["deepspeed", "moeshard", "a", "b", "c", "d", "e"])
    assert alone["moeshard"] == together["moeshard"] == KNOWN["moeshard"][1:]
    assert len(set(together.values())) == 7


def test_number_formats():
    assert (times(0.271), times(12.34), number(1130.9), number(56.84), number(9.051)) == (
        "0.27×",
        "12.3×",
        "1131",
        "56.8",
        "9.05",
    )
    assert with_interval(2.0, 1.9, 2.1, times) == "2.00× [1.90, 2.10]"
    assert with_interval(2.0, float("nan"), float("nan")) == "2.00"
