"""DUMP (arXiv 2504.09710): faster learning, an easy-to-hard order that nobody prescribed, and idle sources avoided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from scipy import stats

from policydist.claims.conditions import Beyond, Bound, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.functional.groups import Groups, group_mean
from policydist.language import methods
from policydist.language.methods.dump import SourceBandit
from policydist.language.statistics import response_advantages
from policydist.language.trainer import Row, TrainConfig
from policydist.language.types import Rollouts
from policydist.language.worlds.pool import Pool, train


def signed(rollouts: Rollouts) -> torch.Tensor:
    """The mistake that must not work: signed advantages, averaged over the group, are zero."""
    groups = Groups.of(rollouts.group)
    return groups.spread(group_mean(response_advantages(rollouts), groups))


def run(job: Job, pure: bool = False) -> list[Row]:
    """Train on chains of decisions; every row has the exact mean success over all sources and each source's share."""
    pool = Pool.chains(pure=pure)
    setting = pool.setting(job["prompts"], job["samples"])
    method = methods.load(job["method"])
    knobs = method.Config(aggregation="seq-mean-token-sum", **job["knobs"])
    recipe = method.build(knobs, setting)
    if job["signed"]:
        recipe = replace(recipe, curriculum=SourceBandit(knobs, setting, signed))
    config = TrainConfig(steps=job["steps"], lr=job["lr"], optimiser="sgd", grad_clip=0, seed=job.seed)
    return train(recipe, pool.policy, config, lambda: {"success": float(pool.success().mean())})


def curve(job: Job) -> Mapping[str, float]:
    """Success averaged over sources and steps, after 25 steps, and at the end; DUMP's order of sources."""
    rows = run(job)
    success = [row["success"] for row in rows]
    found = {"area": sum(success) / len(success), "at_25": success[min(24, len(success) - 1)], "end": success[-1]}
    return found | ({"order": order(rows[:120])} if job["method"] == "dump" else {})


def order(rows: list[Row]) -> float:
    """Spearman correlation between a source's number and the step at which it is drawn most."""
    peaks = [max(range(len(rows)), key=lambda step: rows[step][f"dump/share/{d}"]) for d in range(8)]
    return float(stats.spearmanr(range(8), peaks).statistic)


def ordered(job: Job) -> Mapping[str, float]:
    """Whether the sources' turns follow their difficulty."""
    found = order(run(job)[:120])
    return {"order": found, "easy_to_hard": float(found > 0.8)}


def idle(job: Job) -> Mapping[str, float]:
    """Shares of a solved and a hopeless source over steps 50 to 120, by themselves and against the largest share."""
    rows = run(job, pure=True)[49:120]

    def share(name: str) -> float:
        return sum(row[f"dump/share/{name}"] for row in rows) / len(rows)

    top = max(share(f"{d}") for d in range(8))
    found = {"top": top}
    for name in ("solved", "hopeless"):
        found |= {name: share(name), f"{name}_to_top": share(name) / top}
    return found


def arm(name: str, role: Any, method: str = "dump", mutant: bool = False, **knobs: Any) -> Arm:
    """An arm that trains by ``method`` with these knobs."""
    extra = {"kl_coef": 0.0} if method == "dump" else {}
    return Arm(name, role, {"method": method, "signed": mutant, "knobs": extra | knobs})


SETTINGS = {
    "prompts": Setting(64, "reconstructed"),
    "samples": Setting(8, "reconstructed"),
    "steps": Setting(200, "reconstructed"),
    "lr": Setting(0.5, "reconstructed"),
    "signed": Setting(False, "paper"),
    "knobs": Setting({}, "paper"),
}
DEVIATIONS = (
    Deviation(
        "chains of 2 to 16 decisions that share a skill, instead of logic puzzles", "exact success", "SCALED_DOWN"
    ),
    Deviation(
        "no KL term in any arm", "the baseline has none either; the paper's 0.001 is too small to matter", "SCALED_DOWN"
    ),
)

CLAIMS = (
    Claim(
        id="dump.C1",
        statement="Sampling sources by the size of their advantages and an exploration bonus learns faster than uniform sampling.",
        source="test reward over training, setting 1 (Fig. 1), and the greedy ablation (section 4.3)",
        arxiv="2504.09710",
        arms=(
            arm("dump", "method"),
            arm("uniform", "baseline", "grpo"),
            arm("greedy", "ablation", tau=0.0),
            arm("signed", "broken", mutant=True),
        ),
        metrics=(
            Metric("area", "higher", "mean success over sources and steps"),
            Metric("at_25", "higher"),
            Metric("end", "higher"),
            Metric("order", "none"),
        ),
        unit=curve,
        n_units=10,
        budget_s=1800,
        settings=SETTINGS,
        smoke={"steps": 5},
        rules=(
            Rule("success over training, DUMP - uniform", difference("area", "dump", "uniform"), Beyond(">", 0.03)),
            Rule("after 25 steps, DUMP - uniform", difference("at_25", "dump", "uniform"), Beyond(">"), must=False),
            Rule("at the end, DUMP - uniform", difference("end", "dump", "uniform"), Beyond(">"), must=False),
            Rule("success over training, soft - greedy", difference("area", "dump", "greedy"), Beyond(">"), must=False),
        ),
        sanity=(
            Rule("uniform learns as it is known to", value("area", "uniform"), Point(0.82, 0.87)),
            Rule("signed advantages lose", difference("area", "dump", "signed"), Beyond(">", 0.02)),
        ),
        deviations=DEVIATIONS,
        cannot_show="gains where sources share no skill, and final gains: here every arm ends near 1",
    ),
    Claim(
        id="dump.C2",
        statement="An easy-to-hard order of the sources emerges without labels of difficulty.",
        source="the sampling probabilities over training (setting 1)",
        arxiv="2504.09710",
        arms=(arm("dump", "method"), arm("signed", "broken", mutant=True)),
        metrics=(
            Metric("easy_to_hard", "higher", "share of seeds with Spearman above 0.8"),
            Metric("order", "higher", "Spearman"),
        ),
        unit=ordered,
        n_units=10,
        budget_s=1800,
        settings=SETTINGS | {"steps": Setting(120, "reconstructed")},
        smoke={"steps": 5},
        rules=(
            Rule("seeds in which sources peak from easy to hard", value("easy_to_hard", "dump"), Point(low=0.8)),
            Rule("Spearman correlation", value("order", "dump"), Bound(">", 0.8), must=False),
        ),
        sanity=(Rule("signed advantages show no such order", value("easy_to_hard", "signed"), Point(high=0.5)),),
        deviations=DEVIATIONS,
        cannot_show="that the order helps by itself: easier sources are also those with something to learn first",
    ),
    Claim(
        id="dump.C3",
        statement="Sources that are solved or hopeless are drawn less than uniformly, and less than those being learnt.",
        source="motivation: advantages of saturated and of too hard distributions are small",
        arxiv="2504.09710",
        arms=(arm("dump", "method"),),
        metrics=(
            Metric("solved", "lower", "share"),
            Metric("hopeless", "lower", "share"),
            Metric("solved_to_top", "lower"),
            Metric("hopeless_to_top", "lower"),
            Metric("top", "none", "share"),
        ),
        unit=idle,
        n_units=10,
        budget_s=1800,
        settings=SETTINGS | {"steps": Setting(120, "reconstructed")},
        smoke={"steps": 60},
        rules=(
            Rule("share of the solved source", value("solved", "dump"), Bound("<", 0.1)),
            Rule("share of the hopeless source", value("hopeless", "dump"), Bound("<", 0.1)),
            Rule("solved against the most drawn", value("solved_to_top", "dump"), Bound("<", 0.6)),
            Rule("hopeless against the most drawn", value("hopeless_to_top", "dump"), Bound("<", 0.6)),
        ),
        deviations=DEVIATIONS,
        cannot_show="starvation: the bonus and the temperature keep idle sources at some 0.08 of the draws",
    ),
)
