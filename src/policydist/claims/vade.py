"""VADE (arXiv 2511.18902): more useful groups, transfer to held-out prompts, forgetting, and the cost of filtering instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from policydist.claims.conditions import Beyond, Bound, Every, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import RatioOfMeans, difference, value
from policydist.functional import info_gain
from policydist.language import methods
from policydist.language.recipe import Context, Recipe
from policydist.language.recipe import Setting as Stage
from policydist.language.trainer import Row, TrainConfig
from policydist.language.types import Rollouts
from policydist.language.worlds import pass_at, run
from policydist.language.worlds.pool import DriftingPolicy, Pool, shared_pool, train


def recipe(job: Job, setting: Stage) -> Recipe:
    """The arm's method with its knobs."""
    method = methods.load(job["method"])
    return method.build(method.Config(**job["knobs"]), setting)


def mean(rows: Sequence[Row], name: str) -> float:
    """Mean of a metric over steps."""
    return sum(row[name] for row in rows) / len(rows)


def bernoulli(job: Job) -> Mapping[str, float]:
    """Train on the pool of single decisions; useful groups early, in the middle and late, and exact success at the end."""
    pool = Pool.items(job.seed, job["items"], -0.5, 3.0, coupling=job["coupling"])
    # The loss averages over the batch: this rate moves a selected item by 0.8 times its own gradient.
    config = TrainConfig(steps=job["steps"], lr=0.8 * job["prompts"], optimiser="sgd", grad_clip=0, seed=job.seed)
    rows = train(recipe(job, pool.setting(job["prompts"], job["samples"])), pool.policy, config)
    found = {"useful_100": mean(rows[:100], "effective_groups"), "useful_last": mean(rows[-10:], "effective_groups")}
    groups = sum(row["effective_groups"] for row in rows) * job["prompts"]
    return found | {
        "success": float(pool.success().mean()),
        "rollouts": rows[-1]["tokens"],
        "rollouts_per_useful_group": rows[-1]["tokens"] / max(groups, 1.0),
    }


def shared(job: Job) -> Mapping[str, float]:
    """Train the linear policy; useful groups, exact success on training and on held-out contexts."""
    world = shared_pool(job.seed, job["contexts"])
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    rows = run(job["method"], job["knobs"], world.policy, world.setting(job["prompts"], job["samples"]), config)
    exact = {"train": pass_at(world.mass(held_out=False), 1), "test": pass_at(world.mass(held_out=True), 1)}
    return exact | {"useful": mean(rows, "effective_groups"), "rollouts": rows[-1]["tokens"]}


def drift(job: Job) -> Mapping[str, float]:
    """Success rates that jump and are not learnt: the true gain p(1-p)^2 of the prompts selected."""
    policy = DriftingPolicy(job.seed, job["items"])
    pool = Pool.of(policy)

    def judge(rollouts: Rollouts, ctx: Context) -> Rollouts:
        ctx.log("true_gain", info_gain(policy.success()[rollouts.prompt_ids[:, 0]]).mean())
        return pool.judge(rollouts, ctx)

    setting = replace(pool.setting(job["prompts"], job["samples"]), judge=judge)
    config = TrainConfig(steps=job["steps"], optimiser="sgd", seed=job.seed)
    return {"gain": mean(train(recipe(job, setting), policy, config), "true_gain")}


def arm(name: str, role: Any, method: str = "vade", **knobs: Any) -> Arm:
    """An arm that trains by ``method`` with these knobs."""
    return Arm(name, role, {"method": method, "knobs": knobs})


POOL = {
    "items": Setting(2000, "reconstructed"),
    "prompts": Setting(64, "reconstructed"),
    "samples": Setting(8, "paper"),
    "steps": Setting(150, "reconstructed"),
    "coupling": Setting((0.24 / 51.2) ** 0.5, "reconstructed"),  # the skill moves by 0.8 * 0.3 times the mean gradient
    "knobs": Setting({}, "paper"),
}
SMALL = Deviation(
    "pools of one-decision prompts instead of a vision-language model", "exact success rates, in seconds", "SCALED_DOWN"
)
UNIFORM = arm("uniform", "baseline", "grpo")

CLAIMS = (
    Claim(
        id="vade.C1",
        statement="At equal rollouts VADE trains on more groups with a gradient than shuffled epochs, and ends higher.",
        source="effective gradient ratio during training (Figure 3) and the ablation table (Table 2)",
        arxiv="2511.18902",
        arms=(
            arm("vade", "method"),
            UNIFORM,
            arm("p(1-p)", "ablation", score="p(1-p)"),
            arm("greedy", "ablation", draw="mean"),
            arm("last_update", "ablation", draw="mean", kept=0.0),
            arm("no_decay", "ablation", kept=1.0, idle=1.0),
        ),
        metrics=(
            Metric("useful_100", "higher", "share of groups, steps 1-100"),
            Metric("useful_last", "none", "share of groups, last 10 steps"),
            Metric("success", "higher"),
            Metric("rollouts", "none"),
            Metric("rollouts_per_useful_group", "lower"),
        ),
        unit=bernoulli,
        n_units=10,
        budget_s=1800,
        settings=POOL,
        smoke={"steps": 5, "items": 200},
        rules=(
            Rule("useful groups, VADE - uniform", difference("useful_100", "vade", "uniform"), Beyond(">", 0.1)),
            Rule("final success, VADE - uniform", difference("success", "vade", "uniform"), Beyond(">", 0.02)),
            Rule("equal rollouts", difference("rollouts", "vade", "uniform"), Every(0, 0)),
            Rule("final success, VADE - p(1-p)", difference("success", "vade", "p(1-p)"), Beyond(">"), must=False),
            Rule("final success, VADE - greedy", difference("success", "vade", "greedy"), Beyond(">"), must=False),
            Rule(
                "final success, VADE - last update",
                difference("success", "vade", "last_update"),
                Beyond(">"),
                must=False,
            ),
            Rule(
                "useful groups, VADE - no decay", difference("useful_100", "vade", "no_decay"), Beyond(">"), must=False
            ),
            Rule(
                "late useful groups, VADE - uniform",
                difference("useful_last", "vade", "uniform"),
                Beyond(">"),
                must=False,
            ),
        ),
        sanity=(
            Rule("uniform learns as it is known to", value("success", "uniform"), Point(0.91, 0.97)),
            Rule("uniform's useful groups", value("useful_100", "uniform"), Point(0.40, 0.50)),
        ),
        deviations=(
            SMALL,
            Deviation("batch of 64, rate 0.8, shared skill", "not found in the paper's sources", "RECONSTRUCTED"),
        ),
        cannot_show="benchmark gains; that useful groups late in training are more (they are fewer once the pool is solved)",
    ),
    Claim(
        id="vade.C2",
        statement="With shared parameters the prompts that VADE picks raise success on the pool and on held-out contexts.",
        source="average over benchmarks (Table 1)",
        arxiv="2511.18902",
        arms=(arm("vade", "method"), UNIFORM),
        metrics=(
            Metric("useful", "higher", "share of groups"),
            Metric("train", "higher"),
            Metric("test", "higher"),
            Metric("rollouts", "none"),
        ),
        unit=shared,
        n_units=12,
        budget_s=1800,
        settings={
            "contexts": Setting(1024, "reconstructed"),
            "prompts": Setting(64, "reconstructed"),
            "samples": Setting(8, "paper"),
            "steps": Setting(240, "paper"),
            "lr": Setting(0.01, "reconstructed"),
            "knobs": Setting({}, "paper"),
        },
        smoke={"steps": 5},
        rules=(
            Rule("held-out success", difference("test", "vade", "uniform"), Beyond(">")),
            Rule("success on the pool", difference("train", "vade", "uniform"), Beyond(">")),
            Rule("useful groups", difference("useful", "vade", "uniform"), Beyond(">")),
            Rule("equal rollouts", difference("rollouts", "vade", "uniform"), Every(0, 0)),
        ),
        sanity=(Rule("uniform learns as it is known to", value("train", "uniform"), Point(0.19, 0.27)),),
        deviations=(
            Deviation(
                "linear softmax policy, 48 features, 50 answers", "held-out success by enumeration", "SCALED_DOWN"
            ),
        ),
        cannot_show="benchmark gains: with the 3B model and GRPO the paper itself finds DAPO ahead of VADE",
    ),
    Claim(
        id="vade.C3",
        statement="When success rates jump, VADE keeps picking prompts with much to gain; forgetting idle prompts fast loses them.",
        source="two-scale prior decay (framework figure)",
        arxiv="2511.18902",
        arms=(
            arm("vade", "method"),
            UNIFORM,
            arm("no_decay", "ablation", kept=1.0, idle=1.0),
            arm("fast_decay", "broken", idle=0.9),
        ),
        metrics=(Metric("gain", "higher", "mean p(1-p)^2 of the selected"),),
        unit=drift,
        n_units=10,
        budget_s=1800,
        settings={
            "items": Setting(500, "reconstructed"),
            "prompts": Setting(50, "reconstructed"),
            "samples": Setting(8, "paper"),
            "steps": Setting(400, "reconstructed"),
            "knobs": Setting({}, "paper"),
        },
        smoke={"steps": 50},
        rules=(
            Rule("VADE - 1.3 uniform", difference("gain", "vade", "uniform", 1.3), Beyond(">")),
            Rule("VADE - no decay", difference("gain", "vade", "no_decay"), Beyond(">"), must=False),
        ),
        sanity=(
            Rule("fast decay loses", difference("gain", "vade", "fast_decay"), Beyond(">")),
            Rule("uniform has the gain of a random prompt", value("gain", "uniform"), Point(0.08, 0.087)),
        ),
        deviations=(
            Deviation("rates jump by themselves and nothing is learnt", "isolates what is remembered", "OWN_CHOICE"),
        ),
        cannot_show="that these decay factors are best: where rates drift slowly, not forgetting does as well or better",
    ),
    Claim(
        id="vade.C4",
        statement="Filtering by DAPO's dynamic sampling generates more rollouts for as many useful groups.",
        source="comparison with DAPO, whose extra rollouts VADE does without",
        arxiv="2511.18902",
        arms=(arm("vade", "method"), arm("dapo", "baseline", "dapo"), UNIFORM),
        metrics=(
            Metric("rollouts_per_useful_group", "lower"),
            Metric("rollouts", "none"),
            Metric("success", "higher"),
            Metric("useful_100", "higher"),
            Metric("useful_last", "none"),
        ),
        unit=bernoulli,
        n_units=10,
        budget_s=900,
        settings=POOL | {"steps": Setting(50, "reconstructed")},
        smoke={"steps": 5, "items": 500},
        rules=(
            Rule(
                "rollouts a useful group, DAPO / VADE",
                RatioOfMeans("rollouts_per_useful_group", "dapo", "vade"),
                Bound(">", 1.3),
            ),
            Rule(
                "rollouts a useful group, uniform / VADE",
                RatioOfMeans("rollouts_per_useful_group", "uniform", "vade"),
                Bound(">", 1.0),
                must=False,
            ),
        ),
        deviations=(SMALL,),
        cannot_show="wall time, which also depends on how a generation engine fills its batches",
    ),
)
