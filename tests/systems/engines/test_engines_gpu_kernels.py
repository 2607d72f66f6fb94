"""engine=megablocks and engine=triton: on a GPU, or on the CPU in Triton's interpreter, against engine=loop in fp64.

`pip install triton stanford-stk==0.7.1` brings the interpreter's tests; it has no bf16 and no TF32.
"""

import os
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.engines import ACTIVATIONS, Copies, find_engine, megablocks, triton_grouped
from systems.engines.base import Engine
from systems.engines.megablocks import block_topology, padded_places
from systems.permute import group_by_expert

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported

ENGINES = ("megablocks", "triton")
# (rows of each expert, rows of padding)
ROUTES = {
    "uniform": ([40, 40, 40, 40], 0),
    "skewed": ([150, 7, 1, 3, 2, 4], 0),
    "all_to_one": ([0, 0, 260, 0], 0),
    "one_expert": ([90], 0),
    "empty_experts": ([0, 129, 0, 0, 128, 0], 0),
    "one_more_than_a_tile": ([33, 17, 17, 17, 17, 17], 0),
    "padding": ([20, 0, 31, 5], 9),
    "padding_only": ([0, 0], 5),
    "no_rows": ([0, 0, 0], 0),
}
counts = st.lists(st.integers(0, 40), min_size=1, max_size=9)


def error(
    engine: Engine,
    rows: list[int],
    padding: int,
    width: int,
    d_ff: int,
    device=CPU,
    dtype=torch.float32,
    *,
    biased: bool = False,
) -> float:
    """Relative error of the engine's output, with NaN in the rows of padding and copies in any order."""
    generator = torch.Generator().manual_seed(0)
    used, in_width = sum(rows), engine.activation.in_width(d_ff)
    x_ND = torch.randn(used + padding, width, generator=generator).to(device, dtype)
    wi_eDI = torch.randn(len(rows), width, in_width, generator=generator) / width**0.5
    wo_eFD = torch.randn(len(rows), width, d_ff, generator=generator).mT / d_ff**0.5
    biases = [torch.randn(len(rows), size, generator=generator) for size in (in_width, width)] if biased else []
    weights = [weight.to(device, dtype) for weight in (wi_eDI, wo_eFD, *biases)]
    order_N = torch.randperm(used + padding, generator=generator).to(device)
    x_ND[order_N[used:]] = torch.nan
    copies = Copies(order_N, torch.tensor(rows, device=device))
    loop = find_engine("loop", engine.activation.name)
    expected = loop(x_ND.double(), copies, *(weight.double() for weight in weights))
    y_ND = engine(x_ND, copies, *engine.prepare(*weights))
    assert y_ND.shape == x_ND.shape and y_ND.dtype == dtype
    difference = (y_ND - expected)[order_N[:used]]
    return float(difference.norm() / expected[order_N[:used]].norm().clamp(min=1e-30))


def has_package(monkeypatch: pytest.MonkeyPatch, module: ModuleType, missing: str = "") -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == missing else object())


def has_precision(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)


@pytest.fixture(scope="module")
def interpreter() -> None:
    # 3.6's interpreter fails on NumPy 2.4.
    language = pytest.importorskip("triton", minversion="3.7", reason="Triton 3.7 or later is not installed").language
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(language.cdiv, InterpretedFunction):
        pytest.skip("Triton was imported without TRITON_INTERPRET=1")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "megablocks":
        pytest.importorskip("stk", reason="stanford-stk is not installed")
    return find_engine(request.param)


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 keeps kernels off the GPU")


@pytest.mark.parametrize("name", ENGINES)
def test_check_refuses_the_cpu(name: str):
    with pytest.raises(ValueError, match=rf"engine={name} runs .* on cpu; use engine=(grouped|cpu) or engine=loop"):
        find_engine(name).check(CPU, torch.float32, (128, 128))


@pytest.mark.parametrize(
    ("name", "module", "missing", "install"),
    [
        ("megablocks", megablocks, "stk", "pip install stanford-stk==0.7.1"),
        ("megablocks", megablocks, "triton", "pip install stanford-stk==0.7.1 triton"),
        ("triton", triton_grouped, "triton", "pip install triton"),
    ],
)
def test_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name, module, missing, install):
    has_package(monkeypatch, module, missing)
    with pytest.raises(ValueError, match=install):
        find_engine(name).check(CUDA, torch.bfloat16, (128, 128))


@pytest.mark.parametrize(("widths", "culprit"), [((192, 256), 192), ((256, 64), 64)])
def test_check_refuses_widths_that_blocks_do_not_fill(monkeypatch: pytest.MonkeyPatch, widths, culprit):
    has_package(monkeypatch, megablocks)
    with pytest.raises(ValueError, match=f"multiples of 128, got {culprit}"):
        find_engine("megablocks").check(CUDA, torch.bfloat16, widths)


def test_check_refuses_ieee_where_kernels_use_tf32(monkeypatch: pytest.MonkeyPatch):
    has_package(monkeypatch, megablocks)
    has_precision(monkeypatch, "highest")
    with pytest.raises(ValueError, match="TF32 and precision is fp32"):
        find_engine("megablocks").check(CUDA, torch.float32, (128, 128))
    find_engine("megablocks").check(CUDA, torch.bfloat16, (128, 128))


def test_check_passes(monkeypatch: pytest.MonkeyPatch):
    has_package(monkeypatch, megablocks)
    has_package(monkeypatch, triton_grouped)
    has_precision(monkeypatch, "high")
    find_engine("megablocks").check(CUDA, torch.float32, (768, 3072))
    find_engine("triton").check(CUDA, torch.float32, (7, 13))


@pytest.mark.parametrize("num_experts", [1, 3])
def test_prepared_weights_are_contiguous(num_experts: int):
    wi_eDF, wo_eFD = torch.randn(num_experts, 4, 6), torch.randn(num_experts, 6, 4)
    wi_HD, wo_HD = find_engine("megablocks").prepare(wi_eDF, wo_eFD)
    wi_eFD, wo_eDF = find_engine("triton").prepare(wi_eDF, wo_eFD)
    assert all(w.is_contiguous() for w in (wi_HD, wo_HD, wi_eFD, wo_eDF))
    assert torch.equal(wi_HD.view(num_experts, 6, 4).mT, wi_eDF) and torch.equal(wo_HD.view_as(wo_eFD), wo_eFD)
    assert torch.equal(wi_eFD.mT, wi_eDF) and torch.equal(wo_eDF.mT, wo_eFD)


def test_padded_places_by_hand():
    expert_B, row_P, place_R = padded_places(torch.tensor([3, 0, 1]), 4, block=2)
    assert expert_B.tolist() == [0, 0, 2]
    assert row_P[[0, 1, 2, 4]].tolist() == [0, 1, 2, 3]
    assert place_R.tolist() == [0, 1, 2, 4]


@given(counts, st.integers(0, 5), st.integers(1, 16))
def test_padded_places_keep_each_row_with_its_expert(rows: list[int], padding: int, block: int):
    used = sum(rows)
    expert_B, row_P, place_R = padded_places(torch.tensor(rows), used + padding, block)
    assert expert_B.bincount(minlength=len(rows)).tolist() == [-(-n // block) for n in rows]
    assert len(row_P) == block * len(expert_B) and len(place_R) == used + padding
    assert row_P[place_R[:used]].tolist() == list(range(used))
    expert_R = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
    assert torch.equal(expert_B[place_R[:used] // block], expert_R)
    if used:  # whatever is copied to or read from places of padding is there
        assert 0 <= row_P.min() <= row_P.max() < used + padding and 0 <= place_R.min() <= place_R.max() < len(row_P)


def test_block_topology_by_hand():
    rows, columns, offsets = block_topology(torch.tensor([0, 2]), 2)
    assert (rows.tolist(), columns.tolist(), offsets.tolist()) == ([0, 0, 1, 1], [0, 1, 4, 5], [0, 2, 4])


def test_block_indices_stay_exact_when_multiplied_by_the_block():
    rows, columns, _ = block_topology(torch.full((300,), 299), 1)
    assert (int((rows * 128)[-1]), int((columns * 128)[-1])) == (299 * 128, 299 * 128)


def test_matrices_beyond_32_bit_offsets_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "stk", ModuleType("stk"))
    huge_HD, copies = torch.empty(1).expand(2**24, 128), Copies(torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="less than 2\\*\\*31 elements, got 2147483648"):
        find_engine("megablocks")(torch.empty(1, 128), copies, huge_HD, huge_HD)


@pytest.mark.parametrize("rows", [1, 16, 64, 4096])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_are_powers_of_two_of_whole_cache_lines(interpreter, rows: int, itemsize: int):
    from systems.engines.triton_kernels import tiles_for

    for tile in tiles_for(rows, itemsize):
        sizes = tile["kwargs"]
        assert all(size & (size - 1) == 0 for size in sizes.values())
        assert 16 <= sizes["BLOCK_M"] <= 128 and sizes["BLOCK_K"] * itemsize % 128 == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
def test_copies_of_a_token_stand_together_in_the_interpreter(interpreter, engine: Engine, top_k: int, weighted: bool):
    generator = torch.Generator().manual_seed(0)
    x_MD, expert_N = torch.randn(20, 128, generator=generator), torch.randint(3, (20 * top_k,), generator=generator)
    wi_eDF, wo_eFD = torch.randn(2, 3, 128, 128, generator=generator)
    copies = Copies(*group_by_expert(expert_N, 3), top_k, torch.rand(20 * top_k) if weighted else None)
    expected = find_engine("loop")(x_MD, copies, wi_eDF, wo_eFD)
    y_ND = engine(x_MD, copies, *engine.prepare(wi_eDF, wo_eFD))
    torch.testing.assert_close(y_ND, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_engine_equals_loop_in_the_interpreter(interpreter, engine: Engine, dtype: torch.dtype, route: str):
    assert error(engine, *ROUTES[route], 128, 256, dtype=dtype) < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "relu"])
@pytest.mark.parametrize("name", ENGINES)
def test_gated_activations_in_the_interpreter(interpreter, name: str, activation: str, biased: bool):
    if name == "megablocks":
        pytest.importorskip("stk", reason="stanford-stk is not installed")
    engine = find_engine(name, activation)
    if name == "megablocks" and biased:
        with pytest.raises(ValueError, match="engine=megablocks has no biases"):
            error(engine, [3], 0, 128, 128, biased=True)
        return
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
        assert error(engine, [33, 0, 17], 2, 128, 128, dtype=dtype, biased=biased) < tolerance


@settings(max_examples=12, deadline=None)
@given(counts, st.integers(0, 5), st.integers(1, 140), st.integers(1, 140), st.sampled_from(list(ACTIVATIONS)))
def test_triton_takes_any_widths_in_the_interpreter(interpreter, rows, padding, width, d_ff, activation):
    assert error(find_engine("triton", activation), rows, padding, width, d_ff) < 1e-6


@pytest.mark.slow
def test_megablocks_counts_beyond_256_blocks_in_the_interpreter(interpreter):
    pytest.importorskip("stk", reason="stanford-stk is not installed")
    assert error(find_engine("megablocks"), [1] * 260, 0, 128, 128) < 1e-6


def test_relu_keeps_nan_in_the_interpreter(interpreter, engine: Engine):
    x_RD, weights = torch.ones(2, 128), engine.prepare(torch.ones(1, 128, 128), torch.ones(1, 128, 128))
    x_RD[0, 0] = torch.nan
    assert engine(x_RD, Copies(torch.arange(2), torch.tensor([2])), *weights).isnan().all(1).tolist() == [True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.float32, "highest", 1e-5),
        (torch.float32, "high", 2e-3),
        (torch.bfloat16, "highest", 1e-2),
        (torch.float16, "highest", 2e-3),
    ],
    ids=["fp32", "tf32", "bf16", "fp16"],
)
def test_engine_equals_loop_on_a_gpu(monkeypatch, gpu, engine: Engine, dtype, precision, tolerance, route: str):
    has_precision(monkeypatch, precision)
    try:
        engine.check(CUDA, dtype, (128, 256))
    except ValueError as refusal:
        pytest.skip(str(refusal))
    assert error(engine, *ROUTES[route], 128, 256, CUDA, dtype) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton_takes_odd_widths_on_a_gpu(gpu, dtype: torch.dtype):
    assert error(find_engine("triton"), [33, 0, 700, 1], 3, 77, 131, CUDA, dtype) < 1e-2


@pytest.mark.gpu
def test_triton_replays_as_a_cuda_graph_with_another_routing(gpu):
    engine, loop = find_engine("triton"), find_engine("loop")
    x_RD, rows_e = torch.randn(300, 128, device=CUDA), torch.tensor([300, 0, 0], device=CUDA)
    wi_eDF, wo_eFD = torch.randn(3, 128, 256, device=CUDA), torch.randn(3, 256, 128, device=CUDA)
    prepared, copies = engine.prepare(wi_eDF, wo_eFD), Copies(torch.randperm(300, device=CUDA), rows_e)
    engine(x_RD, copies, *prepared)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_RD = engine(x_RD, copies, *prepared)
    rows_e.copy_(torch.tensor([20, 150, 130]))
    graph.replay()
    expected = loop(x_RD.double(), copies, wi_eDF.double(), wo_eFD.double())
    assert (y_RD - expected).norm() < 2e-3 * expected.norm()
