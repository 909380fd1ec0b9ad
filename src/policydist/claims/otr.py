"""OTR (arXiv 2509.26313): mislabelled demonstrations, equality with DFT in expectation, the price on clean data, variance,
and what a language model forgets while it learns another form of answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from policydist.claims.conditions import Beyond, Every, Inside, Intersects, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting, Tuning
from policydist.claims.estimands import Contrast, Trend, difference, value
from policydist.functional.supervised import dft_loss, otr_loss
from policydist.language.evaluate import Evaluation
from policydist.language.experiment import assemble, configure
from policydist.language.judges import TaskJudge
from policydist.language.prompts import TextPrompts
from policydist.language.supervised import TextDemonstrations
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural import MARKER, PROCEDURAL
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Policy, Rollouts, Sampling
from policydist.language.world import World, to_rollouts
from policydist.language.worlds import run
from policydist.language.worlds.supervised import ShiftedDomain
from policydist.runs import seeds


def learn(job: Job) -> Mapping[str, float]:
    """Train on domain B's items by the arm's recipe; accuracy on held-out B, and on A, which was perfect before."""
    world = ShiftedDomain.draw(job.seed, job["noise"])
    start, _ = world.accuracy()
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    run(job["method"], job["knobs"], world.policy, world.setting(job["batch"]), config)
    learned, kept = world.accuracy()
    return {"accuracy": learned, "retention": kept, "start": start}


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator]


def random_logits(seed: int) -> Batch:
    """Logits in float64, targets, a full mask, and the generator that goes on from there."""
    generator = seeds.torch_generator(seed, "otr-identity")
    logits = torch.randn(1, 4, 12, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(12, (1, 4), generator=generator)
    return logits, targets, torch.ones(1, 4, dtype=torch.bool), generator


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def gap(batch: Batch) -> float:
    """Largest entry of the exact gradient less (1 - beta) times DFT's, over several beta."""
    logits, targets, mask, _ = batch
    plain = gradient(dft_loss(logits, targets, mask), logits)
    exact = {beta: otr_loss(logits, targets, mask, beta=beta, estimator="exact")[0] for beta in BETAS}
    return max(float((gradient(loss, logits) - (1 - beta) * plain).abs().max()) for beta, loss in exact.items())


def learn_or_gap(job: Job) -> Mapping[str, float]:
    """`learn`; the arm ``exact`` is `gap` on random logits instead."""
    return {"gap": gap(random_logits(job.seed))} if job.arm == "exact" else learn(job)


def identity(job: Job) -> Mapping[str, Mapping[str, float]]:
    """On random logits: the exact gradient against (1 - beta) DFT's, and the sampled gradient's variance at several K."""
    batch = logits, targets, mask, generator = random_logits(job.seed)
    found: dict[str, dict[str, float]] = {"exact": {"gap": gap(batch)}}
    for k in KS:
        losses = (otr_loss(logits, targets, mask, k=k, generator=generator)[0] for _ in range(job["draws"]))
        drawn = [gradient(loss, logits) for loss in losses]
        found[f"k{k}"] = {"log_variance": math.log(float(torch.stack(drawn).var(0).mean()))}
    return found


def forget(job: Job) -> Mapping[str, float]:
    """Tune the embedded model on sums answered in another form until the held-out loss of that form is down at ``level``: what
    it has lost on the way, losses interpolated between the last two steps, pass rates after the last."""
    sums, *others = (
        PROCEDURAL[name](job.seed, job["rows"] if name == "arithmetic" else 1, job["test_rows"]) for name in TASKS
    )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "demonstrations.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in restated(sums.train)))
        words = [
            f"task.name=jsonl:{file}", f"train.seed={job.seed}", f"train.lr={job['lr']}", f"train.steps={job['steps']}",
            f"rollout.prompts={job['prompts']}", "model.device=cpu",
        ]  # fmt: skip
        config = configure(job["method"], None, words)
        parts = assemble(config, World())
    policy, trainer = parts.policy, Trainer(parts.policy, parts.recipe, config.train)
    watched = [written(policy, rows) for rows in (restated(sums.test), sums.test, *(task.test for task in others))]
    passed = pass_rate(policy, others, job["samples"])
    path = [[loss(policy, text) for text in watched]]
    while not trainer.finished:
        trainer.step()
        path.append([loss(policy, text) for text in watched])
        if path[-1][0] <= job["level"]:
            break
    if path[-1][0] > job["level"]:
        return {"diverged": 1.0, "reached": 0.0, "steps": float(len(path) - 1), **dict.fromkeys(LOST, math.nan)}
    start, before, after = path[0], path[-2], path[-1]
    share = min(1.0, max(0.0, (before[0] - job["level"]) / (before[0] - after[0])))
    lost = [b + share * (a - b) - s for s, b, a in zip(start, before, after, strict=True)]
    return {
        "reached": 1.0, "steps": len(path) - 2 + share, "own_form": lost[1], "forgotten": sum(lost[2:]) / len(others),
        "pass_lost": passed - pass_rate(policy, others, job["samples"]),
    }  # fmt: skip


def restated(rows: Sequence[Row]) -> list[Row]:
    """Sums whose last result stands behind ``=`` and again behind the marker: ``45-18=27#27`` for ``45-18#27``."""
    return [
        {**row, "completion": str(row["completion"]).replace(MARKER, "=") + MARKER + str(row["answer"])} for row in rows
    ]


def written(policy: Any, rows: Sequence[Row]) -> Rollouts:
    """The rows' completions as responses to their prompts."""
    source = TextPrompts(rows, policy.tokenizer, LONGEST)
    prompts = source.take(torch.arange(len(rows)), 1)
    return to_rollouts(prompts, TextDemonstrations(source, "completion", LONGEST).demonstrate(prompts))


@torch.no_grad()
def loss(policy: Policy, text: Rollouts) -> float:
    """Mean negative log-probability of the responses' tokens, in nats."""
    mask = text.response_mask
    return float(-(policy.score(text).logprobs * mask).sum() / mask.sum())


def pass_rate(policy: Any, tasks: Sequence[Task], samples: int) -> float:
    """Mean over tasks of the held-out accuracy of single samples."""
    rates = [
        Evaluation(
            TextPrompts(task.test, policy.tokenizer, LONGEST), TaskJudge(task, policy.tokenizer),
            Sampling(task.max_new_tokens), len(task.test), samples,
        ).measure(policy)["eval/accuracy"]
        for task in tasks
    ]  # fmt: skip
    return sum(rates) / len(rates)


TASKS = ("arithmetic", "chain", "logic", "multi", "countdown")
"""What the embedded model can do; the first is tuned on, the others may be forgotten."""
LOST = ("own_form", "forgotten", "pass_lost")
LONGEST = 256
RATE = 3e-3
"""The learning rate, of two, that brought SFT and OTR further down on development seeds."""

KS = (4, 16, 64, 256)
BETAS = (-1.0, -0.1, 0.0, 0.5, 1.0)


def arm(name: str, role: Any, method: str, **knobs: Any) -> Arm:
    """An arm that trains by ``method`` with these knobs."""
    return Arm(name, role, {"method": method, "knobs": knobs})


DOMAINS = {
    "noise": Setting(0.3, "sheet"),
    "steps": Setting(400, "sheet"),
    "lr": Setting(0.02, "sheet"),
    "batch": Setting(64, "sheet"),
    "knobs": Setting({}, "default"),
}
METRICS = (Metric("accuracy", "higher"), Metric("retention", "higher"), Metric("start", "none"))
SMALL = (
    Deviation(
        "linear policy with 16 answers of one token instead of a language model", "runs in seconds", "SCALED_DOWN"
    ),
    Deviation(
        "beta -0.1, kappa 1.0, K 64", "the paper's text could not be read; K 64 as in the prototype", "RECONSTRUCTED"
    ),
    Deviation(
        "starting scale 1.0 and mean spread 0.5 of the domains", "chosen on development seeds for a start near 0.45"
    ),
)

CLAIMS = (
    Claim(
        id="otr.C1",
        statement="With 30 % random labels OTR ends with higher accuracy on the new domain, and keeps more of the old one, than "
        "supervised fine-tuning.",
        source="OTR above SFT in and out of domain (qualitative: the tables could not be read)",
        arxiv="2509.26313",
        arms=(
            arm("otr", "method", "otr", k=64),
            arm("otr_k4", "variant", "otr", k=4),
            arm("sft", "baseline", "sft"),
            arm("sft_smoothed", "baseline", "sft", smoothing=0.1),
            arm("sft_entropy", "baseline", "sft", entropy_coef=0.1),
            arm("constant", "broken", "otr", k=64, beta=1.0),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=10,
        budget_s=2400,
        settings=DOMAINS,
        smoke={"steps": 5},
        rules=(
            Rule("accuracy on B, OTR - SFT", difference("accuracy", "otr", "sft"), Beyond(">", min_effect=0.05)),
            Rule("retention of A, OTR - SFT", difference("retention", "otr", "sft"), Beyond(">", min_effect=0.05)),
            Rule("accuracy, K=4 - K=64", difference("accuracy", "otr_k4", "otr"), Inside(-0.02, 0.02), must=False),
            Rule(
                "accuracy, OTR - smoothed SFT", difference("accuracy", "otr", "sft_smoothed"), Beyond(">"), must=False
            ),
            Rule(
                "accuracy, OTR - SFT with entropy",
                difference("accuracy", "otr", "sft_entropy"),
                Beyond(">"),
                must=False,
            ),
        ),  # fmt: skip
        sanity=(
            Rule("the policy starts where it should", value("start", "sft"), Point(0.38, 0.54)),
            Rule("SFT learns at all", Contrast("accuracy", {"sft": 1.0}), Point(0.40, 0.65)),
            Rule("a constant reward loses", difference("accuracy", "otr", "constant"), Beyond(">")),
        ),
        deviations=SMALL,
        cannot_show="benchmark gains of models with billions of parameters; that real demonstrations are noisy in this way",
    ),
    Claim(
        id="otr.C2",
        statement="At kappa 1 OTR is DFT in expectation: its exact gradient is (1 - beta) times DFT's, and training by either ends "
        "at the same accuracy.",
        source="identity proved in the published reviews",
        arxiv="2509.26313",
        arms=(arm("otr", "method", "otr", k=64), arm("dft", "baseline", "dft"), Arm("exact", "variant")),
        metrics=(*METRICS, Metric("gap", "lower")),
        unit=learn_or_gap,
        n_units=12,
        budget_s=2400,
        settings=DOMAINS,
        smoke={"steps": 5},
        rules=(
            Rule("accuracy on B, OTR - DFT", difference("accuracy", "otr", "dft"), Inside(-0.01, 0.01)),
            Rule(
                "accuracy on B, OTR - DFT, interval holds 0", difference("accuracy", "otr", "dft"), Intersects(0.0, 0.0)
            ),
            Rule("exact gradient - (1 - beta) DFT's", value("gap", "exact"), Every(high=1e-12)),
        ),
        sanity=(Rule("DFT reaches its known level", value("accuracy", "dft"), Point(0.60, 0.76)),),
        deviations=(
            *SMALL,
            Deviation(
                "the interval must lie within 0.01, where the specification asks it of the mean alone",
                "a mean near 0 says nothing about its uncertainty",
                "OWN_CHOICE",
            ),
            Deviation(
                "version 2 demands the interval that holds 0, which version 1 only reported, and the exact identity, which "
                "version 1 left to C4",
                "as the specification had it from the start; the numbers of version 1 were known when this was mended",
                "OWN_CHOICE",
            ),
        ),
        version=2,
        cannot_show="what kappa other than 1 or few samples do in a language model",
    ),
    Claim(
        id="otr.C3",
        statement="On clean demonstrations OTR learns less of the new domain than supervised fine-tuning.",
        source="our own check: by the identity OTR holds back on whatever the model finds unlikely, right or wrong",
        arxiv="2509.26313",
        arms=(
            arm("otr", "method", "otr", k=64),
            arm("sft", "baseline", "sft"),
            arm("constant", "broken", "otr", k=64, beta=1.0),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=10,
        budget_s=2400,
        settings={**DOMAINS, "noise": Setting(0.0, "sheet")},
        smoke={"steps": 5},
        rules=(
            Rule("accuracy on B, OTR - SFT", difference("accuracy", "otr", "sft"), Beyond("<")),
            Rule("retention of A, OTR - SFT", difference("retention", "otr", "sft"), Beyond(">"), must=False),
        ),
        sanity=(Rule("a constant reward loses", difference("accuracy", "sft", "constant"), Beyond(">")),),
        deviations=SMALL,
        cannot_show="how clean published demonstration sets are",
    ),
    Claim(
        id="otr.C4",
        statement="The exact gradient is (1 - beta) times DFT's for every beta, and the sampled gradient's variance falls as 1/K.",
        source="Eq. 8 and the identity proved in the published reviews",
        arxiv="2509.26313",
        arms=(Arm("exact", "method"), *(Arm(f"k{k}", "variant") for k in KS)),
        metrics=(Metric("gap", "lower"), Metric("log_variance", "none")),
        replicate=identity,
        n_units=20,
        unit_of_replication="random logits",
        budget_s=600,
        settings={"draws": Setting(100, "default")},
        smoke={"draws": 10},
        rules=(
            Rule(
                "slope of log variance over log K",
                Trend("log_variance", {f"k{k}": math.log(k) for k in KS}),
                Inside(-1.1, -0.9),
            ),
            Rule("exact gradient - (1 - beta) DFT's", value("gap", "exact"), Every(high=1e-12)),
        ),
        cannot_show="that the variance matters for training: K = 4 and K = 64 end alike in C1",
    ),
    Claim(
        id="otr.C5",
        statement="Tuned on demonstrations in another form than its own, a language model has forgotten less of its other tasks by "
        "OTR than by supervised fine-tuning, once the held-out loss of the new form is equally far down.",
        source="fewer benchmarks below the base model than with SFT (qualitative: the tables could not be read)",
        arxiv="2509.26313",
        arms=(
            Arm("otr", "method", {"method": "otr"}),
            Arm("sft", "baseline", {"method": "sft"}),
            Arm("dft", "baseline", {"method": "dft"}),
            Arm("sft_fast", "broken", {"method": "sft", "lr": 10 * RATE}),
        ),
        metrics=(
            Metric("forgotten", "lower", "nats a token"),
            Metric("own_form", "lower", "nats a token"),
            Metric("pass_lost", "lower"),
            Metric("steps", "none"),
            Metric("reached", "none"),
        ),
        unit=forget,
        n_units=5,
        budget_s=3600,
        settings={
            "level": Setting(2.0, "tuned"),
            "lr": Setting(RATE, "tuned"),
            "steps": Setting(60, "reconstructed"),
            "prompts": Setting(32, "default"),
            "rows": Setting(1024, "reconstructed"),
            "test_rows": Setting(64, "reconstructed"),
            "samples": Setting(2, "reconstructed"),
        },
        smoke={"steps": 1, "level": 1e9, "rows": 64, "test_rows": 4},
        rules=(
            Rule("loss on the other tasks, OTR - SFT", difference("forgotten", "otr", "sft"), Beyond("<")),
            Rule("pass rate lost on the other tasks, OTR - SFT", difference("pass_lost", "otr", "sft"), Beyond("<")),
            Rule("loss on the own form, OTR - SFT", difference("own_form", "otr", "sft"), Beyond("<"), must=False),
            Rule("loss on the other tasks, DFT - SFT", difference("forgotten", "dft", "sft"), Beyond("<"), must=False),
            Rule(
                "loss on the other tasks, OTR - DFT",
                difference("forgotten", "otr", "dft"),
                Inside(-0.01, 0.01),
                must=False,
            ),
        ),
        sanity=(
            Rule("SFT comes down to the level", value("reached", "sft"), Every(1, 1)),
            Rule("ten times the rate forgets more", difference("forgotten", "sft_fast", "sft"), Beyond(">")),
        ),
        deviations=(
            Deviation(
                "the model in the package, sums whose last result is written twice (45-18=27#27 for 45-18#27), four other tasks",
                "minutes on a CPU",
                "SCALED_DOWN",
            ),
            Deviation("beta -0.1, kappa 1.0", "the paper's text could not be read"),
            Deviation(
                "one learning rate for all, the faster of two for OTR and for SFT; DFT takes OTR's, which it equals in expectation",
                "the paper gives both the same optimiser settings",
                "OWN_CHOICE",
            ),
            Deviation(
                "compared where the held-out loss of the new form crosses 2 nats a token, from some 3.5: losses between two "
                "steps, pass rates after the second",
                "at equal steps the faster method would have moved further; OTR comes this far in reasonable time",
                "OWN_CHOICE",
            ),
            Deviation(
                "a run that has not come down after 60 steps counts as the worst seen", "fixed beforehand", "OWN_CHOICE"
            ),
        ),
        cannot_show="models of billions of parameters, to which few tokens of a demonstration are as unlikely as a new form is to "
        "this one; the rest of the way down",
        tuning=Tuning(2, {"lr": (1e-3, 3e-3)}),
    ),
)
