"""Claims of arXiv 2406.06954 on tiny distributions: does a branching policy imitate, does it branch well, does mixing help?

Everything goes through the public functions of the method. Instances and policies of one run are shared by its claims
(cached in the process); what differs between units is said in each claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from policydist.claims import (
    Arm,
    Beyond,
    Bound,
    Claim,
    Deviation,
    Job,
    LogRatio,
    Metric,
    Outcome,
    Point,
    Rule,
    Setting,
    Trend,
    difference,
    value,
)
from policydist.runs.seeds import derive

if TYPE_CHECKING:
    from policydist.estimation.methods.distributional_miplib import (
        BranchPolicy,
        BranchSample,
        CollectConfig,
        SolverSettings,
        Split,
        TrainConfig,
    )

DOMAINS = ("gisp/tiny", "sc/tiny", "mis/tiny", "ca/tiny")
REACHABLE = {1: 0.1, 5: 0.3}
"""Largest chance levels of the nodes that C1 looks at: above them five (three) times chance could hardly be reached."""
MOST_TRIED = 300


def _root(job: Job) -> int:
    """Root seed of the instances: development and confirmation runs see different ones."""
    return job.seed // 1000 * 1000


def _collecting(job: Job) -> CollectConfig:
    from policydist.estimation.methods.distributional_miplib import SMALL, CollectConfig

    return CollectConfig(per_instance=job["per_instance"], query=job["query"], solver=SMALL)


def _training(job: Job) -> TrainConfig:
    from policydist.estimation.methods.distributional_miplib import PolicyConfig, TrainConfig

    return TrainConfig(PolicyConfig(job["width"]), job["steps"], job["batch"], job["lr"], job["epoch"], job["patience"])


@cache
def _samples(
    root: int, domain: str, split: Split, start: int, count: int, how: CollectConfig
) -> tuple[BranchSample, ...]:
    """Samples of the instances ``start`` to ``start + count`` of a split."""
    from policydist.estimation.methods.distributional_miplib import collect, get

    distribution = get(domain)
    seeds = distribution.seeds(split, start + count, root)[start:]
    found = (collect(distribution.sample(s), how, derive(s, "claim"), domain).samples for s in seeds)
    return tuple(one for samples in found for one in samples)


def _pool(job: Job, split: Split, count: int) -> dict[str, list[BranchSample]]:
    return {domain: list(_samples(_root(job), domain, split, 0, count, _collecting(job))) for domain in DOMAINS}


@cache
def _policies(
    root: int, mix: Any, train: int, validation: int, config: TrainConfig, how: CollectConfig
) -> dict[str, BranchPolicy]:
    """Policies by domain, trained on the first instances of each domain."""
    from policydist.estimation.methods.distributional_miplib import train_protocol

    data = {domain: _samples(root, domain, "train", 0, train, how) for domain in DOMAINS}
    held = {domain: _samples(root, domain, "validation", 0, validation, how) for domain in DOMAINS}
    return {domain: one.policy for domain, one in train_protocol(data, mix, config, root, held).items()}


def _trained(job: Job, mix: str) -> dict[str, BranchPolicy]:
    return _policies(_root(job), mix, job["instances"], job["validation"], _training(job), _collecting(job))


@cache
def _held_out(root: int, domain: str, number: int, how: CollectConfig) -> tuple[int, tuple[BranchSample, ...]]:
    """Place in the test split, and the usable nodes, of the ``number``-th instance that has some."""
    from policydist.estimation.methods.distributional_miplib import chance_at_k

    first = _held_out(root, domain, number - 1, how)[0] + 1 if number else 0
    for place in range(first, MOST_TRIED):
        kept = []
        for one in _samples(root, domain, "test", place, 1, how):
            chance = chance_at_k(one.scores)
            if all(chance[k] <= most for k, most in REACHABLE.items()):
                kept.append(one)
        if kept:
            return place, tuple(kept)
    raise RuntimeError(f"{domain}: fewer than {number + 1} usable instances among {MOST_TRIED}")


def imitates(job: Job) -> Mapping[str, Outcome]:
    """Top-1 and top-5 accuracy on one instance above five and three times chance."""
    from policydist.estimation.methods.distributional_miplib import BranchPolicy, PolicyConfig, evaluate_samples

    nodes = _held_out(_root(job), job.stratum, job.seed - _root(job), _collecting(job))[1]
    untrained = BranchPolicy(PolicyConfig(job["width"]), derive(job.seed, "untrained"))
    policies = {"policy": _trained(job, "homogeneous")[job.stratum], "mixed": _trained(job, "mixed")[job.stratum]}

    def scores(policy: BranchPolicy) -> Outcome:
        row = {name: float(np.mean(values)) for name, values in evaluate_samples(policy, nodes).items()}
        return {
            "top1": row["acc@1"], "top5": row["acc@5"],
            "top1_over": row["acc@1"] - 5 * row["chance@1"], "top5_over": row["acc@5"] - 3 * row["chance@5"],
        }  # fmt: skip

    return {name: scores(policy) for name, policy in {**policies, "untrained": untrained}.items()}


def _limits(job: Job) -> SolverSettings:
    from policydist.estimation.methods.distributional_miplib import SolverSettings

    return SolverSettings(None, job["node_limit"], cuts=False, heuristics=False)


def branches(job: Job) -> Mapping[str, Outcome]:
    """Cost of solving one unseen instance by the policy and by SCIP's rules."""
    from policydist.estimation.methods.distributional_miplib import evaluate, get

    distribution = get(job["domain"])
    root = _root(job)
    milp = distribution.sample(distribution.seeds("test", job.seed - root + 1, root)[-1])
    rules: dict[str, Any] = {arm: arm for arm in job["rules"]}
    rules |= {name: _trained(job, mix)["gisp/tiny"] for name, mix in job["policies"].items()}
    rows = evaluate(rules, [milp], _limits(job), seed=job.seed)
    return {
        row.rule: {
            "nodes": float(row.nodes), "fair_nodes": float(row.fair_nodes), "lps": float(row.lps),
            "unsolved": float(not row.solved), "seconds": row.time,
        }
        for row in rows
    }  # fmt: skip


def mixing(job: Job) -> Mapping[str, Outcome]:
    """Test cross-entropy and top-1 accuracy, averaged over domains, of mixed and homogeneous policies at every size."""
    from policydist.estimation.methods.distributional_miplib import imitation, subset, train_protocol

    pool, test = _pool(job, "train", job["instances"]), _pool(job, "test", job["test"])
    held = _pool(job, "validation", job["validation"])

    def run(mix: Any, count: int) -> Outcome:
        # A domain has samples of fewer instances than were drawn where some are solved at the root.
        with_samples = {domain: len({one.instance for one in found}) for domain, found in pool.items()}
        data: dict[str, list[BranchSample]] = {}
        for domain, found in pool.items():
            data |= subset({domain: found}, min(count, with_samples[domain]), job.seed)
        trained = train_protocol(data, mix, _training(job), job.seed, held)
        table = imitation({domain: one.policy for domain, one in trained.items()}, test)
        return {
            "cross_entropy": float(np.mean([row["cross_entropy"] for row in table.values()])),
            "top1": float(np.mean([row["acc@1"] for row in table.values()])),
        }

    sizes: list[int] = job["sizes"]
    outcome = {f"{mix}_{n}": run(mix, n) for n in sizes for mix in ("mixed", "homogeneous")}
    return outcome | {"equal_data": run("homogeneous", sizes[0] * len(DOMAINS))}


TRAINING = {
    "width": Setting(32, "sheet"),
    "steps": Setting(200, "reconstructed"),
    "batch": Setting(8, "reconstructed"),
    "lr": Setting(3e-3, "reconstructed"),
    "epoch": Setting(25, "reconstructed"),
    "patience": Setting(3, "reconstructed"),
    "instances": Setting(40, "sheet"),
    "validation": Setting(8, "reconstructed"),
    "per_instance": Setting(5, "sheet"),
    "query": Setting(0.3, "sheet"),
}
QUICK = {"width": 8, "steps": 4, "epoch": 2, "batch": 4, "instances": 2, "validation": 1, "per_instance": 1}
SCALED = (
    Deviation("tiny distributions, 40 instances, at most 5 samples each", "the paper's take days", "SCALED_DOWN"),
    Deviation("cuts and heuristics off", "tiny instances would hardly branch with them", "SCALED_DOWN"),
    Deviation("the root is always asked; elsewhere with probability 0.3", "trees have tens of nodes", "OWN_CHOICE"),
    Deviation("batch 8, learning rate 0.003, at most 200 updates", "time", "SCALED_DOWN"),
)
SHARED_POLICY = Deviation("one policy for all units", "units are unseen instances, not trainings", "OWN_CHOICE")
CANNOT_SHOW = "Hardness levels, Gurobi times, the real domains, the paper's sizes, and what other trainings would give."
SOLVES = (
    Metric("nodes", "lower", "nodes"),
    Metric("fair_nodes", "lower", "nodes"),
    Metric("lps", "lower", "LPs"),
    Metric("unsolved", "lower", "share of instances"),
    Metric("seconds", "lower", "s", reproducible=False),
)


def _sizes(label: str, *sizes: int) -> dict[str, float]:
    return {f"{label}_{n}": float(np.log(n)) for n in sizes}


CLAIMS = (
    Claim(
        id="distributional_miplib.C1",
        statement="A graph network trained on strong-branching samples finds the expert's variable far above chance.",
        source="the learning pipeline of section 5; thresholds are ours (the paper's accuracies could not be obtained)",
        arxiv="2406.06954",
        arms=(Arm("policy", "method"), Arm("mixed", "variant"), Arm("untrained", "broken")),
        metrics=(
            Metric("top1", "higher", "share of nodes"),
            Metric("top5", "higher", "share of nodes"),
            Metric("top1_over", "higher", "top-1 accuracy minus five times chance"),
            Metric("top5_over", "higher", "top-5 accuracy minus three times chance"),
        ),
        strata=DOMAINS,
        rules=tuple(
            Rule(f"{label} on {domain}", value(metric, "policy"), Bound(">", 0.0), strata=(domain,))
            for domain in DOMAINS
            for label, metric in (("top-1 beyond 5 x chance", "top1_over"), ("top-5 beyond 3 x chance", "top5_over"))
        ),
        sanity=(Rule("an untrained network loses", difference("top1", "policy", "untrained"), Beyond(">", 0.1)),),
        n_units=30,
        unit_of_replication="held-out instance",
        budget_s=1800,
        cannot_show=CANNOT_SHOW,
        replicate=imitates,
        settings=TRAINING,
        smoke=QUICK,
        deviations=(
            *SCALED,
            SHARED_POLICY,
            Deviation(
                "only nodes where chance is at most 0.1 (top 1) and 0.3 (top 5)",
                "five and three times chance could not be reached elsewhere",
                "OWN_CHOICE",
            ),
        ),
    ),
    Claim(
        id="distributional_miplib.C2",
        statement="In the closed loop the learned policy needs at most half the nodes of random branching.",
        source="the evaluation of section 5 (nodes within a limit); thresholds are ours",
        arxiv="2406.06954",
        arms=(
            Arm("policy", "method"),
            Arm("random", "baseline"),
            Arm("relpscost", "baseline"),
            Arm("vanillafullstrong", "variant"),
        ),
        metrics=SOLVES,
        rules=(
            Rule("policy / random", LogRatio("nodes", "policy", "random"), Beyond("<", min_estimate=float(np.log(2)))),
            Rule("policy / random, fair", LogRatio("fair_nodes", "policy", "random"), Beyond("<"), must=False),
            Rule("policy / relpscost", LogRatio("nodes", "policy", "relpscost"), Beyond("<"), must=False),
            Rule("policy / relpscost, fair", LogRatio("fair_nodes", "policy", "relpscost"), Beyond("<"), must=False),
            Rule("policy / expert", LogRatio("nodes", "policy", "vanillafullstrong"), Beyond(">"), must=False),
        ),
        sanity=(
            Rule("the expert beats random", LogRatio("nodes", "vanillafullstrong", "random"), Beyond("<", 1.0)),
            Rule("the policy solves nearly all", value("unsolved", "policy"), Point(0.0, 0.1)),
        ),
        n_units=30,
        unit_of_replication="unseen instance",
        budget_s=1800,
        cannot_show=CANNOT_SHOW + " Times: a graph network in Python on a shared processor.",
        replicate=branches,
        settings={
            **TRAINING,
            "domain": Setting("gisp/tiny", "sheet"),
            "node_limit": Setting(5000, "reconstructed"),
            "rules": Setting(("random", "relpscost", "vanillafullstrong"), "sheet"),
            "policies": Setting({"policy": "homogeneous"}, "sheet"),
        },
        smoke=QUICK | {"node_limit": 50},
        deviations=(
            *SCALED,
            SHARED_POLICY,
            Deviation("5000 nodes in place of seconds as limit", "the same result on every machine", "OWN_CHOICE"),
        ),
    ),
    Claim(
        id="distributional_miplib.C3",
        statement="With few instances a domain, one policy for all domains imitates better than one for each; less so with more.",
        source="the abstract and section 5: mixed training helps with limited data",
        arxiv="2406.06954",
        arms=(
            *(
                Arm(f"{mix}_{n}", "method" if mix == "mixed" else "baseline")
                for n in (3, 10, 40)
                for mix in ("mixed", "homogeneous")
            ),
            Arm("equal_data", "variant"),
        ),
        metrics=(Metric("cross_entropy", "lower", "nats"), Metric("top1", "higher", "share of nodes")),
        rules=(
            Rule(
                "top-1, mixed - homogeneous, 3 instances", difference("top1", "mixed_3", "homogeneous_3"), Beyond(">")
            ),
            Rule(
                "the advantage shrinks with data",
                Trend(
                    "top1", _sizes("mixed", 3, 10, 40), minus={f"mixed_{n}": f"homogeneous_{n}" for n in (3, 10, 40)}
                ),
                Beyond("<"),
            ),
            Rule("cross-entropy, 3", difference("cross_entropy", "mixed_3", "homogeneous_3"), Beyond("<"), must=False),
            Rule(
                "cross-entropy, 10", difference("cross_entropy", "mixed_10", "homogeneous_10"), Beyond("<"), must=False
            ),
            Rule(
                "cross-entropy, 40", difference("cross_entropy", "mixed_40", "homogeneous_40"), Beyond("<"), must=False
            ),
            Rule("top-1, 10", difference("top1", "mixed_10", "homogeneous_10"), Beyond(">"), must=False),
            Rule("top-1, 40", difference("top1", "mixed_40", "homogeneous_40"), Beyond(">"), must=False),
            Rule(
                "top-1, mixed - equal data in one domain",
                difference("top1", "mixed_3", "equal_data"),
                Beyond(">"),
                must=False,
            ),
        ),
        sanity=(Rule("more data help", difference("top1", "homogeneous_40", "homogeneous_3"), Bound(">", -0.05)),),
        n_units=5,
        unit_of_replication="subset of instances and training seed",
        budget_s=2400,
        cannot_show=CANNOT_SHOW
        + " Five seeds on one pool: whether the effect exists at 80 to 320 instances of hard domains.",
        replicate=mixing,
        settings={
            **TRAINING,
            "steps": Setting(60, "reconstructed"),
            "epoch": Setting(20, "reconstructed"),
            "sizes": Setting([3, 10, 40], "sheet"),
            "test": Setting(15, "reconstructed"),
        },
        smoke=QUICK | {"test": 1},
        deviations=(
            *SCALED,
            Deviation(
                "at most 60 updates, best validation loss kept, for both", "time; equal for all arms", "SCALED_DOWN"
            ),
            Deviation("40 instances are the whole pool, less those solved at the root", "time", "SCALED_DOWN"),
        ),
    ),
    Claim(
        id="distributional_miplib.C4",
        statement="Trained on small instances, the mixed policy needs no more nodes than the homogeneous one on larger ones.",
        source="the abstract: mixed training generalises to larger instances",
        arxiv="2406.06954",
        arms=(
            Arm("mixed", "method"),
            Arm("homogeneous", "baseline"),
            Arm("relpscost", "baseline"),
            Arm("random", "broken"),
        ),
        metrics=SOLVES,
        rules=(
            Rule("mixed / homogeneous", LogRatio("nodes", "mixed", "homogeneous"), Beyond("<")),
            Rule("mixed / relpscost, fair", LogRatio("fair_nodes", "mixed", "relpscost"), Beyond("<"), must=False),
        ),
        sanity=(Rule("random branching loses", LogRatio("nodes", "mixed", "random"), Beyond("<")),),
        n_units=8,
        unit_of_replication="unseen instance",
        budget_s=1800,
        cannot_show=CANNOT_SHOW + " Eight instances of one size; meant as a report.",
        replicate=branches,
        settings={
            **TRAINING,
            "domain": Setting("gisp/tiny60", "reconstructed"),
            "node_limit": Setting(5000, "reconstructed"),
            "rules": Setting(("relpscost", "random"), "sheet"),
            "policies": Setting({"mixed": "mixed", "homogeneous": "homogeneous"}, "sheet"),
        },
        smoke=QUICK | {"node_limit": 50},
        deviations=(
            *SCALED,
            SHARED_POLICY,
            Deviation(
                "60 graph nodes in place of 80",
                "with 80 every rule needs thousands of nodes without cuts",
                "SCALED_DOWN",
            ),
        ),
    ),
)
