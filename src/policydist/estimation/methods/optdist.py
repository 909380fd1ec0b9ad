"""OptDist (arXiv 2408.08585): a hard choice among zero-inflated log-normal experts, taught which of them fits each row.

What the paper adds stands in ``OptDistRegressor._loss`` and ``_components``: experts are weighted by Gumbel-softmax draws
in training, a selector is aligned with the expert whose loss is least, and a prediction comes from the most probable expert
alone. The baselines are ``ZILNRegressor``, ``TwoStageRegressor``, ``MSERegressor`` and ``SoftMixtureRegressor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from policydist.errors import UsageError
from policydist.estimation.frames import refusals
from policydist.estimation.lifetime.baselines import (
    ExpertsRegressor,
    MSERegressor,
    SoftMixtureRegressor,
    TwoStageRegressor,
    ZILNRegressor,
)
from policydist.estimation.lifetime.columns import Categorical
from policydist.estimation.lifetime.law import LifetimeLaw
from policydist.estimation.lifetime.metrics import (
    calibration,
    lifetime_metrics,
    lift_table,
    norm_gini,
    plot_lift,
    spearman,
)
from policydist.estimation.lifetime.regressor import Progress, Step
from policydist.estimation.lifetime.segments import segments
from policydist.functional.lifetime import (
    alignment_kl,
    focal_cross_entropy,
    gumbel_log_softmax,
    gumbel_noise,
    pseudo_labels,
    ziln_nll,
)
from policydist.runs.seeds import derive

if TYPE_CHECKING:
    from policydist.runs.directory import Run

__all__ = [
    "DIFFERENCES",
    "Config",
    "LifetimeLaw",
    "MSERegressor",
    "OptDistRegressor",
    "SoftMixtureRegressor",
    "TwoStageRegressor",
    "ZILNRegressor",
    "calibration",
    "lifetime_metrics",
    "lift_table",
    "norm_gini",
    "plot_lift",
    "segments",
    "spearman",
    "train",
]

DIFFERENCES = (
    "No official code was found and the full text was not available: structure, pseudo-labels, focal loss and divergence "
    "follow a published note; gamma, lambda, tau, widths, optimiser and start are reconstructed.",
    "The total loss is sum_i pi_i L_i plus the alignment. The note lists the likelihood of sum_i pi_i y_i, which is not one; "
    "main=param_mix is the nearest that is.",
    "Labels carry no gradient; otherwise the selector's loss would move the experts.",
    "The noise-free alpha is aligned; the note writes the noisy pi (align_on=pi).",
)
"""Where this leaves the paper, or fills what is not known of it."""


class OptDistRegressor(ExpertsRegressor):
    """Customer lifetime value by a hard mixture of zero-inflated log-normal experts (arXiv 2408.08585).

    With L_i the negative log-likelihood of a row under expert i, α the selector's softmax and π a Gumbel-softmax draw
    from it, the loss is the mean over rows of

        Σ_i π_i L_i + focal_weight FocalCE(α, argmin_i L_i) + lam KL(α ‖ softmax(−L)),

    the labels without gradient. The prediction is the mean of the law of expert argmax α alone.

    Parameters
    ----------
    n_experts : number of experts L; the paper finds 4 to 5 best and more than 6 worse.
    hidden : hidden layers of every expert. selector_hidden : of the selector.
    trunk_hidden : layers shared by experts and selector after the embeddings; none by default.
    separate_trunk : give the selector embeddings and trunk of its own.
    tau, tau_end : temperature of the Gumbel-softmax, and the one it falls to linearly (None: constant).
    gamma : exponent of the focal loss. focal_weight, lam : weights of the two alignment losses; both 0: no alignment.
    main : ``weighted``, or ``param_mix``, the likelihood at Σ_i π_i (raw outputs of expert i), a different model.
    align_on : what is aligned: ``alpha``, or the noisy ``pi``.
    categorical : ``auto`` (columns of a DataFrame that are not numbers), names or positions, or None.
    min_frequency : categories with fewer rows share one embedding, which unseen ones get too. embedding_dim : its size.
    learning_rate, batch_size, max_steps, weight_decay : of Adam; a fifth of the rate for the last 30 % of the steps.
    start : the experts' last biases start at the law of all outcomes together (``data``), or at ``zero``.
    cap : predictions are at most this many times the largest training outcome; None: never cut.
    random_state : int, ``RandomState`` or None: weights, minibatches, selection noise.
    device : ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, …

    Attributes
    ----------
    history_ : list of dicts, twenty over the training: losses (without noise), ``usage_i``, ``effective_experts``
        (exp of the entropy of usage), ``agreement`` (argmax α is the expert of least loss), ``sigma_i``,
        ``above_largest`` (share of means above the largest training outcome). loss_curve_ : one number a step.
    network_, encoder_, outcome_ : the network, the columns' encoder, statistics of the outcomes.
    n_features_in_, feature_names_in_ : as in scikit-learn.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ExpertsRegressor._parameter_constraints,
        "tau": [Interval(Real, 0, None, closed="neither")],
        "tau_end": [Interval(Real, 0, None, closed="neither"), None],
        "gamma": [Interval(Real, 0, None, closed="left")],
        "focal_weight": [Interval(Real, 0, None, closed="left")],
        "lam": [Interval(Real, 0, None, closed="left")],
        "main": [StrOptions({"weighted", "param_mix"})],
        "align_on": [StrOptions({"alpha", "pi"})],
    }

    def __init__(
        self,
        n_experts: int = 4,
        *,
        hidden: Sequence[int] = (64, 32),
        selector_hidden: Sequence[int] = (64,),
        trunk_hidden: Sequence[int] = (),
        separate_trunk: bool = False,
        tau: float = 0.5,
        tau_end: float | None = None,
        gamma: float = 2.0,
        focal_weight: float = 1.0,
        lam: float = 1.0,
        main: Literal["weighted", "param_mix"] = "weighted",
        align_on: Literal["alpha", "pi"] = "alpha",
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
        super().__init__(
            n_experts, hidden=hidden, selector_hidden=selector_hidden, trunk_hidden=trunk_hidden,
            separate_trunk=separate_trunk, categorical=categorical, min_frequency=min_frequency,
            embedding_dim=embedding_dim, learning_rate=learning_rate, batch_size=batch_size, max_steps=max_steps,
            weight_decay=weight_decay, start=start, cap=cap, random_state=random_state, device=device,
        )  # fmt: skip
        self.tau = tau
        self.tau_end = tau_end
        self.gamma = gamma
        self.focal_weight = focal_weight
        self.lam = lam
        self.main = main
        self.align_on = align_on

    def _loss(
        self, raw: Tensor, log_alpha: Tensor, y: Tensor, weight: Tensor, step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = ziln_nll(raw, y.unsqueeze(1))
        hard, log_soft = pseudo_labels(losses)
        log_pi = self._selection(log_alpha, step)
        if self.main == "weighted":
            main = (log_pi.exp() * losses).sum(1)
        else:
            main = ziln_nll((log_pi.exp().unsqueeze(-1) * raw).sum(1), y)
        log_q = log_alpha if self.align_on == "alpha" else log_pi
        focal, kl = focal_cross_entropy(log_q, hard, self.gamma), alignment_kl(log_q, log_soft)
        parts = {name: (weight * part).mean() for name, part in (("main", main), ("focal", focal), ("kl", kl))}
        return parts["main"] + self.focal_weight * parts["focal"] + self.lam * parts["kl"], parts

    def _selection(self, log_alpha: Tensor, step: Step) -> Tensor:
        """ln π at the step's temperature; without a generator π = α, so that watched losses carry no noise."""
        if step.generator is None:
            return log_alpha
        end = self.tau if self.tau_end is None else self.tau_end
        tau = self.tau + (end - self.tau) * step.number / max(step.total - 1, 1)
        uniform = torch.rand(log_alpha.shape, generator=step.generator, device=log_alpha.device)
        return gumbel_log_softmax(log_alpha, tau, gumbel_noise(uniform))

    def _components(self, raw: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        chosen = log_alpha.argmax(1)
        return raw[torch.arange(len(raw)), chosen].unsqueeze(1), torch.ones_like(raw[:, :1, 0])

    def predict_distribution(self, X: Any, mode: Literal["selected", "mixture"] = "selected") -> LifetimeLaw:
        """The law of the chosen expert; ``mixture`` weights all experts by α instead, for analysis only."""
        if mode not in ("selected", "mixture"):
            raise ValueError(f"mode is {mode!r}; it must be 'selected' or 'mixture'")
        return self._law(X, self._components if mode == "selected" else super()._components)


@dataclass(frozen=True)
class Config:
    """One run of OptDist: which columns of the table are what, and the knobs of the estimator."""

    target: str = "value"
    """Column with the outcome: zero or positive."""
    categorical: tuple[str, ...] | None = None
    """Categorical columns; null: every column that does not hold numbers."""
    drop: tuple[str, ...] = ()
    """Columns that are not features, such as a customer's number."""
    weight: str | None = None
    """Column with sample weights."""
    holdout: float = 0.2
    """Share of rows (drawn at random; from a streamed file its last row groups) kept for the metrics."""
    stream: bool = False
    """Read a Parquet file in pieces instead of whole; it needs at least two row groups."""
    baseline: bool = True
    """Also fit one zero-inflated log-normal head, on the same rows with as many steps, and draw it beside."""
    n_experts: int = 4
    """Number of experts."""
    hidden: tuple[int, ...] = (64, 32)
    """Hidden layers of an expert."""
    selector_hidden: tuple[int, ...] = (64,)
    """Hidden layers of the selector."""
    trunk_hidden: tuple[int, ...] = ()
    """Layers that experts and selector share."""
    separate_trunk: bool = False
    """Give the selector embeddings and trunk of its own."""
    tau: float = 0.5
    """Temperature of the selection in training."""
    tau_end: float | None = None
    """Temperature at the end; null: constant."""
    gamma: float = 2.0
    """Exponent of the focal loss."""
    focal_weight: float = 1.0
    """Weight of the focal loss."""
    lam: float = 1.0
    """Weight of the divergence from the soft labels."""
    main: Literal["weighted", "param_mix"] = "weighted"
    """Experts' losses weighted by the selection, or the loss at weighted parameters."""
    align_on: Literal["alpha", "pi"] = "alpha"
    """Align the selector's probabilities, or the noisy selection."""
    min_frequency: int = 1
    """Categories with fewer rows share one embedding."""
    embedding_dim: int = 5
    """Size of an embedding."""
    learning_rate: float = 3e-3
    """Of Adam; a fifth of it for the last 30 % of the steps."""
    batch_size: int = 256
    """Rows a step."""
    max_steps: int = 1200
    """Steps."""
    weight_decay: float = 0.0
    """Of Adam."""
    start: Literal["data", "zero"] = "data"
    """Where the experts' last biases start."""
    cap: float | None = None
    """Largest prediction, in units of the largest training outcome; null: never cut."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    seed: int = 0
    """Of the split, the weights, the batches and the noise."""

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise UsageError(f"holdout is {self.holdout}; it must lie strictly between 0 and 1")


def train(config: Config, data: Path | None, run: Run, progress: Progress) -> dict[str, float]:
    """Fit on ``data`` (CSV, JSONL or Parquet; None: the made-up segments) and report on the rows held out.

    Writes ``model.safetensors``, ``metrics.csv`` (one column a model), ``predictions.csv``, ``lift.csv``, ``lift.png``.

    Raises:
        UsageError: what is wrong with the file, its columns or its values.
    """
    from policydist.estimation.lifetime.report import evaluate_run

    with refusals():
        return evaluate_run(config, _models(config), data, run, progress)


def _models(config: Config) -> dict[str, Any]:
    """The estimators of a run by name, OptDist first."""
    shared = {
        name: getattr(config, name)
        for name in (
            "hidden", "trunk_hidden", "min_frequency", "embedding_dim", "learning_rate", "batch_size", "max_steps",
            "weight_decay", "start", "cap", "device",
        )
    } | {"categorical": "auto" if config.categorical is None else config.categorical}  # fmt: skip
    shared["random_state"] = derive(config.seed, "optdist", "fit") % 2**31
    own = (
        "n_experts", "selector_hidden", "separate_trunk", "tau", "tau_end", "gamma", "focal_weight", "lam", "main",
        "align_on",
    )  # fmt: skip
    models: dict[str, Any] = {"optdist": OptDistRegressor(**shared, **{name: getattr(config, name) for name in own})}
    if config.baseline:
        models["ziln"] = ZILNRegressor(**shared)
    return models
