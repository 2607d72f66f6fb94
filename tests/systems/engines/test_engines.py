"""engine=loop and engine=grouped against one expert after another in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.engines import ENGINES, find_engine

CPU, D_MODEL, D_FF = torch.device("cpu"), 16, 32
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
ROUTES = {
    "uniform": [6, 6, 6, 6],
    "skewed": [40, 1, 3, 2],
    "empty_experts": [0, 9, 0, 7],
    "all_to_one": [0, 0, 25, 0],
    "one_expert": [11],
    "zero_rows": [0, 0, 0],
}


def error(name: str, rows: list[int], padding: int, dtype: torch.dtype) -> float:
    """Relative error (Frobenius) of an engine whose rows of padding are NaN."""
    generator = torch.Generator().manual_seed(len(rows))
    used = sum(rows)
    x_RD = torch.randn(used + padding, D_MODEL, generator=generator).to(dtype)
    wi_eDF = (torch.randn(len(rows), D_MODEL, D_FF, generator=generator) / D_MODEL**0.5).to(dtype)
    wo_eFD = (torch.randn(len(rows), D_FF, D_MODEL, generator=generator) / D_FF**0.5).to(dtype)
    x_RD[used:] = torch.nan
    expert_R = [expert for expert, count in enumerate(rows) for _ in range(count)]
    expected_RD = torch.zeros(used, D_MODEL, dtype=torch.float64)
    for row, expert in enumerate(expert_R):
        expected_RD[row] = torch.relu(x_RD[row].double() @ wi_eDF[expert].double()) @ wo_eFD[expert].double()
    engine = find_engine(name)
    y_RD = engine(x_RD, torch.tensor(rows), *engine.prepare(wi_eDF, wo_eFD))
    assert y_RD.shape == x_RD.shape and y_RD.dtype == dtype
    return float((y_RD[:used] - expected_RD).norm() / expected_RD.norm().clamp(min=1e-30))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["loop", "grouped"])
def test_engine_equals_one_expert_after_another(name, route, dtype, padding):
    assert error(name, ROUTES[route], padding, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["loop", "grouped"])
@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 8), min_size=1, max_size=9), padding=st.integers(0, 4))
def test_any_counts(name, rows, padding):
    assert error(name, rows, padding, torch.float32) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ["loop", "grouped"])
def test_inputs_are_left_alone(name):
    x_RD, rows_e = torch.randn(10, D_MODEL), torch.tensor([4, 6])
    weights = torch.randn(2, D_MODEL, D_FF), torch.randn(2, D_FF, D_MODEL)
    before = [tensor.clone() for tensor in (x_RD, rows_e, *weights)]
    engine = find_engine(name)
    prepared = engine.prepare(*weights)
    first_RD = engine(x_RD, rows_e, *prepared)
    assert torch.equal(first_RD, engine(x_RD, rows_e, *prepared))
    assert all(torch.equal(*pair) for pair in zip((x_RD, rows_e, *weights), before, strict=True))


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


def test_find_engine():
    for name, engine in ENGINES.items():
        assert type(find_engine(name)) is engine and engine.name == name
    with pytest.raises(ValueError, match=r"engine is 'cutlass'; it must be one of loop, grouped, megablocks, triton$"):
        find_engine("cutlass")
