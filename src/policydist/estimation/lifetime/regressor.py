"""What every lifetime-value estimator shares: columns in, one training loop, laws out, a file that keeps it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor

from policydist.errors import PolicydistError
from policydist.estimation.lifetime import saving
from policydist.estimation.lifetime.columns import Categorical, Outcome, Survey, check_outcomes, split_columns
from policydist.estimation.lifetime.law import LifetimeLaw
from policydist.estimation.lifetime.metrics import lifetime_metrics, norm_gini
from policydist.estimation.lifetime.network import LifetimeNetwork, Stack, Trunk
from policydist.estimation.lifetime.stream import Batch, ParquetSource, batch_of, memory_batches, survey_of

Floats = NDArray[np.float64]
Progress = Callable[[int, int, Mapping[str, float]], None]
Validation = tuple[Any, ArrayLike]

LOOKS = 20  # how often history_ is written
_MONITOR_ROWS = 2048
_PREDICT_ROWS = 16_384


class Step(NamedTuple):
    """What a loss is told besides the network's outputs: which step of how many, and where its noise comes from."""

    number: int
    total: int
    generator: torch.Generator | None


class LifetimeRegressor(RegressorMixin, BaseEstimator, ABC):
    """Base of the estimators in ``estimation.methods.optdist``; see there for the parameters."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden": ["array-like"],
        "trunk_hidden": ["array-like"],
        "categorical": [StrOptions({"auto"}), "array-like", None],
        "min_frequency": [Interval(Integral, 1, None, closed="left")],
        "embedding_dim": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "start": [StrOptions({"data", "zero"})],
        "cap": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
        "device": [str],
    }
    n_outputs: ClassVar[int] = 3

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        trunk_hidden: Sequence[int] = (),
        categorical: Categorical = "auto",
        min_frequency: int = 1,
        embedding_dim: int = 5,
        learning_rate: float = 3e-3,
        batch_size: int = 256,
        max_steps: int = 1200,
        weight_decay: float = 0.0,
        start: Literal["data", "zero"] = "data",
        cap: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
    ) -> None:
        self.hidden = hidden
        self.trunk_hidden = trunk_hidden
        self.categorical = categorical
        self.min_frequency = min_frequency
        self.embedding_dim = embedding_dim
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.weight_decay = weight_decay
        self.start = start
        self.cap = cap
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # score ranks; scikit-learn's checks expect R² above one half
        tags.target_tags.positive_only = True
        return tags

    # --- what a subclass says ---------------------------------------------------------------------------------------

    def _experts(self) -> int:
        return 1

    def _selector_sizes(self) -> Sequence[int] | None:
        """Hidden sizes of the selector network; None for a model without one."""
        return None

    def _start(self, outcome: Outcome) -> Tensor:
        """Starting bias of the experts' last layer, broadcast to (L, P): the law of all outcomes taken together."""
        share = min(max(outcome.positive_share, 0.5 / outcome.rows), 1 - 0.5 / outcome.rows)
        spread = max(outcome.log_spread, 1e-2)
        return torch.tensor([np.log(share / (1 - share)), outcome.log_mean, np.log(np.expm1(spread))])

    @abstractmethod
    def _loss(
        self, raw: Tensor, log_alpha: Tensor, y: Tensor, weight: Tensor, step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean loss and its parts."""

    @abstractmethod
    def _means(self, X: Any) -> Floats:
        """E[y] of every row, before any cap."""

    def _diagnostics(self, raw: Tensor, log_alpha: Tensor, y: Tensor) -> dict[str, float]:
        """More numbers for ``history_``, on the monitored rows."""
        return {}

    # --- fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from X (n, d), a DataFrame or an array, and outcomes y (n,) of at least zero.

        ``validation``: (X, y) on which ``history_`` watches, by default the first 2,048 training rows; it decides
        nothing. ``progress(step, steps, numbers)`` is called with each row of ``history_``.

        Raises:
            ValueError: NaN or infinity, negative outcomes, no positive outcome; the column or row is named.
            PolicydistError: the loss stopped being finite; the step is named.
        """
        self._validate_params()
        frame, outcome = self._table(X, y)
        weights = _check_sample_weight(sample_weight, frame, dtype=np.float64, ensure_non_negative=True)
        survey = Survey(*split_columns(frame, self.categorical))
        survey.add(frame, outcome, weights)
        generator = self._build(survey)
        rows = batch_of(self.encoder_, frame, outcome, weights, self.outcome_.mean_weight)
        monitor = self._monitor(validation, rows)
        device = self._device()
        batches = memory_batches(rows.to(device), self.batch_size, generator)
        return self._train(batches, monitor, generator, device, progress)

    def fit_parquet(
        self,
        path: str | Path,
        target: str,
        *,
        sample_weight: str | None = None,
        drop: Sequence[str] = (),
        row_groups: Sequence[int] | None = None,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from a Parquet file in pieces of 65,536 rows: one pass for statistics, then ``max_steps`` minibatches.

        All columns but ``target``, the weight column and those in ``drop`` are features. Row groups come in a new
        order every epoch, rows are shuffled among 262,144. Other arguments and errors as in ``fit``; a wrong path or
        column raises UsageError.
        """
        self._validate_params()
        source = ParquetSource.open(Path(path), target, sample_weight, drop, row_groups)
        first, outcome, weights = next(source.chunks())
        validate_data(self, first, skip_check_array=True)
        self.columns_ = list(first.columns)
        survey = Survey(*split_columns(first, self.categorical))
        survey_of(source, survey)
        generator = self._build(survey)
        mean_weight = self.outcome_.mean_weight
        head = min(_MONITOR_ROWS, len(first))
        watched = batch_of(self.encoder_, first[:head], outcome[:head], weights[:head], mean_weight)
        size = min(self.batch_size, self.outcome_.rows)
        device = self._device()
        batches = (b.to(device) for b in source.batches(self.encoder_, mean_weight, size, generator))
        return self._train(batches, self._monitor(validation, watched), generator, device, progress)

    def _table(self, X: Any, y: ArrayLike | None = None, reset: bool = True) -> Any:
        """X as a DataFrame with the columns' names of ``fit``, alone or with y, checked as scikit-learn does."""
        outcome = None
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if len(X) == 0 or X.shape[1] == 0:
                raise ValueError(f"X has shape {X.shape}: there must be at least one row and one column")
            frame = X.reset_index(drop=True)
            if y is not None:
                outcome = check_array(
                    column_or_1d(y, warn=True), ensure_2d=False, ensure_all_finite=False, dtype=np.float64
                )
                check_consistent_length(X, outcome)
        elif y is None and not reset:
            frame = pd.DataFrame(validate_data(self, X, dtype=np.float64, reset=False))
        else:
            features, outcome = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=reset)
            frame = pd.DataFrame(features)
        if not reset:  # scikit-learn only warns where one of fit and predict had names: then columns go by position
            frame.columns = pd.Index(self.columns_)
        else:
            self.columns_ = list(frame.columns)
        return frame if outcome is None else (frame, check_outcomes(np.asarray(outcome, dtype=np.float64)))

    def _build(self, survey: Survey) -> torch.Generator:
        """Encoder, outcome statistics and a fresh network; returns the generator that goes on to draw minibatches."""
        self.encoder_, self.outcome_ = survey.finish(self.min_frequency)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        self.network_ = self._network(generator)
        if self.start == "data":
            with torch.no_grad():
                self.network_.experts.biases[-1].copy_(self._start(self.outcome_).expand(self._experts(), 1, -1))
        return generator

    def _network(self, generator: torch.Generator) -> LifetimeNetwork:
        sizes = [len(count) for count in self.encoder_.counts]
        shape = (len(self.encoder_.numeric), sizes, self.embedding_dim, list(self.trunk_hidden), generator)
        trunk = Trunk(*shape)
        experts = Stack(self._experts(), [trunk.width, *self.hidden, self.n_outputs], generator)
        hidden = self._selector_sizes()
        if hidden is None:
            return LifetimeNetwork(trunk, experts)
        own = Trunk(*shape) if getattr(self, "separate_trunk", False) else None
        return LifetimeNetwork(trunk, experts, Stack(1, [trunk.width, *hidden, self._experts()], generator), own)

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def _monitor(self, validation: Validation | None, rows: Batch) -> Batch:
        if validation is None:
            return rows.take(torch.arange(min(_MONITOR_ROWS, len(rows))))
        frame, y = self._table(*validation, reset=False)
        return batch_of(self.encoder_, frame, y, np.ones(len(y)), 1.0)

    def _train(
        self,
        batches: Iterator[Batch],
        monitor: Batch,
        generator: torch.Generator,
        device: torch.device,
        progress: Progress | None,
    ) -> Self:
        network, monitor = self.network_.to(device), monitor.to(device)
        noise = torch.Generator(device).manual_seed(generator.initial_seed())
        optimizer = torch.optim.Adam(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        curve, self.history_ = np.empty(self.max_steps), []
        every = max(1, self.max_steps // LOOKS)
        for number in range(self.max_steps):
            if number == int(0.7 * self.max_steps):
                optimizer.param_groups[0]["lr"] = 0.2 * self.learning_rate
            rows, step = next(batches), Step(number, self.max_steps, noise)
            raw, log_alpha = network(rows.x, rows.codes)
            loss, _ = self._loss(raw, log_alpha, rows.y, rows.weight, step)
            curve[number] = loss.item()
            if not np.isfinite(curve[number]):
                raise PolicydistError(
                    f"the loss of {type(self).__name__} became {curve[number]} at step {number}: lower learning_rate "
                    f"(now {self.learning_rate:g})"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (number + 1) % every == 0 or number + 1 == self.max_steps:
                self.history_.append({"step": number + 1, **self._look(monitor, step)})
                if progress is not None:
                    progress(number + 1, self.max_steps, self.history_[-1])
        network.average_unseen(self.encoder_.counts)
        self.network_ = network.cpu().double().eval()  # float64: a row's prediction must not depend on its batch
        self.loss_curve_ = curve
        return self

    @torch.no_grad()
    def _look(self, monitor: Batch, step: Step) -> dict[str, float]:
        """One row of ``history_``: losses without selection noise, and what the subclass watches."""
        raw, log_alpha = self.network_(monitor.x, monitor.codes)
        loss, parts = self._loss(raw, log_alpha, monitor.y, monitor.weight, step._replace(generator=None))
        return {
            "loss": loss.item(),
            **{name: part.item() for name, part in parts.items()},
            **self._diagnostics(raw, log_alpha, monitor.y),
        }

    # --- predicting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _outputs(self, X: Any) -> list[tuple[Tensor, Tensor]]:
        """The network's outputs, in pieces of rows."""
        check_is_fitted(self, "network_")
        x, codes = self.encoder_.encode(self._table(X, reset=False))
        pieces = [slice(start, start + _PREDICT_ROWS) for start in range(0, len(x), _PREDICT_ROWS)]
        return [self.network_(torch.from_numpy(x[p]).double(), torch.from_numpy(codes[p])) for p in pieces]

    def predict(self, X: Any) -> Floats:
        """E[y] of every row, in the units of y; at most ``cap`` times the largest training outcome if cap is set.

        Without a cap, a warning says when a mean lies beyond ten times the largest training outcome: the exponential
        of a fitted variance has then run away.
        """
        return self._capped(self._means(X))

    def _capped(self, mean: Floats) -> Floats:
        largest = self.outcome_.largest
        if self.cap is not None:
            return np.minimum(mean, self.cap * largest)
        beyond = mean > 10.0 * largest
        if beyond.any():
            warnings.warn(
                f"{int(beyond.sum())} of {len(mean)} predicted means exceed ten times the largest training outcome "
                f"({largest:g}): set cap, or look at medians from predict_distribution",
                UserWarning,
                stacklevel=3,
            )
        return mean

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Norm-GINI of the predictions: 1 for a perfect ranking, about 0 for a random one. See ``evaluate`` for more."""
        return norm_gini(self._table(X, y, reset=False)[1], self.predict(X), sample_weight)

    def evaluate(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> dict[str, float]:
        """MAE, Norm-GINI and Spearman (all rows; positive rows), calibration; with a law also the mean −ln p, ``nll``."""
        return lifetime_metrics(self._table(X, y, reset=False)[1], self.predict(X), sample_weight)

    # --- keeping ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write parameters, columns and weights to one safetensors file, whole."""
        check_is_fitted(self, "network_")
        saving.write(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator that ``save`` wrote: predictions are the same to the last bit.

        Raises:
            UsageError: no such file, not one of ours, or another estimator's.
        """
        return saving.read(Path(path), cls)


class LawRegressor(LifetimeRegressor):
    """A lifetime-value estimator whose prediction is a zero-inflated log-normal law, or a mixture of several."""

    def _components(self, raw: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Raw law parameters (n, K, 3) and component weights (n, K) of a prediction: all experts, weighted by alpha."""
        return raw, log_alpha.exp()

    def predict_distribution(self, X: Any) -> LifetimeLaw:
        """The law of every row: quantiles, P(zero), log-probabilities, samples, the expert chosen."""
        return self._law(X, self._components)

    @torch.no_grad()
    def _law(self, X: Any, components: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> LifetimeLaw:
        found = [(*components(raw, log_alpha), log_alpha.exp()) for raw, log_alpha in self._outputs(X)]
        raw, weight, alpha = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        return LifetimeLaw(raw, weight, alpha, alpha.argmax(axis=1))

    def _means(self, X: Any) -> Floats:
        return self.predict_distribution(X).mean

    def evaluate(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> dict[str, float]:
        """As in the base class, with ``nll``, the mean of −ln p in nats."""
        outcome = self._table(X, y, reset=False)[1]
        law = self.predict_distribution(X)
        return lifetime_metrics(outcome, self._capped(law.mean), sample_weight, law.log_prob(outcome))
