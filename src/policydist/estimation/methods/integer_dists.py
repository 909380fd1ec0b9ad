"""Predicting integers from continuous parameters (arXiv 2602.10751): what the paper adds, under one name.

The paper's contribution is which *discrete* laws a network with continuous outputs should use: ``Dalap``, ``Danorm``
and ``Bitwise``, against ``DiscretizedLaplace``, ``DiscretizedNormal``, ``DiscreteWeibull`` and the count baselines.
``IntegerRegressor`` fits any of them; ``make_head`` gives the same heads to a network of your own, and
``integer_nll`` is its loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from policydist.errors import UsageError, nearest
from policydist.estimation.frames import numeric, read_frame, refusals, write_frame
from policydist.estimation.integer import (
    Bitwise,
    Dalap,
    Danorm,
    DiscreteWeibull,
    DiscretizedLaplace,
    DiscretizedNormal,
    IntegerDistribution,
    IntegerMixture,
    NegativeBinomialInt,
    PoissonInt,
    Truncated,
)
from policydist.estimation.integer.heads import HEADS, IntegerHead, make_head
from policydist.estimation.integer.regressor import IntegerRegressor, check_range, whole_numbers
from policydist.estimation.integer.saving import load_model, save_model
from policydist.estimation.methods import Progress
from policydist.runs.directory import Run, write_whole
from policydist.runs.seeds import numpy_generator

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "HEADS",
    "Bitwise",
    "Dalap",
    "Danorm",
    "DiscreteWeibull",
    "DiscretizedLaplace",
    "DiscretizedNormal",
    "IntegerDistribution",
    "IntegerHead",
    "IntegerMixture",
    "IntegerRegressor",
    "NegativeBinomialInt",
    "PoissonInt",
    "Truncated",
    "integer_nll",
    "load_model",
    "make_head",
    "save_model",
]


def integer_nll(
    head: IntegerHead,
    raw: Float[Tensor, "*s P"],
    target: Shaped[Tensor, "*s"],
    reduction: Literal["mean", "sum", "none"] = "mean",
    base: float = 2.0,
) -> Tensor:
    """−log p(target) under ``head.distribution(raw)``: bits for base 2, nats for base e.

    Raises ValueError if a target lies outside the head's range: it is never clipped.
    """
    law = head.distribution(raw)
    law._validate_sample(target)
    loss = -law.log_prob(target) / math.log(base)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


@dataclass(frozen=True)
class Config:
    """A table with one row a case: a column of whole numbers to predict and numeric features."""

    target: str = "y"
    """Column of whole numbers to predict."""
    features: tuple[str, ...] | None = None
    """Feature columns; null: all columns but the target."""
    head: str = "dalap"
    """The law: dalap, discretized_laplace, discretized_normal, danorm, discrete_weibull, poisson, … or bitwise."""
    components: int = 1
    """Mixture components."""
    lower: int | None = None
    """Truncate the law below; null leaves the end open."""
    upper: int | None = None
    """Truncate the law above."""
    bits: int | None = None
    """bitwise only: bits of magnitude; null: one more than the largest target needs."""
    signed: Literal["none", "signmag", "twos"] | None = None
    """bitwise only; null: signmag if a target is negative."""
    spread_start: Literal["data", "unit"] = "data"
    """Where the spreads of a head with a location start."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers."""
    learning_rate: float = 5e-3
    """Of Adam; a fifth of it for the last 30 % of the steps."""
    batch_size: int = 256
    """Rows a step."""
    max_steps: int = 600
    """Training steps."""
    weight_decay: float = 0.0
    """Of Adam."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, …"""
    test_fraction: float = 0.2
    """Share of the rows, drawn at random, that is kept for the metrics and predictions."""
    seed: int = 0
    """Of split, initial weights, minibatches and made data."""

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, got {self.test_fraction}")

    def estimator(self) -> IntegerRegressor:
        """The `IntegerRegressor` that these knobs describe."""
        return IntegerRegressor(
            self.head, components=self.components, lower=self.lower, upper=self.upper, bits=self.bits,
            signed=self.signed, spread_start=self.spread_start, hidden=self.hidden, learning_rate=self.learning_rate,
            batch_size=self.batch_size, max_steps=self.max_steps, weight_decay=self.weight_decay,
            random_state=self.seed, device=self.device,
        )  # fmt: skip


def train(config: Config, data: Path | None, run: Run, progress: Progress) -> dict[str, float]:
    """Fits on a share of the rows and writes model/, predictions.csv (of the other rows) and summary.txt.

    Returns bits (−log₂ p, mean over test rows), the same on training rows, RMSE of the mean, mean absolute error of the
    median, and the share of targets inside the predicted 5–95 % range.

    Raises:
        UsageError: the data cannot be read, lacks a column, or holds a target outside the head's range.
    """
    columns = None if config.features is None else [*config.features, config.target]
    frame = made_table(config) if data is None else read_frame(data, columns)
    if config.target not in frame:
        raise UsageError(f"{data} has no column {config.target!r}: {nearest(config.target, frame.columns)}")
    names = list(config.features or frame.columns.drop(config.target))
    features = numeric(frame, names)
    order = numpy_generator(config.seed, "integer_dists", "split").permutation(len(frame))
    kept = max(1, round(config.test_fraction * len(frame)))
    test, fitted = np.sort(order[:kept]), np.sort(order[kept:])
    model = config.estimator()

    def on_step(done: int, bits: float) -> None:
        if done == 1 or done % max(1, config.max_steps // 40) == 0:
            progress(done, config.max_steps, {"train_bits": bits})

    with refusals():
        targets = whole_numbers(numeric(frame, [config.target])[config.target].to_numpy())
        if not len(fitted):
            raise UsageError(f"{len(frame)} rows leave none to fit with test_fraction {config.test_fraction}")
        check_range(targets, model.plain_head().fitted(targets[fitted]), config.head)
        model.fit(features.iloc[fitted], targets[fitted], on_step=on_step)
    save_model(model, run.path / "model")
    table = predictions(model, features.iloc[test], targets[test], config.target)
    write_frame(run.path / "predictions.csv", table)
    error = targets[test] - table["mean"]
    inside = (table["low"] <= targets[test]) & (targets[test] <= table["high"])
    numbers = {
        "bits": float(table["bits"].mean()),
        "train_bits": -model.score(features.iloc[fitted], targets[fitted]),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "median_error": float(np.mean(np.abs(targets[test] - table["median"]))),
        "inside_90": float(inside.mean()),
        "rows": float(len(fitted)),
        "test_rows": float(len(test)),
    }
    lines = [f"{name:<14}{value:.4g}" for name, value in numbers.items()]
    write_whole(
        run.path / "summary.txt", "\n".join([f"head          {config.head} x {config.components}", *lines]) + "\n"
    )
    return numbers


def predictions(model: IntegerRegressor, X: pd.DataFrame, y: NDArray[np.int64], target: str) -> pd.DataFrame:
    """One row a case: its row in the table, target, mean, median, 5 and 95 % quantile, and bits of the target."""
    import pandas as pd

    low, median, high = model.predict_quantiles(X, [0.05, 0.5, 0.95]).T
    logs = model.predict_distribution(X).log_prob(torch.as_tensor(y)).numpy()
    mean = model.predict(X)
    columns = {"row": X.index, target: y, "mean": mean, "median": median, "low": low, "high": high}
    return pd.DataFrame({**columns, "bits": -logs / math.log(2)})


def made_table(config: Config) -> pd.DataFrame:
    """3,000 rows of four features x1 … x4; the target is a rounded Laplace whose centre and spread both depend on them."""
    import pandas as pd

    rng = numpy_generator(config.seed, "integer_dists", "made")
    x = rng.standard_normal((3000, 4))
    centre, spread = 20.0 * np.tanh(x[:, 0]) + 5.0 * x[:, 1], np.exp(1.0 + 0.5 * x[:, 2])
    table = pd.DataFrame(x, columns=[f"x{k}" for k in range(1, 5)])
    table[config.target] = np.rint(rng.laplace(centre, spread)).astype(np.int64)
    return table
