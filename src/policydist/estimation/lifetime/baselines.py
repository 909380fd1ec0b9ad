"""What OptDist is compared with: one head, two stages, squared error, and the plain mixture of the same experts."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor
from torch.nn import functional as F

from policydist.estimation.lifetime.columns import Categorical, Outcome
from policydist.estimation.lifetime.regressor import Floats, LawRegressor, LifetimeRegressor, Step
from policydist.functional.lifetime import ziln_mean, ziln_nll

Parts = tuple[Tensor, dict[str, Tensor]]


class ZILNRegressor(LawRegressor):
    """One zero-inflated log-normal head for everybody (arXiv 1912.07753): the model that OptDist multiplies.

    All parameters are those of ``OptDistRegressor`` without the ones about experts; ``hidden`` are the layers of the
    one network.
    """

    def _loss(self, raw: Tensor, log_alpha: Tensor, y: Tensor, weight: Tensor, step: Step) -> Parts:
        return (weight * ziln_nll(raw[:, 0], y)).mean(), {}


class TwoStageRegressor(LawRegressor):
    """The classical two stages: a classifier for y > 0 and a least-squares regression of ln y on the payers.

    Two networks without common layers (embeddings are shared). The spread of ln y is one number for all rows, fitted
    by maximum likelihood, so that the regression is least squares and the mean is P(y>0) exp(m + s²/2).
    """

    n_outputs: ClassVar[int] = 1

    def _experts(self) -> int:
        return 2

    def _start(self, outcome: Outcome) -> Tensor:
        return super()._start(outcome)[:2].reshape(2, 1, 1)

    def _network(self, generator: torch.Generator) -> Any:
        network = super()._network(generator)
        network.register_parameter("spread", torch.nn.Parameter(LawRegressor._start(self, self.outcome_)[2:].float()))
        return network

    def _loss(self, raw: Tensor, log_alpha: Tensor, y: Tensor, weight: Tensor, step: Step) -> Parts:
        return (weight * ziln_nll(self._components(raw, log_alpha)[0][:, 0], y)).mean(), {}

    def _components(self, raw: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        spread = self.network_.get_parameter("spread").expand(len(raw), 1)
        joined = torch.cat([raw[:, :, 0], spread], dim=1).unsqueeze(1)
        return joined, torch.ones_like(joined[..., 0])


class MSERegressor(LifetimeRegressor):
    """Squared error on the outcome itself, in units of its standard deviation; predictions below zero become zero.

    It has no law, so no ``predict_distribution`` and no ``nll``.
    """

    n_outputs: ClassVar[int] = 1

    def _start(self, outcome: Outcome) -> Tensor:
        return torch.tensor([outcome.mean / outcome.spread])

    def _loss(self, raw: Tensor, log_alpha: Tensor, y: Tensor, weight: Tensor, step: Step) -> Parts:
        return (weight * (raw[:, 0, 0] - y / self.outcome_.spread).square()).mean(), {}

    def _means(self, X: Any) -> Floats:
        raw = torch.cat([raw for raw, _ in self._outputs(X)])[:, 0, 0].numpy()
        return np.maximum(raw * self.outcome_.spread, 0.0)


class ExpertsRegressor(LawRegressor):
    """Several zero-inflated log-normal experts and a selector over them; what OptDist and the plain mixture share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LifetimeRegressor._parameter_constraints,
        "n_experts": [Interval(Integral, 1, None, closed="left")],
        "selector_hidden": ["array-like"],
        "separate_trunk": ["boolean"],
    }

    def __init__(
        self,
        n_experts: int = 4,
        *,
        hidden: Sequence[int] = (64, 32),
        selector_hidden: Sequence[int] = (64,),
        trunk_hidden: Sequence[int] = (),
        separate_trunk: bool = False,
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
            hidden, trunk_hidden=trunk_hidden, categorical=categorical, min_frequency=min_frequency,
            embedding_dim=embedding_dim, learning_rate=learning_rate, batch_size=batch_size, max_steps=max_steps,
            weight_decay=weight_decay, start=start, cap=cap, random_state=random_state, device=device,
        )  # fmt: skip
        self.n_experts = n_experts
        self.selector_hidden = selector_hidden
        self.separate_trunk = separate_trunk

    def _experts(self) -> int:
        return self.n_experts

    def _selector_sizes(self) -> Sequence[int]:
        return list(self.selector_hidden)

    def _diagnostics(self, raw: Tensor, log_alpha: Tensor, y: Tensor) -> dict[str, float]:
        """Share of rows per expert, their effective number, agreement with the best expert, mean sigmas, overshoots."""
        losses, chosen = ziln_nll(raw, y.unsqueeze(1)), log_alpha.argmax(1)
        usage = torch.bincount(chosen, minlength=self.n_experts).double() / len(y)
        sigma = F.softplus(raw[..., 2]).mean(0)
        means = self._monitored_means(raw, log_alpha)
        return {
            "effective_experts": torch.special.entr(usage).sum().exp().item(),
            "agreement": (losses.argmin(1) == chosen).double().mean().item(),
            "above_largest": (means > self.outcome_.largest).double().mean().item(),
            **{f"usage_{i}": share.item() for i, share in enumerate(usage)},
            **{f"sigma_{i}": value.item() for i, value in enumerate(sigma)},
        }

    def expert_log_prob(self, X: Any, y: Any) -> Floats:
        """ln p(y) of every row under every expert, shape (n, L); the paper's labels are its argmax."""
        outcome = self._table(X, y, reset=False)[1]
        raw = torch.cat([raw for raw, _ in self._outputs(X)])
        return -ziln_nll(raw, torch.as_tensor(outcome).unsqueeze(1)).numpy()

    def _monitored_means(self, raw: Tensor, log_alpha: Tensor) -> Tensor:
        components, weight = self._components(raw, log_alpha)
        return (weight * ziln_mean(components)).sum(1)


class SoftMixtureRegressor(ExpertsRegressor):
    """The plain mixture of the same experts: loss −ln Σ α_i exp(−L_i), mean Σ α_i ŷ_i. Not in the paper.

    Parameters are those of ``OptDistRegressor`` without selection noise and alignment.
    """

    def _loss(self, raw: Tensor, log_alpha: Tensor, y: Tensor, weight: Tensor, step: Step) -> Parts:
        losses = ziln_nll(raw, y.unsqueeze(1))
        return -(weight * torch.logsumexp(log_alpha - losses, dim=1)).mean(), {}
