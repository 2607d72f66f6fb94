import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis.__main__ import main
from analysis.report import checks_line, render
from tests.analysis.synthetic import write_fig3

ROOT = Path(__file__).parents[2]


def rendered(folder, width=100):
    console = Console(record=True, width=width)
    render(folder, console)
    return console.export_text()


def test_render_writes_everything_and_prints_the_short_of_it(fig3):
    folder = fig3()
    text = rendered(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "cells" not in path.parts}
    assert {"fig3a.png", "fig3a.svg", "fig3b.png", "summary.csv", "validity.json", "report.html"} <= names
    assert {
        f"tables/{name}.{kind}" for name in ("fig3a", "claims", "coverage") for kind in ("csv", "md", "tex")
    } <= names
    assert "Figure 3a (emulated)" in text and "2.35×" in text and "not for claims" in text and "G = 4 ranks" in text
    assert "All 30 cells ran, and their outputs were right." in text
    assert "Validity: " in text and "V07 warn" in text and "Noise floor of" in text


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """One campaign on two terminals: {width: (text, {file: bytes} that it leaves)}."""
    folder = write_fig3(tmp_path_factory.mktemp("twice") / "fig3", experts=(8, 64), batches=())

    def derived():
        return {path: path.read_bytes() for path in folder.rglob("*.*") if "cells" not in path.parts}

    return {width: (rendered(folder, width), derived()) for width in (80, 100)}


def test_rendering_again_gives_the_same_files(twice):
    (_, first), (_, second) = twice.values()
    assert "report.html" in {path.name for path in first} and first == second


def test_no_line_is_longer_than_the_terminal_and_no_word_is_broken(twice):
    for width, (text, _) in twice.items():
        lines = text.splitlines()
        assert max(len(line) for line in lines if not line.startswith("wrote")) <= width
        row = next(line for line in lines if "MoEShard" in line)
        assert row.rstrip().endswith("reproduced*") and ("[" in row) == (width == 100)


def test_partly_failed_campaign_renders_and_says_so(fig3):
    oom = {"state": "oom", "reason": "Out of memory on rank 2, tensor [3, 4].", "correctness": None}
    wrong = {"correctness": {"relative_error": 0.3, "tolerance": 1e-4, "passed": False}}
    changes = {"deepspeed_num_experts_256_0": oom, "moeshard_num_experts_8_0": wrong, "moeshard_batch_size_1_0": None}
    folder = fig3(launches=1, **changes)
    text = rendered(folder)
    assert "3 of 15 cells need attention" in text
    assert "tensor [3, 4]" in text and "relative error 0.3" in text and "It has not run." in text
    assert (folder / "fig3a.png").exists() and "Without data" in (folder / "fig3a.svg").read_text()


def test_campaign_in_which_nothing_ran_renders(fig3):
    cells = [f"{s}_num_experts_{e}_0" for s in ("deepspeed", "moeshard") for e in (8, 64)]
    cells += [f"moeshard_num_experts_{e}_0_twin" for e in (8, 64)]
    text = rendered(fig3(experts=(8, 64), batches=(), launches=1, **dict.fromkeys(cells)))
    assert "No cell has been measured." in text and "6 of 6 cells need attention" in text


def write_sweep(folder, store, xs, baseline, x_name="batch_size", kind="speedup", layers=True):
    write_cell, write_plan, point = store
    points = []
    for x in xs:
        cells = []
        for system, ms in (("ep_dropless", 50.0), ("moeshard", 20.0)):
            cells.append(f"{system}_{x}")
            values = {"ttft_ms": ms * 4, "rows_computed": 8.0, "rows_useful": 4.0} | (
                {"layer_moe_ms": ms} if layers else {}
            )
            write_cell(folder, cells[-1], {"system": system, "point": point(batch_size=4), "values": values})
        points.append({"x": x, "published_x": None, "cells": cells})
    panel = {"name": "sweep", "title": "A sweep", "x_name": x_name, "kind": kind, "points": points}
    write_plan(folder, [panel], baseline)
    return folder


def test_single_point_prints_a_table_of_systems_and_no_figure(tmp_path, store):
    text = rendered(write_sweep(tmp_path, store, [4], None))
    assert "A sweep (emulated)" in text and "ep_dropless" in text and "200 [196, 204]" in text
    assert "imbalance" not in text and "paper" not in text
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("baseline", [None, "ep_dropless"])
def test_sweep_without_published_points(tmp_path, store, baseline):
    text = rendered(write_sweep(tmp_path, store, [4, 8], baseline))
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    assert ("2.50×" in text) == bool(baseline) and "verdict" not in text


@pytest.mark.parametrize(("x_name", "xs", "seen"), [("alpha", [0.0, 0.6], "0.6"), ("skewed_share", [0.1, 0.2], "20 %")])
def test_skew_is_an_axis_too(tmp_path, store, x_name, xs, seen):
    text = rendered(write_sweep(tmp_path, store, xs, "ep_dropless", x_name))
    assert seen in text and seen in (tmp_path / "sweep.svg").read_text()


@pytest.mark.parametrize("kind", ["speedup", "layers", "sections"])
def test_campaign_without_an_instrumented_pass_renders(tmp_path, store, kind):
    text = rendered(write_sweep(tmp_path, store, [4, 8], "ep_dropless", kind=kind, layers=False))
    assert "All 4 cells ran" in text and (tmp_path / "sweep.png").exists() == (kind == "speedup")


def test_figures_of_several_points_have_names_of_their_own(tmp_path, store):
    rendered(write_sweep(tmp_path, store, [0.1, 0.2], None, "skewed_share", "layers"))
    assert {path.name for path in tmp_path.glob("*.svg")} == {"sweep_0.1.svg", "sweep_0.2.svg"}


def test_checks_are_named_up_to_a_number():
    rows = [{"check": f"V{i:02d}", "title": f"t{i}", "verdict": "warn"} for i in range(1, 8)]
    rows += [{"check": "V08", "title": "t8", "verdict": "fail"}, {"check": "V09", "title": "t9", "verdict": "pass"}]
    line = checks_line(pd.DataFrame(rows))
    assert line.startswith("Validity: 1 pass, 7 warn, 1 fail. V08 fail: t8; V01 warn: t1;")
    assert line.endswith("V04 warn: t4; 3 more in report.html")


def test_command_line(one_point, capsys):
    folder = one_point()
    assert main([str(folder)]) == 0
    assert "reproduced" in capsys.readouterr().out and (folder / "report.html").exists()


def test_command_line_names_a_missing_folder_once(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 1
    out = capsys.readouterr().out
    assert out == f"error: {tmp_path / 'none'} is not a campaign's folder: it has no plan.json.\n"


def test_command_line_names_an_old_campaign(tmp_path, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"schema": 1}))
    assert main([str(tmp_path)]) == 1
    assert "schema 2" in capsys.readouterr().out
