"""Each recorder's own format becomes a record that our routers replay: the same experts, and nothing that is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from routers.token_trace import TokenTrace, TokenTraceRouter
from routers.trace import TraceRouter
from scripts.import_routing import main

write = torch.save  # noqa: TID251  (as the recorders do)
LAYERS, TOKENS, K, E = 3, 20, 2, 8
REAL_LTK = np.stack([
    np.stack([np.random.default_rng(100 * layer + token).permutation(E)[:K] for token in range(TOKENS)])
    for layer in range(LAYERS)
])  # fmt: skip
DENSE_FIRST_LTK = np.concatenate([np.zeros((1, TOKENS, K), np.int64), REAL_LTK])


def imported(kind: str, tmp_path: Path, *files: Path) -> TokenTrace:
    assert main([kind, *map(str, files), "--num-experts", str(E), "--out", str(tmp_path / "mine.npz")]) == 0
    return TokenTrace.read(tmp_path / "mine.npz")


def test_vllms_requests_lose_dense_layers_and_cached_tokens(tmp_path):
    first_LTK = DENSE_FIRST_LTK[:, :12].copy()
    first_LTK[1:, :4] = -1  # from its prefix cache
    for name, part_LTK in (("a", first_LTK), ("b", DENSE_FIRST_LTK[:, 12:])):
        np.save(tmp_path / f"{name}.npy", part_LTK.transpose(1, 0, 2).astype(np.int32))
    trace = imported("vllm", tmp_path, tmp_path / "a.npy", tmp_path / "b.npy")
    assert trace.expert_LTK.tolist() == REAL_LTK[:, 4:].tolist()
    assert trace.start_S.tolist() == [0, 8] and trace.block_L.tolist() == [1, 2, 3]


def test_sglangs_records_lose_their_padding(tmp_path):
    padded_LTK = np.pad(REAL_LTK, ((0, 0), (0, 3), (0, 0)), constant_values=-1)
    record = {"topk_ids_of_layer": torch.from_numpy(padded_LTK).int(), "forward_pass_id": 1, "rank": 0}
    write({"records": [record, record]}, tmp_path / "sglang.pt")
    trace = imported("sglang", tmp_path, tmp_path / "sglang.pt")
    assert trace.expert_LTK.tolist() == np.concatenate([REAL_LTK, REAL_LTK], 1).tolist()
    assert trace.start_S.tolist() == [0, TOKENS]


def test_megatrons_layers_and_a_plain_csv(tmp_path):
    write([torch.from_numpy(expert_TK) for expert_TK in REAL_LTK], tmp_path / "megatron.pt")
    lines = [
        f"{layer},{token},{' '.join(map(str, REAL_LTK[layer, token]))}"
        for token in range(TOKENS)
        for layer in range(LAYERS)
    ]
    (tmp_path / "plain.csv").write_text("\n".join(["layer,token,experts", *lines]))
    for kind, name in (("megatron", "megatron.pt"), ("csv", "plain.csv")):
        assert imported(kind, tmp_path, tmp_path / name).expert_LTK.tolist() == REAL_LTK.tolist()


def test_what_was_imported_is_replayed_with_all_its_experts(tmp_path):
    write([torch.from_numpy(expert_TK) for expert_TK in REAL_LTK], tmp_path / "megatron.pt")
    imported("megatron", tmp_path, tmp_path / "megatron.pt")
    given = {"num_experts": E, "rank": 0, "seed": 0, "top_k": K, "moe_blocks": [4, 5, 6], "held_out": 0}
    router = TokenTraceRouter(path=str(tmp_path / "mine.npz"), **given)
    drawn_LTK = np.stack([router.draw(TOKENS, layer=block, iteration=0) for block in (4, 5, 6)])
    start = next(at for at in range(TOKENS) if (np.roll(REAL_LTK, -at, 1) == drawn_LTK).all())
    assert 0 <= start < TOKENS


def test_sglangs_counts_are_replayed_as_loads(tmp_path):
    count_ILE = np.random.default_rng(0).integers(1, 50, (2, 4, E))
    count_ILE[:, 0] = 0  # a dense layer
    ring = np.concatenate([count_ILE, np.zeros((1, 4, E), int)])  # a row that was never filled
    write({"rank": 0, "logical_count": torch.from_numpy(ring).int()}, tmp_path / "stat.pt")
    assert main(["sglang-counts", str(tmp_path / "stat.pt"), "--out", str(tmp_path / "mine.csv.gz")]) == 0
    given = {"num_experts": E, "rank": 0, "seed": 0, "moe_blocks": [1, 2, 3], "held_out": 0}
    router = TraceRouter(path=str(tmp_path / "mine.csv.gz"), **given)
    total = int(count_ILE[1, 2].sum())
    assert router.counts(total, layer=2, iteration=1).tolist() == count_ILE[1, 2].tolist()


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("vllm", np.full((4, 2, 2), -1), "no layer or no token with experts is recorded"),
        ("vllm", np.full((4, 2, 1), 9), "expert 9 is recorded; --num-experts is 8"),
    ],
)
def test_what_is_no_record_is_said_in_a_sentence(tmp_path, capsys, kind, content, said):
    np.save(tmp_path / "bad.npy", content)
    assert main([kind, str(tmp_path / "bad.npy"), "--num-experts", "8", "--out", str(tmp_path / "mine.npz")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "mine.npz").exists()


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    write([print], tmp_path / "bad.pt")
    assert main(["megatron", str(tmp_path / "bad.pt"), "--num-experts", "8", "--out", str(tmp_path / "mine.npz")]) == 2
    assert "it is no file of tensors (UnpicklingError)" in capsys.readouterr().err
