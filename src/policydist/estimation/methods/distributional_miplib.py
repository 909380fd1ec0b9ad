"""Distributional MIPLIB (arXiv 2406.06954): one branching policy trained on a mix of instance distributions.

A branching policy is a distribution over the fractional variables of a branch-and-bound node; here a graph network that
imitates strong branching. The paper adds a library of distributions graded by hardness, and the *mixed* protocol: the
same files per domain that would train one policy each train a single policy together. `train_protocol` is that
comparison; the parts (distributions, expert, policy, evaluation) are in `policydist.estimation.milp`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from policydist.errors import UsageError
from policydist.estimation.milp.collection import Item, Source, collect_samples, is_samples, items, load_samples
from policydist.estimation.milp.evaluation import RULES, Row, as_record, check_rule, evaluate, evaluate_one, summarise
from policydist.estimation.milp.expert import CollectConfig, collect, strong_scores
from policydist.estimation.milp.folders import InstanceFolder, generate, open_folder, write_manifest
from policydist.estimation.milp.instance import MILP
from policydist.estimation.milp.metrics import (
    acc_at_k,
    chance_at_k,
    fair_nodes,
    gap,
    primal_dual_integral,
    shifted_geometric_mean,
)
from policydist.estimation.milp.policy import BranchPolicy, PolicyConfig
from policydist.estimation.milp.registry import (
    DISTRIBUTIONS,
    TINY,
    HardnessConfig,
    MILPDistribution,
    Split,
    classify_hardness,
    get,
)
from policydist.estimation.milp.samples import BranchSample, read_samples, write_samples
from policydist.estimation.milp.scip import SMALL, SolverSettings, read_instance
from policydist.estimation.milp.training import TrainConfig, Trained, evaluate_samples, mixed, train_policy
from policydist.runs.directory import Run, write_whole
from policydist.runs.seeds import numpy_generator

Mix = Literal["mixed", "homogeneous", "leave-one-out"]
ByDomain = Mapping[str, Sequence[BranchSample]]
Progress = Callable[[int, int, Mapping[str, float]], None]

DIFFERENCES = (
    "Strong branching is asked on the LP's fractional candidates through PySCIPOpt; the paper's script asks a patched "
    "interface on pseudo candidates, which the released package does not have.",
    "Rows come from PySCIPOpt's bipartite call, whose `bias` is the row's constant; right-hand sides are read beside it and "
    "two-sided rows split, as in the paper.",
    "The released capacitated facility location generator draws from a global random stream, the DIMACS GISP script gives "
    "every instance of a graph the same removable edges, and the MVC generator draws edge weights that nothing uses: here "
    "all draws come from the instance's own stream and only what is used is drawn.",
    "The released evaluation integrates the gap from 2 s on with SCIP and from 0 with Gurobi; `start` says which, 0 by default.",
    "The cut between very hard and extremely hard distributions is not known; it is a setting (10 % mean gap).",
)


@dataclass(frozen=True)
class Config:
    """Collection, training and evaluation on several distributions. Defaults take a few minutes on two cores."""

    distributions: tuple[str, ...] = TINY
    """Registered names; not used when data are given."""
    mix: Mix = "mixed"
    """`mixed` trains one policy on all domains, `homogeneous` one a domain, `leave-one-out` one on all but each domain."""
    instances: int = 12
    """Training instances of each domain (the paper: 80, 160 or 320)."""
    validation: int = 4
    """Validation instances of each domain (the paper: 100)."""
    test: int = 4
    """Test instances of each domain whose samples measure imitation (the paper: 100)."""
    per_instance: int = 5
    """Samples of an instance (the paper: 10)."""
    query: float = 0.3
    """Probability of asking the expert at a node (the paper: 0.05, on far larger trees)."""
    width: int = 32
    """Width of the network (the paper: 64)."""
    steps: int = 300
    """Updates at most."""
    batch: int = 16
    """Samples of an update (the paper: 32)."""
    lr: float = 1e-3
    """Adam's learning rate."""
    epoch: int = 50
    """Updates between validations (the paper: 312)."""
    rules: tuple[str, ...] = ("random", "relpscost")
    """SCIP's rules that the policy is compared with: random, mostinf, pscost, relpscost, vanillafullstrong."""
    closed_loop: int = 2
    """Test instances of each domain that are solved with every rule; 0 leaves the closed loop out."""
    node_limit: int = 5000
    """Nodes after which a solve of the closed loop stops; it is counted with what it cost until then."""
    time_limit: float = 60.0
    """Seconds of processor time of a solve."""
    cuts: bool = False
    """Cutting planes at the root. Off, because the tiny instances would hardly branch."""
    heuristics: bool = False
    """SCIP's primal heuristics. Off, as for cuts."""
    workers: int = 1
    """Processes that collect samples."""
    seed: int = 0
    """Root of all random streams."""

    def __post_init__(self) -> None:
        if min(self.instances, self.test) < 1 or min(self.validation, self.closed_loop) < 0 or not self.distributions:
            raise UsageError("instances and test must be at least 1, validation and closed_loop not negative")
        for rule in self.rules:
            check_rule(rule)

    @property
    def solver(self) -> SolverSettings:
        """How SCIP is set in collection (no node limit there) and, with the node limit, in the closed loop."""
        return SolverSettings(self.time_limit, None, self.cuts, self.heuristics)

    @property
    def training(self) -> TrainConfig:
        """The optimiser's settings."""
        return TrainConfig(PolicyConfig(self.width), self.steps, self.batch, self.lr, self.epoch)


def subset(samples: ByDomain, count: int, seed: int = 0) -> dict[str, list[BranchSample]]:
    """The samples of ``count`` instances of each domain, chosen by a permutation of its instances, as the paper does.

    Raises:
        UsageError: if a domain has fewer instances with samples.
    """
    chosen = {}
    for domain, found in samples.items():
        names = list(dict.fromkeys(one.instance for one in found))
        if len(names) < count:
            raise UsageError(f"{domain} has samples of {len(names)} instances, fewer than the {count} asked for")
        kept = {names[i] for i in numpy_generator(seed, "milp", "subset", domain).permutation(len(names))[:count]}
        chosen[domain] = [one for one in found if one.instance in kept]
    return chosen


def train_protocol(
    samples: ByDomain,
    mix: Mix,
    config: TrainConfig,
    seed: int = 0,
    validation: ByDomain | None = None,
    progress: Callable[[str, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> dict[str, Trained]:
    """One trained policy for every domain name; under ``mixed`` all names share one.

    Every policy takes the same number of updates at most and the same settings, whatever it is trained on; its
    validation samples are those of the domains that it is trained on. ``folder`` keeps checkpoints to go on from, see
    `train_policy`.

    Raises:
        UsageError: for an unknown mix, no samples, or one domain under leave-one-out.
    """
    held = validation or {}
    domains = sorted(samples)
    if mix not in ("mixed", "homogeneous", "leave-one-out"):
        raise UsageError(f"no mix is called {mix!r}: give mixed, homogeneous or leave-one-out")
    if mix == "leave-one-out" and len(domains) < 2:
        raise UsageError("leave-one-out needs at least two domains")

    def fit(name: str, used: list[str]) -> Trained:
        def tell(step: int, row: dict[str, float]) -> None:
            if progress:
                progress(name, step, row)

        own = {domain: held.get(domain, ()) for domain in used}
        place = None if folder is None else folder / name.replace("/", "_").replace(" ", "_")
        return train_policy(mixed({d: samples[d] for d in used}), config, seed, mixed(own), tell, place)

    if mix == "mixed":
        one = fit("mixed", domains)
        return dict.fromkeys(domains, one)
    if mix == "homogeneous":
        return {domain: fit(domain, [domain]) for domain in domains}
    return {domain: fit(f"without {domain}", [d for d in domains if d != domain]) for domain in domains}


def imitation(policies: Mapping[str, BranchPolicy], samples: ByDomain) -> dict[str, dict[str, float]]:
    """Per domain, the means of cross-entropy, accuracies and chance levels on its samples; empty domains are left out."""
    return {
        domain: {name: float(np.mean(values)) for name, values in evaluate_samples(policies[domain], found).items()}
        for domain, found in samples.items()
        if found and domain in policies
    }


def sources(config: Config, data: Path | None) -> dict[str, Source]:
    """Where instances come from: the registry, one folder of instances, or a folder of such folders.

    Raises:
        UsageError: if the folder holds no instances.
    """
    if data is None:
        return {name: get(name) for name in config.distributions}
    inner = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    several = (
        inner
        and not (data / "manifest.json").is_file()
        and not {p.name for p in inner} & {"train", "valid", "validation", "test"}
    )
    folders = [open_folder(path) for path in (inner if several else [data])]
    return {folder.domain: folder for folder in folders}


def train(config: Config, data: Path | None, run: Run, progress: Progress) -> dict[str, float]:
    """Collect (or read) samples, train by the chosen mix, measure imitation and closed loop, write everything to the run.

    Writes ``model/`` (``model/<domain>/`` for several policies), ``imitation.json``, ``solves.json``, ``summary.txt``.

    Raises:
        UsageError: if there is nothing to train or test on.
    """
    ready = data is not None and is_samples(data)
    where = {} if ready else sources(config, data)
    wanted = _wanted(config, where)
    taken, trainings, step = len(wanted), 1, 0

    def tell(done: int, numbers: Mapping[str, float]) -> None:
        progress(done, max(done, taken + trainings * config.steps), numbers)

    if ready and data is not None:
        found = load_samples(data)
    else:
        settings = CollectConfig(config.per_instance, config.query, solver=config.solver)
        found = collect_samples(wanted, settings, config.seed, config.workers, lambda done, _: tell(done, {}))
    by_domain = {domain: kept for domain, kept in found["train"].items() if kept}
    if not by_domain:
        raise UsageError("no training sample: the instances were solved without branching; take more or harder ones")
    trainings = 1 if config.mix == "mixed" else len(by_domain)

    def trained_on(_: str, at: int, row: dict[str, float]) -> None:
        nonlocal step
        step += (at - 1) % config.epoch + 1
        tell(taken + step, row)

    trained = train_protocol(by_domain, config.mix, config.training, config.seed, found["validation"], trained_on)
    policies = {domain: one.policy for domain, one in trained.items()}
    for domain, policy in policies.items():
        place = run.path / "model"
        policy.save(place if config.mix == "mixed" else place / domain.replace("/", "_"))
    table = imitation(policies, found["test"])
    write_whole(run.path / "imitation.json", json.dumps(table, indent=2))
    final = {f"{domain}/{name}": value for domain, row in table.items() for name, value in row.items()}
    text = _imitation_text(table)
    if config.closed_loop and where:
        rows = closed_loop(config, where, policies)
        write_whole(run.path / "solves.json", json.dumps({d: [as_record(r) for r in part] for d, part in rows.items()}))
        for domain, part in rows.items():
            summary = summarise(part)
            final |= {f"{domain}/{rule}/nodes": row["nodes"] for rule, row in summary.items()}
            text += _solve_text(domain, summary)
    write_whole(run.path / "summary.txt", text)
    final["train_loss"] = float(np.mean([one.train_loss for one in trained.values()]))
    return final


def closed_loop(
    config: Config, where: Mapping[str, Source], policies: Mapping[str, BranchPolicy]
) -> dict[str, list[Row]]:
    """Solves of the first test instances of every domain with its policy and with every rule."""
    settings = replace(config.solver, node_limit=config.node_limit)
    rows = {}
    for domain, source in where.items():
        if domain in policies:
            loaded = [item.load() for item in items(source, "test", config.closed_loop, config.seed)]
            if loaded:
                rows[domain] = evaluate(
                    {"policy": policies[domain], **{r: r for r in config.rules}}, loaded, settings, config.seed
                )
    return rows


def _wanted(config: Config, where: Mapping[str, Source]) -> list[Item]:
    """The instances to collect from."""
    counts: dict[Split, int] = {"train": config.instances, "validation": config.validation, "test": config.test}
    return [
        item for source in where.values() for split, count in counts.items() if count
        for item in items(source, split, count, config.seed)
    ]  # fmt: skip


def _imitation_text(table: Mapping[str, Mapping[str, float]]) -> str:
    shown = {
        "cross_entropy": "cross-entropy",
        "acc@1": "acc@1",
        "chance@1": "chance@1",
        "acc@5": "acc@5",
        "chance@5": "chance@5",
    }
    return _text("imitation", {d: {label: row[name] for name, label in shown.items()} for d, row in table.items()}, 3)


def _solve_text(domain: str, summary: Mapping[str, Mapping[str, float]]) -> str:
    shown = ("nodes", "fair_nodes", "lps", "time", "integral", "unsolved")
    return "\n" + _text(domain, {rule: {name: row[name] for name in shown} for rule, row in summary.items()}, 2)


def _text(corner: str, table: Mapping[str, Mapping[str, float]], digits: int) -> str:
    """A small table with names at the left."""
    columns = list(next(iter(table.values()), {}))
    lines = [f"{corner:18s}" + "".join(f" {name:>13s}" for name in columns)]
    lines += [f"{name:18s}" + "".join(f" {row[c]:13.{digits}f}" for c in columns) for name, row in table.items()]
    return "\n".join(lines) + "\n"


__all__ = [
    "DIFFERENCES",
    "DISTRIBUTIONS",
    "MILP",
    "RULES",
    "SMALL",
    "TINY",
    "BranchPolicy",
    "BranchSample",
    "CollectConfig",
    "Config",
    "HardnessConfig",
    "InstanceFolder",
    "MILPDistribution",
    "PolicyConfig",
    "Row",
    "SolverSettings",
    "Split",
    "TrainConfig",
    "Trained",
    "acc_at_k",
    "chance_at_k",
    "classify_hardness",
    "closed_loop",
    "collect",
    "collect_samples",
    "evaluate",
    "evaluate_one",
    "evaluate_samples",
    "fair_nodes",
    "gap",
    "generate",
    "get",
    "imitation",
    "items",
    "mixed",
    "open_folder",
    "primal_dual_integral",
    "read_instance",
    "read_samples",
    "shifted_geometric_mean",
    "strong_scores",
    "subset",
    "summarise",
    "train",
    "train_policy",
    "train_protocol",
    "write_manifest",
    "write_samples",
]  # fmt: skip
