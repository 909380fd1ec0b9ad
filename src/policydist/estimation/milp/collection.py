"""Expert samples of many instances: on all cores, one file an instance, taken up again where it stopped.

<folder>/samples.json                          how they were taken
<folder>/<domain>/<split>/000000.npz …         the samples of one instance, possibly none
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.milp.expert import CollectConfig, collect
from policydist.estimation.milp.folders import InstanceFolder, in_turn
from policydist.estimation.milp.instance import MILP
from policydist.estimation.milp.registry import MILPDistribution, Split
from policydist.estimation.milp.samples import BranchSample, read_samples, write_samples
from policydist.estimation.milp.scip import read_instance
from policydist.runs.config import plain
from policydist.runs.directory import write_whole
from policydist.runs.seeds import derive

FORMAT = "branch-samples/1"
ABOUT = "samples.json"
Source = MILPDistribution | InstanceFolder


@dataclass(frozen=True)
class Item:
    """One instance to be made or read."""

    domain: str
    split: Split
    index: int
    place: MILPDistribution | Path
    seed: int = 0

    def load(self) -> MILP:
        """The instance.

        Raises:
            PolicydistError: if its file cannot be read.
        """
        return self.place.sample(self.seed) if isinstance(self.place, MILPDistribution) else read_instance(self.place)

    @property
    def file(self) -> str:
        """Where its samples are kept."""
        return f"{self.domain.replace('/', '_')}/{self.split}/{self.index:06d}.npz"


def items(source: Source, split: Split, count: int, root: int = 0) -> list[Item]:
    """The first ``count`` instances of a split; fewer, with a warning, if a folder has no more."""
    if isinstance(source, MILPDistribution):
        seeds = source.seeds(split, count, root)
        return [Item(source.name, split, index, source, seed) for index, seed in enumerate(seeds)]
    files = source.files.get(split, ())
    if len(files) < count:
        warnings.warn(
            f"{source.path} has {len(files)} {split} instances, fewer than the {count} asked for", stacklevel=2
        )
    return [Item(source.domain, split, index, path) for index, path in enumerate(files[:count])]


def take(item: Item, config: CollectConfig, root: int = 0, path: Path | None = None) -> tuple[list[BranchSample], str]:
    """Samples of one instance and SCIP's status, also written to ``path``."""
    seed = derive(root, "milp", item.domain, item.split, item.index)
    found = collect(item.load(), config, seed, item.domain)
    if path is not None:
        write_samples(path, found.samples)
    return found.samples, found.status


def collect_samples(
    wanted: Sequence[Item], config: CollectConfig, root: int = 0, workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Split, dict[str, list[BranchSample]]]:  # fmt: skip
    """Samples by split and domain, kept in memory. Instances without a sample are passed over; see `_warn`."""
    results: list[list[BranchSample]] = [[] for _ in wanted]
    for done, (number, (samples, status)) in enumerate(in_turn(take, [(i, config, root) for i in wanted], workers), 1):
        results[number] = samples
        _warn(wanted[number], status)
        if progress:
            progress(done, len(wanted))
    return _grouped(wanted, results)


def collect_to(
    folder: Path, wanted: Sequence[Item], config: CollectConfig, root: int = 0, workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Write the samples of instances that have no file yet; returns how many samples each domain has now.

    Raises:
        UsageError: if the folder's samples were taken with another configuration.
    """
    about = {"format": FORMAT, "root_seed": root, "config": plain(config)}
    if (folder / ABOUT).is_file():
        there = _read_about(folder)
        if there != json.loads(json.dumps(about)):
            raise UsageError(
                f"{folder} holds samples taken with other settings; give another --out, or the same settings"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and holds something else than samples; give another --out")
    else:
        write_whole(folder / ABOUT, json.dumps(about, indent=2))
    missing = [item for item in wanted if not (folder / item.file).is_file()]
    jobs = [(item, config, root, folder / item.file) for item in missing]
    have = len(wanted) - len(missing)
    for done, (number, (_, status)) in enumerate(in_turn(take, jobs, workers), 1):
        _warn(missing[number], status)
        if progress:
            progress(have + done, len(wanted))
    counts: dict[str, int] = {}
    for item in wanted:
        counts[item.domain] = counts.get(item.domain, 0) + len(read_samples(folder / item.file))
    return counts


def is_samples(folder: Path) -> bool:
    """Whether a folder was written by `collect_to`."""
    return (folder / ABOUT).is_file()


def load_samples(folder: Path) -> dict[Split, dict[str, list[BranchSample]]]:
    """Every sample of a folder by split and domain.

    Raises:
        UsageError: if the folder holds no samples.
        PolicydistError: naming a damaged file.
    """
    if not is_samples(folder):
        raise UsageError(f"{folder} holds no samples (no {ABOUT}); make some with policydist milp collect")
    _read_about(folder)
    found: dict[Split, dict[str, list[BranchSample]]] = {"train": {}, "validation": {}, "test": {}}
    for path in sorted(folder.glob("*/*/*.npz")):
        split = path.parent.name
        if split in found:
            for one in read_samples(path):
                found[split].setdefault(one.domain, []).append(one)
    return found


def _grouped(wanted: Sequence[Item], results: list[list[BranchSample]]) -> dict[Split, dict[str, list[BranchSample]]]:
    grouped: dict[Split, dict[str, list[BranchSample]]] = {"train": {}, "validation": {}, "test": {}}
    for item, samples in zip(wanted, results, strict=True):
        grouped[item.split].setdefault(item.domain, []).extend(samples)
    return grouped


def _warn(item: Item, status: str) -> None:
    if status in ("infeasible", "unbounded", "inforunbd"):
        place = item.place if isinstance(item.place, Path) else f"{item.domain} of seed {item.seed}"
        word = {"inforunbd": "infeasible or unbounded"}.get(status, status)
        warnings.warn(f"{place} is {word}: it gives no samples", stacklevel=3)


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        if about["format"] != FORMAT:
            raise ValueError(f"not {FORMAT}")
    except (OSError, ValueError, KeyError) as problem:
        raise PolicydistError(f"{folder / ABOUT} cannot be read ({problem}); collect again") from None
    return about
