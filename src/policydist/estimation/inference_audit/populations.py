"""Where training sets come from: a finite population split between victim and adversary, or a synthetic one.

A *sampler* is called ``sampler(n, half, rng)`` and returns n rows ``(X, y)`` of one distribution. ``half`` says for
whom: "victim", "adversary" or "test" (the adversary's held-out part). A sampler over finite data must keep the three
apart, or the measured leak is inflated; one that draws fresh rows may ignore it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from scipy.special import expit

from policydist.errors import UsageError, nearest
from policydist.runs.seeds import derive, numpy_generator

if TYPE_CHECKING:
    import pandas as pd

Half = Literal["victim", "adversary", "test"]
HALVES: tuple[Half, ...] = ("victim", "adversary", "test")
_PARTS = (0.5, 0.3, 0.2)


class Sampler(Protocol):
    """n rows ``(X, y)`` of one distribution, drawn for one half of the game."""

    def __call__(self, n: int, half: Half, rng: np.random.Generator) -> tuple[Any, Any]: ...


class Population:
    """A finite population whose share of a binary property can be set, with the label shares held fixed.

    Args:
        X: features, array or frame (n, D).
        y: labels (n,).
        has_property: who has the property (n,), zeros and ones.
        stratify: a further column (n,) whose shares every half keeps, e.g. another protected attribute.
        class_shares: share of each label in every draw; None takes the population's. Held fixed in every draw,
            because a victim's class prior would otherwise give the share of the property away.
        tries: draws of which the one with the nearest realised share of the property is kept (the paper: 100).
        seed: of the split: half the rows for victims, 3/10 for the adversary's models, 2/10 for its test sets.

    Raises:
        UsageError: unequal lengths, a property that is not 0/1 or not varied, or shares that do not sum to 1.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        has_property: Any,
        *,
        stratify: Any = None,
        class_shares: Mapping[Any, float] | None = None,
        tries: int = 100,
        seed: int = 42,
    ) -> None:
        self.X, self.y, self.tries = X, np.asarray(y), tries
        self.has_property = _binary(has_property, len(self.y))
        if len(X) != len(self.y):
            raise UsageError(f"X has {len(X)} rows and y has {len(self.y)}")
        self.classes, codes = np.unique(self.y, return_inverse=True)
        self.class_shares = self._shares(class_shares)
        extra = np.zeros(len(codes), int) if stratify is None else np.unique(stratify, return_inverse=True)[1]
        cells = np.unique(np.stack([codes, self.has_property, extra]), axis=1, return_inverse=True)[1].reshape(-1)
        self.half_of = _split(cells, seed)
        self._members = {
            half: [[self._rows(number, code, own, codes) for code in range(len(self.classes))] for own in (0, 1)]
            for number, half in enumerate(HALVES)
        }

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, label: str, property: str, value: Any = None, keep_property: bool = False,
        **options: Any,
    ) -> Population:  # fmt: skip
        """A population from a table. The property is ``frame[property] == value``, or the column itself if it is 0/1.

        Text columns become one 0/1 column a value. The property's column is no feature unless ``keep_property``.
        """
        import pandas as pd

        for name in (label, property):
            if name not in frame:
                raise UsageError(f"the data have no column {name!r}; {nearest(name, map(str, frame.columns))}")
        for name in map(str, frame.columns):
            bad = frame[name].isin([np.nan, np.inf, -np.inf, None])
            if bad.any():
                raise UsageError(
                    f"column {name!r} holds {int(bad.sum())} missing or infinite values; impute or drop those rows first"
                )
        column = frame[property]
        if value is not None and pd.api.types.is_numeric_dtype(column):
            value = _as_number(value)
        if value is not None and not (column == value).any():
            raise UsageError(f"column {property!r} never has the value {value!r}")
        dropped = [label] if keep_property else [label, property]
        features = pd.get_dummies(frame.drop(columns=dropped), dtype=float)
        return cls(features, frame[label].to_numpy(), column if value is None else column == value, **options)

    def sampler(self, share: float) -> RatioSampler:
        """Draws in which ``share`` of the rows have the property."""
        if not 0 <= share <= 1:
            raise UsageError(f"the share of the property must lie in [0, 1], got {share}")
        return RatioSampler(self, float(share))

    def _rows(self, half: int, code: int, own: int, codes: np.ndarray) -> np.ndarray:
        return np.flatnonzero((self.half_of == half) & (codes == code) & (self.has_property == own))

    def _shares(self, given: Mapping[Any, float] | None) -> np.ndarray:
        if given is None:
            return np.array([np.mean(self.y == label) for label in self.classes])
        shares = np.array([given.get(label, 0.0) for label in self.classes])
        if set(given) - set(self.classes.tolist()) or abs(shares.sum() - 1) > 1e-9 or (shares < 0).any():
            raise UsageError(f"class_shares must give the labels {list(self.classes)} shares that sum to 1: {given}")
        return shares


@dataclass(frozen=True)
class RatioSampler:
    """One share of the property. The over-represented group is thinned out until the share is reached, then each label
    is drawn without replacement; of ``tries`` such draws the nearest to the share is kept (the paper's heuristic).

    The tries are made on counts alone: numbers drawn without replacement are hypergeometric, so only the kept draw
    has to touch rows.
    """

    population: Population
    share: float

    def __call__(self, n: int, half: Half, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
        members = self.population._members[half]
        have, lack = (np.array([len(rows) for rows in members[own]]) for own in (1, 0))
        keep_have, keep_lack = _thinned(have.sum(), lack.sum(), self.share)
        wanted = _round_to(n, self.population.class_shares)
        tries = self.population.tries
        pool_have = rng.multivariate_hypergeometric(have, keep_have, size=tries)
        pool_lack = rng.multivariate_hypergeometric(lack, keep_lack, size=tries)
        enough = np.flatnonzero(((pool_have + pool_lack) >= wanted).all(axis=1))
        if len(enough) == 0:
            short = int(np.argmin(np.median(pool_have + pool_lack, axis=0) - wanted))
            raise UsageError(
                f"a draw of {n} rows at share {self.share:g} needs {wanted[short]} rows of label "
                f"{self.population.classes[short]!r} and the {half} part has about "
                f"{int(np.median(pool_have + pool_lack, axis=0)[short])}: ask for fewer rows, or give more data"
            )
        drawn = rng.hypergeometric(pool_have[enough], pool_lack[enough], wanted)
        best = drawn[np.argmin(np.abs(drawn.sum(axis=1) - self.share * n))]
        rows = np.concatenate(
            [
                rng.choice(members[own][code], size=count, replace=False)
                for own, counts in ((1, best), (0, wanted - best))
                for code, count in enumerate(counts)
            ]
        )
        rows = rng.permutation(rows)
        X = self.population.X
        return (X.iloc[rows] if hasattr(X, "iloc") else np.asarray(X)[rows]), self.population.y[rows]


@dataclass(frozen=True)
class TwoGroup:
    """A synthetic population of two groups that differ in features and in how features explain the label.

    s ~ Bernoulli(α) is not a feature; x ~ N(s m, I); P(y=1) = σ(xᵀw_0 + 0.3) for s = 0 and σ(xᵀw_1 − 0.8) for s = 1,
    with w_0 ~ N(0, I), w_1 = w_0 + 1.2 N(0, I) and m ~ 0.5 N(0, I) fixed by ``seed``.
    """

    seed: int = 0
    features: int = 8

    def sampler(self, share: float) -> TwoGroupSampler:
        """Fresh rows with P(s = 1) = ``share``; the label share moves with it."""
        if not 0 <= share <= 1:
            raise UsageError(f"the share of the property must lie in [0, 1], got {share}")
        return TwoGroupSampler(self, float(share))

    def draw(self, n: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, D), labels (n,) and group (n,)."""
        w0, w1, mean = self._constants()
        group = (rng.random(n) < share).astype(np.int64)
        x = rng.standard_normal((n, self.features)) + group[:, None] * mean
        logit = np.where(group == 1, x @ w1 - 0.8, x @ w0 + 0.3)
        return x, (rng.random(n) < expit(logit)).astype(np.int64), group

    def frame(self, n: int, share: float = 0.5, seed: int = 0) -> pd.DataFrame:
        """The same as a table with columns x0 …, label and group."""
        import pandas as pd

        x, y, group = self.draw(n, share, np.random.default_rng(derive(seed, "two_group", "frame")))
        table = pd.DataFrame(x, columns=[f"x{k}" for k in range(self.features)])
        return table.assign(label=y, group=group)

    def _constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = numpy_generator(self.seed, "two_group", "constants")
        w0 = rng.standard_normal(self.features)
        return w0, w0 + 1.2 * rng.standard_normal(self.features), 0.5 * rng.standard_normal(self.features)


@dataclass(frozen=True)
class TwoGroupSampler:
    """Fresh rows of `TwoGroup` at one share."""

    population: TwoGroup
    share: float

    def __call__(self, n: int, half: Half, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.population.draw(n, self.share, rng)[:2]


def _as_number(value: Any) -> Any:
    """A command line hands over text; a numeric column is compared with numbers."""
    try:
        return float(value)
    except ValueError:
        return value


def _binary(values: Any, n: int) -> np.ndarray:
    column = np.asarray(values)
    if len(column) != n:
        raise UsageError(f"the property has {len(column)} values and there are {n} labels")
    found = set(np.unique(column.astype(str) if column.dtype == object else column).tolist())
    if not found <= {0, 1}:
        shown = ", ".join(map(str, sorted(found, key=str)[:5]))
        raise UsageError(f"the property must be 0 or 1, found {shown}; say which value counts (value=...)")
    if len(found) < 2:
        raise UsageError("every row has the same value of the property; its share cannot be varied")
    return column.astype(np.int64)


def _split(cells: np.ndarray, seed: int) -> np.ndarray:
    """Number of the half of every row, each cell dealt out in the same proportions."""
    rng = numpy_generator(seed, "population", "split")
    half = np.empty(len(cells), dtype=np.int64)
    for cell in np.unique(cells):
        rows = rng.permutation(np.flatnonzero(cells == cell))
        cuts = np.round(np.cumsum(_PARTS)[:-1] * len(rows)).astype(int)
        for number, part in enumerate(np.split(rows, cuts)):
            half[part] = number
    return half


def _thinned(have: int, lack: int, share: float) -> tuple[int, int]:
    """How many of either group stay, so that the share is reached with as many rows as possible."""
    if share * (have + lack) <= have:
        return (round(share / (1 - share) * lack), lack) if share < 1 else (have, 0)
    return have, round((1 - share) / share * have)


def _round_to(n: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers nearest to n·shares that sum to n (largest remainders)."""
    exact = n * shares
    whole = np.floor(exact + 1e-9).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: n - whole.sum()]] += 1
    return whole
