"""ICPO (arXiv 2510.26519): guided rollouts open a closed task, only if the guidance works; what rejection is worth; text."""

from __future__ import annotations

from collections.abc import Mapping

from policydist.claims.conditions import Beyond, Every, Intersects, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting, Tuning
from policydist.claims.estimands import difference, value
from policydist.language.guided import ExamplePrompts
from policydist.language.methods import icpo
from policydist.language.trainer import TrainConfig
from policydist.language.worlds import alphabets, pretrained, run
from policydist.language.worlds.steered import ClosedTask, traced
from policydist.runs.seeds import torch_generator


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


def text(job: Job) -> Mapping[str, float]:
    """Held-out accuracy of a small transformer before and after training, and before it behind an example."""
    policy = pretrained.policy(alphabets.corpus, job["pretraining"], job.seed)
    world = pretrained.TextWorld(policy, alphabets.task(job.seed, job["rows"], job["test_rows"]))
    setting = world.setting(job["prompts"], job["samples"])
    before = world.score(job["test_samples"])
    steering, generator = icpo.examples(icpo.Config(**alphabets.KNOBS), setting), torch_generator(job.seed, "shown")
    assert isinstance(steering, ExamplePrompts)  # as for any task with text
    behind = [{**row, "prompt": steering.with_examples(row["prompt"], generator)} for row in world.task.test]
    shown = world.score(job["test_samples"], behind)
    knobs = {"kl_coef": 0.0, **alphabets.KNOBS, **job["knobs"]} if job["method"] == "icpo" else {}
    rows = run(job["method"], knobs, policy, setting, TrainConfig(steps=job["steps"], lr=job["lr"], seed=job.seed))
    accepted = [row.get("icpo/accepted", 0.0) for row in rows]
    return {
        "success": world.score(job["test_samples"]),
        "auc": sum(row["reward"] for row in rows) / len(rows),
        "accepted": sum(accepted) / len(accepted),
        "zero_shot": before,
        "steering": shown - before,
    }


def arm(name: str, role: str, samples: int = 8, strength: float = 3.0, **knobs: object) -> Arm:
    method = "grpo" if name.startswith("grpo") else "icpo"
    settings = {"method": method, "samples": samples, "strength": strength, "knobs": knobs}
    return Arm(name, role, settings)  # type: ignore[arg-type]


def read(name: str, role: str, method: str, samples: int = 8, **knobs: object) -> Arm:
    """An arm of the claim on text."""
    return Arm(name, role, {"method": method, "samples": samples, "knobs": knobs})  # type: ignore[arg-type]


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
    Claim(
        id="icpo.C3",
        statement="A small transformer that writes numbers in alphabets which it can only know from an example opens the task by "
        "one rollout of eight drawn behind an example; GRPO with as many rollouts, or one more, does not.",
        source="main result and ablation of implicit expert forcing",
        arxiv="2510.26519",
        arms=(
            read("icpo", "method", "icpo"),
            read("grpo_8", "baseline", "grpo"),
            read("grpo_9", "baseline", "grpo", samples=9),
            read("unrelated", "ablation", "icpo", example_column="unrelated"),
        ),
        metrics=(*METRICS, Metric("zero_shot", "none"), Metric("steering", "none")),
        unit=text,
        n_units=6,
        budget_s=3600,
        settings={
            "pretraining": Setting(260, "reconstructed"),
            "rows": Setting(512, "reconstructed"),
            "test_rows": Setting(128, "reconstructed"),
            "test_samples": Setting(4, "default"),
            "prompts": Setting(16, "default"),
            "steps": Setting(100, "reconstructed"),
            "lr": Setting(2e-3, "tuned"),
        },
        smoke={"pretraining": 2, "steps": 1, "rows": 16, "test_rows": 4, "test_samples": 2},
        rules=(
            Rule("ICPO - GRPO", difference("success", "icpo", "grpo_8"), Beyond(">", 0.5)),
            Rule("ICPO - GRPO with 9 samples", difference("success", "icpo", "grpo_9"), Beyond(">", 0.5)),
            Rule(
                "examples of other tasks - GRPO",
                difference("success", "unrelated", "grpo_8"),
                Intersects(-0.02, 0.02),
                must=False,
            ),
        ),
        sanity=(
            Rule("an example helps before training", value("steering", "icpo"), Beyond(">", 0.3)),
            Rule("all start from the same model", difference("steering", "icpo", "grpo_8"), Every(0, 0)),
            Rule("GRPO is at its known level", value("success", "grpo_8"), Point(0.0, 0.4)),
        ),
        deviations=(
            Deviation(
                "a transformer of two layers, made for this family of tasks, and answers of five characters",
                "a minute of training a unit on a CPU",
                "SCALED_DOWN",
            ),
            Deviation(
                "no KL term, one learning rate for all arms, found on development seeds",
                "the published rate belongs to models ten thousand times as large",
                "SCALED_DOWN",
            ),
            Deviation(
                "all questions share one rule, and the examples are answered questions of the training set itself",
                "what an example can tell is then known exactly",
                "OWN_CHOICE",
            ),
        ),
        tuning=Tuning(3, {"lr": (1e-3, 2e-3, 3e-3)}),
        cannot_show="whether examples tell a real language model anything that its weights do not hold, and what is gained where "
        "questions have no rule in common",
    ),
)
