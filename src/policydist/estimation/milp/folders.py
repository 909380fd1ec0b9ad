"""Folders of instance files with a manifest of checksums: written by `generate`, or downloaded and then listed.

<folder>/manifest.json               distribution, parameters, root seed, SHA-256 of every file
<folder>/<split>/000000.mps …        train, validation, test

Folders without split subfolders are one test set.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.milp.instance import MILP
from policydist.estimation.milp.registry import SPLITS, MILPDistribution, Split
from policydist.estimation.milp.scip import SUFFIXES, read_instance
from policydist.runs.directory import write_whole
from policydist.runs.parallel import run_jobs

FORMAT = "milp-manifest/1"
MANIFEST = "manifest.json"
NAMES: dict[str, Split] = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class InstanceFolder:
    """Files of instances by split."""

    path: Path
    domain: str
    files: Mapping[Split, tuple[Path, ...]]

    def read(self, split: Split, count: int | None = None) -> list[MILP]:
        """The first ``count`` instances of a split.

        Raises:
            PolicydistError: naming a file that cannot be read.
        """
        return [read_instance(path) for path in self.files.get(split, ())[:count]]


def in_turn(
    function: Callable[..., Any], jobs: list[tuple[Any, ...]], workers: int, tick: Callable[[], None] | None = None
) -> Iterator[tuple[int, Any]]:
    """`run_jobs`, but within this process for one worker: starting another would take longer than small jobs do."""
    if workers < 1:
        raise UsageError(f"workers is {workers}; it must be at least 1")
    if workers > 1 and len(jobs) > 1:
        yield from run_jobs(function, jobs, workers, tick)
        return
    for number, job in enumerate(jobs):
        yield number, function(*job)


def _write(distribution: MILPDistribution, seed: int, path: Path) -> str:
    """Generate one file, unless it is there, and return its SHA-256."""
    if not path.is_file():
        write_whole(path, distribution.sample(seed).to_mps())
    return _sha256(path)


def generate(
    distribution: MILPDistribution,
    folder: Path,
    counts: Mapping[Split, int],
    root: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the first instances of each split, and the manifest. Called again it goes on where it stopped.

    Raises:
        UsageError: if the folder holds another distribution, other parameters or another root seed.
    """
    wanted = _header(distribution, root)
    if (folder / MANIFEST).is_file():
        there = _read_manifest(folder)
        if any(there.get(key) != value for key, value in wanted.items()):
            raise UsageError(
                f"{folder} holds {there.get('distribution')} of root seed {there.get('root_seed')}; give another --out"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and has no manifest; give another --out")
    else:
        write_whole(folder / MANIFEST, json.dumps(wanted | {"complete": False, "files": {}}, indent=2))
    jobs, places = [], []
    for split, count in counts.items():
        for index, seed in enumerate(distribution.seeds(split, count, root)):
            places.append((f"{split}/{index:06d}.mps", seed))
            jobs.append((distribution, seed, folder / places[-1][0]))
    files: dict[str, Any] = {}
    for done, (number, sha) in enumerate(in_turn(_write, jobs, workers), 1):
        files[places[number][0]] = {"sha256": sha, "seed": places[number][1]}
        if progress:
            progress(done, len(jobs))
    manifest = wanted | {"complete": True, "files": dict(sorted(files.items()))}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2))
    return manifest


def _header(distribution: MILPDistribution, root: int) -> dict[str, Any]:
    return {
        "format": FORMAT, "distribution": distribution.name, "domain": distribution.domain,
        "params": dict(distribution.params), "root_seed": root,
    }  # fmt: skip


def write_manifest(folder: Path, domain: str) -> dict[str, Any]:
    """List a downloaded folder: the checksums of its files as they are now.

    Raises:
        UsageError: if there is no instance file, or a manifest already.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} exists; remove it first if the files were changed on purpose")
    files = {str(path.relative_to(folder)): {"sha256": _sha256(path)} for path in _instances(folder)}
    manifest = {"format": FORMAT, "distribution": None, "domain": domain, "complete": True, "files": files}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2))
    return manifest


def open_folder(folder: Path, verify: bool = True) -> InstanceFolder:
    """The instance files of a folder, their checksums compared with the manifest's.

    Without a manifest the folder's name is the domain, and one warning says that nothing was verified.

    Raises:
        UsageError: if there is no folder or no instance file in it.
        PolicydistError: if a file is missing or its checksum differs; the file is named.
    """
    paths = _instances(folder)
    domain = folder.name
    if (folder / MANIFEST).is_file():
        manifest = _read_manifest(folder)
        domain = str(manifest.get("domain") or domain)
        if not manifest.get("complete"):
            raise UsageError(f"{folder} is not complete; run the same policydist milp generate again to finish it")
        paths = [folder / name for name in manifest["files"]]
        for path in paths if verify else ():
            if not path.is_file():
                raise PolicydistError(f"{path} is in the manifest and not in the folder; fetch or generate it again")
            if _sha256(path) != manifest["files"][str(path.relative_to(folder))]["sha256"]:
                raise PolicydistError(f"{path} differs from its checksum in the manifest; fetch or generate it again")
    else:
        warnings.warn(f"{folder} has no {MANIFEST}: files are read without checking checksums", stacklevel=2)
    by_split: dict[Split, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(paths):
        by_split[NAMES.get(path.relative_to(folder).parts[0], "test")].append(path)
    return InstanceFolder(folder, domain, {split: tuple(found) for split, found in by_split.items()})


def _instances(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}")
    found = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not found:
        raise UsageError(f"{folder} holds no instance file ({', '.join(SUFFIXES)})")
    return found


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        if manifest["format"] != FORMAT or not isinstance(manifest["files"], dict):
            raise ValueError(f"not {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise PolicydistError(
            f"{folder / MANIFEST} cannot be read ({problem}); fetch or generate the folder again"
        ) from None
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
