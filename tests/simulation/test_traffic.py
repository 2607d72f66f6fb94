import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.traffic import byte_matrix, comma_separated, main, nccl_fractions, ucc_patterns
from simulation.work import Transfer
from tests.simulation.emulator import Layers, Step, write, write_panel

SENT_GG = np.array([[0.0, 100.0], [300.0, 0.0]])
POINT = {"num_experts": 4, "batch_size": 2, "seq_len": 8, "world_size": 2}


@given(st.lists(st.integers(0, 2**40), min_size=9, max_size=9))
def test_fractions_give_back_every_byte(sizes):
    """The benchmark takes floor(chunk x fraction) bytes of a chunk of SIZE / ranks, which it aligns to 16."""
    bytes_GG = byte_matrix(np.reshape(sizes, (3, 3)))
    text, size = nccl_fractions(bytes_GG)
    fraction_GG = np.array([line.split(",") for line in text.splitlines()], dtype=float)
    assert size % (3 * 16) == 0 and fraction_GG.min() >= 0 and fraction_GG.max() <= 1
    assert (np.floor(size // 3 * fraction_GG) == bytes_GG).all()


def test_formats_by_hand():
    bytes_GG = byte_matrix(SENT_GG + 7 * np.eye(2))
    assert comma_separated(bytes_GG) == "0,100\n300,0\n"
    text = ucc_patterns([bytes_GG, 2 * bytes_GG], "c1", {"system": "ep", "point": POINT})
    assert text.count("[collective]\ntype = ALLTOALLV\nteam_size = 2\ndatatype = UINT8\n") == 2
    assert "counts = {\n    0,100\n    300,0\n}\n" in text and "counts = {\n    0,200\n    600,0\n}\n" in text


def test_export_of_a_cell(tmp_path, capsys):
    gather = Transfer("all_gather", np.array([[0.0, 64.0], [64.0, 0.0]]))
    steps = [Step(np.ones(2), Transfer("all_to_all", SENT_GG)), Step(np.ones(2), gather), Step(np.ones(2))]
    cell = write(tmp_path / "c", Layers({"name": "ep"}, POINT, 0, {(0, 1): steps}, np.ones((2, 4))), 4)
    write_panel(tmp_path / "c", {(4, 2): [cell]})
    assert main([str(tmp_path / "c"), "--system", "ep", "--x", "4", "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / cell
    assert (folder / "iteration0_layer1_0_dispatch_all_to_all.csv").read_text() == "0,100\n300,0\n"
    assert [path.name for path in folder.glob("*.nccl.csv")] == [
        "iteration0_layer1_0_dispatch_all_to_all.608bytes.nccl.csv"
    ]
    index = pd.read_csv(folder / "index.csv")
    assert index["bytes"].tolist() == [400, 128] and index["bytes_of_busiest_rank"].tolist() == [300, 64]
    assert (folder / "cell.ptini").read_text().count("[collective]") == 1
    assert "2 collectives, 528 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("choice", [["--cell", "absent"], ["--system", "moeshard"], ["--system", "ep", "--x", "8"]])
def test_what_was_not_measured_is_refused(tmp_path, capsys, choice):
    steps = [Step(np.ones(2), Transfer("all_to_all", SENT_GG)), Step(np.ones(2))]
    cell = write(tmp_path, Layers({"name": "ep"}, POINT, 0, {(0, 1): steps}, np.ones((2, 4))), 4)
    write_panel(tmp_path, {(4, 2): [cell]})
    assert main([str(tmp_path), *choice, "--out", str(tmp_path / "out")]) == 2
    assert "has no measured cell" in capsys.readouterr().err
