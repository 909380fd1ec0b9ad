"""CalibRL (arXiv 2602.20197): entropy kept at equal accuracy, and the slope as the knob that sets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from policydist.claims.conditions import Beyond, Inside, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.language.trainer import Row, TrainConfig
from policydist.language.worlds.steered import ExpertTree, traced


def at_accuracy(rows: Sequence[Row], name: str, level: float) -> float:
    """A metric where exact accuracy first reaches ``level``, between two steps in proportion; never reached: NaN."""
    if rows[0]["accuracy"] >= level:
        return rows[0][name]
    for before, after in pairwise(rows):
        if before["accuracy"] < level <= after["accuracy"]:
            share = (level - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
            return before[name] + share * (after[name] - before[name])
    return float("nan")


def learn(job: Job) -> Mapping[str, float]:
    """Exact entropy and coverage at matched accuracy, and accuracy and entropy at the end."""
    world = ExpertTree.draw(job.seed)
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    knobs = {"scale": "none", **job["knobs"]}
    rows = traced(job["method"], knobs, world.policy, world.setting(job["samples"]), config, world.exact)
    last = {name: rows[-1][name] for name in ("accuracy", "entropy", "coverage")}
    level = job["level"]
    return last | {f"matched_{name}": at_accuracy(rows, name, level) for name in ("entropy", "coverage")}


def arm(name: str, role: str, method: str = "calibrl", **knobs: object) -> Arm:
    return Arm(name, role, {"method": method, "knobs": knobs})  # type: ignore[arg-type]


METRICS = (
    Metric("matched_entropy", "higher", "nats"),
    Metric("matched_coverage", "higher"),
    Metric("accuracy", "higher"),
    Metric("entropy", "higher", "nats"),
    Metric("coverage", "higher"),
)
TREE = {
    "steps": Setting(200, "reconstructed"),
    "lr": Setting(0.05, "reconstructed"),
    "samples": Setting(10, "code"),
    "level": Setting(0.95, "reconstructed"),
    "knobs": Setting({}, "code"),
}
SMOKE = {"steps": 3, "level": 0.0}
SMALL = (
    Deviation("a table over 216 responses instead of a vision-language model", "exact by enumeration", "SCALED_DOWN"),
    Deviation(
        "lambda 1 in the judged arms instead of 0.1, Adam with rate 0.05",
        "the code's weight is too weak to be seen in 200 steps of this table; it is reported",
        "SCALED_DOWN",
    ),
)

CLAIMS = (
    Claim(
        id="calibrl.C1",
        statement="At equal accuracy, comparing confidence with an expert leaves more entropy than imitating it, by a shaped "
        "row in the group or by added cross-entropy, and ends as accurate.",
        source="main claim: guided exploration without entropy collapse",
        arxiv="2602.20197",
        arms=(
            arm("calibrl", "method", lam=1.0),
            arm("luffy", "baseline", "luffy"),
            arm("sft_added", "baseline", "grpo_sft", coef=0.1),
            arm("grpo", "baseline", "grpo"),
            arm("lambda_0.1", "variant", lam=0.1),
            arm("sequence", "variant", lam=1.0, gap="sequence_sum"),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=20,
        budget_s=5400,
        settings=TREE,
        smoke=SMOKE,
        rules=(
            Rule("CalibRL - LUFFY", difference("matched_entropy", "calibrl", "luffy"), Beyond(">")),
            Rule("CalibRL - added SFT", difference("matched_entropy", "calibrl", "sft_added"), Beyond(">")),
            Rule("as accurate as LUFFY in the end", difference("accuracy", "calibrl", "luffy"), Inside(-0.01, 0.01)),
            Rule(
                "as accurate as added SFT in the end",
                difference("accuracy", "calibrl", "sft_added"),
                Inside(-0.01, 0.01),
            ),
            Rule("CalibRL - GRPO", difference("matched_entropy", "calibrl", "grpo"), Beyond(">"), must=False),
            Rule(
                "the code's lambda 0.1 - GRPO",
                difference("matched_entropy", "lambda_0.1", "grpo"),
                Beyond(">"),
                must=False,
            ),
            Rule(
                "whole responses compared (paper) - GRPO",
                difference("matched_entropy", "sequence", "grpo"),
                Beyond(">"),
                must=False,
            ),
        ),
        sanity=(Rule("GRPO is at its known level", value("accuracy", "grpo"), Point(0.97, 1.0)),),
        deviations=SMALL,
        cannot_show="images, the accuracy of 7B models, or the paper's large gains in accuracy",
    ),
    Claim(
        id="calibrl.C2",
        statement="The slope alpha sets the entropy that is left: less of it, the more is left.",
        source="ablation of alpha",
        arxiv="2602.20197",
        arms=(
            arm("alpha_0.5", "method", lam=1.0, alpha=0.5),
            arm("alpha_0", "variant", lam=1.0, alpha=0.0),
            arm("alpha_1", "ablation", lam=1.0, alpha=1.0),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=20,
        budget_s=3600,
        settings=TREE,
        smoke=SMOKE,
        rules=(
            Rule("alpha 0 - 0.5, final entropy", difference("entropy", "alpha_0", "alpha_0.5"), Beyond(">")),
            Rule("alpha 0.5 - 1, final entropy", difference("entropy", "alpha_0.5", "alpha_1"), Beyond(">")),
        ),
        deviations=SMALL,
        cannot_show="which alpha suits a language model",
    ),
)
