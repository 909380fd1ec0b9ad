"""Knapsack RL (arXiv 2509.25849): the allocation is optimal, useful samples at equal rollouts, and where a gain comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from policydist.claims.conditions import Beyond, Every, Point
from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Rule, Setting
from policydist.claims.estimands import difference, value
from policydist.functional import prob_nonzero, solve_knapsack, task_value
from policydist.language import methods
from policydist.language.trainer import TrainConfig
from policydist.language.worlds import pass_at, run
from policydist.language.worlds.pool import Pool, shared_pool, train
from policydist.runs import seeds


def allocation(job: Job) -> Mapping[str, Mapping[str, float]]:
    """One batch of success rates, shared out by each arm: total value, expected share of useful samples."""
    prompts, n = job["prompts"], job["samples"]
    generator = seeds.torch_generator(job.seed, "knapsack-rates")
    p = (torch.randn(prompts, generator=generator, dtype=torch.float64) * job["deviation"] + job["mean"]).sigmoid()
    total = prompts * n
    exact = solve_knapsack(p, total, method="dp")
    counts = {
        "knapsack": solve_knapsack(p, total),
        "uniform": torch.full((prompts,), n),
        "official": solve_knapsack(p, total, compat="official"),
        "hard_first": hard_first(p, total),
    }
    found: dict[str, dict[str, float]] = {}
    for name, given in counts.items():
        useful = float((given * prob_nonzero(given, p)).sum()) / total
        found[name] = {"value": float(task_value(given, p).sum()), "useful": useful, "total": float(given.sum())}
    best = float(task_value(exact, p).sum())
    found["knapsack"]["dp_gap"] = abs(found["knapsack"]["value"] - best)
    return found


def hard_first(p: torch.Tensor, total: int, most: int = 128) -> torch.Tensor:
    """The heuristic that the knapsack is not: 2 each, and all the rest to the hardest, up to ``most``."""
    counts = torch.full((len(p),), 2)
    for prompt in p.argsort().tolist():
        counts[prompt] += min(most - 2, total - int(counts.sum()))
    return counts


def independent(job: Job) -> Mapping[str, float]:
    """Train on prompts that share nothing; useful samples and prompts after the first epoch, exact success at the end."""
    pool = Pool.items(job.seed, job["items"], -1.5, 3.0)
    method = methods.load(job["method"])
    recipe = method.build(method.Config(**job["knobs"]), pool.setting(job["prompts"], job["samples"]))
    epoch = job["items"] // job["prompts"]
    # The loss averages over the batch: this rate moves a prompt by 0.6 N_i / n times its own gradient.
    config = TrainConfig(
        steps=job["epochs"] * epoch, lr=0.6 * job["prompts"], optimiser="sgd", grad_clip=0, seed=job.seed
    )
    rows = train(recipe, pool.policy, config)
    later = rows[epoch:]
    return {
        "useful_samples": sum(row["effective_samples"] for row in later) / len(later),
        "useful_prompts": sum(row["effective_groups"] for row in later) / len(later),
        "success": float(pool.success().mean()),
        "largest": max(row.get("knapsack/largest", job["samples"]) for row in rows),
        "rollouts": rows[-1]["tokens"],
    }


def shared(job: Job) -> Mapping[str, float]:
    """Train the linear policy on shared parameters; useful samples, exact success on training and held-out contexts."""
    world = shared_pool(job.seed, job["items"])
    steps = job["epochs"] * job["items"] // job["prompts"]
    config = TrainConfig(steps=steps, lr=job["lr"], grad_clip=0, seed=job.seed)
    rows = run(job["method"], job["knobs"], world.policy, world.setting(job["prompts"], job["samples"]), config)
    return {
        "useful_samples": sum(row["effective_samples"] for row in rows) / len(rows),
        "train": pass_at(world.mass(held_out=False), 1),
        "test": pass_at(world.mass(held_out=True), 1),
        "rollouts": rows[-1]["tokens"],
    }


def arm(name: str, role: Any, method: str = "knapsack", samples: int = 8, **knobs: Any) -> Arm:
    """An arm that trains by ``method`` with these knobs and ``samples`` rollouts a prompt on average."""
    return Arm(name, role, {"method": method, "samples": samples, "knobs": knobs})


def report(name: str, metric: str, first: str, second: str) -> Rule:
    """A difference that is shown and decides nothing."""
    return Rule(name, difference(metric, first, second), Beyond(">"), must=False)


SHARED = {
    "items": Setting(512, "reconstructed"),
    "prompts": Setting(64, "reconstructed"),
    "samples": Setting(8, "code"),
    "knobs": Setting({}, "code"),
}
UNIFORM, DOUBLE = arm("uniform", "baseline", "grpo"), arm("uniform_16", "variant", "grpo", samples=16)

CLAIMS = (
    Claim(
        id="knapsack.C1",
        statement="The greedy allocation is the optimum of the paper's program, and worth more than equal rollouts in every batch.",
        source="the allocation program and its value function",
        arxiv="2509.25849",
        arms=(
            Arm("knapsack", "method"),
            Arm("uniform", "baseline"),
            Arm("official", "variant"),
            Arm("hard_first", "broken"),
        ),
        metrics=(
            Metric("value", "higher"),
            Metric("useful", "higher", "expected share of samples"),
            Metric("total", "none"),
            Metric("dp_gap", "lower"),
        ),
        replicate=allocation,
        n_units=200,
        unit_of_replication="random batch of success rates",
        budget_s=600,
        settings={
            "prompts": Setting(64, "reconstructed"),
            "samples": Setting(8, "code"),
            "mean": Setting(-1.5, "reconstructed"),
            "deviation": Setting(3.0, "reconstructed"),
        },
        smoke={"prompts": 16},
        rules=(
            Rule("value, knapsack - uniform", difference("value", "knapsack", "uniform"), Every(low=1e-9)),
            Rule("value, greedy - dynamic programming", value("dp_gap", "knapsack"), Every(high=1e-12)),
            Rule("equal rollouts", difference("total", "knapsack", "uniform"), Every(0, 0)),
            report("expected useful samples, knapsack - uniform", "useful", "knapsack", "uniform"),
            report("value, knapsack - released solver", "value", "knapsack", "official"),
        ),
        sanity=(Rule("more for the hardest loses", difference("value", "knapsack", "hard_first"), Every(low=1e-9)),),
        deviations=(
            Deviation("success rates are the logistic of N(-1.5, 3^2), and known exactly", "no public list of rates"),
        ),
        cannot_show="that a higher value trains a better policy; see C2 and C3",
    ),
    Claim(
        id="knapsack.C2",
        statement="At equal rollouts the knapsack puts more samples into groups with a gradient; in a world without transfer its "
        "gain in success is one of prompt weights.",
        source="effective gradient ratio, +20 to 40 % (abstract), with our control of the prompts' weights",
        arxiv="2509.25849",
        arms=(
            arm("knapsack", "method"),
            UNIFORM,
            arm("equal_weight", "ablation", apply="samples_equal_weight"),
            arm("weight_only", "ablation", apply="weight"),
            arm("no_gain", "ablation", value="none"),
            arm("no_fallback", "ablation", fallback=False),
            DOUBLE,
        ),
        metrics=(
            Metric("useful_samples", "higher", "share of samples"),
            Metric("useful_prompts", "none", "share of prompts"),
            Metric("success", "higher"),
            Metric("largest", "none", "rollouts"),
            Metric("rollouts", "none"),
        ),
        unit=independent,
        n_units=10,
        budget_s=1800,
        settings=SHARED | {"epochs": Setting(12, "reconstructed")},
        smoke={"epochs": 2, "items": 128},
        rules=(
            Rule(
                "useful samples, knapsack - uniform",
                difference("useful_samples", "knapsack", "uniform"),
                Beyond(">", 0.15),
            ),
            Rule("equal rollouts", difference("rollouts", "knapsack", "uniform"), Every(0, 0)),
            report("useful prompts, knapsack - uniform", "useful_prompts", "knapsack", "uniform"),
            report("success, knapsack - uniform", "success", "knapsack", "uniform"),
            report("success, knapsack's samples at equal weight - uniform", "success", "equal_weight", "uniform"),
            report("success, knapsack's weights at equal samples - uniform", "success", "weight_only", "uniform"),
            report("success, knapsack - uniform with twice the rollouts", "success", "knapsack", "uniform_16"),
            report("success, knapsack - value without gain", "success", "knapsack", "no_gain"),
            report("success, knapsack - no fallback", "success", "knapsack", "no_fallback"),
        ),
        sanity=(
            Rule("uniform's useful samples", value("useful_samples", "uniform"), Point(0.45, 0.57)),
            Rule("uniform learns as it is known to", value("success", "uniform"), Point(0.50, 0.61)),
        ),
        deviations=(
            Deviation("independent one-decision prompts instead of mathematics", "exact success rates", "SCALED_DOWN"),
            Deviation(
                "one update a batch instead of eight", "nothing to be off-policy about in one step", "SCALED_DOWN"
            ),
        ),
        cannot_show="transfer between prompts, or that uniform rollouts need twice the compute: here the gain is one of weights",
    ),
    Claim(
        id="knapsack.C3",
        statement="With shared parameters, too, the knapsack puts 20 to 40 % more of the samples into groups with a gradient.",
        source="effective gradient ratio, +20 to 40 % (abstract)",
        arxiv="2509.25849",
        arms=(arm("knapsack", "method"), UNIFORM, DOUBLE),
        metrics=(
            Metric("useful_samples", "higher", "share of samples"),
            Metric("train", "higher"),
            Metric("test", "higher"),
            Metric("rollouts", "none"),
        ),
        unit=shared,
        n_units=10,
        budget_s=1800,
        settings=SHARED | {"epochs": Setting(30, "reconstructed"), "lr": Setting(0.01, "reconstructed")},
        smoke={"epochs": 1, "items": 128},
        rules=(
            Rule(
                "useful samples, knapsack - uniform",
                difference("useful_samples", "knapsack", "uniform"),
                Beyond(">", 0.2),
            ),
            Rule("equal rollouts", difference("rollouts", "knapsack", "uniform"), Every(0, 0)),
            report("success on the training contexts", "train", "knapsack", "uniform"),
            report("success on held-out contexts", "test", "knapsack", "uniform"),
            report(
                "success on the training contexts, uniform with twice the rollouts", "train", "uniform_16", "knapsack"
            ),
        ),
        sanity=(Rule("uniform learns as it is known to", value("train", "uniform"), Point(0.30, 0.39)),),
        deviations=(
            Deviation(
                "linear softmax policy, 48 features, 50 answers", "held-out success by enumeration", "SCALED_DOWN"
            ),
            Deviation("Adam with rate 0.01, one update a batch", "the policy is not a language model", "SCALED_DOWN"),
        ),
        cannot_show="benchmark gains; the two differences in success are reported, not judged",
    ),
)
