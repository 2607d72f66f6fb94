import numpy as np
import pandas as pd
import pytest

from routers.fits import read_fits
from scripts import fit_loads
from scripts.fit_loads import fit_batches, fit_runs, read_batches, sequence_cv
from scripts.judge_loads import drawn_counts, imbalance, nearest

FACTS = {"top_k": 2, "regime": "prefill", "source": "made up"}
RISING_E = np.arange(1, 13) / 78


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fit_loads, "SEQUENCES", 512)


def test_runs_differ_along_the_line_that_made_them():
    """Shares of runs are e^(mean + score x line)."""
    line_E = np.linspace(-0.3, 0.5, 12)
    runs_RLE = np.stack([RISING_E * np.exp(score * line_E) for score in (-1, 0, 1)])[:, None] * 1e6
    fit = fit_runs(runs_RLE, 0.0, correct=False, **FACTS)
    for counts_LE in runs_RLE:
        np.testing.assert_allclose(nearest(fit, counts_LE)[0], counts_LE[0] / counts_LE.sum(), rtol=0.02)
    one = fit_runs(runs_RLE[1:2], 0.0, correct=False, **FACTS)
    np.testing.assert_allclose(one.shares(0, 2.0), RISING_E, rtol=0.01)  # a single run has no line


def test_draws_have_the_shares_and_the_spread_that_were_fitted():
    """Without correction the hottest experts get too little, because a token has each of them once only."""
    hot_E = np.array([4.5, 4, 1, 1, 1, 1, 1, 1]) / 14.5
    counts_RLE = np.stack([hot_E, hot_E[::-1]])[None] * 1e6
    plain, corrected = (fit_runs(counts_RLE, 0.5, correct=correct, **FACTS) for correct in (False, True))
    drawn = [drawn_counts(fit, 40_000, 4000, 1)[0, 0] / 80_000 for fit in (plain, corrected)]
    assert drawn[0][0] < 0.95 * hot_E[0] and drawn[1] == pytest.approx(hot_E, rel=0.06)
    by_sequence_SE = np.concatenate(drawn_counts(corrected, 100, 1, 400)[:, :1])
    assert sequence_cv(by_sequence_SE, 1, 2) == pytest.approx(0.5, abs=0.1)


def test_the_spread_of_sequences_is_found_from_batches_of_many():
    fit = fit_runs(RISING_E[None, None] * 1e6, 0.8, **FACTS)
    batches_ILE = drawn_counts(fit, 1600, 16, 200)
    found = float(fit_batches(batches_ILE, 16, **FACTS).sequence_sd_L[0])
    assert found == pytest.approx(float(fit.sequence_sd_L[0]), rel=0.2)


def test_tokens_that_are_independent_have_no_spread_of_sequences():
    drawn_IE = np.random.default_rng(0).multinomial(4000, RISING_E, size=300)
    assert sequence_cv(drawn_IE, 10, 1) < 0.15


def test_imbalance_by_hand():
    assert imbalance(np.array([[3, 1, 1, 1], [2, 2, 2, 2]]), 2).tolist() == [4 / 3, 1]


def rows(counts_ILE: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(
        counts_ILE.reshape(-1, counts_ILE.shape[2]), columns=[str(expert) for expert in range(counts_ILE.shape[2])]
    )
    batch, layer = (index.ravel() for index in np.indices(counts_ILE.shape[:2]))
    return frame.assign(layer_idx=layer, iteration=batch, dataset="text")


def test_a_record_becomes_a_fit_with_its_errors_beside_it(tmp_path, capsys):
    counts_ILE = np.random.default_rng(0).multinomial(4000, RISING_E, size=(6, 2))
    rows(counts_ILE).to_csv(tmp_path / "counts.csv", index=False)
    out = tmp_path / "fits.npz"
    facts = ["--top-k", "2", "--regime", "prefill", "--source", "us", "--out", str(out)]
    given = [str(tmp_path / "counts.csv"), "--where", "dataset=text", "--sequences", "4", *facts]
    for name in ("one", "two", "one"):
        fit_loads.main(["batches", name, *given, "--figure", str(tmp_path / "layers.png")])
    errors = pd.read_csv(out.with_suffix(".csv"))
    assert list(read_fits(out)) == ["one", "two"] and errors.groupby("fit").size().to_dict() == {"one": 2, "two": 2}
    assert (
        errors["error"].tolist() == pytest.approx([0] * 4, abs=0.05) and (tmp_path / "layers.png").stat().st_size > 1000
    )
    assert "held_out_error" in capsys.readouterr().out

    np.savez(tmp_path / "runs.npz", a=counts_ILE[0], b=counts_ILE[1], other=counts_ILE[2])
    fit_loads.main(["runs", "three", str(tmp_path / "runs.npz"), "--arrays", "[ab]", "--sequence-cv", "0.5", *facts])
    assert read_fits(out)["three"].num_layers == 2


def test_layers_with_fewer_tokens_are_left_out(tmp_path):
    counts_ILE = np.full((3, 2, 4), 10)
    counts_ILE[:, 1] = 1
    rows(counts_ILE).to_csv(tmp_path / "counts.csv", index=False)
    assert read_batches(tmp_path / "counts.csv", None).shape == (3, 1, 4)


@pytest.mark.parametrize(
    ("kind", "more"), [("runs", ["--arrays", "x", "--sequence-cv", "1"]), ("batches", ["--sequences", "2"])]
)
def test_what_is_no_record_is_said_in_one_sentence(tmp_path, kind, more):
    np.savez(tmp_path / "a.npz", a=np.ones((1, 4)))
    rows(np.ones((2, 2, 4), int))[:3].to_csv(tmp_path / "a.csv", index=False)
    path = tmp_path / ("a.npz" if kind == "runs" else "a.csv")
    facts = ["--top-k", "1", "--regime", "encode", "--source", "us", "--out", str(tmp_path / "out.npz")]
    with pytest.raises(SystemExit, match=r"^error: .*(has no array x; it has a|the same number of rows)"):
        fit_loads.main([kind, "mine", str(path), *facts, *more])
    assert not (tmp_path / "out.npz").exists()


def test_a_single_run_is_fitted_and_has_none_left_out(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", only=np.arange(1, 9).reshape(1, 8) * 1000)
    facts = ["--top-k", "2", "--regime", "decode", "--source", "us", "--out", str(tmp_path / "out.npz")]
    fit_loads.main(["runs", "mine", str(tmp_path / "a.npz"), "--sequence-cv", "0", *facts])
    assert "mine" in read_fits(tmp_path / "out.npz") and "held_out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--top-k", "5"], "--top-k is 5; a token's experts are at most 4, and at least 1"),
        (["--top-k", "3", "--groups", "2"], "--top-k is 3; a token's experts are at most 2"),
        (["--top-k", "1", "--groups", "3"], "--groups is 3 and --most-groups 1; 4 experts must divide into them"),
        (["--top-k", "1", "--where", "text=a"], "a.csv has no column text; it has 0, 1"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(tmp_path, typed, said):
    rows(np.ones((2, 2, 4), int)).to_csv(tmp_path / "a.csv", index=False)
    facts = ["--sequences", "2", "--regime", "encode", "--source", "us", "--out", str(tmp_path / "out.npz")]
    with pytest.raises(SystemExit, match=f"^error: .*{said}"):
        fit_loads.main(["batches", "mine", str(tmp_path / "a.csv"), *typed, *facts])
