"""BNPO (arXiv 2506.02864): the variance theorem, learning on a bandit, and the decomposition over two rewards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import integrate, stats

from policydist.claims.conditions import Beyond, Bound, Every, Inside, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting, Tuning
from policydist.claims.estimands import RatioOfMeans, difference, value
from policydist.functional import bnpo_advantage, bnpo_params, bnpo_variance, bnpo_weight, dr_grpo_advantage
from policydist.language.trainer import TrainConfig
from policydist.language.worlds import LinearBandit, pass_at, run
from policydist.runs import seeds

SHAPES = {"a0.5_b2": (0.5, 2.0), "a2_b2": (2.0, 2.0), "a1_b4": (1.0, 4.0), "a5_b3": (5.0, 3.0)}


def normaliser(arm: str, a: float, b: float) -> tuple[float, float]:
    """The Beta parameters that an arm divides by: REINFORCE (1, 1), GRPO (3/2, 3/2), BNPO's optimum."""
    alpha, beta = bnpo_params(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    return {"reinforce": (1.0, 1.0), "grpo": (1.5, 1.5)}.get(arm, (float(alpha), float(beta)))


def theorem(job: Job) -> Mapping[str, Mapping[str, float]]:
    """Closed form, quadrature and Monte Carlo of the gradient variance; known and estimated success rates."""
    a, b = SHAPES[job.stratum]
    rng = seeds.numpy_generator(job.seed, "bnpo-theorem", job.stratum)
    p = torch.from_numpy(rng.beta(a, b, job["draws"]))
    reward = torch.from_numpy((rng.random(job["draws"]) < p.numpy()).astype(float))
    score = torch.from_numpy(rng.standard_normal((job["draws"], job["dim"])))
    found: dict[str, dict[str, float]] = {}
    for arm in ("bnpo", "reinforce", "grpo"):
        alpha, beta = normaliser(arm, a, b)
        closed = float(bnpo_variance(alpha, beta, a, b))

        def integrand(x: float, alpha: float = alpha, beta: float = beta) -> float:
            return float(x * (1 - x) / stats.beta.pdf(x, alpha, beta) ** 2 * stats.beta.pdf(x, a, b))

        exact = integrate.quad(integrand, 0, 1, limit=400)[0]
        gradient = (bnpo_weight(p, alpha, beta) * (reward - p)).unsqueeze(1) * score
        sampled = float(gradient.square().mean())
        found[arm] = {"mc_over_closed": sampled / closed, "quadrature_gap": abs(exact / closed - 1), "closed": closed}
    for arm, variance in plug_in(job, rng, a, b).items():
        found[arm]["variance"] = variance
    found["bnpo"]["grid_cells"] = grid_cells(a, b)
    return found


def plug_in(job: Job, rng: np.random.Generator, a: float, b: float) -> dict[str, float]:
    """Trace of the covariance of the batch gradient with success rates estimated from m samples, over many batches."""
    prompts, samples, batches = job["prompts"], job["samples"], job["batches"]
    group = torch.repeat_interleave(torch.arange(prompts), samples)
    gradients: dict[str, list[torch.Tensor]] = {"bnpo": [], "reinforce": []}
    for _ in range(batches):
        p = np.repeat(rng.beta(a, b, prompts), samples)
        rewards = torch.from_numpy((rng.random(prompts * samples) < p).astype(float))
        score = torch.from_numpy(rng.standard_normal((prompts * samples, job["dim"])))
        gradients["bnpo"].append(bnpo_advantage(rewards, group)[0] @ score / len(rewards))
        gradients["reinforce"].append(dr_grpo_advantage(rewards, group) @ score / len(rewards))
    return {arm: float(torch.stack(rows).var(0).sum()) for arm, rows in gradients.items()}


def grid_cells(a: float, b: float, points: int = 40) -> float:
    """How many cells the minimiser on a 40 x 40 grid lies from (1 + a/3, 1 + b/3), the larger of the two directions."""
    alphas = torch.linspace(0.3, (a + 3) / 2 - 0.02, points, dtype=torch.float64)
    betas = torch.linspace(0.3, (b + 3) / 2 - 0.02, points, dtype=torch.float64)
    variance = bnpo_variance(alphas.unsqueeze(1), betas.unsqueeze(0), a, b)
    row, column = divmod(int(variance.argmin()), points)
    steps = (alphas[1] - alphas[0], betas[1] - betas[0])
    return float(max(abs(alphas[row] - 1 - a / 3) / steps[0], abs(betas[column] - 1 - b / 3) / steps[1]))


def learn(job: Job) -> Mapping[str, float]:
    """Final exact accuracy on the bandit after training by the arm's recipe."""
    world = LinearBandit.best_answer(job.seed, contexts=job["contexts"])
    if job["parity"]:
        world = world.with_parity()
    config = TrainConfig(steps=job["steps"], lr=job["lr"], grad_clip=0, seed=job.seed)
    rows = run(job["method"], job["knobs"], world.policy, world.setting(job["prompts"], job["samples"]), config)
    found = {"accuracy": pass_at(world.mass(held_out=False), 1)}
    norms = np.array([row["grad_norm"] for row in rows])
    found["gradient_norm_cv"] = float(norms.std() / norms.mean())
    alphas = [rows[-1].get(f"beta/{name}/alpha") for name in ("accuracy", "parity")]
    if None not in alphas:
        found["alpha_gap"] = abs(float(alphas[0]) - float(alphas[1]))  # type: ignore[arg-type]
    return found


BANDIT = {
    "contexts": Setting(512, "sheet"),
    "prompts": Setting(32, "code"),
    "samples": Setting(16, "code"),
    "steps": Setting(300, "sheet"),
    "lr": Setting(0.01, "sheet"),
    "parity": Setting(False, "sheet"),
    "knobs": Setting({}, "code"),
}
SMOKE = {"steps": 5}
SMALL = (
    Deviation("linear bandit instead of a 7B language model", "runs in seconds with exact expectations", "SCALED_DOWN"),
    Deviation(
        "Adam with rate 0.01, no gradient clipping", "the sheet's prototype settings for this bandit", "SCALED_DOWN"
    ),
)

CLAIMS = (
    Claim(
        id="bnpo.C1",
        statement="Dividing by the Beta density with alpha = 1 + a/3, beta = 1 + b/3 gives the least gradient variance, and with "
        "success rates estimated from 16 samples it still beats REINFORCE with a baseline.",
        source="variance theorem (sheet 3.7, E1)",
        arxiv="2506.02864",
        arms=(Arm("bnpo", "method"), Arm("reinforce", "baseline"), Arm("grpo", "baseline")),
        metrics=(
            Metric("variance", "lower"),
            Metric("mc_over_closed", "none"),
            Metric("quadrature_gap", "lower"),
            Metric("closed", "lower"),
            Metric("grid_cells", "lower"),
        ),  # fmt: skip
        replicate=theorem,
        strata=tuple(SHAPES),
        n_units=20,
        unit_of_replication="replication of the simulation",
        budget_s=300,
        settings={
            "draws": Setting(20_000, "default"),
            "dim": Setting(8, "default"),
            "prompts": Setting(32, "sheet"),
            "samples": Setting(16, "sheet"),
            "batches": Setting(400, "sheet"),
        },  # fmt: skip
        smoke={"batches": 20, "draws": 2000},
        rules=(
            *(
                Rule(
                    f"plug-in variance, BNPO / REINFORCE, {name}",
                    RatioOfMeans("variance", "bnpo", "reinforce"),
                    Bound("<", 1.0),
                    strata=(name,),
                )
                for name in SHAPES
            ),
            Rule("grid minimiser within one cell of the formula", value("grid_cells", "bnpo"), Every(high=1.0)),
            *(
                Rule(f"Monte Carlo equals the closed form, {arm}", value("mc_over_closed", arm), Inside(0.97, 1.03))
                for arm in ("bnpo", "reinforce", "grpo")
            ),
            *(
                Rule(f"quadrature equals the closed form, {arm}", value("quadrature_gap", arm), Every(high=1e-5))
                for arm in ("bnpo", "reinforce", "grpo")
            ),
        ),  # fmt: skip
        sanity=(
            Rule("GRPO's variance is (pi/8)^2 whatever the Beta", value("closed", "grpo"), Every(0.154212, 0.154213)),
            Rule("BNPO has the least of the three", difference("closed", "bnpo", "grpo"), Every(high=0.0)),
        ),
        deviations=(
            Deviation("score vectors independent of the advantage", "the theorem's own assumption; false in general"),
        ),
        cannot_show="that a lower variance under independent scores means better learning, or any benchmark gain",
    ),
    Claim(
        id="bnpo.C2",
        statement="On a contextual bandit with binary rewards BNPO learns faster than GRPO and than REINFORCE with a baseline.",
        source="best average of the methods compared (sheet section 7, E2)",
        arxiv="2506.02864",
        arms=(
            Arm("bnpo", "method", {"method": "bnpo"}),
            Arm("grpo", "baseline", {"method": "grpo"}),
            Arm("reinforce", "baseline", {"method": "reinforce"}),
            Arm("reinforce_prompt", "baseline", {"method": "reinforce", "knobs": {"baseline": "group"}}),
            Arm("rloo", "baseline", {"method": "rloo"}),
            Arm("reinforce_pp", "baseline", {"method": "reinforce_pp"}),
            Arm("no_baseline", "broken", {"method": "reinforce", "knobs": {"baseline": "none"}}),
        ),
        metrics=(Metric("accuracy", "higher"), Metric("gradient_norm_cv", "lower")),
        unit=learn,
        n_units=10,
        budget_s=300,
        settings=BANDIT,
        smoke=SMOKE,
        rules=(
            Rule("BNPO - GRPO", difference("accuracy", "bnpo", "grpo"), Beyond(">", min_estimate=0.01)),
            Rule("BNPO - REINFORCE", difference("accuracy", "bnpo", "reinforce"), Beyond(">", min_estimate=0.005)),
            Rule(
                "BNPO - prompt baseline (ablation)",
                difference("accuracy", "bnpo", "reinforce_prompt"),
                Beyond(">"),
                must=False,
            ),
            Rule(
                "gradient norm steadier than GRPO's",
                difference("gradient_norm_cv", "bnpo", "grpo"),
                Beyond("<"),
                must=False,
            ),
        ),
        sanity=(
            Rule("GRPO reaches its known level", value("accuracy", "grpo"), Point(0.57, 0.63)),
            Rule("no baseline at all loses", difference("accuracy", "bnpo", "no_baseline"), Beyond(">")),
        ),
        deviations=SMALL,
        tuning=Tuning(),
        version=2,  # version 1 differs in nothing; its run overran the wall budget on a machine busy with other work
        cannot_show="benchmark gains; the paper's stabler gradient norm (not seen in this bandit, reported)",
    ),
    Claim(
        id="bnpo.C3",
        statement="With two rewards, normalising each by its own Beta is no worse for accuracy than normalising their sum.",
        source="advantage decomposition (sheet 3.6, E3)",
        arxiv="2506.02864",
        arms=(
            Arm("decomposed", "method", {"method": "bnpo", "knobs": {"decompose": True}}),
            Arm("summed", "ablation", {"method": "bnpo", "knobs": {"reward_max": 2.0}}),
            Arm("grpo_sum", "baseline", {"method": "grpo"}),
        ),
        metrics=(Metric("accuracy", "higher"), Metric("gradient_norm_cv", "lower"), Metric("alpha_gap", "none")),
        unit=learn,
        n_units=10,
        budget_s=300,
        settings=BANDIT | {"parity": Setting(True, "sheet")},
        smoke=SMOKE,
        rules=(
            Rule("decomposed - summed", difference("accuracy", "decomposed", "summed"), Bound(">", -0.005)),
            Rule("the two rewards get different normalisers", value("alpha_gap", "decomposed"), Every(low=1e-3)),
            Rule(
                "decomposed - GRPO on the sum",
                difference("accuracy", "decomposed", "grpo_sum"),
                Beyond(">"),
                must=False,
            ),
        ),
        deviations=SMALL,
        cannot_show="how decomposition acts on rewards that a language model can trade against each other",
    ),
)
