"""Claims of arXiv 2504.03992 on designs with a known effect: does smoothing quantile functions estimate their jump?

Designs, sizes and thresholds are the specification's; every estimate goes through the public ``R3D``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from policydist.claims import (
    Arm,
    Beyond,
    Bound,
    Claim,
    Deviation,
    Every,
    Inside,
    Intersects,
    Job,
    Metric,
    Outcome,
    Point,
    Rule,
    Setting,
    difference,
    value,
)
from policydist.runs.seeds import derive

if TYPE_CHECKING:
    from policydist.estimation.rd.simulation import SimulatedDesign

Floats = NDArray[np.float64]
DECILES: Floats = np.arange(1, 10) / 10
CENTILES: Floats = np.arange(1, 100) / 100
MIN_SIDE = 5
DESIGNS: dict[str, Literal["dgp1", "spread"]] = {"dgp1": "dgp1", "spread": "spread"}


def spread_effect(job: Job) -> Mapping[str, Outcome]:
    """Relative error of the spread effect tau(.9) - tau(.1): R3D, quantile RD and dealt units, at one bandwidth."""
    from policydist.estimation.methods.r3d import R3D
    from policydist.estimation.rd.baselines import quantile_rd
    from policydist.estimation.rd.simulation import simulate

    design = simulate("spread", job["n_units"], job["n_observations"], seed=job.seed)
    samples = list(design.samples)
    model = R3D().fit(design.x, samples)
    h = float(model.bandwidth_)
    pooled = quantile_rd(design.x, samples, DECILES, h)
    truth = design.effect(DECILES)
    # The broken arm forgets who is treated: units are dealt to running-variable values at random.
    dealt = np.random.default_rng(derive(job.seed, "r3d", "broken")).permutation(len(samples))
    broken = R3D(bandwidth=h).fit(design.x, [samples[i] for i in dealt])

    def scores(tau: Floats) -> Outcome:
        spread, true_spread = tau[-1] - tau[0], truth[-1] - truth[0]
        relative = float(spread / true_spread - 1.0)
        return {"relative_bias": relative, "absolute_error": abs(relative)}

    return {"r3d": scores(model.tau_), "quantile_rd": scores(pooled), "shuffled": scores(broken.tau_)}


def band_coverage(job: Job) -> Mapping[str, Outcome]:
    """Whether the whole true curve lies in the uniform band, in the pointwise one, and in half the uniform one."""
    from policydist.estimation.methods.r3d import R3D
    from policydist.estimation.rd.simulation import simulate

    name, _, size = job.stratum.partition(" n=")
    # As in the paper, units have as many observations as there are units.
    design = simulate(DESIGNS[name], int(size), int(size), seed=job.seed, shift=job["shift"])
    model = R3D(n_draws=job["n_draws"], random_state=derive(job.seed, "r3d", "bootstrap"))
    band = model.fit(design.x, list(design.samples)).bootstrap()
    truth = design.effect(DECILES)

    def covers(lower: Floats, upper: Floats) -> Outcome:
        return {"covered": float(np.all((lower <= truth) & (truth <= upper)))}

    return {
        "uniform": covers(band.lower, band.upper),
        "pointwise": covers(band.pointwise_lower, band.pointwise_upper),
        "half_width": covers(model.tau_ - band.critical / 2, model.tau_ + band.critical / 2),
    }


def projection_gain(job: Job) -> Mapping[str, Outcome]:
    """Squared L2 distance to the true average quantile curve of one side, before and after the projection."""
    from policydist.estimation.methods.r3d import R3D
    from policydist.estimation.rd.projection import project_isotonic
    from policydist.estimation.rd.quantiles import quantile_matrix

    design = _enough_units(job)
    matrix = quantile_matrix(list(design.samples), CENTILES)
    model = R3D(bandwidth=job["bandwidth"], quantiles=CENTILES).fit(design.x, matrix)
    right = job.stratum == "right"
    truth = design.average_curve(CENTILES, treated=right)
    raw = model.alpha_plus_[0] if right else model.alpha_minus_[0]
    projected = model.m_plus_ if right else model.m_minus_
    falling = -project_isotonic(-raw[None, :], np.ones(len(CENTILES)))[0]
    before = float(np.mean((raw - truth) ** 2))

    def against(curve: Floats) -> Outcome:
        distance = float(np.mean((curve - truth) ** 2))
        return {
            "distance": distance,
            "worse_by": distance - before,
            "strictly_better": float(distance < before - 1e-12),
        }

    return {"projected": against(projected), "raw": against(raw), "antitone": against(falling)}


def _enough_units(job: Job) -> SimulatedDesign:
    """A design with at least five units in the window on each side; thinner ones are drawn again."""
    from policydist.estimation.rd.simulation import simulate

    for attempt in itertools.count():
        seed = derive(job.seed, "r3d", "projection", attempt)
        design = simulate("spread", job["n_units"], job["n_observations"], seed=seed)
        # Two percent inside the window, because the estimator refuses windows that end at their last needed unit.
        near = 1.02 * np.abs(design.x) < job["bandwidth"]
        if min(np.sum(near & (design.x >= 0)), np.sum(near & (design.x < 0))) >= MIN_SIDE:
            return design
    raise AssertionError("unreachable: itertools.count does not end")


SCALED = Deviation("500 replications at n = 200 and 500", "the paper runs 2,500 up to n = 2000", "SCALED_DOWN")
PILOT = Deviation(
    "the local pilot fit has order s+1",
    "the paper's text says order s, which has no (s+1)-th derivative to put into the bias",
)
CANNOT_SHOW = "The income application (its micro data are not here), Qu-Yoon bands, and the published coverage digits."

CLAIMS = (
    Claim(
        id="r3d.C1",
        statement="R3D estimates the jump of the average quantile function where quantile RD on pooled data does not.",
        source="section 4.1, Figure 3: Q-RD's relative bias is at least ten times R3D's at some quantiles",
        arxiv="2504.03992",
        arms=(
            Arm("r3d", "method"),
            Arm("quantile_rd", "baseline"),
            Arm("shuffled", "broken"),
        ),
        metrics=(
            Metric("relative_bias", "closer_to_zero", "fraction of the true tau(.9) - tau(.1)"),
            Metric("absolute_error", "lower", "fraction of the true tau(.9) - tau(.1)"),
        ),
        rules=(
            Rule("R3D is within a tenth", value("relative_bias", "r3d"), Inside(-0.10, 0.10, strict=True)),
            Rule("quantile RD is a quarter short", value("relative_bias", "quantile_rd"), Bound("<", -0.25)),
            Rule("R3D is closer", difference("absolute_error", "quantile_rd", "r3d"), Beyond(">")),
        ),
        sanity=(
            Rule("units dealt at random lose", difference("absolute_error", "shuffled", "r3d"), Beyond(">")),
            Rule("quantile RD is at its limit -0.408", value("relative_bias", "quantile_rd"), Point(-0.55, -0.25)),
        ),
        n_units=200,
        unit_of_replication="replication",
        budget_s=600,
        cannot_show=CANNOT_SHOW + " Quantile RD here is local linear in its simplest form.",
        replicate=spread_effect,
        settings={"n_units": Setting(500, "sheet"), "n_observations": Setting(50, "sheet")},
        smoke={"n_units": 150, "n_observations": 20},
        deviations=(
            PILOT,
            Deviation("quantile RD without bias correction", "the inconsistency is in its estimand", "OWN_CHOICE"),
            Deviation("a design with a closed-form pooled limit", "the paper's figure uses DGP2", "OWN_CHOICE"),
        ),
    ),
    Claim(
        id="r3d.C2",
        statement="The multiplier bootstrap's uniform 95 % band covers the whole curve; a pointwise band does not.",
        source="Table 2: coverage 92.56 / 93.28 / 94.20 % for DGP1 at n = 500 / 1000 / 2000",
        arxiv="2504.03992",
        arms=(
            Arm("uniform", "method"),
            Arm("pointwise", "ablation"),
            Arm("half_width", "broken"),
        ),
        metrics=(Metric("covered", "higher", "share of replications"),),
        strata=("dgp1 n=200", "dgp1 n=500", "spread n=200", "spread n=500"),
        rules=(
            *(
                Rule(
                    f"coverage, {stratum}",
                    value("covered", "uniform"),
                    Intersects(0.90, 0.97),
                    must=stratum.endswith("500"),
                    interval="wilson",
                    strata=(stratum,),
                )
                for stratum in ("dgp1 n=500", "spread n=500", "dgp1 n=200", "spread n=200")
            ),
            Rule(
                "uniform covers more than pointwise",
                difference("covered", "uniform", "pointwise"),
                Beyond(">"),
                strata=("dgp1 n=500", "spread n=500"),
            ),
        ),
        sanity=(
            Rule("a band of half the width loses", difference("covered", "uniform", "half_width"), Beyond(">", 0.1)),
        ),
        n_units=500,
        unit_of_replication="replication",
        budget_s=1200,
        cannot_show=CANNOT_SHOW + " 500 replications tell 90 from 95 % and no more.",
        replicate=band_coverage,
        settings={"n_draws": Setting(500, "sheet"), "shift": Setting(2.0, "sheet")},
        smoke={"n_draws": 50},
        deviations=(SCALED, PILOT),
    ),
    Claim(
        id="r3d.C3",
        statement="Projecting each side's curve onto non-decreasing functions never moves it away from the truth.",
        source="Lemma 2 (projection is a contraction towards any monotone truth)",
        arxiv="2504.03992",
        arms=(
            Arm("projected", "method"),
            Arm("raw", "ablation"),
            Arm("antitone", "broken"),
        ),
        metrics=(
            Metric("distance", "lower", "squared L2 distance to the true curve"),
            Metric("worse_by", "lower", "squared L2 distance above that of the raw curve"),
            Metric("strictly_better", "higher", "share of fits"),
        ),
        strata=("left", "right"),
        rules=(
            Rule("never worse", value("worse_by", "projected"), Every(high=1e-9)),
            Rule("often better", value("strictly_better", "projected"), Bound(">", 0.60)),
        ),
        sanity=(Rule("falling projection loses", difference("distance", "antitone", "projected"), Beyond(">")),),
        n_units=200,
        unit_of_replication="replication",
        budget_s=300,
        cannot_show="How much the projection helps: its gain here is small, and idle where curves do not cross.",
        replicate=projection_gain,
        settings={
            "n_units": Setting(60, "sheet"),
            "n_observations": Setting(20, "sheet"),
            "bandwidth": Setting(0.3, "sheet"),
        },
        deviations=(
            Deviation("designs with under five units in a window are redrawn", "a record drops no unit", "OWN_CHOICE"),
        ),
    ),
)
