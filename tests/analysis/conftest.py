"""Campaigns in the stored schema for the tests of analysis; what they hold is written in `synthetic`."""

import json

import pytest

from analysis import model_error
from analysis.load import load_campaign
from analysis.summary import summarise
from tests.analysis.synthetic import SIMULATED, VALIDATED, point, write_cell, write_fig3, write_plan


@pytest.fixture(scope="session")
def summary(tmp_path_factory):
    """The summary of the whole campaign, nothing changed."""
    return summarise(load_campaign(write_fig3(tmp_path_factory.mktemp("results") / "fig3")))


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """The folder of a campaign of tier full, 3 launches of 30 iterations; read only."""
    folder = tmp_path_factory.mktemp("full") / "fig3"
    return write_fig3(folder, launches=3, iterations=30, tier="full")


@pytest.fixture
def fig3(tmp_path):
    """Writes the campaign: fig3(**changes) -> folder; a change of None leaves the cell out, as one that has not run."""
    return lambda **options: write_fig3(tmp_path / "fig3", **options)


@pytest.fixture
def simulated(fig3):
    """The campaign as one on a described device: one launch of one iteration, without twins."""
    once = {"launches": 1, "iterations": 1, "twins": False, "tier": "once", "everywhere": SIMULATED}
    return lambda **options: fig3(**once | options)


@pytest.fixture(autouse=True)
def not_validated(tmp_path, monkeypatch):
    """No described device has been validated, whatever the repository says, unless a test asks for `validated`."""
    monkeypatch.setattr(model_error, "VALIDATED", tmp_path / "absent.json")


@pytest.fixture
def validated(tmp_path, monkeypatch):
    """The described device of the tests as one that was validated."""
    path = tmp_path / "validated.json"
    path.write_text(json.dumps(VALIDATED))
    monkeypatch.setattr(model_error, "VALIDATED", path)


@pytest.fixture
def one_point(fig3):
    """`fig3` with its point of 8 experts alone: for what is seen on one cell."""
    return lambda **options: fig3(**({"experts": (8,), "batches": ()} | options))


@pytest.fixture
def store():
    """The writers themselves, for campaigns of another shape."""
    return write_cell, write_plan, point
