"""From a network's raw outputs to a law over integers: link functions, data-derived scale, starting biases.

One scale for all heads alike, s₀ = median |y| + 1 of the training targets, so that no head has to walk to the data.
The links are reconstructions (the paper's are unknown to us); each is written beside its head below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from policydist.errors import UsageError, nearest
from policydist.estimation.integer.base import IntegerDistribution
from policydist.estimation.integer.bitwise import Bitwise
from policydist.estimation.integer.combine import IntegerMixture, Truncated
from policydist.estimation.integer.counts import DiscreteWeibull, NegativeBinomialInt, PoissonInt
from policydist.estimation.integer.location import Dalap, Danorm, DiscretizedLaplace, DiscretizedNormal
from policydist.functional.integer_bits import Signed, bit_range, to_bits

SpreadStart = Literal["data", "unit"]

_MAX_BIAS = 6.0  # logits of empirical bit frequencies are clipped here
_BIT_JITTER = 0.3
_LEAST_SPREAD = 0.05  # in units of s₀


@dataclass(frozen=True)
class IntegerHead(ABC):
    """A family with its links. ``components`` > 1 mixes it; ``lower`` and ``upper`` truncate it (the mixture too).

    ``scale`` is s₀ > 0 in units of the target.
    """

    components: int = 1
    lower: int | None = None
    upper: int | None = None
    scale: float = 1.0

    counts_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.components < 1:
            raise UsageError(f"components must be at least 1, got {self.components}")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise UsageError(f"lower={self.lower} exceeds upper={self.upper}: no integer is left")
        if not self.scale > 0:
            raise UsageError(f"scale must be positive, got {self.scale}")

    @property
    @abstractmethod
    def width(self) -> int:
        """Raw outputs of one component."""

    @property
    def n_outputs(self) -> int:
        """Raw outputs in all: K·width, and K mixing logits if K > 1."""
        return self.components * self.width + (self.components if self.components > 1 else 0)

    @abstractmethod
    def component(self, raw: Float[Tensor, "*s {self.width}"]) -> IntegerDistribution:
        """The law of one component."""

    @abstractmethod
    def start(self, y: np.ndarray, generator: torch.Generator) -> Float[Tensor, "K {self.width}"]:
        """Raw values that place the components on the training targets before any training."""

    def distribution(self, raw: Float[Tensor, "*s {self.n_outputs}"]) -> IntegerDistribution:
        """The law named by raw outputs; arguments are not validated (the links guarantee them)."""
        if raw.shape[-1] != self.n_outputs:
            raise UsageError(f"{type(self).__name__} needs {self.n_outputs} raw outputs, got {raw.shape[-1]}")
        k = self.components
        body = raw[..., : k * self.width].unflatten(-1, (k, self.width))
        if k == 1:
            law: IntegerDistribution = self.component(body.squeeze(-2))
        else:
            law = IntegerMixture(raw[..., k * self.width :], self.component(body), validate_args=False)
        if self.lower is None and self.upper is None:
            return law
        return Truncated(law, self.lower, self.upper, validate_args=False)

    def starting_bias(self, y: np.ndarray, generator: torch.Generator) -> Float[Tensor, "{self.n_outputs}"]:
        """Bias of the last layer: :meth:`start` for each component, equal mixing weights."""
        bias = torch.zeros(self.n_outputs)
        bias[: self.components * self.width] = self.start(y, generator).flatten()
        return bias

    def fitted(self, y: np.ndarray) -> IntegerHead:
        """This head with what it derives from the training targets: the scale s₀."""
        return replace(self, scale=float(np.median(np.abs(y))) + 1.0)

    def bounds(self) -> tuple[int | None, int | None]:
        """Smallest and largest integer with positive probability."""
        low = 0 if self.counts_only else None
        return (low if self.lower is None else max(self.lower, low or self.lower)), self.upper

    def _quantiles(self, y: np.ndarray) -> Float[Tensor, "K"]:
        """Quantiles (k−½)/K of the targets: the median for one component, spread out for more."""
        levels = (np.arange(self.components) + 0.5) / self.components
        return torch.as_tensor(np.quantile(y, levels), dtype=torch.get_default_dtype())


@dataclass(frozen=True)
class LocationHead(IntegerHead):
    """μ = s₀ z₁ and spread = s₀ softplus(z₂) + 10^−3; both start at the data, see :meth:`start`."""

    spread_start: SpreadStart = "data"

    @property
    def width(self) -> int:
        """Location and scale."""
        return 2

    law: ClassVar[type[Dalap] | type[DiscretizedLaplace] | type[DiscretizedNormal] | type[Danorm]]

    def component(self, raw: Tensor) -> IntegerDistribution:
        """``law``(μ, spread)."""
        spread = self.scale * softplus(raw[..., 1]) + 1e-3
        return self.law(self.scale * raw[..., 0], spread, validate_args=False)

    def start(self, y: np.ndarray, generator: torch.Generator) -> Tensor:
        """Locations at the target quantiles; spreads at the mean distance of the targets nearest to each location.

        A spread that starts at s₀ cannot reach the tails of heavy-tailed targets within a few hundred steps; that
        plain start, z₂ = 0, is kept as ``spread_start="unit"`` for comparison.
        """
        location = self._quantiles(y)
        if self.spread_start == "unit":
            return torch.stack([location / self.scale, torch.zeros_like(location)], -1)
        distance = np.abs(y[:, None] - location.double().numpy()[None, :])
        nearest_one, best = distance.argmin(1), distance.min(1)
        counts = np.bincount(nearest_one, minlength=self.components)
        spread = np.bincount(nearest_one, weights=best, minlength=self.components) / np.maximum(counts, 1)
        relative = torch.as_tensor(spread / self.scale, dtype=location.dtype).clamp(min=_LEAST_SPREAD)
        return torch.stack([location / self.scale, _inverse_softplus(relative)], -1)


class DalapHead(LocationHead):
    """Dalap, b = spread, γ = e^(−1/b)."""

    law = Dalap


class DiscretizedLaplaceHead(LocationHead):
    """Rounded Laplace."""

    law = DiscretizedLaplace


class DiscretizedNormalHead(LocationHead):
    """Rounded normal."""

    law = DiscretizedNormal


class DanormHead(LocationHead):
    """Normal density restricted to ℤ."""

    law = Danorm


@dataclass(frozen=True)
class CountHead(IntegerHead):
    """A positive size of the law s₀ softplus(z₁) + 10^−6, started at the target quantiles, and an optional shape."""

    counts_only: ClassVar[bool] = True
    has_shape: ClassVar[bool] = True
    shape_start: ClassVar[float] = 1.0

    @property
    def width(self) -> int:
        """Size, and the shape where there is one."""
        return 1 + self.has_shape

    def start(self, y: np.ndarray, generator: torch.Generator) -> Tensor:
        """softplus⁻¹(quantile/s₀), quantiles of at least ½; the shape at one."""
        size = _inverse_softplus(self._quantiles(y).clamp(min=0.5) / self.scale)
        shape = _inverse_softplus(torch.full_like(size, self.shape_start))
        return torch.stack([size, shape][: self.width], -1)

    def _size(self, raw: Tensor) -> Tensor:
        return self.scale * softplus(raw[..., 0]) + 1e-6


class PoissonHead(CountHead):
    """λ = s₀ softplus(z) + 10^−6."""

    has_shape = False

    def component(self, raw: Tensor) -> IntegerDistribution:
        """Poisson(λ)."""
        return PoissonInt(self._size(raw), validate_args=False)


class NegativeBinomialHead(CountHead):
    """mean = s₀ softplus(z₁) + 10^−6, size r = softplus(z₂) + 10^−2."""

    def component(self, raw: Tensor) -> IntegerDistribution:
        """NB2(mean, r)."""
        return NegativeBinomialInt(self._size(raw), softplus(raw[..., 1]) + 1e-2, validate_args=False)


class DiscreteWeibullHead(CountHead):
    """η = s₀ softplus(z₁) + 10^−6 with q = exp(−η^(−β)), β = softplus(z₂) + 10^−2.

    The scale η stands in for q = σ(z₁), which would have to come within 1/η^β of one and so is unscaled.
    """

    def component(self, raw: Tensor) -> IntegerDistribution:
        """Nakagawa–Osaki(η, β)."""
        return DiscreteWeibull(self._size(raw), softplus(raw[..., 1]) + 1e-2, validate_args=False)


@dataclass(frozen=True)
class BitwiseHead(IntegerHead):
    """θ = z: one logit a bit; ``bits`` of magnitude, ``signed`` as in :class:`Bitwise`, both read off y by ``fitted``.

    The logits start at the empirical bit frequencies, clipped to ±6; components are told apart by N(0, 0.3) noise.
    """

    bits: int | None = None
    signed: Signed | None = None

    @property
    def width(self) -> int:
        """Bits, and the sign's logit."""
        if self.bits is None or self.signed is None:
            raise UsageError("a bitwise head needs bits and signed: set both, or call fitted(y)")
        return self.bits + (self.signed != "none")

    def fitted(self, y: np.ndarray) -> BitwiseHead:
        """B = ⌈log₂(max |y| + 1)⌉ + 1 bits and sign-magnitude where a target is negative, unless set."""
        largest = max(int(np.abs(y).max()), 1)
        negative = bool((y < 0).any()) or (self.lower is not None and self.lower < 0)
        bits = largest.bit_length() + 1 if self.bits is None else self.bits
        signed: Signed = ("signmag" if negative else "none") if self.signed is None else self.signed
        return replace(self, bits=bits, signed=signed, scale=float(np.median(np.abs(y))) + 1.0)

    def bounds(self) -> tuple[int | None, int | None]:
        """The range of the bits, narrowed by the truncation."""
        low, high = bit_range(self.width, self.signed or "none")
        lower = low if self.lower is None else max(low, self.lower)
        return lower, high if self.upper is None else min(high, self.upper)

    def component(self, raw: Tensor) -> IntegerDistribution:
        """Independent bits."""
        return Bitwise(raw, self.signed or "none", validate_args=False)

    def start(self, y: np.ndarray, generator: torch.Generator) -> Tensor:
        """Logits of the empirical bit frequencies, plus noise if there are several components."""
        value = torch.as_tensor(y).long()
        bits = to_bits(value.abs() if self.signed == "signmag" else value, self.width)
        if self.signed == "signmag":
            bits[..., -1] = (value < 0).long()
        frequency = bits.double().mean(0)
        start = torch.logit(frequency).clamp(-_MAX_BIAS, _MAX_BIAS).to(torch.get_default_dtype())
        repeated = start.repeat(self.components, 1)
        if self.components == 1:
            return repeated
        return repeated + _BIT_JITTER * torch.randn(repeated.shape, generator=generator)


HEADS: dict[str, type[IntegerHead]] = {
    "dalap": DalapHead,
    "discretized_laplace": DiscretizedLaplaceHead,
    "discretized_normal": DiscretizedNormalHead,
    "danorm": DanormHead,
    "discrete_weibull": DiscreteWeibullHead,
    "poisson": PoissonHead,
    "negative_binomial": NegativeBinomialHead,
    "bitwise": BitwiseHead,
}


def make_head(
    name: str,
    components: int = 1,
    lower: int | None = None,
    upper: int | None = None,
    scale: float = 1.0,
    bits: int | None = None,
    signed: Signed | None = None,
    spread_start: SpreadStart = "data",
) -> IntegerHead:
    """The head called ``name`` (a key of ``HEADS``).

    ``bits`` and ``signed`` belong to ``bitwise`` alone, ``spread_start="unit"`` to the heads with a location.
    """
    if name not in HEADS:
        raise UsageError(f"unknown head {name!r}: {nearest(name, HEADS)}")
    if spread_start != "data" and not issubclass(HEADS[name], LocationHead):
        raise UsageError(f"spread_start only applies to heads with a location, not to {name!r}")
    if name == "bitwise":
        return BitwiseHead(components, lower, upper, scale, bits, signed)
    if bits is not None or signed is not None:
        raise UsageError(f"bits and signed only apply to the bitwise head, not to {name!r}")
    family = HEADS[name]
    if issubclass(family, LocationHead):
        return family(components, lower, upper, scale, spread_start)
    return family(components, lower, upper, scale)


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
