"""The profile of a program: its operations, in a pass, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest

from scripts.profile_programs import main

TINY = ["model.num_experts=8", "model.d_model=64", "model.d_ff=128", "batch_size=2", "seq_len=8"]


def test_every_system_has_its_operations(tmp_path: Path):
    assert main(["moeshard", "moeshard_no_megablocks", "--out", str(tmp_path), "--overrides", *TINY]) == 0
    rows = pd.read_csv(tmp_path / "operations.csv")
    calls = rows.set_index(["system", "operation"])["calls"]
    assert set(rows["system"]) == {"moeshard", "moeshard_no_megablocks"} and (rows["host_us"] >= 0).all()
    assert calls["moeshard", "aten::mm"] < calls["moeshard_no_megablocks", "aten::mm"]  # a loop over experts


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["moeshar"], "there is no system 'moeshar'; did you mean 'moeshard'?"),
        (["moeshard", "--overrides", "batch=3"], "there is no key 'batch'; did you mean 'batch_size'?"),
    ],
)
def test_what_is_not_there_is_named_in_a_sentence(arguments: list[str], told: str, tmp_path: Path, capsys):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert told in said and said.count("\n") == 1
