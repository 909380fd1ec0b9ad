"""Verdicts: the table row by row, estimands against hand calculation, rules together, diverged and missing numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats as sps
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.synthetic import REPRODUCED

from policydist.claims import (
    Beyond,
    Bound,
    Contrast,
    Correlation,
    Every,
    Inside,
    Intersects,
    LogRatio,
    Metric,
    Point,
    Quorum,
    RatioOfMeans,
    Rule,
    Trend,
    difference,
    value,
)
from policydist.claims.conditions import ORDER, Evidence
from policydist.claims.judge import Table, examine, judge


def evidence(low, high, few=None, wide=None):
    values = np.array([(low + high) / 2]) if few is None else np.asarray(few, dtype=float)
    return Evidence((low + high) / 2, (low, high), wide or (low, high), 0.05, None if few is None else values, values)


@pytest.mark.parametrize(
    ("interval", "condition", "verdict"),
    [
        ((0.3, 0.5), Beyond(">", 0.2), "reproduced"),
        ((0.1, 0.5), Beyond(">", 0.2), "direction_only"),
        ((0.2, 0.5), Beyond(">", 0.2), "direction_only"),  # touching the threshold is not beyond it
        ((-0.1, 0.5), Beyond(">", 0.2), "not_separated"),
        ((-0.05, 0.05), Beyond(">", 0.2), "null"),
        (
            (-0.05, 0.05),
            Beyond(">", 0.0),
            "not_separated",
        ),  # no effect claimed and no margin: nothing to be null against
        ((-0.05, 0.05), Beyond(">", 0.2, margin=0.01), "not_separated"),
        ((-0.05, 0.3), Beyond(">", 0.2, margin=0.4), "null"),
        ((-0.5, -0.1), Beyond(">", 0.2), "contradicted"),
        ((-0.05, -0.01), Beyond(">", 0.2, margin=0.1), "contradicted"),  # sign before size
        ((-0.5, -0.3), Beyond("<", 0.2), "reproduced"),
        ((-0.5, -0.1), Beyond("<", 0.2), "direction_only"),
        ((0.1, 0.5), Beyond("<", 0.2), "contradicted"),
        ((0.1, 0.5), Beyond(">", 0.0, min_estimate=0.4), "direction_only"),
        ((0.1, 0.5), Beyond(">", 0.0, min_estimate=0.25), "reproduced"),
        ((-0.02, 0.5), Bound(">", -0.03), "reproduced"),
        ((-0.04, 0.5), Bound(">", -0.03), "not_separated"),
        ((-0.4, -0.1), Bound(">", -0.03), "contradicted"),
        ((0.05, 0.09), Bound("<", 0.1), "reproduced"),
        ((-0.08, 0.08), Inside(-0.1, 0.1), "reproduced"),
        ((-0.12, 0.08), Inside(-0.1, 0.1), "not_separated"),
        ((0.12, 0.2), Inside(-0.1, 0.1), "contradicted"),
        ((0.05, 0.09), Inside(-0.1, 0.1, estimate_high=0.06), "direction_only"),
        ((0.85, 0.91), Intersects(0.9, 0.97), "reproduced"),
        ((0.80, 0.89), Intersects(0.9, 0.97), "contradicted"),
        ((0.4, 0.6), Point(0.45, 0.55), "reproduced"),
        ((0.4, 0.8), Point(0.45, 0.55), "contradicted"),
    ],
)
def test_verdict_table(interval, condition, verdict):
    found, reason = condition.judge(evidence(*interval))
    assert found == verdict
    assert (reason == "") == (verdict == "reproduced")


def test_equivalence_looks_at_the_ninety_percent_interval():
    data = evidence(-0.12, 0.12, wide=(-0.09, 0.09))
    assert Inside(-0.1, 0.1).judge(data)[0] == "reproduced"
    assert Inside(-0.1, 0.1, strict=True).judge(data)[0] == "not_separated"
    assert Beyond(">", 0.5, margin=0.1).judge(data)[0] == "null"


def test_few_units_need_the_exact_test_to_agree():
    assert Beyond(">").judge(evidence(0.1, 0.5, few=[0.3, 0.3, 0.4, 0.2]))[0] == "not_separated"  # 2^-4 > 0.05
    assert Beyond(">").judge(evidence(0.1, 0.5, few=[0.3, 0.3, 0.4, 0.2, 0.3]))[0] == "reproduced"
    assert Beyond(">", 0.15).judge(evidence(0.16, 0.5, few=[0.3, 0.1, 0.4, 0.2, 0.3]))[0] == "direction_only"


def test_every_looks_at_units_not_the_mean():
    assert Every(high=0.0).judge(evidence(-9, -9, few=[-1, -2, 0]))[0] == "reproduced"
    verdict, reason = Every(high=0.0).judge(evidence(-9, -9, few=[-1, -2, 1e-6]))
    assert verdict == "contradicted"
    assert "1 of 3" in reason


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0, 0.5), st.floats(0, 0.5))
@settings(max_examples=200, deadline=None)
def test_mirrored_claims_get_mirrored_verdicts(low, width, effect, margin):
    up = Beyond(">", effect, margin=margin).judge(evidence(low, low + width))[0]
    down = Beyond("<", effect, margin=margin).judge(evidence(-low - width, -low))[0]
    assert up == down
    assert (up == "reproduced") == (low > effect)
    assert up != "contradicted" or low + width < 0


@pytest.mark.parametrize("wrong", [{"min_effect": -0.1}, {"margin": -1.0}])
def test_sizes_are_not_negative(wrong):
    with pytest.raises(ValueError, match="sizes"):
        Beyond(">", **wrong)


# ---- estimands ----

ARMS = {"method": 0.5, "baseline": 0.0, "broken": -1.0}


def rows(n=20, noise=0.1, strata=("all",), metrics=("score", "cost"), shift=ARMS):
    out = []
    for stratum in strata:
        for unit in range(1000, 1000 + n):
            shared = np.random.default_rng(unit).normal()
            for arm, effect in shift.items():
                own = np.random.default_rng([unit, len(arm)]).normal(scale=noise)
                for metric in metrics:
                    x = shared + effect + own
                    number = float(np.exp(x) if metric == "cost" else x)
                    out.append(
                        {
                            "unit": unit,
                            "stratum": stratum,
                            "arm": arm,
                            "metric": metric,
                            "value": number,
                            "diverged": False,
                        }
                    )
    return out


def column(data, metric, arm):
    return np.array([r["value"] for r in data if r["metric"] == metric and r["arm"] == arm])


def test_estimands_against_hand_calculation():
    data = rows()
    table = Table(REPRODUCED, data)

    def number(estimand, aggregate="mean"):
        return examine(Rule("r", estimand, Beyond(">"), aggregate=aggregate), table, 0.95).effect["estimate"]

    a, b, c = (column(data, "score", arm) for arm in ARMS)
    p, q = column(data, "cost", "method"), column(data, "cost", "baseline")
    assert number(value("score", "method")) == pytest.approx(a.mean())
    assert number(difference("score", "method", "baseline", factor=0.5)) == pytest.approx((a - b / 2).mean())
    assert number(difference("score", "method", "baseline"), "median") == pytest.approx(np.median(a - b))
    assert number(difference("score", "method", "baseline"), "iqm") == pytest.approx(
        sps.trim_mean(a, 0.25) - sps.trim_mean(b, 0.25)
    )
    assert number(Contrast("score", {"method": 1, "baseline": -2, "broken": 1})) == pytest.approx(
        (a - 2 * b + c).mean()
    )
    assert number(LogRatio("cost", "method", "baseline", shift=10)) == pytest.approx(np.log((p + 10) / (q + 10)).mean())
    assert number(RatioOfMeans("cost", "method", "baseline")) == pytest.approx(p.mean() / q.mean())
    assert number(Correlation("score", "cost", "method")) == pytest.approx(1.0)
    levels = {"broken": -1.0, "baseline": 0.0, "method": 0.5}
    slopes = [np.polyfit([-1, 0, 0.5], y, 1)[0] for y in zip(c, b, a, strict=True)]
    assert number(Trend("score", levels)) == pytest.approx(np.mean(slopes))
    assert number(Trend("score", levels, "spearman", of="means")) == pytest.approx(1.0)
    gains = Trend("score", {"method": 1.0, "broken": 2.0}, minus="baseline")
    assert number(gains) == pytest.approx(((c - b) - (a - b)).mean())


def test_pairing_removes_shared_noise():
    table = Table(REPRODUCED, rows(noise=0.01))
    paired = examine(Rule("r", difference("score", "method", "baseline"), Beyond(">", 0.4)), table, 0.95)
    low, high = paired.effect["ci"]
    assert paired.verdict == "reproduced"
    assert high - low < 0.03
    alone = examine(Rule("r", value("score", "method"), Beyond(">")), table, 0.95).effect["ci"]
    assert alone[1] - alone[0] > 0.5


def test_wilson_rule_uses_counts():
    data = [{**r, "value": float(r["unit"] < 1018)} for r in rows()]
    found = examine(
        Rule("r", value("score", "method"), Intersects(0.90, 0.97), interval="wilson"), Table(REPRODUCED, data), 0.95
    )
    expected = sps.binomtest(18, 20).proportion_ci(method="wilson")
    assert found.effect["ci"] == pytest.approx([expected.low, expected.high])
    assert found.effect["method"] == "Wilson"


def test_normalised_scores_and_strata():
    claim = replace(
        REPRODUCED,
        strata=("easy", "hard"),
        metrics=(Metric("score", "higher", normalise={"hard": (10.0, 20.0)}), Metric("cost", "lower")),
    )
    data = [{**r, "value": 0.5 if r["stratum"] == "easy" else 15.0} for r in rows(strata=("easy", "hard"))]
    table = Table(claim, data)
    assert examine(Rule("r", value("score", "method"), Point()), table, 0.95).effect["estimate"] == pytest.approx(0.5)
    only = Rule("r", value("score", "method"), Point(), strata=("easy",))
    assert examine(only, table, 0.95).effect["n_contrasts"] == 20


def test_nested_rows_resample_units_first():
    rng = np.random.default_rng(0)
    data = []
    for r in rows(n=12, metrics=("score",)):
        inner = list(r["value"] + rng.normal(scale=0.01, size=30))
        data.append({**r, "inner": inner, "value": float(np.mean(inner))})
    found = examine(Rule("r", value("score", "method"), Point()), Table(REPRODUCED, data), 0.95)
    assert found.effect["method"].startswith("nested")
    assert found.effect["n_contrasts"] == 12
    flat = examine(
        Rule("r", value("score", "method"), Point()), Table(REPRODUCED, rows(n=12, metrics=("score",))), 0.95
    )
    assert np.ptp(found.effect["ci"]) == pytest.approx(np.ptp(flat.effect["ci"]), rel=0.1)


# ---- combination ----


def test_the_worst_must_rule_decides_and_the_first_of_equals_gives_the_reason():
    def rule(name, condition, must=True):
        return Rule(name, difference("score", "method", "baseline"), condition, must=must)

    claim = replace(
        REPRODUCED,
        rules=(
            rule("fine", Beyond(">")),
            rule("one", Bound("<", 0.1)),
            rule("two", Bound("<", 0.2)),
            rule("told", Bound("<", -9), must=False),
        ),
    )
    outcome = judge(claim, rows(), 0.95)
    assert outcome.verdict == "contradicted"
    assert outcome.reason.startswith("one:")
    assert [row["verdict"] for row in outcome.rules] == ["reproduced", "contradicted", "contradicted", "contradicted"]
    assert ORDER.index("not_separated") < ORDER.index("null") < ORDER.index("contradicted")


@pytest.mark.parametrize(("need", "verdict"), [(1, "reproduced"), (2, "reproduced"), (3, "contradicted")])
def test_quorum(need, verdict):
    parts = tuple(
        Rule(str(bound), difference("score", "method", "baseline"), Bound(">", bound)) for bound in (0.1, 0.2, 9.0)
    )
    claim = replace(REPRODUCED, rules=(*REPRODUCED.rules, Quorum("most", need, parts)))
    assert judge(claim, rows(), 0.95).verdict == verdict


def test_secondary_level_widens_the_interval():
    table = Table(REPRODUCED, rows())
    rule = Rule("r", difference("score", "method", "baseline"), Beyond(">"))
    assert np.ptp(examine(rule, table, 0.99).effect["ci"]) > np.ptp(examine(rule, table, 0.95).effect["ci"])


def test_diverged_units_get_the_worst_score_and_are_counted():
    data = [{**r, "value": None, "diverged": True} if (r["arm"], r["unit"]) == ("method", 1003) else r for r in rows()]
    table = Table(REPRODUCED, data)
    worst = min(r["value"] for r in data if r["metric"] == "score" and r["value"] is not None)
    assert table.of("all")("score", "method")[3] == worst
    assert table.diverged == {
        "method": 1,
        "baseline": 0,
        "broken": 0,
    }
    assert table.of("all")("cost", "method")[3] == max(
        r["value"] for r in data if r["metric"] == "cost" and r["value"] is not None
    )
    assert judge(REPRODUCED, data, 0.95).verdict != "invalid"


def test_missing_number_is_invalid():
    data = [{**r, "value": None} if (r["arm"], r["unit"]) == ("method", 1003) else r for r in rows()]
    outcome = judge(REPRODUCED, data, 0.95)
    assert outcome.verdict == "invalid"
    assert "not finite in unit 1003" in outcome.reason


def test_a_unit_missing_in_one_arm_is_invalid():
    kept = [r for r in rows() if (r["arm"], r["unit"]) not in {("method", 1003), ("baseline", 1004), ("broken", 1004)}]
    outcome = judge(REPRODUCED, kept, 0.95)
    assert outcome.verdict == "invalid"
    assert "not there once in every unit" in outcome.reason


def test_failed_check_is_invalid_whatever_the_rules_say():
    outcome = judge(REPRODUCED, rows(), 0.95, [{"check": "budget", "ok": False, "detail": "9 of 1 s"}])
    assert outcome.verdict == "invalid"
    assert "budget" in outcome.reason


# ---- declaration ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "toy.1"}, "<slug>.C<number>"),
        ({"cannot_show": " "}, "cannot_show"),
        ({"unit": None}, "either unit"),
        ({"n_units": 4}, "5 or more"),
        ({"rules": (Rule("r", value("speed", "method"), Beyond(">")),)}, "'speed', which is not declared"),
        ({"rules": (Rule("r", value("score", "nobody"), Beyond(">")),)}, "'nobody', which is not declared"),
        ({"rules": (Rule("r", value("score", "method"), Beyond(">"), must=False),)}, "at least one rule"),
        (
            {"n_units": 8, "rules": (Rule("r", RatioOfMeans("cost", "method", "baseline"), Bound("<", 1)),)},
            "no exact test",
        ),
        ({"rules": (Rule("r", value("score", "method"), Beyond(">"), strata=("elsewhere",)),)}, "strata"),
        ({"n_units": 1001}, "n_units"),
    ],
)
def test_declaration_errors_name_the_fault(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(REPRODUCED, **changes)


def test_exact_claims_may_have_one_unit():
    replace(REPRODUCED, n_units=1, sanity=(), rules=(Rule("r", value("score", "method"), Every(0, 1)),))
