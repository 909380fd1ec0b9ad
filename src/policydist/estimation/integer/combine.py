"""Laws made of other laws: truncation to a range and mixtures."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily
from torch.distributions.constraints import Constraint

from policydist.estimation.integer.base import Bound, IntegerDistribution, enumerated_moments

_TABLE = 4096
_TAIL = 1e-7  # mass left out when the mean of a half-open range is summed


class Truncated(IntegerDistribution):
    """``base`` conditioned on lo ≤ N ≤ hi (either may be ``None``); any integer law, mixtures included."""

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012

    def __init__(
        self, base: IntegerDistribution, lo: int | None, hi: int | None, validate_args: bool | None = None
    ) -> None:
        low, high = base._bounds()
        self.lo = low if lo is None else lo if low is None else max(lo, low)
        self.hi = high if hi is None else hi if high is None else min(hi, high)
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise ValueError(f"no integer of {type(base).__name__} lies in [{lo}, {hi}]")
        self.base = base
        super().__init__(base.batch_shape, torch.Size(), validate_args)

    def _bounds(self) -> tuple[int | None, int | None]:
        return self.lo, self.hi

    def _device(self) -> torch.device:
        return self.base._device()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Truncated:
        """The truncation of the expanded base."""
        return Truncated(self.base.expand(batch_shape), self.lo, self.hi, validate_args=self._validate_args)

    def log_prob(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """log p_base(value) − log P_base(lo ≤ N ≤ hi); a value outside raises."""
        if self._validate_args:
            self._validate_sample(value)
        return self.base.log_prob(value) - self.base.log_mass(self.lo, self.hi)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        return self.base.log_mass(lo, hi) - self.base.log_mass(self.lo, self.hi)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """Inverse cdf at uniforms, by bisection."""
        shape = self._extended_shape(torch.Size(sample_shape))
        dtype = self.base.log_mass(None, None).dtype
        return self.icdf(torch.rand(shape, dtype=dtype, device=self._device()).clamp(min=torch.finfo(dtype).tiny))

    @torch.no_grad()
    def icdf(self, value: Float[Tensor, "*#s"]) -> Int[Tensor, "*s"]:
        """As for any law; a range of at most 4 096 integers is looked up in a table of its cdf."""
        if self.lo is None or self.hi is None or self.hi - self.lo >= _TABLE:
            return super().icdf(value)
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        n = torch.arange(self.lo, self.hi + 1, device=self._device()).view(-1, *[1] * len(self.batch_shape))
        logs = self.base.log_prob(n).expand(-1, *self.batch_shape).reshape(len(n), -1)
        cdf = torch.softmax(logs.double(), 0).cumsum(0).T.contiguous()
        levels = value.double().reshape(-1, len(cdf)).T.contiguous()
        steps = torch.searchsorted(cdf, levels).clamp(max=self.hi - self.lo)
        return self.lo + steps.T.reshape(value.shape)

    def _start(self) -> Tensor:
        return self.base.mean

    def _moments(self) -> tuple[Tensor, Tensor]:
        lo, hi = self.lo, self.hi
        if lo is None:
            lo = int(self.icdf(torch.tensor(_TAIL)).min())
        if hi is None:
            hi = int(self.icdf(torch.tensor(1.0 - _TAIL)).max())
        mean, variance = enumerated_moments(self, lo, hi)
        dtype = self.base.log_mass(None, None).dtype
        return mean.to(dtype), variance.to(dtype)

    @property
    def mean(self) -> Float[Tensor, "*s"]:
        """Summed over the range, without a gradient; an open end stops where 1e−7 of the mass is left."""
        return self._moments()[0]

    @property
    def variance(self) -> Float[Tensor, "*s"]:
        """Summed like the mean."""
        return self._moments()[1]

    @property
    def mode(self) -> Tensor:
        """The base's mode moved into the range: exact for the unimodal laws, an approximation for the others."""
        return self.base.mode.clamp(self.lo, self.hi)

    def entropy(self) -> Float[Tensor, "*s"]:
        """−Σ p log p over the range, differentiable; the range must be bounded and at most 65 536 wide."""
        if self.lo is None or self.hi is None or self.hi - self.lo >= 2**16:
            raise NotImplementedError("entropy needs a bounded range of at most 65536 integers")
        n = torch.arange(self.lo, self.hi + 1, device=self._device()).view(-1, *[1] * len(self.batch_shape))
        logs = self.base.log_prob(n) - self.base.log_mass(self.lo, self.hi)
        return -(torch.exp(logs) * torch.where(torch.isneginf(logs), torch.zeros_like(logs), logs)).sum(0)


class IntegerMixture(MixtureSameFamily, IntegerDistribution):
    """Σ_k π_k p_k(n), π = softmax(logits); the components lie along the last batch axis of one integer law."""

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012

    def __init__(
        self, logits: Float[Tensor, "*s K"], components: IntegerDistribution, validate_args: bool | None = None
    ) -> None:
        weights = Categorical(logits=logits, validate_args=validate_args)
        MixtureSameFamily.__init__(self, weights, components, validate_args=validate_args)
        self.components = components

    def _bounds(self) -> tuple[int | None, int | None]:
        return self.components._bounds()

    def _device(self) -> torch.device:
        return self.mixture_distribution.logits.device

    @property
    def support(self) -> Constraint:
        """The support of the components."""
        return self.components.support

    def _validate_sample(self, value: Tensor) -> None:
        IntegerDistribution._validate_sample(self, value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> IntegerMixture:
        """The mixture of the expanded components."""
        shape = torch.Size(batch_shape)
        logits = self.mixture_distribution.logits
        return IntegerMixture(
            logits.expand(*shape, logits.shape[-1]),
            self.component_distribution.expand((*shape, logits.shape[-1])),
            validate_args=self._validate_args,
        )

    def log_mass(self, lo: Bound, hi: Bound) -> Float[Tensor, "*s"]:
        """log Σ_k π_k P_k(lo ≤ N ≤ hi)."""
        ends = [b.unsqueeze(-1) if isinstance(b, Tensor) else b for b in (lo, hi)]
        logs = self.components.log_mass(*ends)
        return torch.logsumexp(logs + self.mixture_distribution.logits, -1)

    def cdf(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """Σ_k π_k F_k(value)."""
        return (self.component_distribution.cdf(value.unsqueeze(-1)) * self.mixture_distribution.probs).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest of the components' modes."""
        modes = self.component_distribution.mode
        heads = modes.movedim(-1, 0)
        logs = torch.stack([self.log_prob(m) for m in heads])
        return heads.gather(0, logs.argmax(0, keepdim=True)).squeeze(0)
