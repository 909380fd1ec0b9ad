"""IntegerRegressor: a small network with an integer-valued law as its output, as a scikit-learn estimator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from policydist.errors import PolicydistError
from policydist.estimation.integer.base import IntegerDistribution
from policydist.estimation.integer.heads import HEADS, IntegerHead, make_head

_LN2 = math.log(2.0)


class IntegerRegressor(RegressorMixin, BaseEstimator):
    """Probabilistic regression on whole numbers (arXiv 2602.10751).

    A tanh network maps the features to the parameters of a law over integers, fitted by maximum likelihood with Adam;
    the learning rate drops to a fifth for the last 30 % of the steps. Features are standardised inside.

    Parameters
    ----------
    head : one of ``dalap``, ``discretized_laplace``, ``discretized_normal``, ``danorm``, ``discrete_weibull``,
        ``poisson``, ``negative_binomial``, ``bitwise``.
    components : number of mixture components K.
    lower, upper : truncate the law to this range of integers; ``None`` leaves an end open.
    bits, signed : only for ``bitwise``: magnitude bits (default: one more than the largest target needs) and ``none``,
        ``signmag`` or ``twos`` (default: ``signmag`` if a target is negative).
    spread_start : only for heads with a location: ``data`` starts the spreads at the targets' distances from the
        starting locations, ``unit`` at 0.69 (median |y| + 1).
    hidden : sizes of the hidden layers.
    learning_rate, batch_size, max_steps, weight_decay : of Adam.
    random_state : int, ``RandomState`` or ``None``: initial weights and minibatches.
    device : ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, …

    Attributes
    ----------
    head_ : the head with its data-derived scale and bits. network_ : the trained ``torch.nn.Module``.
    loss_curve_ : training loss in bits, one number a step. n_features_in_, feature_names_in_ : as in scikit-learn.

    Notes
    -----
    ``score`` is the mean log₂-probability per target, in bits: higher is better and it is at most zero. Use
    ``sklearn.metrics`` on ``predict`` for RMSE or R².
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "head": [StrOptions(set(HEADS))],
        "components": [Interval(Integral, 1, None, closed="left")],
        "lower": [Integral, None],
        "upper": [Integral, None],
        "bits": [Interval(Integral, 1, 61, closed="both"), None],
        "signed": [StrOptions({"none", "signmag", "twos"}), None],
        "spread_start": [StrOptions({"data", "unit"})],
        "hidden": ["array-like"],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "device": [str],
    }

    def __init__(
        self,
        head: str = "dalap",
        *,
        components: int = 1,
        lower: int | None = None,
        upper: int | None = None,
        bits: int | None = None,
        signed: Literal["none", "signmag", "twos"] | None = None,
        spread_start: Literal["data", "unit"] = "data",
        hidden: tuple[int, ...] = (64, 64),
        learning_rate: float = 5e-3,
        batch_size: int = 256,
        max_steps: int = 600,
        weight_decay: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
    ) -> None:
        self.head = head
        self.components = components
        self.lower = lower
        self.upper = upper
        self.bits = bits
        self.signed = signed
        self.spread_start = spread_start
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # score is minus bits per target, never above zero
        tags.target_tags.positive_only = self.head in HEADS and HEADS[self.head].counts_only
        return tags

    def plain_head(self) -> IntegerHead:
        """The head that the parameters describe, before it has seen targets."""
        return make_head(
            self.head, self.components, self.lower, self.upper,
            bits=self.bits, signed=self.signed, spread_start=self.spread_start,
        )  # fmt: skip

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        on_step: Callable[[int, float], None] | None = None,
    ) -> Self:
        """Learn from X (n, d) and whole-number targets y (n,); rows with weight zero count for nothing.

        ``on_step`` is called after every step with the number of steps done and the loss in bits.
        """
        self._validate_params()
        features, outcome = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        targets = whole_numbers(outcome)
        weights = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        used = weights > 0
        features, targets, weights = features[used], targets[used], weights[used]
        self.head_ = self.plain_head().fitted(targets)
        check_range(targets, self.head_, self.head)
        self.centre_, spread = features.mean(axis=0), features.std(axis=0)
        self.spread_ = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(self.centre_)), spread, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        self.network_ = layers([features.shape[1], *self.hidden, self.head_.n_outputs])
        initialise(self.network_, self.head_, targets, generator)
        data = self._inputs(features).float(), torch.as_tensor(targets), torch.as_tensor(weights).float()
        self._train(*data, generator, on_step)
        return self

    def _inputs(self, X: NDArray[np.float64]) -> Tensor:
        return torch.as_tensor((X - self.centre_) / self.spread_)

    def _train(
        self, x: Tensor, y: Tensor, weights: Tensor, generator: torch.Generator,
        on_step: Callable[[int, float], None] | None,
    ) -> None:  # fmt: skip
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        network = self.network_.to(device)
        x, y, weights = x.to(device), y.to(device), (weights / weights.mean()).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        size, curve = min(self.batch_size, len(x)), []
        for step in range(self.max_steps):
            if step == int(0.7 * self.max_steps):
                optimizer.param_groups[0]["lr"] = 0.2 * self.learning_rate
            rows = torch.randint(len(x), (size,), generator=generator).to(device)
            law = self.head_.distribution(network(x[rows]))
            loss = -(weights[rows] * law.log_prob(y[rows])).mean() / _LN2
            if not bool(torch.isfinite(loss)):
                raise PolicydistError(
                    f"the loss of head {self.head!r} became {loss.item()} at step {step}: lower learning_rate "
                    f"(now {self.learning_rate:g}) or choose a head that fits the spread of the targets"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
            if on_step:
                on_step(step + 1, curve[-1])
        self.network_ = network.cpu().double().eval()  # float64: a row's prediction must not depend on its batch
        self.loss_curve_ = np.asarray(curve)

    @torch.no_grad()
    def predict_distribution(self, X: ArrayLike) -> IntegerDistribution:
        """The predicted law of every row: a ``torch.distributions`` object of batch shape (n,)."""
        check_is_fitted(self, "network_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        law = self.head_.distribution(self.network_(self._inputs(features)))
        law._validate_args = True
        return law

    def predict(self, X: ArrayLike, statistic: Literal["mean", "mode", "median"] = "mean") -> NDArray[np.float64]:
        """The mean (default: best for RMSE; not a whole number), the mode or the median of each row's law."""
        law = self.predict_distribution(X)
        if statistic == "mean":
            return np.asarray(law.mean.double().numpy())
        if statistic == "mode":
            return np.asarray(law.mode.double().numpy())
        if statistic == "median":
            return np.asarray(law.icdf(torch.tensor(0.5)).double().numpy())
        raise ValueError(f"statistic must be 'mean', 'mode' or 'median', got {statistic!r}")

    def predict_quantiles(self, X: ArrayLike, levels: ArrayLike) -> NDArray[np.int64]:
        """Quantiles of each row's law, shape (n, len(levels)); levels strictly between 0 and 1."""
        asked = np.atleast_1d(np.asarray(levels, dtype=np.float64))
        if not ((asked > 0) & (asked < 1)).all():
            raise ValueError("levels must lie strictly between 0 and 1")
        law = self.predict_distribution(X)
        columns = [law.icdf(torch.tensor(float(level))).numpy() for level in asked]
        return np.stack(columns, axis=1)

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Mean log₂-probability of y, in bits per target: at most 0, higher is better; y outside the range raises."""
        check_is_fitted(self, "network_")
        _, outcome = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=False)
        targets = whole_numbers(outcome)
        check_range(targets, self.head_, self.head)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        with torch.no_grad():
            logs = self.predict_distribution(X).log_prob(torch.as_tensor(targets)).double().numpy() / _LN2
        return float(np.average(logs, weights=weights))


def whole_numbers(y: NDArray[Any]) -> NDArray[np.int64]:
    """Targets as int64; the first one that is not a whole number, or too large for one, is named."""
    values = np.asarray(y)
    if values.dtype.kind == "f":
        broken = np.flatnonzero((values != np.floor(values)) | (np.abs(values) >= 2.0**62))
        if len(broken):
            row = broken[0]
            raise ValueError(
                f"y must hold whole numbers of at most 62 bits, but y[{row}] is {values[row]}: round the targets first "
                "(y.round().astype(int)) or use a continuous regressor"
            )
    return values.astype(np.int64)


def check_range(y: NDArray[np.int64], head: IntegerHead, name: str) -> None:
    """Raise for the first target to which the head gives probability zero."""
    low, high = head.bounds()
    outside = np.zeros(len(y), dtype=bool)
    if low is not None:
        outside |= y < low
    if high is not None:
        outside |= y > high
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        left, right = "(-inf" if low is None else f"[{low}", "inf)" if high is None else f"{high}]"
        mend = "raise bits" if name == "bitwise" and high is not None and y[row] > high else "widen lower/upper"
        other = "use a two-sided head such as dalap" if low == 0 and y[row] < 0 else mend
        raise ValueError(f"head {name!r} covers {left}, {right}, but y[{row}] is {y[row]}: {other}")


def layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them."""
    linears = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]
    between: list[nn.Module] = [part for linear in linears[:-1] for part in (linear, nn.Tanh())]
    return nn.Sequential(*between, linears[-1])


def initialise(network: nn.Sequential, head: IntegerHead, y: NDArray[np.int64], generator: torch.Generator) -> None:
    """Glorot weights; the last layer starts small and at the head's starting bias."""
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    for linear in linears:
        nn.init.xavier_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linears[-1].weight.mul_(0.1)
        linears[-1].bias.copy_(head.starting_bias(y, generator))
