"""ICPO (arXiv 2510.26519): guided rollouts open a closed task, only if the guidance works; what rejection is worth."""

from __future__ import annotations

from collections.abc import Mapping

from policydist.claims.conditions import Beyond, Intersects, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.language.trainer import TrainConfig
from policydist.language.worlds.steered import ClosedTask, traced


def learn(job: Job) -> Mapping[str, float]:
    """Exact success without demonstration, at the end and on average over training; share of guided rows accepted."""
    world = ClosedTask.draw(job.seed, strength=job["strength"], wrong=job["wrong"])
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    knobs = {"kl_coef": 0.0, **job["knobs"]} if job["method"] == "icpo" else {}
    setting = world.setting(job["samples"])
    rows = traced(job["method"], knobs, world.policy, setting, config, lambda: {"success": world.success()})
    accepted = [row.get("icpo/accepted", 0.0) for row in rows]
    return {
        "success": rows[-1]["success"],
        "auc": sum(row["success"] for row in rows) / len(rows),
        "accepted": sum(accepted) / len(accepted),
    }


def arm(name: str, role: str, samples: int = 8, strength: float = 3.0, **knobs: object) -> Arm:
    method = "grpo" if name.startswith("grpo") else "icpo"
    settings = {"method": method, "samples": samples, "strength": strength, "knobs": knobs}
    return Arm(name, role, settings)  # type: ignore[arg-type]


METRICS = (Metric("success", "higher"), Metric("auc", "higher"), Metric("accepted", "none"))
TABLE = {
    "steps": Setting(250, "reconstructed"),
    "lr": Setting(0.05, "reconstructed"),
    "wrong": Setting(0.3, "reconstructed"),
    "knobs": Setting({}, "code"),
}
SMALL = (
    Deviation(
        "a table of logits that a demonstration steers instead of a language model",
        "runs in seconds with exact expectations",
        "SCALED_DOWN",
    ),
    Deviation("Adam with rate 0.05, no KL term", "the settings of our reconstruction's prototype", "SCALED_DOWN"),
)

CLAIMS = (
    Claim(
        id="icpo.C1",
        statement="One rollout of eight drawn behind a demonstration opens a task that GRPO with as many rollouts, or one more, "
        "does not; with demonstrations that do nothing there is no gain.",
        source="main result and ablation of implicit expert forcing",
        arxiv="2510.26519",
        arms=(
            arm("icpo", "method"),
            arm("grpo_8", "baseline"),
            arm("grpo_9", "baseline", samples=9),
            arm("no_effect", "ablation", strength=0.0),
            arm("lambda_0.01", "variant", lam=0.01),
            arm("bonus", "variant", bonus=1.0, bonus_steps=250),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=10,
        budget_s=3600,
        settings=TABLE,
        smoke={"steps": 3},
        rules=(
            Rule("ICPO - GRPO", difference("success", "icpo", "grpo_8"), Beyond(">", 0.5)),
            Rule("ICPO - GRPO with 9 samples", difference("success", "icpo", "grpo_9"), Beyond(">", 0.5)),
            Rule(
                "demonstrations without effect - GRPO, on average",
                difference("auc", "no_effect", "grpo_8"),
                Intersects(-0.02, 0.02),
            ),
            Rule("lambda 0.1 - 0.01, on average", difference("auc", "icpo", "lambda_0.01"), Beyond(">"), must=False),
            Rule("bonus - none, on average", difference("auc", "bonus", "icpo"), Beyond(">"), must=False),
        ),
        sanity=(Rule("GRPO is at its known level", value("success", "grpo_8"), Point(0.0, 0.4)),),
        deviations=SMALL,
        cannot_show="how strongly a language model follows examples, and anything about unseen tasks",
    ),
    Claim(
        id="icpo.C2",
        statement="Where most demonstrations mislead and a guided rollout replaces one of the policy's own, rejecting those "
        "outside the expert region learns faster than keeping all.",
        source="ablation of expert region reject sampling",
        arxiv="2510.26519",
        arms=(
            arm("reject", "method", layout="replace"),
            arm("keep_all", "ablation", layout="replace", reject=False),
            arm("append_reject", "variant"),
            arm("append_keep_all", "variant", reject=False),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=30,
        budget_s=5400,
        settings=TABLE | {"wrong": Setting(0.8, "reconstructed")},
        smoke={"steps": 3},
        rules=(
            Rule("reject - keep all, on average", difference("auc", "reject", "keep_all"), Beyond(">")),
            Rule(
                "the same where guided rollouts are appended",
                difference("auc", "append_reject", "append_keep_all"),
                Beyond(">"),
                must=False,
            ),
        ),
        deviations=SMALL,
        cannot_show="the cost of a misleading example in a language model, whose wrong answers are not random",
    ),
)
