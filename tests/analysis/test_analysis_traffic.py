import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.traffic import byte_matrix, comma_separated, main, nccl_fractions, ucc_patterns

CELL = "moeshard_num_experts_8_0"
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


@pytest.fixture
def folder(fig3):
    """One layer with an all-to-all and an all-gather, of which only the first is in a section."""
    folder = fig3(experts=(8,), batches=(), launches=1)
    even_GG = 16.0 * (1 - np.eye(4))
    uneven_GG = even_GG + 84 * np.eye(4, k=1)
    rows = [
        {"iteration": 0, "layer": 1, "sequence": k, "rank": rank, "ranks": 4, "collective": collective}
        | {"section": section, "sent_to": sent_GG[rank].tolist()}
        for k, (collective, section, sent_GG) in enumerate(
            [("all_to_all", "dispatch", uneven_GG), ("all_gather", None, even_GG)]
        )
        for rank in (2, 0, 3, 1)
    ]
    pd.DataFrame(rows).to_parquet(folder / "cells" / CELL / "collectives.parquet")
    return folder


@pytest.mark.parametrize("choice", [["--system", "moeshard", "--x", "8"], ["--cell", CELL]])
def test_export_of_a_cell(folder, tmp_path, capsys, choice):
    assert main([str(folder), *choice, "--out", str(tmp_path / "out")]) == 0
    exported = tmp_path / "out" / CELL
    matrix = "0,100,16,16\n16,0,100,16\n16,16,0,100\n16,16,16,0\n"
    assert (exported / "iteration0_layer1_0_dispatch_all_to_all.csv").read_text() == matrix
    assert (exported / "iteration0_layer1_1_layer_all_gather.csv").exists()
    assert [path.name for path in exported.glob("*.nccl.csv")] == [
        "iteration0_layer1_0_dispatch_all_to_all.448bytes.nccl.csv"
    ]
    index = pd.read_csv(exported / "index.csv")
    assert index["bytes"].tolist() == [444, 192] and index["bytes_of_busiest_rank"].tolist() == [132, 48]
    assert (exported / "cell.ptini").read_text().count("[collective]") == 1
    assert "2 collectives, 636 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("choice", [["--cell", "absent"], ["--system", "ep"], ["--system", "moeshard", "--x", "9"]])
def test_what_was_not_measured_is_refused(folder, tmp_path, capsys, choice):
    assert main([str(folder), *choice, "--out", str(tmp_path / "out")]) == 2
    assert "has no measured cell" in capsys.readouterr().err


def test_cell_without_collectives_is_refused(fig3, tmp_path, capsys):
    folder = fig3(experts=(8,), batches=(), launches=1)
    assert main([str(folder), "--cell", CELL, "--out", str(tmp_path / "out")]) == 2
    assert "has no recorded collectives" in capsys.readouterr().err
