"""Named distributions of instances: a generator with its parameters, splits by seed, and how hard they are.

A name is ``<domain>/<level>``. ``source`` says where the parameters come from; only distributions whose hardness the
paper states carry one. The real-world domains have no generator: their files are read from a folder
(`policydist.estimation.milp.folders`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from policydist.errors import UsageError, nearest
from policydist.estimation.milp.auctions import auction
from policydist.estimation.milp.graph_problems import gisp, mis, mvc
from policydist.estimation.milp.instance import MILP
from policydist.estimation.milp.set_problems import facility_location, set_cover
from policydist.runs.seeds import derive

Hardness = Literal["easy", "medium", "hard", "very-hard", "ext-hard"]
Split = Literal["train", "validation", "test"]
SPLITS: dict[Split, int] = {"train": 800, "validation": 100, "test": 100}
"""The splits and how many instances the paper's folders have in each."""

GENERATORS: dict[str, Callable[..., MILP]] = {
    "gisp": gisp, "mvc": mvc, "mis": mis, "sc": set_cover, "ca": auction, "cflp": facility_location,
}  # fmt: skip

REAL = {
    "lb": "load balancing",
    "ip": "item placement",
    "mmcn": "middle-mile consolidation network",
    "nnv": "neural network verification",
    "srpn": "seismic-resilient pipe network",
    "ots": "optimal transmission switching under wildfire risk",
    "corridor": "wildlife corridor design",
}
"""Domains that only exist as files; download them from the authors and read the folder."""


@dataclass(frozen=True)
class MILPDistribution:
    """A distribution of instances. ``sample(seed)`` depends on the seed alone, byte for byte."""

    name: str
    domain: str
    params: Mapping[str, Any] = field(default_factory=dict)
    hardness: Hardness | None = None
    """As the paper grades it, with Gurobi; None where it does not say."""
    source: str = "user"

    def __post_init__(self) -> None:
        if self.domain not in GENERATORS:
            where = (
                f"{self.domain} is only read from files" if self.domain in REAL else nearest(self.domain, GENERATORS)
            )
            raise UsageError(f"no generator for the domain {self.domain!r}: {where}")

    def sample(self, seed: int) -> MILP:
        """The instance of this seed.

        Raises:
            UsageError: for parameters that the generator does not know or that are out of range.
        """
        rng = np.random.default_rng(derive(seed, "milp", self.domain))
        try:
            return replace(GENERATORS[self.domain](rng, **self.params), name=f"{self.name}/{seed}".replace("/", "_"))
        except TypeError as problem:
            raise UsageError(f"{self.name}: {problem}") from None

    def seeds(self, split: Split, count: int | None = None, root: int = 0) -> list[int]:
        """Seeds of the first ``count`` instances of a split (all of the paper's number if None).

        The splits draw from different streams of ``root``, so no instance is in two of them.

        Raises:
            UsageError: for an unknown split.
        """
        if split not in SPLITS:
            raise UsageError(f"no split is called {split!r}: {nearest(split, SPLITS)}")
        return [derive(root, self.name, split, index) for index in range(SPLITS[split] if count is None else count)]

    def instances(self, split: Split, count: int | None = None, root: int = 0) -> list[MILP]:
        """The first ``count`` instances of a split."""
        return [self.sample(seed) for seed in self.seeds(split, count, root)]


def _known() -> dict[str, MILPDistribution]:
    code, mixing, tiny = "released code", "mixing study of the released code", "small, for this library's claims"
    easy = {"p": 0.3, "alpha": 0.25}
    entries: list[tuple[str, dict[str, Any], Hardness | None, str]] = [
        ("gisp/tiny", {"n": 50, **easy}, None, tiny),
        ("gisp/tiny80", {"n": 80, **easy}, None, tiny),
        ("gisp/tiny60", {"n": 60, **easy}, None, tiny),
        ("gisp/mix", {"n": 115, **easy}, None, mixing),
        ("gisp/easy", {"n": 150, **easy}, "easy", code),
        ("gisp/hard", {"n": 175, **easy}, "hard", code),
        ("mvc/tiny", {"n": 100, "affinity": 4}, None, tiny),
        ("mvc/easy", {"n": 1200, "affinity": 5}, "easy", "reconstructed from 1200 variables and 5975 rows"),
        ("mvc/example", {"n": 2000, "affinity": 70}, None, code),
        ("sc/tiny", {"rows": 150, "columns": 300}, None, tiny),
        ("sc/small", {"rows": 500, "columns": 1000}, None, code),
        ("mis/tiny", {"n": 100, "affinity": 4, "cliques": False}, None, tiny),
        ("mis/small", {"n": 500, "affinity": 4}, None, code),
        ("ca/tiny", {"items": 30, "bids": 150}, None, tiny),
        ("ca/small", {"items": 100, "bids": 500}, None, code),
        ("cflp/tiny", {"customers": 12, "facilities": 8, "ratio": 3.0}, None, tiny),
        ("cflp/100", {"customers": 100, "facilities": 100, "ratio": 5.0}, None, code),
    ]
    return {
        name: MILPDistribution(name, name.partition("/")[0], params, hardness, source)
        for name, params, hardness, source in entries
    }


DISTRIBUTIONS: Mapping[str, MILPDistribution] = _known()
TINY = ("gisp/tiny", "sc/tiny", "mis/tiny", "ca/tiny")
"""The distributions of the claims and of the embedded default."""


def get(name: str) -> MILPDistribution:
    """The registered distribution ``name``.

    Raises:
        UsageError: for an unknown name; the nearest ones are offered.
    """
    if name not in DISTRIBUTIONS:
        domain = name.partition("/")[0]
        if domain in REAL:
            raise UsageError(f"{name}: {REAL[domain]} has no generator; download its files and give their folder")
        raise UsageError(f"no distribution is called {name!r}: {nearest(name, DISTRIBUTIONS)}")
    return DISTRIBUTIONS[name]


@dataclass(frozen=True)
class HardnessConfig:
    """Cuts of `classify_hardness`, in seconds of one solver with a time limit."""

    easy_below: float = 100.0
    medium_below: float = 1000.0
    gap: float = 0.10
    """Mean final gap above which an unsolved distribution is "ext-hard". Reconstructed: the paper's cut is not known."""


def classify_hardness(
    times: Sequence[float], solved: Sequence[bool], gaps: Sequence[float], config: HardnessConfig | None = None
) -> Hardness:
    """Grade a distribution: mean time below 100 s easy, below 1000 s medium, else hard; where instances stay unsolved at
    the limit very hard, or extremely hard by the mean final gap. The paper's times are Gurobi's with a limit of one hour.

    Raises:
        UsageError: if there is no instance or the three do not have one entry each.
    """
    cuts = config or HardnessConfig()
    if not len(times) == len(solved) == len(gaps) > 0:
        raise UsageError("hardness needs a time, a solved flag and a gap for every instance, and at least one instance")
    if not all(solved):
        return "ext-hard" if float(np.mean(gaps)) > cuts.gap else "very-hard"
    mean = float(np.mean(times))
    return "easy" if mean < cuts.easy_below else "medium" if mean < cuts.medium_below else "hard"
