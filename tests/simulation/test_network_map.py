import pytest

from analysis.load import load_campaign
from clusters.network import Network
from simulation.network_map import MACHINES, Machine, Recorded, equivalent_balance, main, networks_table
from simulation.networks import build_network
from tests.simulation.emulator import NETWORK

FREE, SLOW = Network("free"), Network("slow", bandwidth_gbs=0.001)


@pytest.fixture(scope="module")
def recorded(crossover):
    return Recorded(load_campaign(crossover), 32)


def test_recorded_network_gives_back_the_measured_layers(recorded):
    rows = {(r["y"], r["system"], r["launch"]): r["value"] for r in recorded.rows("wire", build_network(NETWORK))}
    assert len(rows) == 3 * 3 * 2
    for cell, run in recorded.runs.items():
        (layer,) = recorded.layers[cell]
        measured = float(layer.layer_G.max())
        assert rows[run["point"]["world_size"], run["system"], run["launch"]] == pytest.approx(measured, abs=1e-6)


def test_slow_link_favours_whoever_moves_least(recorded):
    """MoEShard moves every token to every rank and wins only where links cost nothing."""
    frame = recorded.over_networks([FREE, SLOW]).groupby(["x", "y", "system"])["value"].mean()
    assert frame["slow", 8, "moeshard"] > 2 * frame["slow", 8, "ep_round_robin"]
    assert (frame["slow"] > frame["free"]).all()
    shown = networks_table(recorded.over_networks([FREE, SLOW]))
    assert list(shown) == ["network", "2 ranks", "4 ranks", "8 ranks"] and shown["network"].tolist() == ["free", "slow"]


def test_time_grows_with_the_balance(recorded):
    value = recorded.over_balance((1, 10, 1e4), 6.6, 0.6).groupby(["system", "y", "x"])["value"].mean().unstack()
    assert (value[1e4] > value[10]).all() and (value[10] >= value[1]).all()


def test_balance_of_a_machine_in_this_model():
    """Switch-Base in fp32 is the same model; four times narrower experts need links four times as fast."""
    machine = Machine("m", 1e14, 1e11, 4)
    assert equivalent_balance(machine, 3072, 4) == pytest.approx(1000)
    assert equivalent_balance(machine, 768, 4) == pytest.approx(250)
    assert equivalent_balance(Machine("m", 1e14, 1e11, 2), 3072, 4) == pytest.approx(500)


def test_machines_stand_on_the_map(recorded):
    marks = recorded.marks().set_index("group")["x"]
    assert set(marks.index) == {machine.name for machine in MACHINES} | {"as recorded (wire)"}
    assert marks["as recorded (wire)"] == pytest.approx(recorded.matmul_flops_per_s / 0.5e9)


def test_command(crossover, capsys):
    assert main([str(crossover), "--experts", "32"]) == 0
    assert "by FLOP per byte" in capsys.readouterr().out
    assert (crossover / "simulated" / "ranks_network_32.png").exists()
    assert main([str(crossover), "--experts", "5"]) == 2
    assert "no cell with 5 experts; it has [8, 16, 32]" in capsys.readouterr().err
