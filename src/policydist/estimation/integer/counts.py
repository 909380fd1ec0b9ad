"""Laws over 0, 1, 2, …: Poisson and negative binomial (baselines) and the discrete Weibull."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from scipy import special
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from policydist.estimation.integer.base import LARGEST, IntegerDistribution, enumerated_log_mass
from policydist.functional import integer_counts as C
from policydist.functional.integers import log1mexp


class _Count(IntegerDistribution):
    """Support 0, 1, 2, …"""

    def _bounds(self) -> tuple[int | None, int | None]:
        return 0, None

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """log p(value), natural logarithm; a negative value raises."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)


class PoissonInt(_Count):
    """Poisson(rate). Unlike ``torch.distributions.Poisson`` its float32 log-probability does not cancel at large n."""

    arg_constraints = {"rate": constraints.positive}  # noqa: RUF012
    rate: Tensor

    def __init__(self, rate: Tensor | float, validate_args: bool | None = None) -> None:
        (self.rate,) = broadcast_all(rate)
        super().__init__(self.rate.shape, torch.Size(), validate_args)

    @property
    def mean(self) -> Float[Tensor, "*s"]:
        """The rate."""
        return self.rate

    @property
    def variance(self) -> Float[Tensor, "*s"]:
        """The rate."""
        return self.rate

    @property
    def mode(self) -> Float[Tensor, "*s"]:
        """⌊rate⌋."""
        return torch.floor(self.rate)

    def _log_prob(self, value: Tensor) -> Tensor:
        return C.poisson_log_prob(value, self.rate)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        """Regularised incomplete gammas for a one-sided range, a sum of terms for a two-sided one."""
        assert lo is not None
        rate = self.rate.double()
        if hi is None:
            from_lo = torch.log(torch.special.gammainc(lo.clamp(min=1).double(), rate))
            return torch.where(lo == 0, torch.zeros_like(from_lo), from_lo).to(self.rate.dtype)
        if bool((lo == 0).all()):
            return torch.log(torch.special.gammaincc(hi.double() + 1.0, rate)).to(self.rate.dtype)
        return enumerated_log_mass(self, lo, hi)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """int64 draws."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.poisson(self.rate.double().expand(shape)).long()


class NegativeBinomialInt(_Count):
    """Negative binomial by ``mu`` = E N and ``size`` r: Var N = mu + mu²/r (NB2 of the econometrics literature)."""

    arg_constraints = {"mu": constraints.positive, "size": constraints.positive}  # noqa: RUF012
    mu: Tensor
    size: Tensor

    def __init__(self, mu: Tensor | float, size: Tensor | float, validate_args: bool | None = None) -> None:
        self.mu, self.size = broadcast_all(mu, size)
        super().__init__(self.mu.shape, torch.Size(), validate_args)

    @property
    def mean(self) -> Float[Tensor, "*s"]:
        """mu."""
        return self.mu

    @property
    def variance(self) -> Float[Tensor, "*s"]:
        """mu + mu²/size."""
        return self.mu + self.mu.square() / self.size

    @property
    def mode(self) -> Float[Tensor, "*s"]:
        """⌊mu·(size−1)/size⌋, or 0 for size ≤ 1."""
        return torch.floor(self.mu * (self.size - 1.0) / self.size).clamp(min=0.0)

    def _log_prob(self, value: Tensor) -> Tensor:
        return C.negative_binomial_log_prob(value, self.mu, self.size)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        """A sum of terms; an open upper end is one minus the mass below ``lo``."""
        assert lo is not None
        if hi is not None:
            return enumerated_log_mass(self, lo, hi)
        below = enumerated_log_mass(self, torch.zeros_like(lo), (lo - 1).clamp(min=0))
        tail = log1mexp(torch.where(lo == 0, -torch.ones_like(below), below))
        return torch.where(lo == 0, torch.zeros_like(tail), tail)

    @torch.no_grad()
    def cdf(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """Regularised incomplete beta I_p(r, n+1), p = r/(r+mu), from SciPy: exact but without a gradient."""
        n, mu, size = torch.broadcast_tensors(torch.floor(value.double()), self.mu.double(), self.size.double())
        below = special.betainc(
            size.cpu().numpy(), n.clamp(min=0).cpu().numpy() + 1.0, (size / (size + mu)).cpu().numpy()
        )
        return torch.where(n < 0, 0.0, torch.as_tensor(below, device=n.device)).to(self.mu.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """Poisson draws at gamma-distributed rates."""
        shape = self._extended_shape(torch.Size(sample_shape))
        size = self.size.double().expand(shape)
        return torch.poisson(torch._standard_gamma(size) * (self.mu.double() / self.size.double())).long()


class DiscreteWeibull(_Count):
    """Nakagawa–Osaki: P(N ≥ n) = q^(n^β), with ``scale`` η, q = exp(−η^(−β)), and ``concentration`` β.

    η rather than q is stored because q rounds to one for large counts. Mean and variance are sums without a gradient.
    """

    arg_constraints = {"scale": constraints.positive, "concentration": constraints.positive}  # noqa: RUF012
    scale: Tensor
    concentration: Tensor

    def __init__(self, scale: Tensor | float, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        self.scale, self.concentration = broadcast_all(scale, concentration)
        super().__init__(self.scale.shape, torch.Size(), validate_args)

    @classmethod
    def from_q(cls, q: Tensor | float, beta: Tensor | float, validate_args: bool | None = None) -> DiscreteWeibull:
        """The same law by q = P(N ≥ 1) ∈ (0, 1) and β."""
        q, beta = broadcast_all(q, beta)
        if not bool(((q > 0) & (q < 1)).all()):
            raise ValueError("q must lie strictly between 0 and 1")
        return cls(torch.exp(-torch.log(-torch.log(q)) / beta), beta, validate_args)

    @property
    def q(self) -> Float[Tensor, "*s"]:
        """P(N ≥ 1)."""
        return torch.exp(-torch.exp(-self.concentration * torch.log(self.scale)))

    @property
    def mean(self) -> Float[Tensor, "*s"]:
        """E N = Σ_{n≥1} q^(n^β)."""
        return C.discrete_weibull_moment(self.scale, self.concentration, 1)

    @property
    def variance(self) -> Float[Tensor, "*s"]:
        """E N² − (E N)²."""
        mean = C.discrete_weibull_moment(self.scale.double(), self.concentration.double(), 1)
        second = 2.0 * C.discrete_weibull_moment(self.scale.double(), self.concentration.double(), 2) - mean
        return (second - mean.square()).to(self.scale.dtype)

    @property
    def mode(self) -> Float[Tensor, "*s"]:
        """The best of the integers around the continuous Weibull's mode η((β−1)/β)^(1/β)."""
        excess = (1.0 - 1.0 / self.concentration).clamp(min=0.0)
        peak = torch.floor(self.scale * excess ** (1.0 / self.concentration))
        near = torch.stack([peak, (peak - 1.0).clamp(min=0.0), peak + 1.0])
        return near.gather(0, self._log_prob(near).argmax(0, keepdim=True)).squeeze(0)

    def _device(self) -> torch.device:
        return self.scale.device

    def _log_prob(self, value: Tensor) -> Tensor:
        return C.discrete_weibull_log_prob(value, self.scale, self.concentration)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        assert lo is not None
        if hi is None:
            return C.discrete_weibull_log_survival(lo, self.scale, self.concentration)
        return C.discrete_weibull_log_mass(lo, hi, self.scale, self.concentration)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """⌊η·E^(1/β)⌋ with E standard exponential."""
        shape = self._extended_shape(torch.Size(sample_shape))
        draw = torch.empty(shape, dtype=torch.float64, device=self.scale.device).exponential_()
        value = self.scale.double() * torch.exp(torch.log(draw) / self.concentration.double())
        return torch.floor(value).clamp(max=LARGEST).long()
