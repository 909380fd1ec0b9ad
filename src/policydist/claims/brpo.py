"""BRPO (arXiv 2505.13438): less variance than either baseline, answers that are good at every budget, and text."""

from __future__ import annotations

from collections.abc import Mapping

from policydist.claims.conditions import Beyond, Every, Inside, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.functional import anytime_advantage, budget_prior
from policydist.language.experiment import assemble, configure
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.world import World
from policydist.language.worlds import run
from policydist.language.worlds.progress import Chain, hazard_scores

LAST = 3
"""Segments at the end in which the method must be ahead of the group's mean."""


def variance(job: Job) -> Mapping[str, Mapping[str, float]]:
    """Variance of the advantages over all traces as a share of the returns', segment by segment."""
    cuts = job["cuts"]
    scores, group = hazard_scores(job.seed, job["questions"], job["samples"], cuts, job["answers"])
    prior = budget_prior(job.stratum, range(1, cuts + 1))  # type: ignore[arg-type]
    left = {}
    for arm, (baseline, discount) in job["baselines"].items():
        found = anytime_advantage(scores, group, prior, baseline=baseline, discount=discount)
        left[arm] = found.advantages.var(0) / found.returns.var(0)
    result = {arm: {"first": float(x[0]), "last": float(x[-1]), "mean": float(x.mean())} for arm, x in left.items()}
    best = left["progress"].minimum(left["average"])
    result["brpo"]["excess"] = float((left["brpo"] - best).max())
    result["brpo"]["gain"] = float((left["average"] - left["brpo"])[-LAST:].min())
    return result


def chain(job: Job) -> Mapping[str, float]:
    """Exact accuracy after each of four budgets once the chain is trained: their mean, and the last."""
    world = Chain.draw(job.seed)
    length = world.policy.length
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    rows = run("brpo", job["knobs"], world.policy, world.setting(job["prompts"], job["samples"]), config)
    at = world.accuracy()[[length // 4 - 1, length // 2 - 1, 3 * length // 4 - 1, length - 1]]
    return {
        "area": float(at.mean()), "first": float(at[0]), "final": float(at[-1]),
        "variance_left": sum(row["brpo/variance_left"] for row in rows) / len(rows),
    }  # fmt: skip


def text(job: Job) -> Mapping[str, float]:
    """Held-out accuracy of the embedded model when its working is cut at four budgets, before and after training."""
    words = [
        "task.name=chain", f"task.seed={job.seed}", f"task.train_size={job['rows']}", f"train.seed={job.seed}",
        f"train.steps={job['steps']}", f"train.lr={job['lr']}", f"rollout.prompts={job['prompts']}",
        f"rollout.samples={job['samples']}", f"knobs.answer_tokens={job['answer_tokens']}", *job["knobs"],
        f"eval.budgets={list(job['budgets'])}", f"eval.answer_tokens={job['answer_tokens']}", "eval.samples=2",
        f"eval.rows={job['test_rows']}", "model.device=cpu",
    ]  # fmt: skip
    config = configure("brpo", None, words)
    parts = assemble(config, World())
    before = parts.evaluation.measure(parts.policy)
    Trainer(parts.policy, parts.recipe, config.train).train()
    after = parts.evaluation.measure(parts.policy)
    early, late = (f"eval/accuracy@{job['budgets'][place]}" for place in (0, -1))
    return {
        "area": after["eval/anytime"], "area_before": before["eval/anytime"], "early": after[early],
        "final": after[late], "gain": after[late] - before[late],
    }  # fmt: skip


def report(name: str, metric: str, arm: str, baseline: str) -> Rule:
    return Rule(name, difference(metric, arm, baseline), Beyond(">"), must=False)


BUDGETS = (6, 12, 18, 24)
GRPO = {"budgets": BUDGETS[-1:], "answers": 1}

CLAIMS = (
    Claim(
        id="brpo.C1",
        statement="The mix of a trace's own progress and its group's mean return leaves no more variance than the better of the "
        "two in any segment, and far less than the group's mean in the last ones.",
        source="normalised variance of the advantages (third figure)",
        arxiv="2505.13438",
        arms=(
            Arm("brpo", "method"),
            Arm("average", "baseline"),
            Arm("progress", "baseline"),
            Arm("no_discount", "ablation"),
            Arm("no_baseline", "broken"),
        ),
        metrics=(
            Metric("gain", "higher", "share of the returns' variance"),
            Metric("excess", "lower", "share of the returns' variance"),
            Metric("first", "lower"),
            Metric("last", "lower"),
            Metric("mean", "lower"),
        ),
        replicate=variance,
        n_units=30,
        unit_of_replication="200 questions",
        strata=("uniform", "linear"),
        budget_s=300,
        settings={
            "questions": Setting(200, "reconstructed"),
            "samples": Setting(8, "code"),
            "cuts": Setting(8, "code"),
            "answers": Setting(4, "code"),
            "baselines": Setting(
                {
                    "brpo": ("brpo", 0.5),
                    "average": ("v2", 0.5),
                    "progress": ("v1", 0.5),
                    "no_discount": ("brpo", 1.0),
                    "no_baseline": ("none", 0.5),
                },
                "paper",
            ),
        },  # fmt: skip
        smoke={"questions": 50},
        rules=(
            *(
                Rule(
                    f"group mean - BRPO, least of the last three segments, {prior} prior",
                    value("gain", "brpo"),
                    Beyond(">", 0.15),
                    strata=(prior,),
                )
                for prior in ("uniform", "linear")
            ),
            Rule("BRPO - the better baseline, worst segment", value("excess", "brpo"), Every(high=0.02)),
            Rule("BRPO - progress alone, mean", difference("mean", "brpo", "progress"), Beyond("<"), must=False),
            Rule(
                "BRPO - all past budgets alike, mean",
                difference("mean", "brpo", "no_discount"),
                Beyond("<"),
                must=False,
            ),
        ),
        sanity=(
            Rule("the first segment knows no progress", difference("first", "brpo", "average"), Every(0, 0)),
            Rule("no baseline leaves everything", value("mean", "no_baseline"), Every(1, 1)),
            Rule("BRPO is below no baseline", difference("mean", "brpo", "no_baseline"), Every(high=-0.2)),
        ),
        deviations=(
            Deviation(
                "traces are solved for good with a question's own chance, uniform in [0.02, 0.4], in each segment; answers are "
                "right with chance 0.95 once solved, 0.1 before",
                "the paper measured a 1.5B model",
                "SCALED_DOWN",
            ),
            Deviation(
                "units are draws of 200 questions, not questions",
                "a ratio of variances needs many questions",
                "OWN_CHOICE",
            ),
        ),
        cannot_show="that less variance trains a better policy: in the paper's own ablation variance reduction alone hardly "
        "moved accuracy",
    ),
    Claim(
        id="brpo.C2",
        statement="Rated at four budgets under a uniform prior, a policy answers well at all of them, and as well at the last one "
        "as by GRPO on the last alone.",
        source="anytime and final accuracy (tables 1 and 2)",
        arxiv="2505.13438",
        arms=(
            Arm("ar_uniform", "method", {"knobs": {"budgets": BUDGETS}}),
            Arm("grpo", "baseline", {"knobs": GRPO}),
            Arm("ar_linear", "variant", {"knobs": {"budgets": BUDGETS, "prior": "linear"}}),
            Arm("ar_base", "ablation", {"knobs": {"budgets": BUDGETS, "prior": "base"}}),
            Arm("average_baseline", "ablation", {"knobs": {"budgets": BUDGETS, "baseline": "v2"}}),
        ),
        metrics=(
            Metric("area", "higher"),
            Metric("first", "higher"),
            Metric("final", "higher"),
            Metric("variance_left", "none"),
        ),
        unit=chain,
        n_units=10,
        budget_s=900,
        settings={
            "prompts": Setting(16, "reconstructed"),
            "samples": Setting(8, "code"),
            "steps": Setting(150, "reconstructed"),
            "lr": Setting(0.05, "reconstructed"),
            "knobs": Setting({}, "code"),
        },
        smoke={"steps": 3},
        rules=(
            Rule("area, AR-uniform - GRPO", difference("area", "ar_uniform", "grpo"), Beyond(">", 0.05)),
            Rule("last budget, AR-uniform - GRPO", difference("final", "ar_uniform", "grpo"), Inside(-0.01, 0.01)),
            report("area, AR-linear - GRPO", "area", "ar_linear", "grpo"),
            report("area, AR-base - GRPO", "area", "ar_base", "grpo"),
            report("area, AR-uniform - group mean as baseline", "area", "ar_uniform", "average_baseline"),
        ),
        sanity=(
            Rule("GRPO solves the chain by the last budget", value("final", "grpo"), Point(0.94, 0.951)),
            Rule("GRPO's area is at its known level", value("area", "grpo"), Point(0.81, 0.89)),
        ),
        deviations=(
            Deviation(
                "a table of 4 states and 8 tokens, answers drawn by the world",
                "exact accuracy in seconds",
                "SCALED_DOWN",
            ),
            Deviation("Adam with rate 0.05, one update a batch", "the arms' gradients differ in scale", "SCALED_DOWN"),
        ),
        cannot_show="how many tokens a reasoning model saves, and which prior is best",
    ),
    Claim(
        id="brpo.C3",
        statement="Trained on text that is cut, closed and answered at four budgets, the embedded model's anytime accuracy is "
        "higher than by GRPO on the longest alone.",
        source="anytime accuracy (table 2)",
        arxiv="2505.13438",
        arms=(
            Arm("ar_uniform", "method", {"knobs": ()}),
            Arm("grpo", "baseline", {"knobs": ("cuts=1", "answers=1")}),
        ),
        metrics=(
            Metric("area", "higher"),
            Metric("area_before", "none"),
            Metric("early", "higher"),
            Metric("final", "higher"),
            Metric("gain", "higher"),
        ),
        unit=text,
        n_units=5,
        budget_s=1200,
        settings={
            "steps": Setting(20, "default"),
            "lr": Setting(1e-3, "default"),
            "prompts": Setting(16, "default"),
            "samples": Setting(8, "code"),
            "rows": Setting(2048, "default"),
            "test_rows": Setting(256, "default"),
            "budgets": Setting((3, 6, 9, 13), "reconstructed"),
            "answer_tokens": Setting(4, "reconstructed"),
            "knobs": Setting((), "code"),
        },
        smoke={"steps": 1, "test_rows": 8, "rows": 64},
        rules=(
            Rule("area, AR-uniform - GRPO", difference("area", "ar_uniform", "grpo"), Beyond(">")),
            report("first budget", "early", "ar_uniform", "grpo"),
            report("last budget", "final", "ar_uniform", "grpo"),
        ),
        sanity=(
            Rule("GRPO learns", value("gain", "grpo"), Point(0.05, 0.6)),
            Rule("both start from the same model", difference("area_before", "ar_uniform", "grpo"), Every(0, 0)),
        ),
        deviations=(
            Deviation(
                "modular chains of at most 13 tokens and the model in the package", "minutes on a CPU", "SCALED_DOWN"
            ),
            Deviation(
                "equal steps and traces: the method samples 16 answers a trace, GRPO one, so its steps cost more",
                "as in the paper",
                "OWN_CHOICE",
            ),
            Deviation(
                "learning rate 1e-3 and 20 steps of 16 prompts for both arms",
                "the defaults of small runs",
                "SCALED_DOWN",
            ),
            Deviation("wall budget of 20 minutes instead of 5", "machines busy with other work", "OWN_CHOICE"),
        ),
        cannot_show="gains on reasoning models: the working here is a few characters long",
    ),
)
