"""``policydist milp``: instances, expert samples, branching policies and their evaluation, one step a command."""

from __future__ import annotations

import json as jsonlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, subcommand

from policydist.errors import UsageError

if TYPE_CHECKING:
    from policydist.estimation.milp.collection import Source


@dataclass(frozen=True)
class Generate:
    """Write instances of a distribution as MPS files with a manifest of checksums. Run again, it goes on where it stopped.

    Example: policydist milp generate gisp/easy --out instances/gisp --train 80 --validation 20 --test 20
    """

    name: Positional[str]
    """A distribution that `policydist milp list` shows."""
    out: Path
    """Folder to write."""
    train: int = 80
    """Training instances."""
    validation: int = 20
    """Validation instances."""
    test: int = 20
    """Test instances."""
    seed: int = 0
    """Root seed of the splits."""
    workers: int = 1
    """Processes."""
    json: bool = False
    """Print the manifest as JSON."""

    def run(self) -> int:
        from policydist.estimation.milp.folders import generate
        from policydist.estimation.milp.registry import Split, get

        counts: dict[Split, int] = {"train": self.train, "validation": self.validation, "test": self.test}
        _positive(**counts)
        with _bar("generating") as tell:
            manifest = generate(get(self.name), self.out, counts, self.seed, self.workers, tell)
        _print(self.json, manifest, f"{len(manifest['files'])} instances of {self.name} in {self.out}")
        return 0


@dataclass(frozen=True)
class Collect:
    """Solve instances with SCIP and record what strong branching would choose. Run again, it goes on where it stopped.

    Example: policydist milp collect gisp/tiny ca/tiny --out samples --train 12 --validation 4 --test 4 --workers 2
    """

    sources: Positional[tuple[str, ...]]
    """Distributions, or folders of MPS/LP files."""
    out: Path
    """Folder to write samples to."""
    train: int = 12
    """Training instances of each source."""
    validation: int = 4
    """Validation instances of each source."""
    test: int = 4
    """Test instances of each source."""
    per_instance: int = 5
    """Samples of an instance, after which its solve stops."""
    query: float = 0.3
    """Probability of asking the expert at a node; the root is always asked."""
    time_limit: float = 800.0
    """Seconds of processor time of an instance."""
    cuts: bool = False
    """Cutting planes at the root (small instances hardly branch with them)."""
    heuristics: bool = False
    """SCIP's primal heuristics."""
    seed: int = 0
    """Root seed."""
    workers: int = 1
    """Processes."""
    json: bool = False
    """Print the number of samples of each source as JSON."""

    def run(self) -> int:
        from policydist.estimation.milp.collection import collect_to, items
        from policydist.estimation.milp.expert import CollectConfig
        from policydist.estimation.milp.registry import Split
        from policydist.estimation.milp.scip import SolverSettings, scip

        counts: dict[Split, int] = {"train": self.train, "validation": self.validation, "test": self.test}
        _positive(**counts)
        if not self.sources:
            raise UsageError("name at least one distribution or folder to collect from")
        scip()
        solver = SolverSettings(self.time_limit, None, self.cuts, self.heuristics)
        config = CollectConfig(self.per_instance, self.query, solver=solver)
        opened = [_source(name) for name in self.sources]
        wanted = [
            item for one in opened for split, n in counts.items() if n for item in items(one, split, n, self.seed)
        ]
        with _bar("collecting") as tell:
            found = collect_to(self.out, wanted, config, self.seed, self.workers, tell)
        text = "\n".join(f"{domain}: {count} samples" for domain, count in found.items())
        _print(self.json, found, f"{text}\nin {self.out}")
        return 0


@dataclass(frozen=True)
class TrainMilp:
    """Train branching policies on collected samples: one for all domains (mixed), or one for each.

    An interrupted training goes on when the same command is given again.

    Example: policydist milp train samples --out policies --mix mixed --steps 300
    """

    samples: Positional[Path]
    """Folder that `policydist milp collect` wrote."""
    out: Path
    """Folder to write the policy to; one subfolder a domain unless mixed."""
    mix: Literal["mixed", "homogeneous", "leave-one-out"] = "mixed"
    """One policy on all domains, one on each, or for each domain one on all others."""
    instances: int | None = None
    """Only so many training instances of each domain, chosen at random; all by default."""
    steps: int = 300
    """Updates at most; training stops earlier if the validation loss stops falling."""
    batch: int = 32
    """Samples of an update."""
    lr: float = 1e-3
    """Adam's learning rate."""
    epoch: int = 50
    """Updates between validations."""
    width: int = 64
    """Width of the network."""
    seed: int = 0
    """Seed of weights and batches."""
    json: bool = False
    """Print losses and accuracies as JSON."""

    def run(self) -> int:
        from policydist.estimation.methods import distributional_miplib as method
        from policydist.estimation.milp.collection import load_samples
        from policydist.runs.directory import write_whole

        checkpoints, settings = self.out / "checkpoints", self.out / "training.json"
        asked = jsonlib.dumps(
            {**asdict(self), "samples": str(self.samples.resolve()), "out": "", "json": False}, indent=2
        )
        there = {path.name for path in self.out.iterdir()} if self.out.exists() else set()
        interrupted = settings.is_file() and ("checkpoints" in there or there == {"training.json"})
        if there and not (interrupted and settings.read_text() == asked):
            raise UsageError(
                f"{self.out} holds something else than an interrupted training like this one; give another --out"
            )
        found = load_samples(self.samples)
        train = {domain: part for domain, part in found["train"].items() if part}
        if self.instances is not None:
            train = method.subset(train, self.instances, self.seed)
        shape = method.PolicyConfig(self.width)
        config = method.TrainConfig(shape, self.steps, self.batch, self.lr, self.epoch)
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(settings, asked)
        checkpoints.mkdir(exist_ok=True)
        with _bar("training") as tell:
            trained = method.train_protocol(
                train, self.mix, config, self.seed, found["validation"], lambda _, step, __: tell(step, self.steps),
                checkpoints,
            )  # fmt: skip
        for domain, one in trained.items():
            one.policy.save(self.out if self.mix == "mixed" else self.out / domain.replace("/", "_"))
        shutil.rmtree(checkpoints)
        table = method.imitation({domain: one.policy for domain, one in trained.items()}, found["test"])
        numbers = {d: {"steps": t.steps, "train_loss": t.train_loss, **table.get(d, {})} for d, t in trained.items()}
        _print(self.json, numbers, f"{_table('test samples', table)}policy in {self.out}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Solve test instances with a trained policy and with SCIP's rules; compare nodes, fair nodes, LPs, time, integral.

    Example: policydist milp evaluate gisp/tiny --policy policies --rules random relpscost --instances 10
    """

    source: Positional[str]
    """A distribution, or a folder of MPS/LP files, whose test split is solved."""
    policy: Path | None = None
    """Folder of a trained policy; without it only the rules run."""
    rules: tuple[str, ...] = ("relpscost",)
    """Rules of SCIP: random, mostinf, pscost, relpscost, vanillafullstrong."""
    instances: int = 10
    """Test instances."""
    time_limit: float = 800.0
    """Seconds of processor time a solve."""
    node_limit: int | None = None
    """Nodes a solve; unlike the time limit it gives the same result everywhere."""
    cuts: bool = False
    """Cutting planes at the root (small instances hardly branch with them)."""
    heuristics: bool = False
    """SCIP's primal heuristics."""
    out: Path | None = None
    """File of solves, one JSON line each; given again, solves that it holds are not repeated."""
    seed: int = 0
    """Permutation seed of SCIP, and root seed of a distribution's split."""
    workers: int = 1
    """Processes; times are only comparable with one."""
    json: bool = False
    """Print summary and solves as JSON."""

    def run(self) -> int:
        from policydist.estimation.milp.evaluation import as_record, check_rule, summarise
        from policydist.estimation.milp.policy import BranchPolicy
        from policydist.estimation.milp.scip import SolverSettings, scip
        from policydist.estimation.milp.solves import Request, solve_all

        _positive(instances=self.instances)
        for rule in self.rules:
            check_rule(rule)
        if self.policy is None and not self.rules:
            raise UsageError("give --policy, --rules, or both")
        if self.policy is not None:
            BranchPolicy.load(self.policy)
        scip()
        solver = SolverSettings(self.time_limit, self.node_limit, self.cuts, self.heuristics, seed=self.seed)
        names = [*([str(self.policy)] if self.policy else []), *self.rules]
        request = Request(_source(self.source), self.instances, names, solver, self.seed)
        with _bar("solving") as tell:
            rows = solve_all(request, self.out, self.workers, tell)
        summary = summarise(rows)
        data = {"summary": summary, "solves": [as_record(row) for row in rows]}
        _print(self.json, data, _table(self.source, summary).rstrip())
        return 0


@dataclass(frozen=True)
class ListMilp:
    """List the distributions, or check the files of a folder against its manifest (or write that for a download).

    Example: policydist milp list
             policydist milp list --folder instances/gisp
    """

    folder: Path | None = None
    """A folder of instances to check instead."""
    write_manifest: bool = False
    """Write the manifest of a downloaded folder that has none: its files' checksums as they are now."""
    domain: str | None = None
    """Domain that the written manifest names; the folder's name by default."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from policydist.estimation.milp import folders, registry

        if self.folder is not None:
            if self.write_manifest:
                folders.write_manifest(self.folder, self.domain or self.folder.resolve().name)
            opened = folders.open_folder(self.folder)
            counts = {split: len(files) for split, files in opened.files.items()}
            text = ", ".join(f"{count} {split}" for split, count in counts.items())
            _print(
                self.json,
                {"domain": opened.domain, **counts},
                f"{opened.domain}: {text}; every file as in its manifest"
                if (self.folder / folders.MANIFEST).is_file()
                else f"{opened.domain}: {text}; no manifest, nothing checked",
            )
            return 0
        rows: list[dict[str, Any]] = [
            {"name": d.name, "hardness": d.hardness, "params": dict(d.params), "source": d.source}
            for d in registry.DISTRIBUTIONS.values()
        ]
        lines = [f"{r['name']:14s} {r['hardness'] or '':10s} {_words(r['params']):52s} {r['source']}" for r in rows]
        lines += [f"{slug:14s} {'':10s} {'files only':52s} {about}" for slug, about in registry.REAL.items()]
        _print(self.json, {"distributions": rows, "files_only": registry.REAL}, "\n".join(lines))
        return 0


@dataclass(frozen=True)
class Milp:
    """Distributions of mixed-integer programs and learned branching: generate, collect, train, evaluate, list.

    Example: policydist milp generate gisp/tiny --out instances --train 10
    """

    action: (
        Annotated[Generate, subcommand("generate")]
        | Annotated[Collect, subcommand("collect")]
        | Annotated[TrainMilp, subcommand("train")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[ListMilp, subcommand("list")]
    )

    def run(self) -> int:
        import warnings

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"policydist: warning: {message}", file=sys.stderr)
            return self.action.run()


def _positive(**counts: int) -> None:
    if min(counts.values()) < 0 or not any(counts.values()):
        raise UsageError(
            f"{', '.join(f'--{name} {n}' for name, n in counts.items())}: give counts, one of them above zero"
        )


def _source(name: str) -> Source:
    """A folder if there is one of this name, else a registered distribution."""
    from policydist.estimation.milp.folders import open_folder
    from policydist.estimation.milp.registry import get

    return open_folder(Path(name)) if Path(name).is_dir() else get(name)


class _bar:
    """A progress bar on a terminal; elsewhere about twenty lines."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.what, self.console = what, Console(stderr=True, soft_wrap=True)
        self.progress = Progress(console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task(what, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self.progress.start()
        return self.tell

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tell(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)
        if not self.console.is_terminal and (done == total or done % max(1, total // 20) == 0):
            self.console.print(f"{self.what} {done}/{total}", highlight=False)


def _print(as_json: bool, data: Any, text: str) -> None:
    print(jsonlib.dumps(data, indent=2, default=str) if as_json else text)


def _table(corner: str, rows: dict[str, dict[str, float]]) -> str:
    """Names at the left, numbers to the right."""
    if not rows:
        return ""
    columns = list(next(iter(rows.values())))
    wide = max(len(corner), *(len(name) for name in rows))
    lines = [f"{corner:{wide}s} " + " ".join(f"{column:>13s}" for column in columns)]
    lines += [f"{name:{wide}s} " + " ".join(f"{row[c]:13.3f}" for c in columns) for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _words(params: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items())
