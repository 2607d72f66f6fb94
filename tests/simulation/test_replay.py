import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.load import load_campaign
from clusters.network import Network
from simulation.networks import Stretched, build_network
from simulation.recorded import LayerRun, layer_runs, panel_cells, runs_of
from simulation.replay import replay, transfer_ms
from simulation.work import Transfer
from tests.simulation.emulator import LATE_MS, NETWORK, Layers, Step, emulate, recorded, write, write_panel

OTHER = Network("other", base_us=300, hop_us=10, bandwidth_gbs=0.01)
FREE = Network("free")
LATE = Network("late", base_us=700, bandwidth_gbs=0.1, late=Network("", base_us=700, bandwidth_gbs=0.05))


@st.composite
def programs(draw) -> list[Step]:
    """Up to six collectives of one to three ranks, some of them asynchronous, with waits in any order."""
    ranks = draw(st.integers(1, 3))
    compute = st.lists(st.floats(0.001, 2), min_size=ranks, max_size=ranks).map(np.array)
    sizes = st.lists(st.integers(0, 1_000_000), min_size=ranks * ranks, max_size=ranks * ranks)
    steps, open_ = [], []
    for k in range(draw(st.integers(1, 6))):
        sent_GG = np.reshape(draw(sizes), (ranks, ranks)) * (1.0 - np.eye(ranks))
        asynchronous = draw(st.booleans())
        steps.append(Step(draw(compute), Transfer("all_to_all", sent_GG), asynchronous))
        open_ += [k] if asynchronous else []
        if open_ and draw(st.booleans()):
            steps.append(Step(draw(compute), wait=open_.pop(draw(st.integers(0, len(open_) - 1)))))
    return [*steps, *(Step(draw(compute), wait=k) for k in open_), Step(draw(compute))]


POINT = {"num_experts": 4, "batch_size": 2, "seq_len": 8}


def run_of(steps: list[Step]) -> LayerRun:
    ranks = len(steps[0].compute_G)
    layers = Layers({"name": "ep"}, POINT | {"world_size": ranks}, 0, {(0, 1): steps}, np.ones((ranks, 4)))
    (run,) = runs_of(*recorded(layers, "cell"), ranks, "cell")
    return run


@settings(deadline=None)  # the machine may be busy
@given(steps=programs())
def test_replay_is_what_the_emulator_does_on_that_network(steps):
    """On the network it was recorded on the recorded times; on another what the program takes there."""
    run = run_of(steps)
    assert replay(run, build_network(NETWORK)) == pytest.approx(run.layer_G, abs=1e-9)
    for network in (OTHER, FREE, LATE, Stretched(LATE, 3)):
        assert replay(run, network) + run.entered_G == pytest.approx(emulate(steps, network)[1], abs=1e-9)


def test_ranks_that_come_apart_take_longer_where_the_network_says_so():
    """1 MB: 10.7 ms together, 20.7 from 0.7 ms apart; three times all that on a link three times as slow."""
    sent_GG = np.array([[0, 1e6], [1e6, 0]])
    apart = [transfer_ms(LATE, "all_to_all", sent_GG, ms) for ms in (0.6, 0.8)]
    slow = [transfer_ms(Stretched(LATE, 3), "all_to_all", sent_GG, ms) for ms in (2.0, 2.2)]
    assert apart == pytest.approx([10.7, 20.7]) and slow == pytest.approx([32.1, 62.1])


def test_transfer_hides_behind_computation():
    """1 MB takes 2.021 ms on the wire; 5 ms of computation before the wait hide it, on a link 100 times as slow not."""
    steps = [
        Step(np.array([1.0, 3.0]), Transfer("all_to_all", np.array([[0, 1e6], [1e6, 0]])), asynchronous=True),
        Step(np.array([5.0, 5.0]), wait=0),
        Step(np.array([1.0, 1.0])),
    ]
    run = run_of(steps)
    assert replay(run, build_network(NETWORK)) == pytest.approx([7, 9 - LATE_MS])
    slow = Stretched(build_network(NETWORK), 100)
    assert replay(run, slow) == pytest.approx([206.1, 206.1 - LATE_MS])


def test_cell_without_collectives_is_refused(tmp_path):
    steps = [Step(np.ones(2), Transfer("all_to_all", np.zeros((2, 2)))), Step(np.ones(2))]
    layers = Layers({"name": "ep"}, POINT | {"world_size": 2}, 0, {(0, 1): steps}, np.ones((2, 4)))
    cells = [write(tmp_path, layers, 4, emulated=False), write(tmp_path, layers, 8, source="measured")]
    write_panel(tmp_path, {(4, 2): cells[:1], (8, 2): cells[1:]})
    campaign = load_campaign(tmp_path)
    with pytest.raises(ValueError, match=f"cell {cells[0]} has no recorded collectives"):
        layer_runs(campaign, cells[0])
    assert panel_cells(campaign) == cells[:1]
    with pytest.raises(ValueError, match="no panel 'fig3a'; it has map_experts_ranks"):
        panel_cells(campaign, "fig3a")
