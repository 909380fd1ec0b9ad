"""DoGe (arXiv 2512.06835): analysing scenes with the question hidden keeps a policy from the questions' text shortcut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policydist.claims.conditions import Beyond, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.language.trainer import TrainConfig
from policydist.language.worlds.scenes import Shortcut
from policydist.language.worlds.steered import traced

LOSS = {"kl_coef": 0.0, "clip_high": 0.28, "dual_clip": 3.0}
STAGES = {"analysis_temperature": 1.0, "solver_temperature": 1.0, "solver_top_p": 1.0}


def learn(job: Job) -> Mapping[str, float]:
    """Exact accuracy of direct answers to balanced test questions and to the training ones; entropy of the answers to the
    training questions when stage 2 begins and on average from there on; size of the last seed pool."""
    world = Shortcut.draw(job.seed, ignore=job["ignore"])
    knobs: dict[str, Any] = {**LOSS, **job["knobs"]}
    if job["method"] == "doge":
        knobs = {**STAGES, "stage1_steps": job["stage1"], "stage2_steps": job["stage2"], **knobs}
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    setting = world.setting(job["prompts"], job["samples"])
    rows = traced(job["method"], knobs, world.policy, setting, config, world.measure)
    entropies = [row["entropy"] for row in rows[job["stage1"] - 1 : job["stage1"] + job["stage2"]]]
    return {
        "accuracy": rows[-1]["accuracy"],
        "greedy": rows[-1]["greedy"],
        "fit": rows[-1]["fit"],
        "entropy": entropies[0],
        "later_entropy": sum(entropies) / len(entropies),
        "responses": rows[-1]["responses"],
        "pool": max(row.get("doge/pool", 0.0) for row in rows),
    }


def arm(name: str, role: str, method: str = "doge", ignore: bool = False, **changes: Any) -> Arm:
    knobs = changes.pop("knobs", {})
    return Arm(name, role, {"method": method, "ignore": ignore, "knobs": knobs, **changes})  # type: ignore[arg-type]


SHORT: Mapping[str, Any] = {"stage1": 10, "stage2": 10, "steps": 40}

CLAIMS = (
    Claim(
        id="doge.C1",
        statement="Analysing contexts without their question before answering questions generalises better than as many steps of "
        "GRPO where the questions' wording gives answers away, because the question is hidden, and leaves more entropy.",
        source="motivation, main results and ablation of the stages",
        arxiv="2512.06835",
        arms=(
            arm("doge", "method"),
            arm("grpo", "baseline", "grpo"),
            arm("unmasked", "ablation", knobs={"mask": False}),
            arm("analysis_unread", "broken", ignore=True),
            arm("grpo_equal_responses", "variant", "grpo", steps=400),
            arm("pool_filter", "variant", knobs={"seed_pool": "filter"}, **SHORT),
            arm("pool_random", "variant", knobs={"seed_pool": "random"}, **SHORT),
        ),
        metrics=(
            Metric("accuracy", "higher"),
            Metric("greedy", "higher"),
            Metric("fit", "higher"),
            Metric("entropy", "none", "nats"),
            Metric("later_entropy", "none", "nats"),
            Metric("responses", "none"),
            Metric("pool", "none", "problems"),
        ),
        unit=learn,
        n_units=12,
        budget_s=5400,
        settings={
            "steps": Setting(250, "sheet"),
            "stage1": Setting(100, "sheet"),
            "stage2": Setting(150, "sheet"),
            "prompts": Setting(48, "code"),
            "samples": Setting(8, "code"),
            "lr": Setting(0.03, "sheet"),
            "method": Setting("doge", "paper"),
            "knobs": Setting({}, "code"),
            "ignore": Setting(False, "reconstructed"),
        },
        smoke={"steps": 6, "stage1": 2, "stage2": 4},
        rules=(
            Rule("DoGe - GRPO", difference("accuracy", "doge", "grpo"), Beyond(">", min_estimate=0.01)),
            Rule("DoGe - the same with the question shown", difference("accuracy", "doge", "unmasked"), Beyond(">")),
            Rule("entropy when stage 2 begins, DoGe - GRPO", difference("entropy", "doge", "grpo"), Beyond(">")),
            Rule(
                "mean entropy from there on, DoGe - GRPO",
                difference("later_entropy", "doge", "grpo"),
                Beyond(">"),
                must=False,
            ),
            Rule(
                "DoGe - GRPO with as many responses, the Solver's included",
                difference("accuracy", "doge", "grpo_equal_responses"),
                Beyond(">"),
                must=False,
            ),
            Rule(
                "DoGe - the same with a Solver that does not see the analysis",
                difference("accuracy", "doge", "analysis_unread"),
                Beyond(">"),
                must=False,
            ),
            Rule(
                "a second round: seed pool - as many random problems",
                difference("accuracy", "pool_filter", "pool_random"),
                Beyond(">"),
                must=False,
            ),
        ),
        sanity=(Rule("GRPO has learned the training questions", value("fit", "grpo"), Point(0.9, 1.0)),),
        deviations=(
            Deviation(
                "six binary attributes seen through noise, and a policy of 78 numbers, instead of a vision-language model",
                "runs in seconds with exact expectations",
                "SCALED_DOWN",
            ),
            Deviation(
                "Adam with rate 0.03, no KL term, no format to learn", "the small world's settings", "SCALED_DOWN"
            ),
            Deviation(
                "sampling at temperature 1 throughout", "the Solver's trust in an analysis is itself 0.95", "OWN_CHOICE"
            ),
            Deviation(
                "the seed pool's two arms take rounds of 10 + 10 steps",
                "later hardly any problem is in it",
                "OWN_CHOICE",
            ),
        ),
        cannot_show="what a real vision-language model perceives, synthetic data, hallucination, rounds with new problems",
    ),
)
