"""What the figures of a claim are drawn from, and that they show it."""

from __future__ import annotations

import math

import pytest
from reportdata import claim_record, effect

from policydist.report import claim_figures, style, words
from policydist.report.claim_figures import Effect


def test_all_rules_with_an_effect_are_in_the_forest():
    rows = claim_figures.effects(claim_record())
    assert [row.label for row in rows] == ["gain", "same cost (of: most)", "no number (reported only)"]
    assert claim_figures.headline(claim_record(verdict="contradicted")).verdict == "contradicted"


@pytest.mark.parametrize(
    ("threshold", "region", "text"),
    [
        ({"direction": ">", "min_effect": 0.2}, (0.2, math.inf), "> 0.2"),
        ({"direction": "<", "min_effect": 0.2}, (-math.inf, -0.2), "< −0.2"),
        ({"direction": "<", "min_effect": 0.0, "min_estimate": 0.7}, (-math.inf, 0.0), "< 0, estimate ≤ −0.7"),
        ({"direction": "<", "min_effect": None, "bound": -3}, (-math.inf, -3), "< −3"),
        ({"direction": ">", "min_effect": None, "bound": 0}, (0, math.inf), "> 0"),
        ({"direction": "inside", "low": -1, "high": 1}, (-1, 1), "within [−1, 1]"),
        ({"direction": "intersects", "low": 0.9, "high": 0.97}, (0.9, 0.97), "interval meets [0.9, 0.97]"),
        ({"direction": "every", "low": None, "high": 1e-6}, (-math.inf, 1e-6), "every unit ≤ 1e−06"),
        ({"direction": "point", "low": 2, "high": None}, (2, math.inf), "estimate ≥ 2"),
        (None, None, "–"),
    ],
)
def test_thresholds_of_all_conditions(threshold, region, text):
    assert words.passing_region(threshold) == region
    assert words.threshold(threshold) == text


def test_thresholds_are_those_the_conditions_write():
    from policydist.claims import Beyond, Bound, Every, Inside, Intersects, Point

    conditions = (Beyond(">", 0.1), Bound("<", 2.0), Inside(0, 1), Intersects(0, 1), Every(low=0), Point(high=1))
    for condition in conditions:
        text = words.threshold(condition.threshold())
        assert "None" not in text
        assert words.passing_region(condition.threshold()) != (-math.inf, math.inf)


def axes_of(row: Effect):
    with style.drawing(2) as figure:
        axes = figure.subplots()
        claim_figures._forest_row(axes, row)
    return axes


@pytest.mark.parametrize(
    "threshold",
    [
        {"direction": ">", "min_effect": 5.0, "min_estimate": 6},
        {"direction": "<", "min_effect": 5.0, "min_estimate": 6},
    ],
)
def test_estimate_interval_threshold_and_zero_are_all_in_view(threshold):
    axes = axes_of(Effect("far", 0.5, [0.4, 0.6], None, threshold, "contradicted"))
    low, high = axes.get_xlim()
    edge_sign = 1 if threshold["direction"] == ">" else -1
    assert any(line.get_linestyle() == "--" and line.get_xdata()[0] == 6 * edge_sign for line in axes.lines)
    edge = 5.0 if threshold["direction"] == ">" else -5.0
    assert all(low < value < high for value in (0.0, 0.4, 0.6, edge, 6 * edge_sign))
    shown = {text.get_text() for text in axes.texts}
    assert {"far", "0.5 [0.4, 0.6]", "contradicted"} <= shown


def test_diverged_units_count_as_the_worst_observed():
    data = claim_figures.scores(claim_record(), "score")
    assert list(data) == ["easy", "hard"]
    method = data["easy"][0]
    assert (method.arm, len(method.values)) == ("method", 6)
    assert method.values[method.diverged] == pytest.approx([1.0 - 0.6])  # the broken arm's first unit
    cost = claim_figures.scores(claim_record(), "cost")["easy"][0]
    assert cost.values[cost.diverged] == pytest.approx([1e5])  # lower is better


def test_time_of_a_unit_is_counted_once_however_many_metrics_it_has():
    found = claim_figures.seconds_per_unit(claim_record())
    assert {arm: (len(v), sum(v)) for arm, v in found.items()} == {
        "method": (12, pytest.approx(3.0)), "baseline": (12, pytest.approx(6.0)), "broken": (12, pytest.approx(9.0)),
    }  # fmt: skip


def test_nothing_is_drawn_outside_the_picture(tmp_path):
    """Long names and many strata: every text lies inside the figure."""
    long = "a name that is much longer than anybody should ever give to a rule of a claim, and then some"
    rows = [
        Effect(
            long, -1234.5, [-23456.7, 3456.7], None, {"direction": "point", "low": -1e6, "high": 1e6}, "not_separated"
        )
    ]
    with style.drawing(2) as figure:
        axes = figure.subplots()
        claim_figures._forest_row(axes, rows[0])
        style.save(figure, tmp_path / "row.png")
        width, height = figure.bbox.size
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.x0 >= -1
            assert box.x1 <= width + 1
            assert 0 <= box.y0 < box.y1 <= height


def test_a_metric_without_numbers_gives_no_figure(tmp_path):
    record = claim_record()
    for row in record["raw"]:
        row["value"] = None
    metric = record["metric"]
    assert claim_figures.paired(record, metric, tmp_path / "a.png") is None
    assert claim_figures.distributions(record, metric, tmp_path / "b.png") is None
    assert list(tmp_path.iterdir()) == []


def test_effects_without_numbers_are_drawn(tmp_path):
    claim_figures.forest([Effect("none", None, None, None, effect(None, None)["ci"], "invalid")], tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()
