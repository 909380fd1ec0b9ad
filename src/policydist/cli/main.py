"""The ``policydist`` command: its words, its exit codes. What the commands do is in their own modules, loaded when called."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from policydist.cli.milp import Milp
from policydist.cli.usage import one_line
from policydist.errors import PolicydistError, UsageError

Settings = UseAppendAction[Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE")]]


def show_json(data: Any) -> None:
    """Print data as JSON, alone on standard output."""
    print(jsonlib.dumps(data, indent=2, default=str))


@dataclass(frozen=True)
class Papers:
    """List the catalogue: slug, title, arXiv id, family, whether implemented, verdict of its claim.

    Example: policydist papers --family language --search entropy
    """

    family: str | None = None
    """Only this family: language, agents, control, robotics, estimation or generative."""
    search: str | None = None
    """Only papers in whose slug, title, keywords or summary all these words occur."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from policydist.cli import catalogue

        return catalogue.papers(self.family, self.search or "", self.json)


@dataclass(frozen=True)
class Show:
    """Show one paper or baseline: what it adds, its knobs, differences from the official code, how to run it.

    Example: policydist show bnpo
    """

    slug: Positional[str]
    """The paper's slug, as `policydist papers` lists it, or a baseline such as grpo."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from policydist.cli import catalogue

        return catalogue.show(self.slug, self.json)


@dataclass(frozen=True)
class Train:
    """Train by one method, in a run directory of its own, or continue a run.

    Examples: policydist train bnpo --task countdown --steps 60
              policydist train r3d --data scores.csv --set unit=school --set running=poverty --set outcome=score
              policydist train grpo --model ./my-model --task jsonl:problems.jsonl --set train.lr=1e-5
              policydist train --resume runs/bnpo-countdown-20260101-120000
    """

    slug: Positional[str | None] = None
    """A paper's slug or a baseline (grpo, rloo, ppo, …)."""
    task: str | None = None
    """Language methods: a built-in task, reasoning-gym:<name>, jsonl:<file>, parquet:<file> or hub:<data set>."""
    model: str | None = None
    """Language methods: embedded, a local Hugging Face directory, or a Hub name."""
    steps: int | None = None
    """Language methods: training steps."""
    data: Path | None = None
    """Estimation methods: a .csv, .parquet or .jsonl file (some methods: a folder); left out, data made by the method."""
    config: Path | None = None
    """A YAML file of settings, such as the config.yaml of another run."""
    set: Settings = ()
    """One setting, e.g. --set train.lr=1e-4; may be given several times."""
    out: Path | None = None
    """Run directory; a fresh one under runs/ by default."""
    resume: Path | None = None
    """Continue this run from its newest checkpoint (or from the checkpoint directory given)."""
    json: bool = False
    """Print the final metrics as JSON."""

    def run(self) -> int:
        from policydist.cli import train

        return train.train(self)


@dataclass(frozen=True)
class Compare:
    """Train several methods on the same task under the same budget; print a table with intervals, write figure and report.

    Examples: policydist compare grpo bnpo dcpo --task chain --seeds 4
              policydist compare rexrag plain=rexrag --set plain:knobs.p_rev=0
    """

    slugs: Positional[tuple[str, ...]]
    """Two or more methods; NAME=METHOD takes one under a name, so that it can take part twice."""
    task: str | None = None
    """As for train."""
    model: str | None = None
    """As for train."""
    steps: int | None = None
    """Training steps of every run."""
    seeds: int = 3
    """Runs per method, with seeds 0, 1, …"""
    config: Path | None = None
    """A YAML file of settings for all methods."""
    set: Settings = ()
    """One setting for all methods, or for one of them by its name: --set bnpo:cap=100."""
    out: Path | None = None
    """Folder; given again, the comparison goes on where it stopped."""
    workers: int | None = None
    """Processes; all cores by default."""
    json: bool = False
    """Print the table as JSON."""

    def run(self) -> int:
        from policydist.cli import compare

        return compare.compare(self)


@dataclass(frozen=True)
class Claim:
    """Run a paper's claim and print its verdict. The full design writes a record to results/.

    Example: policydist claim bnpo
    """

    slug: Positional[str]
    """A paper's slug, or all."""
    seeds: int | None = None
    """Try with so many units on development seeds; the record is then not published."""
    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster."""
    workers: int | None = None
    """Processes; all cores by default."""
    smoke: bool = False
    """Two units with short settings: checks that the claim runs, says nothing about it."""
    results: Path | None = None
    """Where records are kept; results/ of the source checkout by default."""
    json: bool = False
    """Print the records as JSON."""

    def run(self) -> int:
        from policydist.cli import claim

        return claim.claim(self)


@dataclass(frozen=True)
class Report:
    """Write a static HTML report of the claims' records and of runs.

    Example: policydist report --out report
    """

    out: Path = Path("report")
    """Folder to write."""
    runs: Path = Path("runs")
    """Folder of runs and comparisons to include."""
    results: Path | None = None
    """Folder of claim records; results/ of the source checkout by default."""

    def run(self) -> int:
        from policydist.cli import report

        return report.report(self)


@dataclass(frozen=True)
class Diff:
    """Measure what training changed between two safetensors checkpoints: sparsity, by layer, at several tolerances.

    Both are rounded to bfloat16 first, as published comparisons do: in float32 nearly every weight moves. Files are read
    piece by piece; memory does not grow with them.

    Examples: policydist diff ./Tulu-3-8B-SFT ./Tulu-3-8B-DPO --out update.png
              policydist diff ./base runs/grpo-a/model --other runs/grpo-b/model --mask grpo-a.safetensors
    """

    before: Positional[Path]
    """The checkpoint before training: a safetensors file, a model folder (one file or shards), or a run directory."""
    after: Positional[Path]
    """The checkpoint after training."""
    other: Path | None = None
    """Another checkpoint trained from the first: overlap of the two updates, with chance and with the null at equal |w|."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision at which entries are compared."""
    tolerances: tuple[float, ...] = (0.0, 1e-5)
    """Absolute differences up to which two entries count as equal."""
    rank: bool = False
    """Also the rank of every matrix's difference; a singular value decomposition each, slow for large models."""
    mask: Path | None = None
    """Write the mask of changed entries (.safetensors), for training this subnetwork alone."""
    out: Path | None = None
    """Write a figure (.png) of the layers."""
    workers: int | None = None
    """Threads; one more than there are cores by default."""
    json: bool = False
    """Print JSON, with every tensor."""

    def run(self) -> int:
        from policydist.cli import diff

        return diff.diff(self)


@dataclass(frozen=True)
class Evaluate:
    """Measure models on a task's test rows without training: accuracy, pass@k, length, and accuracy when thinking is cut.

    A run is measured as it was while it trained, and so are the models beside it, unless a task or config is given.
    A task that is answered by searching (two-hop) is played in whole episodes with a search engine, and so is any task
    with a knob of rexrag's search, such as knobs.corpus, knobs.retriever or knobs.max_turns.

    Examples: policydist evaluate embedded --task chain --budgets 3,6,9,13
              policydist evaluate embedded runs/brpo-chain --budgets 3,6,9,13 --out before-after
              policydist evaluate embedded-search --task two-hop
    """

    models: Positional[tuple[str, ...]]
    """One or more of: embedded, a local Hugging Face directory, a Hub name, a run directory."""
    task: str | None = None
    """As for train."""
    budgets: str | None = None
    """Numbers of thinking tokens after which the model is made to answer, ascending: 16,32,64."""
    rows: int | None = None
    """Test rows."""
    samples: int | None = None
    """Responses to each row: the k of pass@k."""
    config: Path | None = None
    """A YAML file of settings; its sections task, model, rollout and eval are read."""
    set: Settings = ()
    """One setting, e.g. --set eval.temperature=0.6; may be given several times."""
    out: Path | None = None
    """Write evaluation.json, and with budgets a figure, into this folder."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from policydist.cli import evaluate

        return evaluate.evaluate(self)


COMMANDS: dict[str, type] = {
    "papers": Papers, "show": Show, "train": Train, "compare": Compare, "claim": Claim, "report": Report, "diff": Diff,
    "evaluate": Evaluate, "milp": Milp,
}  # fmt: skip


def parse(words: Sequence[str] | None) -> Any:
    """The command that was typed.

    Raises:
        UsageError: saying in one line which word is wrong.
    """
    words = sys.argv[1:] if words is None else words
    union: Any = Annotated[Papers, subcommand("papers")]
    for name, command in list(COMMANDS.items())[1:]:
        union = union | Annotated[command, subcommand(name)]
    with one_line(words, COMMANDS):
        return tyro.cli(
            union,
            args=words,
            prog="policydist",
            description="Policies as distributions: published methods, one command each.",
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )


def main(words: Sequence[str] | None = None) -> int:
    """Run one command: 0 done, 1 it failed, 2 it was asked wrongly, 130 interrupted."""
    try:
        return int(parse(words).run())
    except UsageError as problem:
        print(f"policydist: {problem}", file=sys.stderr)
        return 2
    except PolicydistError as problem:
        print(f"policydist: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("policydist: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        print(f"policydist: {where}{problem.strerror or problem}; check permissions and free space", file=sys.stderr)
        return 1


def script() -> None:
    """The installed program."""
    sys.exit(main())


if __name__ == "__main__":
    script()
