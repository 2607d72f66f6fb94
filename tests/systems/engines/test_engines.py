"""The engines of CPUs against one expert after another in float64."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.engines import ACTIVATIONS, ENGINES, Copies, cpu, find_engine
from systems.engines.activations import expert_ffn
from systems.engines.cpu import MARCH, kernels, processor
from systems.permute import group_by_expert

CPU, D_MODEL, D_FF = torch.device("cpu"), 16, 32
ON_CPU = ["loop", "grouped", "cpu"]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
NARROW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", MARCH: "x86-64-v3"}
ROUTES = {
    "uniform": [6, 6, 6, 6],
    "skewed": [40, 1, 3, 2],
    "empty_experts": [0, 9, 0, 7],
    "all_to_one": [0, 0, 25, 0],
    "one_expert": [11],
    "zero_rows": [0, 0, 0],
    "no_expert": [],
    "many_rows": [150, 0, 61],
}


@pytest.fixture(autouse=True)
def can_run(request: pytest.FixtureRequest) -> None:
    """Tests of engine=cpu, which have it in their names or parameters, want a compiler."""
    if "cpu" in request.node.name:
        request.getfixturevalue("has_compiler")


def error(
    name: str, rows: list[int], padding: int, dtype: torch.dtype, d_model: int = D_MODEL, d_ff: int = D_FF
) -> float:
    """Error (Frobenius) of an engine whose rows of padding are NaN and whose copies stand in any order.

    Relative to the result if no terms had cancelled: what is left of terms that do says nothing of an engine.
    """
    generator = torch.Generator().manual_seed(len(rows))
    used = sum(rows)
    x_ND = torch.randn(used + padding, d_model, generator=generator).to(dtype)
    wi_eDF = (torch.randn(len(rows), d_model, d_ff, generator=generator) / d_model**0.5).to(dtype)
    wo_eFD = (torch.randn(len(rows), d_ff, d_model, generator=generator) / d_ff**0.5).to(dtype)
    order_N = torch.randperm(used + padding, generator=generator)
    x_ND[order_N[used:]] = torch.nan
    expert_R = [expert for expert, count in enumerate(rows) for _ in range(count)]
    expected_RD, terms_RD = torch.zeros(2, used, d_model, dtype=torch.float64)
    for place, expert in enumerate(expert_R):
        x_D = x_ND[order_N[place]].double()
        wi_DF, wo_FD = wi_eDF[expert].double(), wo_eFD[expert].double()
        expected_RD[place] = torch.relu(x_D @ wi_DF) @ wo_FD
        terms_RD[place] = x_D.abs() @ wi_DF.abs() @ wo_FD.abs()
    engine = find_engine(name)
    y_ND = engine(x_ND, Copies(order_N, torch.tensor(rows, dtype=torch.int64)), *engine.prepare(wi_eDF, wo_eFD))
    assert y_ND.shape == x_ND.shape and y_ND.dtype == dtype
    return float((y_ND[order_N[:used]] - expected_RD).norm() / terms_RD.norm().clamp(min=1e-30))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ON_CPU)
def test_engine_equals_one_expert_after_another(name, route, dtype, padding):
    assert error(name, ROUTES[route], padding, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ON_CPU)
@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 8), min_size=1, max_size=9), padding=st.integers(0, 4))
def test_any_counts(name, rows, padding):
    assert error(name, rows, padding, torch.float32) < TOLERANCE[torch.float32]


@settings(deadline=None, max_examples=30)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    rows=st.lists(st.integers(0, 130), min_size=1, max_size=4),  # up to four units of an expert
    d_model=st.integers(1, 150),
    d_ff=st.one_of(st.integers(1, 150), st.integers(760, 850)),
)
def test_cpu_takes_any_widths(dtype, rows, d_model, d_ff):
    assert error("cpu", rows, 0, dtype, d_model, d_ff) < TOLERANCE[dtype]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ON_CPU)
def test_copies_of_a_token_stand_together(name, threads, weighted):
    """Top-2: copy n is of token n // 2, and its result is multiplied with weight n."""
    generator = torch.Generator().manual_seed(0)
    x_MD, expert_N = torch.randn(30, D_MODEL, generator=generator), torch.randint(5, (60,), generator=generator)
    weights = torch.randn(5, D_MODEL, D_FF, generator=generator), torch.randn(5, D_FF, D_MODEL, generator=generator)
    weight_N = torch.rand(60, generator=generator) if weighted else torch.ones(60)
    engine = find_engine(name)
    copies = Copies(*group_by_expert(expert_N, 5), top_k=2, weight_N=weight_N if weighted else None)
    given = (x_MD, copies.order_N, copies.rows_e, weight_N, *weights)
    before, torch_threads = [tensor.clone() for tensor in given], torch.get_num_threads()
    torch.set_num_threads(threads)
    y_ND = engine(x_MD, copies, *engine.prepare(*weights))
    torch.set_num_threads(torch_threads)
    for copy, expert in enumerate(expert_N.tolist()):
        expected_D = weight_N[copy] * (torch.relu(x_MD[copy // 2] @ weights[0][expert]) @ weights[1][expert])
        torch.testing.assert_close(y_ND[copy], expected_D, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True)), "inputs are left alone"


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ON_CPU)
@settings(deadline=None, max_examples=10)
@given(rows=st.lists(st.integers(0, 50), min_size=1, max_size=5), width=st.integers(1, 12), hidden=st.integers(1, 110))
def test_any_activation_with_biases_or_without(name, activation, dtype, biased, rows, width, hidden):
    """Against one expert after another in float64; widths are what every engine takes."""
    gated, width, hidden = ACTIVATIONS[activation], 8 * width, 8 * hidden
    generator = torch.Generator().manual_seed(hidden)
    sizes = [(width, gated.in_width(hidden)), (hidden, width), (gated.in_width(hidden),), (width,)]
    scales = [3 * width**-0.5, hidden**-0.5, 1, 1]  # the first so that what is clamped is clamped
    weights = [
        (torch.randn(len(rows), *size, generator=generator) * scale).to(dtype)
        for size, scale in zip(sizes[: 4 if biased else 2], scales, strict=False)
    ]
    x_ND = torch.randn(sum(rows), width, generator=generator).to(dtype)
    order_N = torch.randperm(len(x_ND), generator=generator)
    copies = Copies(order_N, torch.tensor(rows), weight_N=torch.rand(len(x_ND), generator=generator))
    expected_ND = torch.zeros(len(x_ND), width, dtype=torch.float64)
    for expert, copies_R in enumerate(order_N.split(rows)):
        y_RD = expert_ffn(x_ND[copies_R].double(), gated, *(weight[expert].double() for weight in weights))
        expected_ND[copies_R] = y_RD * copies.weight_N[copies_R].double().unsqueeze(1)
    engine = find_engine(name, activation)
    y_ND = engine(x_ND, copies, *engine.prepare(*weights))
    assert y_ND.dtype == dtype and float((y_ND - expected_ND).norm()) <= 2 * TOLERANCE[dtype] * float(
        expected_ND.norm()
    )


def test_cpu_packs_shared_weights_once_and_a_changed_pair_again():
    engine, wi_eDF, wo_eFD = find_engine("cpu"), torch.ones(1, 8, 8), torch.ones(1, 8, 8)
    first = engine.prepare(wi_eDF, wo_eFD)
    assert engine.prepare(wi_eDF, wo_eFD)[0] is first[0]
    assert not torch.equal(engine.prepare(wi_eDF, 2 * wo_eFD)[1], first[1])


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_relu_keeps_nan(name, dtype):
    engine, x_MD = find_engine(name), torch.ones(2, 8, dtype=dtype)
    weights = engine.prepare(torch.ones(1, 8, 8, dtype=dtype), torch.ones(1, 8, 8, dtype=dtype))
    x_MD[0, 0] = torch.nan
    y_MD = engine(x_MD, Copies(torch.tensor([1, 0]), torch.tensor([2])), *weights)
    assert y_MD.isnan().all(1).tolist() == [True, False]


def test_cpu_names_what_it_cannot_use(monkeypatch):
    with pytest.raises(ValueError, match=r"float32 and bfloat16, got torch\.float16; use engine=grouped"):
        find_engine("cpu").check(CPU, torch.float16, [16])
    with pytest.raises(ValueError, match="runs on CPUs and this rank is on cuda; use engine=triton"):
        find_engine("cpu").check(torch.device("cuda"), torch.float32, [16])
    find_engine("cpu").check(CPU, torch.bfloat16, [7, 13])
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernels.cache_clear()
    with pytest.raises(ValueError, match=r"cannot run no-such-compiler .*; use engine=grouped"):
        find_engine("cpu").check(CPU, torch.float32, [16])


@pytest.mark.parametrize(
    ("dtype", "multiple", "good", "bad"), [(torch.float32, 4, [8, 12], [8, 6]), (torch.bfloat16, 8, [8, 16], [12, 16])]
)
def test_grouped_names_a_width_it_cannot_use(dtype, multiple, good, bad):
    find_engine("grouped").check(CPU, dtype, good)
    find_engine("loop").check(CPU, dtype, bad)
    wrong = next(width for width in bad if width % multiple)
    sentence = (
        rf"engine=grouped needs matrix widths that are multiples of {multiple} in {dtype}, got {wrong}; use engine=loop"
    )
    with pytest.raises(ValueError, match=sentence):
        find_engine("grouped").check(CPU, dtype, bad)


@pytest.mark.slow
@pytest.mark.skipif("avx512f" not in processor(), reason="this processor has no wider registers than AVX2's anyway")
def test_all_of_this_with_the_registers_of_avx2(has_compiler):
    here = [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__, "-k", "cpu or loop or grouped"]
    done = subprocess.run(here, capture_output=True, text=True, env=os.environ | NARROW)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_another_instruction_set_is_another_library(monkeypatch, tmp_path, has_compiler):
    compiled = []
    monkeypatch.setattr(cpu, "_compile", lambda compiler, target: compiled.append(cpu._flags()) or target.touch())
    monkeypatch.setattr(cpu, "cache_folder", lambda: tmp_path)
    monkeypatch.delenv(MARCH, raising=False)
    wide = cpu._library()
    monkeypatch.setenv(MARCH, "x86-64-v2")
    assert cpu._library() != wide and [flags[-1] for flags in compiled] == ["-march=native", "-march=x86-64-v2"]


def test_find_engine():
    for name, engine in ENGINES.items():
        assert type(find_engine(name)) is engine and engine.name == name
    with pytest.raises(
        ValueError, match=r"engine is 'cutlass'; it must be auto or one of loop, grouped, cpu, megablocks, triton$"
    ):
        find_engine("cutlass")
