import numpy as np
import pandas as pd
import pytest

from analysis.load import load_campaign
from simulation.model import NotModelled, expected_tokens, fit, observe, work_of
from simulation.networks import build_network, load_network
from simulation.recorded import panel_cells
from simulation.scaling import RANKS, SOURCE, Scaling, ends, errors_table, main
from simulation.work import FEATURES
from tests.simulation.conftest import BUSY, CONSTANT, FLOPS, SYSTEMS
from tests.simulation.emulator import NETWORK


@pytest.fixture(scope="module")
def scaling(crossover):
    return Scaling(load_campaign(crossover))


def test_held_out_cells_are_foretold(scaling):
    """Fitted to 2 and 4 ranks; 8 ranks take what the same coefficients say, within the half-percent of the offsets."""
    assert set(scaling.held_out["world_size"]) == {8} and len(scaling.held_out) == 3 * 3 * 2
    assert scaling.held_out["error"].abs().max() < 0.005
    assert (scaling.held_out["quiet_ms"] / scaling.held_out["measured_ms"]).to_numpy() == pytest.approx(1, abs=0.005)
    assert errors_table(scaling.held_out)["cells"].tolist() == ["6", "6", "6"]


def test_prediction_at_many_ranks_is_the_truth(scaling):
    network = load_network("nodes_h200")
    rows = scaling.rows(32, network).set_index(["system", "ranks", "source"])["layer_ms"]
    for name, system in SYSTEMS.items():
        config = scaling.observations[name][0].run["config"]
        work = work_of(config | {"system": system | {"name": name}}, expected_tokens(config, 32, 16))
        experts_G = work.features_GN @ [{"busy experts": BUSY, "flops": FLOPS}.get(column, 0) for column in FEATURES]
        moved = sum(
            1e3 * network.seconds(t.collective, network.volumes(t.collective, t.sent_GG, range(16)), 16)
            for t in work.transfers
        )
        assert rows[name, 16, SOURCE] == pytest.approx(4 * CONSTANT + experts_G.max() + moved, rel=0.01)


def test_lines_end_where_a_system_cannot_run(scaling):
    rows = scaling.rows(32, load_network("nodes_h200"))
    alive = rows.loc[(rows["source"] == SOURCE) & rows["layer_ms"].notna()].groupby("system")["ranks"].max()
    assert alive.to_dict() == {"ep": 32, "ep_round_robin": 32, "moeshard": 16}
    sentences = ends(rows)
    assert sentences[0].startswith("Not with 64 ranks: EP, EP round-robin (model.num_experts (32) must be divisible")
    assert sentences[1].startswith("Not with 32 ranks: MoEShard (engine=grouped needs matrix widths that are multiples")


def test_measured_points_are_priced_on_the_asked_network(scaling):
    """On the recorded network they are what was recorded; links 100 times as slow beside slow ranks change nothing."""
    rows = scaling.rows(32, build_network(NETWORK))
    measured = rows.loc[rows["source"] != SOURCE].set_index("cell")["layer_ms"]
    of_cells = {one.cell: one.layer_ms for seen in scaling.observations.values() for one in seen}
    assert measured.to_dict() == pytest.approx({cell: of_cells[cell] for cell in measured.index})
    faster = scaling.rows(32, build_network(NETWORK), stretch=100)
    both = rows.assign(fast=faster["layer_ms"])
    assert (both["fast"] < both["layer_ms"])[both["layer_ms"].notna()].all()
    transfer_only = rows["layer_ms"] - 100 * faster["layer_ms"]
    assert (transfer_only.dropna() < 0).all()  # what ranks compute shrinks a hundredfold, transfers do not


def test_band_widens_what_ranks_compute_and_not_their_transfers(scaling):
    rows = scaling.rows(32, build_network(NETWORK))
    rows = rows.loc[(rows["source"] == SOURCE) & rows["layer_ms"].notna()]
    factors = rows["system"].map(scaling.factor)
    assert (rows["low_ms"] < rows["layer_ms"]).all() and (rows["high_ms"] < factors * rows["layer_ms"]).all()
    compute = (rows["high_ms"] - rows["layer_ms"]) / (factors - 1)
    assert compute.to_numpy() == pytest.approx(((rows["layer_ms"] - rows["low_ms"]) / (1 - 1 / factors)).to_numpy())


def test_memory_is_that_of_the_busiest_rank(scaling):
    rows = scaling.rows(32, build_network(NETWORK))
    memory = rows.loc[rows["source"] == SOURCE].set_index(["system", "ranks"])["memory_mb"]
    assert memory["ep", 8] > memory["ep_round_robin", 8]
    assert memory["moeshard", 16] > memory["moeshard", 4]  # gathered rows outgrow the shrinking shards
    assert list(memory["ep"].index) == RANKS


def test_what_the_model_does_not_cover_is_refused(crossover):
    campaign = load_campaign(crossover)
    cell = panel_cells(campaign)[0]
    config = campaign.runs[cell]["config"]
    with pytest.raises(NotModelled, match=r"loads from routers\.synthetic\.\w+ only, not from routers\.trace"):
        expected_tokens(config | {"router": {"_target_": "routers.trace.TraceRouter"}}, 8, 2)
    chunked = {"_target_": "systems.moeshard.MoEShard", "name": "moeshard_chunked", "engine": "auto", "chunks": 2}
    with pytest.raises(NotModelled, match="overlapped exchanges of moeshard_chunked"):
        work_of(config | {"system": chunked}, np.ones((2, 8)))
    assert work_of(config | {"system": chunked | {"chunks": 1}}, np.ones((2, 8))).transfers
    with pytest.raises(NotModelled, match="no form for mine"):
        work_of(config | {"system": {"_target_": "mine.Mine", "name": "mine"}}, np.ones((2, 8)))
    runs = campaign.runs | {cell: campaign.runs[cell] | {"config": config | {"system": SYSTEMS["moeshard"]}}}
    mistaken = type(campaign)(campaign.folder, campaign.plan, runs, campaign.frames)
    with pytest.raises(NotModelled, match="ep issued all_to_all, all_to_all, all_to_all; the model knows all_gather"):
        observe(mistaken, cell)
    with pytest.raises(ValueError, match="at least one measured cell"):
        fit([])


def test_command_writes_tables_and_figures(crossover, capsys):
    assert main([str(crossover), "--experts", "32", "--flops", "1e13"]) == 0
    out = capsys.readouterr().out
    assert "simulated" in out and "Not with 32 ranks: MoEShard" in out
    rows = pd.read_csv(crossover / "simulated" / "scaling_nodes_h200_32.csv")
    assert set(rows["source"]) == {SOURCE, "emulated, replayed"}
    assert (crossover / "simulated" / "scaling_nodes_h200_32.png").stat().st_size > 10_000
    assert main([str(crossover), "--network", "token_ring"]) == 2
    assert "there is no network 'token_ring'" in capsys.readouterr().err
