"""Real runs beside simulated ones, on numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.load import Campaign
from analysis.studies.paper.reference import load_reference
from analysis.studies.validation import __main__ as command
from analysis.studies.validation import compare as validation
from analysis.studies.validation.words import by_system, replace_block, table


def runs(errors: dict[tuple[str, int, int], float]) -> pd.DataFrame:
    """Runs of 100 ms (DeepSpeed) and 10 ms (the others), simulated with these errors."""
    rows = []
    for (system, experts, batch), error in errors.items():
        row = {"system": system, "num_experts": experts, "batch_size": batch, "precision": "tf32"}
        row["fitted"] = (system, experts, batch) in validation.FITTED
        for metric in validation.METRICS:
            real = 100.0 if system == "deepspeed" else 10.0
            row |= {f"{metric}/real": real, f"{metric}/simulated": real * (1 + error), f"{metric}/error": error}
        rows.append(row)
    return pd.DataFrame(rows)


FOUR = runs(
    {
        ("deepspeed", 8, 250): 0.10,
        ("moeshard_authors", 8, 250): -0.02,
        ("deepspeed", 128, 250): 0.04,
        ("moeshard_authors", 128, 250): 0.50,  # fitted: in no summary
    }
)


def test_fitted_runs_are_in_no_summary():
    found = validation.summary(FOUR)["layer_moe_ms"]
    assert (found["runs"], found["median"], found["worst"]) == (3, 0.04, 0.1)


def test_the_error_of_a_ratio_is_that_of_two_runs_of_a_point():
    assert validation.ratios(FOUR, "ttft_ms") == pytest.approx([1.10 / 0.98 - 1, 1.50 / 1.04 - 1])


def test_orders_count_comparisons_that_differ_by_enough():
    assert validation.orders(FOUR, "ttft_ms") == (2, 2)
    turned = runs({("deepspeed", 8, 250): -0.95, ("moeshard_authors", 8, 250): 0.0})
    assert validation.orders(turned, "ttft_ms") == (0, 1)


def test_every_run_has_its_line_and_fitted_ones_say_so():
    lines = table(FOUR, "published").splitlines()[2:]
    assert len(lines) == 4 and "fitted" in lines[3] and "+50.0 %" in lines[3] and "fitted" not in lines[0]


def test_all_published_runs_are_found_and_five_of_them_are_fitted():
    published = load_reference().runs
    points = [(experts, 250) for experts in (8, 16, 32, 64, 128, 256)] + [(128, batch) for batch in (10, 100, 450)]
    times = {
        (system, *point): validation.published_times(published, (system, "tf32", *point))
        for system in validation.PROGRAMS
        for point in points
    }
    assert len(times) == len(published) == 27 and len(validation.FITTED) <= 5
    assert times.keys() >= validation.FITTED
    assert times["deepspeed", 128, 250] == pytest.approx({"ttft_ms": 1131.99, "layer_moe_ms": 177.28})
    assert np.isfinite([list(one.values()) for one in times.values()]).all()


def campaign(folder: str, *runs: tuple[str, str, int, int, float]) -> Campaign:
    """Runs (system, precision, experts, batch, layer in ms), whose TTFT is twice the layer."""
    known = {
        f"{folder}{place}": {
            "state": "ok",
            "twin": False,
            "source": "simulated" if folder == "ours" else "measured",
            "system": system,
            "precision": precision,
            "point": {"num_experts": experts, "batch_size": batch, "world_size": 1},
            "config": {"device": {"name": "toy"}},
            "ms": ms,
        }
        for place, (system, precision, experts, batch, ms) in enumerate(runs)
    }
    return Campaign(Path(folder), {"experiment": "alone"}, known, {})


@pytest.fixture
def times(monkeypatch):
    monkeypatch.setattr(
        validation,
        "medians",
        lambda campaign, cell: {
            "layer_moe_ms": (ms := campaign.runs[cell]["ms"]),
            "ttft_ms": 2 * ms,
        },
    )


MEASURED = campaign("real", ("ep", "bf16", 8, 100, 2.0), ("moeshard", "bf16", 8, 100, 1.0), ("ep", "tf32", 8, 100, 4.0))
SIMULATED = campaign(
    "ours",
    ("ep", "bf16", 8, 100, 1.0),
    ("moeshard", "bf16", 8, 100, 1.1),
    ("ep", "tf32", 8, 100, 4.4),
    ("ep", "tf32", 32, 100, 9.0),
)


def test_runs_are_paired_by_system_precision_and_point(times):
    runs = command.against_measured([SIMULATED], [MEASURED]).set_index(["system", "precision"])
    assert runs["layer_moe_ms/error"].to_dict() == pytest.approx(
        {("ep", "bf16"): -0.5, ("moeshard", "bf16"): 0.1, ("ep", "tf32"): 0.1}
    )
    assert runs["layer_moe_ms/real"].tolist() == [2.0, 4.0, 1.0]


def test_the_error_of_a_ratio_and_an_order_are_of_one_point_and_precision(times):
    runs = command.against_measured([SIMULATED], [MEASURED])
    assert validation.ratios(runs, "ttft_ms") == pytest.approx([1.1 / 0.5 - 1])
    assert validation.orders(runs, "ttft_ms") == (0, 1)
    assert validation.summary(runs)["layer_moe_ms"]["worst"] == 0.5


def test_what_was_not_simulated_is_named(times):
    with pytest.raises(ValueError, match=r"measured, but not simulated: \('ep', 'tf32', 8, 100\)"):
        command.against_measured([campaign("ours", ("ep", "bf16", 8, 100, 1.0))], [campaign("real", MEASURED_TF32)])


MEASURED_TF32 = ("ep", "tf32", 8, 100, 4.0)


def test_nothing_is_written_outside_the_campaign_unless_it_is_named(tmp_path: Path, monkeypatch, times):
    document, errors, folder = tmp_path / "page.md", tmp_path / "errors.json", tmp_path / "a"
    page = "# Page\n<!-- validation:toy -->\n<!-- validation:end -->\n"
    folder.mkdir()
    document.write_text(page)
    errors.write_text(json.dumps({"another": {}}))
    monkeypatch.setattr(command, "load_campaign", {folder: SIMULATED, Path("b"): MEASURED}.get)
    assert command.main([str(folder), "--measured", "b"]) == 0
    assert document.read_text() == page and json.loads(errors.read_text()) == {"another": {}}
    assert "| ep | bf16 | 8 | 100 | 2.0 | 1.0 | -50.0 % |" in (folder / "validation.md").read_text()
    named = ["--document", str(document), "--errors", str(errors)]
    assert command.main([str(folder), "--measured", "b", *named]) == 0
    assert "| ep | bf16 | 8 | 100 | 2.0 | 1.0 | -50.0 % |" in document.read_text()
    assert json.loads(errors.read_text())["toy"]["layer_moe_ms"]["runs"] == 3
    assert set(json.loads(errors.read_text())) == {"another", "toy"}


def test_the_table_by_system_has_medians_and_worst_runs():
    told = by_system(FOUR).splitlines()
    assert told[2] == "| DeepSpeed | 2 | 7.0 %, 10.0 % | 7.0 %, 10.0 % |" and told[-1].startswith("| all | 4 | ")


def test_a_block_is_replaced_between_its_markers():
    end = "<!-- validation:end -->"
    text = f"a\n<!-- validation:table -->\nold\n{end}\n<!-- validation:b -->\nx\n{end}\n"
    assert replace_block(text, "table", "new \\1") == text.replace("old", "new \\1")
    assert replace_block(text, "b", "y") == text.replace("\nx\n", "\ny\n")
    with pytest.raises(ValueError, match="there is no block <!-- validation:other -->"):
        replace_block(text, "other", "y")


def test_a_table_of_one_precision_does_not_repeat_it(times):
    runs = command.against_measured([SIMULATED], [campaign("real", MEASURED_TF32)])
    assert isinstance(runs, pd.DataFrame) and "tf32" not in table(runs, "measured")
