"""The predicted law, the metrics and the lift table, the columns' statistics, and training from Parquet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from policydist.errors import UsageError
from policydist.estimation.lifetime.columns import Survey
from policydist.estimation.lifetime.law import LifetimeLaw
from policydist.estimation.lifetime.metrics import lifetime_metrics, lift_table, norm_gini, plot_lift, spearman
from policydist.estimation.lifetime.network import Stack
from policydist.estimation.lifetime.segments import P_POSITIVE, segments
from policydist.estimation.lifetime.stream import ParquetSource
from policydist.estimation.methods.optdist import OptDistRegressor, ZILNRegressor

mpl.use("Agg")

RAW = np.array([[[0.5, 1.0, 0.3], [-1.0, 2.5, -1.0]], [[3.0, 0.0, 0.0], [0.2, 0.1, 1.0]]])
ALPHA = np.array([[0.3, 0.7], [0.9, 0.1]])
MIXTURE = LifetimeLaw(RAW, ALPHA, ALPHA, ALPHA.argmax(axis=1))
SINGLE = LifetimeLaw(RAW[:, :1], np.ones((2, 1)), ALPHA, ALPHA.argmax(axis=1))


@pytest.mark.parametrize("law", [SINGLE, MIXTURE], ids=["one", "mixture"])
def test_a_law_agrees_with_itself(law: LifetimeLaw) -> None:
    """Density, cdf, quantiles, mean and samples are of one and the same law."""

    def density(y: float, row: int) -> float:
        return float(np.exp(law.log_prob(np.full(2, y)))[row])

    for row in range(2):
        mass = quad(density, 1e-12, 4.0, args=(row,), limit=200)[0]
        assert law.cdf(4.0)[row] - law.p_zero[row] == pytest.approx(mass, abs=1e-6)
        moment = quad(lambda t, r=row: np.exp(2 * t) * density(np.exp(t), r), -20, 25, limit=300)[0]
        assert law.mean[row] == pytest.approx(moment, rel=1e-5)
    np.testing.assert_allclose(np.exp(law.log_prob([0, 0])), law.p_zero)
    np.testing.assert_array_equal(law.cdf(-1.0), 0)
    for level in (0.01, 0.5, 0.97):
        at = law.quantile([level])[:, 0]
        beyond = level > law.p_zero
        assert (at[~beyond] == 0).all()
        np.testing.assert_allclose(law.cdf(at)[beyond], level, atol=1e-9)
    draws = law.sample(20_000, np.random.default_rng(0))
    np.testing.assert_allclose((draws == 0).mean(axis=0), law.p_zero, atol=0.015)
    for row in range(2):
        u = law.cdf(np.ones(2))[row]
        assert (draws[:, row] <= 1).mean() == pytest.approx(u, abs=0.015)
    with pytest.raises(ValueError, match="between 0 and 1"):
        law.quantile([1.0])
    frame = law.to_frame([0.5])
    assert frame.columns.tolist() == ["mean", "p_zero", "q0.5", "expert", "expert_probability"]
    assert frame["expert_probability"].tolist() == [0.7, 0.9]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    y, p = np.array([0.0, 0, 4, 6, 10]), np.array([1.0, 1, 2, 9, 7])
    found = lifetime_metrics(y, p, log_prob=-np.arange(5.0))
    assert found["mae"] == pytest.approx(2.0)
    assert found["mae_positive"] == pytest.approx(8 / 3)
    assert found["calibration"] == pytest.approx(1.0)
    assert found["nll"] == pytest.approx(2.0)
    assert found["spearman"] == pytest.approx(stats.spearmanr(y, p).statistic)
    assert found["spearman_positive"] == pytest.approx(0.5)
    weight = np.array([2, 1, 3, 1, 2])
    twice = lifetime_metrics(np.repeat(y, weight), np.repeat(p, weight))
    weighted = lifetime_metrics(y, p, weight)
    for name in ("mae", "calibration", "mae_positive", "spearman", "spearman_positive"):
        assert weighted[name] == pytest.approx(twice[name]), name


def test_metrics_without_payers_are_undefined_not_wrong() -> None:
    found = lifetime_metrics([0, 0], [1, 2])
    assert found["mae"] == 1.5
    assert np.isnan([found["norm_gini"], found["calibration"], found["mae_positive"]]).all()
    assert np.isnan(spearman([1, 2], [3, 3]))
    for y, p, message in (([0, 0], [1, 2], "no positive"), ([1, np.nan], [1, 2], "NaN"), ([1, -1], [1, 2], "negative")):
        with pytest.raises(ValueError, match=message):
            norm_gini(y, p)
    with pytest.raises(ValueError, match="inconsistent"):
        norm_gini([1, 2], [1])


def test_the_lift_table_and_its_chart() -> None:
    y = np.arange(20.0)
    table = lift_table(y, y, bins=5)
    assert table["actual"].tolist() == [17.5, 13.5, 9.5, 5.5, 1.5]
    np.testing.assert_allclose(table["lift"], table["actual"] / 9.5)
    assert table["gain"].iloc[-1] == pytest.approx(1)
    assert (table["predicted"] == table["actual"]).all()
    assert lift_table(y, -y, bins=5)["lift"].is_monotonic_increasing
    left, right = plot_lift(y, {"a": y, "b": np.ones(20)}, bins=5)
    drawn: Any = left.lines[0].get_ydata()
    np.testing.assert_allclose(drawn, table["lift"])
    assert right.get_xscale() == "log"
    with pytest.raises(ValueError, match="bins is 30"):
        lift_table(y, y, bins=30)


# --- columns, network, data -------------------------------------------------------------------------------------------


def test_chunks_give_the_statistics_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(1e6, 2, 300), "b": rng.normal(size=300), "c": rng.choice(list("xyz"), 300)})
    y, w = rng.exponential(size=300) * (rng.random(300) < 0.5), rng.integers(0, 3, 300).astype(float)
    survey = Survey(["a", "b"], ["c"])
    for start, stop in itertools.pairwise([0, 1, 90, 300]):
        survey.add(frame[start:stop], y[start:stop], w[start:stop])
    encoder, outcome = survey.finish(1)
    for column, name in enumerate(("a", "b")):
        values = np.repeat(frame[name], w.astype(int))
        assert encoder.centre[column] == pytest.approx(values.mean())
        assert encoder.spread[column] == pytest.approx(values.std(ddof=0), rel=1e-6)
    logs = np.log(np.repeat(y, w.astype(int))[np.repeat(y, w.astype(int)) > 0])
    assert (outcome.log_mean, outcome.log_spread) == pytest.approx((logs.mean(), logs.std()))
    assert outcome.rows == (w > 0).sum()
    assert outcome.largest == y[w > 0].max()
    assert sum(encoder.counts[0]) == (w > 0).sum()


def test_parallel_networks_are_separate_networks() -> None:
    """One batched product gives what a loop over the experts would."""
    stack = Stack(3, [4, 6, 2], torch.Generator().manual_seed(0))
    x = torch.randn(5, 4)
    for i in range(3):
        h = torch.relu(x @ stack.weights[0][i] + stack.biases[0][i])
        torch.testing.assert_close(stack(x)[:, i], h @ stack.weights[1][i] + stack.biases[1][i])


def test_segments_are_what_they_say() -> None:
    x, y = segments(20_000, clarity=50.0, seed=3)
    scores = np.stack([1.5 * x[:, 0], 1.5 * x[:, 1], 1.5 * x[:, 2] - 0.5, 1.2 * x[:, 3] - 1.0], axis=1)
    z = scores.argmax(axis=1)
    for k in range(4):
        assert (y[z == k] > 0).mean() == pytest.approx(P_POSITIVE[k], abs=0.03)
    np.testing.assert_array_equal(segments(50, seed=1)[1], segments(50, seed=1)[1])


# --- Parquet ----------------------------------------------------------------------------------------------------------


def customers(rows: int) -> pd.DataFrame:
    x, y = segments(rows, seed=0)
    frame = pd.DataFrame(x[:, :3], columns=["a", "b", "c"])
    return frame.assign(channel=np.where(x[:, 3] > 0, "web", "shop"), customer=np.arange(rows), value=y, weight=1.0)


def quick(**options: Any) -> OptDistRegressor:
    given = {"hidden": (4,), "selector_hidden": (4,), "max_steps": 25, "batch_size": 50, "random_state": 0}
    return OptDistRegressor(**{**given, **options})


def test_streaming_learns_what_memory_holds(tmp_path: Path) -> None:
    """Same columns, statistics and categories; each row once an epoch; the same quality, though not the same batches."""
    frame = customers(600)
    frame.to_parquet(tmp_path / "c.parquet", row_group_size=150)
    features = frame[["a", "b", "c", "channel"]]
    streamed = ZILNRegressor((8,), max_steps=150, batch_size=50, learning_rate=0.01, random_state=0)
    streamed.fit_parquet(tmp_path / "c.parquet", "value", sample_weight="weight", drop=["customer"])
    held = ZILNRegressor((8,), max_steps=150, batch_size=50, learning_rate=0.01, random_state=0).fit(
        features, frame["value"]
    )
    np.testing.assert_allclose(streamed.encoder_.centre, held.encoder_.centre)
    assert streamed.encoder_.levels == held.encoder_.levels == [["shop", "web"]]
    assert list(streamed.feature_names_in_) == ["a", "b", "c", "channel"]
    scores = [model.score(features, frame["value"]) for model in (streamed, held)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    source = ParquetSource.open(tmp_path / "c.parquet", "value", None, ["customer", "channel"])
    batches = source.batches(
        streamed.encoder_.__class__(["weight"], [], np.zeros(1), np.ones(1), [], []), 1.0, 60, torch.Generator()
    )
    seen = torch.cat([next(batches).y for _ in range(10)])
    np.testing.assert_allclose(np.sort(seen.numpy()), np.sort(frame["value"].to_numpy()), rtol=1e-6)
    assert not np.allclose(seen.numpy(), frame["value"])


def test_row_groups_and_files_smaller_than_a_batch(tmp_path: Path) -> None:
    frame = customers(90)
    frame.to_parquet(tmp_path / "c.parquet", row_group_size=30)
    model = quick(batch_size=500).fit_parquet(
        tmp_path / "c.parquet", "value", drop=["customer", "weight"], row_groups=[0, 2]
    )
    assert model.outcome_.rows == 60
    kept = pd.concat([frame[:30], frame[60:]])
    assert model.encoder_.centre[0] == pytest.approx(kept["a"].mean())


def test_bad_parquet(tmp_path: Path) -> None:
    path, frame = tmp_path / "c.parquet", customers(60)
    frame.to_parquet(path)
    (tmp_path / "junk.parquet").write_text("junk")
    for wrong, message in (
        ({"path": tmp_path / "none"}, "no such file"),
        ({"path": tmp_path / "junk.parquet"}, "cannot be read as Parquet"),
        ({"target": "valeu"}, "no column 'valeu': did you mean value"),
        ({"sample_weight": "w"}, "no column 'w'"),
        ({"target": "channel"}, "'channel' has type .* it must hold numbers"),
        ({"row_groups": [3]}, "row groups 0 to 0"),
        ({"drop": [n for n in frame if n != "value"]}, "no column left"),
        ({"sample_weight": "a"}, "must be finite and not negative"),
    ):
        asked: dict[str, Any] = {"path": path, "target": "value", **wrong}
        with pytest.raises(UsageError, match=message):
            quick().fit_parquet(asked.pop("path"), asked.pop("target"), **asked)
    broken = frame.assign(value=[*frame["value"][:59], -3.0])
    broken.to_parquet(path, row_group_size=20)
    with pytest.raises(ValueError, match=r"y\[59\] is -3"):
        quick().fit_parquet(path, "value")
