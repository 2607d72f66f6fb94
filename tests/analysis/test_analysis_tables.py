import json

import pandas as pd
import pytest

from analysis.accounting import environment_table, launch_seconds, time_table, useful_share
from analysis.findings import campaign_folder, find
from analysis.load import coverage, load_campaign
from analysis.panels import panel_table
from analysis.tables import Table, coverage_table, markdown, problems_table, write_tables
from tests.analysis.synthetic import write_fig3


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return find(write_fig3(tmp_path_factory.mktemp("tables") / "fig3", experts=(8, 64), batches=()))


def test_panel_has_a_row_for_each_point_and_system(findings):
    table = panel_table(findings, findings.campaign.plan["panels"][0])
    shown = table.shown.set_index(["experts", "system"])
    assert list(shown.index) == [(e, s) for e in ("8", "64") for s in ("DeepSpeed", "MoEShard")]
    assert shown.loc[("8", "MoEShard"), "MoE layer, ms"].startswith("30.0 [")
    assert shown.loc[("8", "MoEShard"), "speed-up, TTFT"].startswith("~1.00× [")
    assert shown.loc[("64", "MoEShard"), "speed-up, layer"].startswith("6.00× [")
    assert shown.loc[("64", "MoEShard"), "paper"] == "6.45×" and shown.loc[("64", "DeepSpeed"), "paper"] == ""
    assert table.raw["metric"].eq("ttft_ms").sum() == 4 and table.title == "Figure 3a (emulated)"


@pytest.mark.parametrize(
    ("kind", "column", "value"),
    [
        ("layers", "block 3, ms", "30.0 ["),
        ("sections", "experts, ms", "15.0 ["),
        ("sections", "experts, % of ceiling", "50.0"),
        ("load", "empty experts", "0"),
    ],
)
def test_panels_of_other_kinds(findings, kind, column, value):
    panel = findings.campaign.plan["panels"][0]
    panel = panel | {"kind": kind, "points": panel["points"][:1]}
    assert panel_table(findings, panel).shown[column].iloc[-1].startswith(value)


def test_tables_are_written_for_programs_and_readers(tmp_path):
    raw = pd.DataFrame({"ratio": [2.3456789]})
    shown = pd.DataFrame({"system": ["a|b <i>_x_</i> 5 %"], "ratio": ["2.35×"]})
    paths = write_tables(tmp_path, [Table("t", "A & B", raw, shown), Table("empty", "", raw, shown.iloc[:0])])
    assert sorted(path.name for path in paths) == ["t.csv", "t.md", "t.tex"]
    text = {path.suffix: path.read_text() for path in paths}
    assert text[".csv"] == "ratio\n2.3456789\n"
    assert r"a\|b &lt;i&gt;\_x\_&lt;/i&gt; 5 %" in text[".md"] and text[".md"].count("\n|") == 3
    assert r"5 \%" in text[".tex"] and r"\_x\_" in text[".tex"] and text[".tex"].startswith("% A & B\n")


def test_markdown_keeps_a_row_on_its_line():
    table = Table("t", "t", pd.DataFrame(), pd.DataFrame({"reason": ["first\nsecond"]}))
    assert "| first second |" in markdown(table)


def test_coverage_and_problems_name_every_state(fig3):
    oom = {"state": "oom", "reason": "Out of memory on rank 2.", "correctness": None}
    wrong = {"correctness": {"relative_error": 0.3, "tolerance": 1e-4, "passed": False}}
    changes = {"deepspeed_num_experts_64_1": oom, "moeshard_num_experts_8_0": wrong, "moeshard_num_experts_64_0": None}
    cells = coverage(load_campaign(fig3(experts=(8, 64), batches=(), **changes)))
    shown = coverage_table(cells).shown.set_index("point")
    assert shown.loc["64", "DeepSpeed"] == "1 ok, 1 oom" and shown.loc["8", "MoEShard"] == "2 ok, output not verified"
    assert shown.loc["8", "MoEShard (A/A twin)"] == "2 ok" and shown.loc["64", "not run"] == "1 missing"
    problems = problems_table(cells)
    assert problems.title == "3 of 12 cells need attention"
    assert problems.shown.set_index("state").loc["oom", ["system", "at", "reason"]].tolist() == [
        *["DeepSpeed", "experts 64", "Out of memory on rank 2."]
    ]


def test_wall_clock_counts_a_launch_once(findings):
    """Two points x two launches of 11 s, of which 5 s measure and 2 s are instrumented; three cells share each."""
    launches = launch_seconds(findings.campaign)
    assert len(launches) == 4 and launches["wall"].tolist() == [11] * 4
    assert useful_share(launches) == pytest.approx(7 / 11)
    shown = time_table(findings.campaign).shown.set_index("phase")
    assert shown.loc["all", "seconds"] == "44.0" and shown.loc["measure", "share"] == "45 %"
    assert useful_share(launches.drop(columns=["measure", "instrumented"])) is None


def test_environment_shows_what_differs(fig3):
    folder = fig3(experts=(8,), batches=(), launches=1)
    path = folder / "cells" / "moeshard_num_experts_8_0" / "run.json"
    run = json.loads(path.read_text())
    run["environment"]["cpu"] = "another CPU"
    path.write_text(json.dumps(run))
    shown = environment_table(load_campaign(folder)).shown.set_index("what")["value"]
    assert shown["cpu"] == "a CPU / another CPU" and shown["packages.torch"] == "2.13.0"


def test_campaign_folder_is_here_or_above(tmp_path, monkeypatch, fig3):
    folder = fig3(experts=(8,), batches=(), launches=1)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert campaign_folder(folder.name) == folder
    with pytest.raises(ValueError, match="results/none is not a campaign's folder"):
        campaign_folder("results/none")
    monkeypatch.chdir(folder)
    assert campaign_folder("results/none") == folder
