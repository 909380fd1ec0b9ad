"""Integer laws with a real location and a scale: Dalap, DiscretizedLaplace, DiscretizedNormal, Danorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from policydist.estimation.integer.base import LARGEST, IntegerDistribution, enumerated_log_mass
from policydist.functional import integers as F

_Number = Tensor | float


class _LocationScale(IntegerDistribution):
    """Shared constructor: real ``loc`` and positive ``scale``, broadcast against each other."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 - torch's own contract

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: _Number, scale: _Number, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, torch.Size(), validate_args)

    def _device(self) -> torch.device:
        return self.loc.device

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """log p(value), natural logarithm."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    @property
    def mean(self) -> Float[Tensor, "*s"]:
        """E N."""
        return self._moments()[0]

    @property
    def variance(self) -> Float[Tensor, "*s"]:
        """Var N."""
        return self._moments()[1]

    @property
    def mode(self) -> Float[Tensor, "*s"]:
        """The integer nearest to ``loc``."""
        return torch.round(self.loc)

    def _uniform(self, sample_shape: Any) -> Tensor:
        """Uniform draws in (0, 1), both ends excluded, in float64 so that tails are not cut at 2^-24."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.rand(shape, dtype=torch.float64, device=self.loc.device).clamp(min=2.0**-54)


def _to_int(value: Tensor) -> Tensor:
    return value.clamp(-LARGEST, LARGEST).long()


class Dalap(_LocationScale):
    """Discrete Laplace law with a real centre: p(n) = γ^|n−loc| / Z, γ = e^(−1/scale) (arXiv 2602.10751).

    Everything is in closed form: normaliser, mean, variance, entropy, cdf, sampling. At an integer ``loc`` it is the
    discrete Laplace law (1−γ)/(1+γ) γ^|n−loc|.
    """

    @classmethod
    def from_gamma(cls, loc: _Number, gamma: _Number, validate_args: bool | None = None) -> Dalap:
        """The same law by its ratio γ ∈ (0, 1) of successive probabilities."""
        ratio = torch.as_tensor(gamma, dtype=torch.get_default_dtype()) if not isinstance(gamma, Tensor) else gamma
        if not bool(((ratio > 0) & (ratio < 1)).all()):
            raise ValueError("gamma must lie strictly between 0 and 1")
        return cls(loc, -1.0 / torch.log(ratio), validate_args)

    @property
    def gamma(self) -> Float[Tensor, "*s"]:
        """The ratio γ = e^(−1/scale) of successive probabilities away from the centre."""
        return torch.exp(-1.0 / self.scale)

    def _log_prob(self, value: Tensor) -> Tensor:
        return F.dalap_log_prob(value, self.loc, self.scale)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        return F.dalap_log_mass(lo, hi, self.loc, self.scale)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return F.dalap_moments(self.loc, self.scale)

    def entropy(self) -> Float[Tensor, "*s"]:
        """Entropy in nats, differentiable."""
        return F.dalap_entropy(self.loc, self.scale)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """A side of the centre, then a geometric distance: two uniforms a draw."""
        below, _ = F.dalap_side_weights(self.loc.double(), self.scale.double())
        steps = torch.floor(-torch.log(self._uniform(sample_shape)) * self.scale)
        floor = torch.floor(self.loc.double())
        return _to_int(torch.where(self._uniform(sample_shape) < below, floor - steps, floor + 1 + steps))


class _Rounded(_LocationScale):
    """The law of a rounded symmetric continuous variable."""

    _interval: Callable[[Tensor, Tensor, Tensor], Tensor]
    _survival: Callable[[Tensor, Tensor], Tensor]

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        if lo is None and hi is None:
            return torch.zeros_like(self.loc)
        law = type(self)
        if lo is None:
            assert hi is not None
            return law._survival(-F.offset(hi.double() + 0.5, self.loc), self.scale)
        if hi is None:
            return law._survival(F.offset(lo.double() - 0.5, self.loc), self.scale)
        middle = 0.5 * (lo.double() + hi.double()) - self.loc.double()  # float64: middle − width/2 cancels
        return law._interval(middle, hi.double() - lo.double() + 1.0, self.scale.double()).to(self.loc.dtype)


class DiscretizedLaplace(_Rounded):
    """A Laplace(loc, scale) variable rounded to the nearest integer: p(n) = F(n+½) − F(n−½)."""

    _interval = staticmethod(F.laplace_log_interval)
    _survival = staticmethod(F.laplace_log_survival)

    def _log_prob(self, value: Tensor) -> Tensor:
        return F.discretized_laplace_log_prob(value, self.loc, self.scale)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return F.discretized_laplace_moments(self.loc, self.scale)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """Round(loc ± scale·Exponential)."""
        distance = -torch.log(self._uniform(sample_shape)) * self.scale
        sign = torch.where(self._uniform(sample_shape) < 0.5, -1.0, 1.0)
        return _to_int(torch.round(self.loc.double() + sign * distance))


class DiscretizedNormal(_Rounded):
    """A Normal(loc, scale) variable rounded to the nearest integer (``dnormal``)."""

    _interval = staticmethod(F.normal_log_interval)
    _survival = staticmethod(F.normal_log_survival)

    def _log_prob(self, value: Tensor) -> Tensor:
        return F.discretized_normal_log_prob(value, self.loc, self.scale)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return F.gaussian_moments(self.loc, self.scale, rounded=True)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """Round(loc + scale·z)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(shape, dtype=torch.float64, device=self.loc.device)
        return _to_int(torch.round(self.loc.double() + self.scale.double() * z))


class Danorm(_LocationScale):
    """The normal density restricted to ℤ and renormalised: p(n) ∝ exp(−(n−loc)²/(2 scale²)).

    The paper's exact form was not readable to us; this is our reconstruction. There is no closed-form cdf:
    ``cdf`` and ``log_mass`` sum term by term over ±(12 scale + 12) around ``loc``, and call anything beyond it zero.
    """

    def _log_prob(self, value: Tensor) -> Tensor:
        return F.danorm_log_prob(value, self.loc, self.scale)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        if lo is None and hi is None:
            return torch.zeros_like(self.loc)
        with torch.no_grad():
            reach = 12.0 * self.scale.double() + 12.0
            first, last = (self.loc.double() - reach).floor().long(), (self.loc.double() + reach).ceil().long()
        start = first if lo is None else lo if hi is not None else torch.maximum(lo, first)
        stop = last if hi is None else hi if lo is not None else torch.minimum(hi, last)
        empty = start > stop
        if bool(empty.all()):
            return torch.full(empty.shape, -torch.inf, dtype=self.loc.dtype, device=self.loc.device)
        return enumerated_log_mass(self, start, stop)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return F.gaussian_moments(self.loc, self.scale, rounded=False)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """Exact. Below scale 1 a draw from the 25 nearest integers; above, a rounded normal thinned by rejection.

        The rounded law holds at least e^(−1/(24 scale²)) of Danorm's weight at every integer, so more than 95 % of
        the proposals are kept.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        loc, scale = self.loc.double().expand(shape), self.scale.double().expand(shape)
        window = torch.arange(-12, 13, dtype=torch.float64, device=loc.device)
        centre = torch.round(loc)
        logits = -0.5 * ((window + (centre - loc).unsqueeze(-1)) / scale.unsqueeze(-1)).square()
        near = centre + torch.distributions.Categorical(logits=logits).sample() - 12
        wide, out = scale >= 1.0, near
        pending = wide.clone()
        while bool(pending.any()):
            proposal = torch.round(loc + scale * torch.randn(shape, dtype=torch.float64, device=loc.device))
            log_density = -0.5 * ((proposal - loc) / scale).square() - torch.log(scale) - 0.9189385332046727
            log_keep = log_density - 1.0 / (24.0 * scale.square()) - F.discretized_normal_log_prob(proposal, loc, scale)
            keep = pending & (torch.log(torch.rand(shape, dtype=torch.float64, device=loc.device)) < log_keep)
            out, pending = torch.where(keep, proposal, out), pending & ~keep
        return _to_int(out)
