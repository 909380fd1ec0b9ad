"""REX-RAG (arXiv 2508.08149): resumed failures leave dead ends; what the correction is worth, and what bias it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from policydist.claims.conditions import Beyond, Inside, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.functional import HintPool
from policydist.language import origins
from policydist.language.methods import rexrag
from policydist.language.mixed_objective import MixedPolicyGradient
from policydist.language.recipe import Context
from policydist.language.trainer import TrainConfig
from policydist.language.types import Rollouts
from policydist.language.worlds.deadends import DeadEnds
from policydist.language.worlds.steered import traced


def learn(job: Job) -> Mapping[str, float]:
    """Exact success without resuming, at the end and on average over training; the largest share of resumed episodes."""
    world = DeadEnds.draw(job.seed, hint_logit=float(job.stratum.split()[-1]))
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    own = {"keep_init": job["keep_init"], **job["knobs"]} if job["method"] == "rexrag" else {}
    setting = world.setting(job["samples"])
    rows = traced(
        job["method"], {"kl_coef": 0.0, **own}, world.policy, setting, config, lambda: {"success": world.success()}
    )
    return {
        "success": rows[-1]["success"],
        "auc": sum(row["success"] for row in rows) / len(rows),
        "alpha": max(row.get("rexrag/alpha", 0.0) for row in rows),
    }


def bias(job: Job) -> Mapping[str, Mapping[str, float]]:
    """Relative error of the expected update, all episodes written out, against the gradient of the exact success."""
    world = DeadEnds.draw(
        job.seed, questions=1, searches=3, hints=2, hint_logit=float(job.stratum.split()[-1]), dtype=torch.float64
    )
    logits = world.policy.core.logits
    success = world.value(logits).sum()
    (exact,) = torch.autograd.grad(success, logits)
    found = {}
    for arm, correction in (("none", "none"), ("token_mixture", "token_mixture"), ("trajectory_mis", "trajectory_mis")):
        wrong = expected_update(world, correction, job["alpha"], float(success.detach())) - exact  # type: ignore[arg-type]
        found[arm] = {"error": float(wrong.norm() / exact.norm())}
    return found


def expected_update(
    world: DeadEnds, correction: Literal["none", "token_mixture", "trajectory_mis"], share: float, baseline: float
) -> torch.Tensor:
    """The expectation, over originals and resumed episodes in the shares 1 - a and a, of the recipe's own update at the old
    policy with advantage r - J, no clipping."""
    own, (resumed, mass, failing) = world.responses(), world.resumed()
    rows = Rollouts.cat([rexrag.flagged(own, False), rexrag.flagged(resumed, True)])
    pool = HintPool(world.source.hints)
    if correction == "token_mixture":
        rows = rexrag.mixed(rows, pool, share, 1 - baseline)
    elif correction == "trajectory_mis":
        rows = rexrag.weighted(rows, pool, world.source, share, failing)
    chance = torch.cat([(1 - share) * rexrag.known_logprobs(own).sum(1).exp(), share * mass])
    chance = chance * rows.extras.get(rexrag.WEIGHT, torch.ones_like(chance))
    credit = chance * (world.source.expected(rows) - baseline)
    rows = replace(rows, advantages=credit.unsqueeze(1) * origins.among(origins.of(rows), origins.TRAINED))
    knobs = rexrag.Config(clip_low=1.0, clip_high=math.inf, aggregation="seq-mean-token-sum")
    loss, _ = MixedPolicyGradient(replace(knobs, kl_coef=0.0), gamma=None)(world.policy, rows, Context(world.policy, 0))
    (gradient,) = torch.autograd.grad(-loss, world.policy.core.logits)
    return gradient


def arm(name: str, role: str, method: str = "rexrag", samples: int = 5, **knobs: object) -> Arm:
    return Arm(name, role, {"method": method, "samples": samples, "knobs": knobs})  # type: ignore[arg-type]


METRICS = (Metric("success", "higher"), Metric("auc", "higher"), Metric("alpha", "none"))
TABLE = {
    "steps": Setting(150, "reconstructed"),
    "lr": Setting(0.05, "reconstructed"),
    "keep_init": Setting(0.12, "code"),
    "knobs": Setting({}, "code"),
}
SMALL = (
    Deviation(
        "a table of logits over searches, hints of one token and answers instead of a language model with a retriever",
        "runs in seconds with exact expectations",
        "SCALED_DOWN",
    ),
    Deviation("Adam with rate 0.05, no KL term", "the settings of our reconstruction's prototype", "SCALED_DOWN"),
)

CLAIMS = (
    Claim(
        id="rexrag.C1",
        statement="Resuming a fifth of the failed answers behind a hint leads out of dead ends that GRPO with six rollouts a "
        "question, one more, stays in.",
        source="main result against Search-R1; dead ends of early training",
        arxiv="2508.08149",
        arms=(
            arm("rexrag", "method"),
            arm("grpo_6", "baseline", method="grpo", samples=6),
            arm("trajectory_mis", "variant", correction="trajectory_mis"),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=10,
        budget_s=3600,
        strata=("hint -7",),
        settings=TABLE,
        smoke={"steps": 3},
        rules=(
            Rule("REX-RAG - GRPO with 6 samples", difference("success", "rexrag", "grpo_6"), Beyond(">", 0.4)),
            Rule(
                "whole trajectories weighed - token mixture, on average",
                difference("auc", "trajectory_mis", "rexrag"),
                Beyond(">"),
                must=False,
            ),
        ),
        sanity=(
            Rule("GRPO is at its known level", value("success", "grpo_6"), Point(0.05, 0.4)),
            Rule("no original is clipped at the start", value("alpha", "rexrag"), Point(high=1 - 1 / 1.2)),
        ),
        deviations=SMALL,
        cannot_show="real retrieval, hints in natural language, accuracy of 3B and 7B models on question answering",
    ),
    Claim(
        id="rexrag.C2",
        statement="Correcting the resumed episodes learns faster than treating them as the policy's own.",
        source="ablation of policy correction",
        arxiv="2508.08149",
        arms=(
            arm("rexrag", "method"),
            arm("no_correction", "ablation", correction="none"),
            arm("no_filter", "ablation", filter=False),
        ),
        metrics=METRICS,
        unit=learn,
        n_units=10,
        budget_s=5400,
        strata=("hint -7", "hint -5"),
        settings=TABLE,
        smoke={"steps": 3},
        rules=(
            Rule(
                "corrected - not, on average, unlikely hints",
                difference("auc", "rexrag", "no_correction"),
                Beyond(">"),
                strata=("hint -7",),
            ),
            Rule(
                "the same, likelier hints",
                difference("auc", "rexrag", "no_correction"),
                Beyond(">"),
                must=False,
                strata=("hint -5",),
            ),
            Rule(
                "filtered - not, on average",
                difference("auc", "rexrag", "no_filter"),
                Beyond(">"),
                must=False,
                strata=("hint -7", "hint -5"),
            ),
        ),
        deviations=SMALL,
        cannot_show="whether the filter protects a language model from hints that it finds strange; in this tree it has nothing to "
        "protect from",
    ),
    Claim(
        id="rexrag.C3",
        statement="Weighing whole trajectories removes all bias of the resumed episodes; the released code's mixture, token by "
        "token, removes only a part of it, and that where hints are unlikely.",
        source="policy correction by multiple importance sampling",
        arxiv="2508.08149",
        arms=(Arm("trajectory_mis", "method"), Arm("token_mixture", "variant"), Arm("none", "broken")),
        metrics=(Metric("error", "lower"),),
        replicate=bias,
        n_units=20,
        budget_s=600,
        strata=("hint -7", "hint -5", "hint -2", "hint 0"),
        settings={"alpha": Setting(0.2, "reconstructed")},
        rules=(
            Rule("error with whole trajectories", value("error", "trajectory_mis"), Inside(-1e-10, 1e-10)),
            Rule(
                "token mixture - none, unlikely hints",
                difference("error", "token_mixture", "none"),
                Beyond("<"),
                strata=("hint -7", "hint -5"),
            ),
            Rule(
                "the same, likelier hints",
                difference("error", "token_mixture", "none"),
                Beyond("<"),
                must=False,
                strata=("hint -2",),
            ),
            Rule(
                "the same, hints as likely as answers",
                difference("error", "token_mixture", "none"),
                Beyond("<"),
                must=False,
                strata=("hint 0",),
            ),
        ),
        sanity=(Rule("uncorrected, the update is wrong", value("error", "none"), Point(low=0.05)),),
        deviations=(
            Deviation(
                "three searches and two hints, the failure behind every cut known exactly",
                "all episodes can be written out; of a language model that failure is not known",
                "SCALED_DOWN",
            ),
        ),
        cannot_show="how much of the bias matters in training; variance",
    ),
)
