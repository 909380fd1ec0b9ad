"""The Bitwise head: an integer as independent bits, with two ways to carry a sign."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from policydist.estimation.integer.base import IntegerDistribution
from policydist.functional import integer_bits as B
from policydist.functional.integer_bits import Signed


class Bitwise(IntegerDistribution):
    """N = Σ_b bit_b 2^b with independent bits of logits ``logits[..., b]``, least significant first (arXiv 2602.10751).

    ``signed``: ``none`` (range [0, 2^B)), ``signmag`` (a further, last logit for the minus sign, the two zeros merged)
    or ``twos`` (the last bit counts −2^(B−1)). Signed layouts are reconstructions.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    logits: Tensor

    def __init__(
        self, logits: Float[Tensor, "*s B"], signed: Signed = "none", validate_args: bool | None = None
    ) -> None:
        if signed not in ("none", "signmag", "twos"):
            raise ValueError(f"signed must be 'none', 'signmag' or 'twos', got {signed!r}")
        least = 1 if signed == "none" else 2
        if logits.dim() < 1 or not least <= logits.shape[-1] <= 62:
            raise ValueError(f"logits need a last axis of {least} to 62 bits, got shape {tuple(logits.shape)}")
        self.logits, self.signed = logits, signed
        super().__init__(logits.shape[:-1], torch.Size(), validate_args)

    def _copy_options(self, new: Any) -> None:
        new.signed = self.signed

    def _bounds(self) -> tuple[int | None, int | None]:
        return B.bit_range(self.logits.shape[-1], self.signed)

    def _device(self) -> torch.device:
        return self.logits.device

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Ranges of up to 2^16 values can be listed."""
        return self.logits.shape[-1] <= 16

    def enumerate_support(self, expand: bool = True) -> Int[Tensor, "V *s"]:
        """Every integer of the range, smallest first, along a new first axis."""
        lo, hi = B.bit_range(self.logits.shape[-1], self.signed)
        if not self.has_enumerate_support:
            raise NotImplementedError(f"a range of {hi - lo + 1} integers is too wide to list")
        values = torch.arange(lo, hi + 1, device=self.logits.device).view(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def log_prob(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """log p(value); a value outside the range raises."""
        if self._validate_args:
            self._validate_sample(value)
        return B.bitwise_log_prob(value, self.logits, self.signed)

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        assert lo is not None
        assert hi is not None
        return B.bitwise_log_mass(lo, hi, self.logits, self.signed)

    @property
    def mean(self) -> Float[Tensor, "*s"]:
        """Σ 2^b σ(θ_b), times E sign. Far from the bulk of the law when a high bit is uncertain."""
        return B.bitwise_moments(self.logits, self.signed)[0]

    @property
    def variance(self) -> Float[Tensor, "*s"]:
        """Var N."""
        return B.bitwise_moments(self.logits, self.signed)[1]

    @property
    def mode(self) -> Int[Tensor, "*s"]:
        """The integer of the most likely bits (exact unless ``signmag`` merges its zeros into a likelier 0)."""
        best = self._assemble(self.logits > 0)
        if self.signed != "signmag":
            return best
        zero = torch.zeros_like(best)
        return torch.where(self.log_prob_unchecked(zero) > self.log_prob_unchecked(best), zero, best)

    def log_prob_unchecked(self, value: Tensor) -> Tensor:
        """``log_prob`` without the range check."""
        return B.bitwise_log_prob(value, self.logits, self.signed)

    def entropy(self) -> Float[Tensor, "*s"]:
        """Nats: the bits' entropies summed; the sign's (``signmag``) counts only where the magnitude is not 0."""
        p = torch.sigmoid(self.logits)
        each = -p * logsigmoid(self.logits) - (1.0 - p) * logsigmoid(-self.logits)
        if self.signed != "signmag":
            return each.sum(-1)
        nonzero = -torch.expm1(logsigmoid(-self.logits[..., :-1]).sum(-1))
        return each[..., :-1].sum(-1) + nonzero * each[..., -1]

    def _assemble(self, bits: Tensor) -> Tensor:
        count = bits.shape[-1]
        weights = 2 ** torch.arange(count, device=bits.device)
        value = bits.long()
        if self.signed == "none":
            return (value * weights).sum(-1)
        body = (value[..., :-1] * weights[:-1]).sum(-1)
        if self.signed == "twos":
            return body - value[..., -1] * weights[-1]
        return torch.where(bits[..., -1].bool(), -body, body)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "..."]:
        """Independent bits, then the sign."""
        shape = torch.Size(sample_shape) + self.logits.shape
        return self._assemble(
            torch.rand(shape, dtype=torch.float64, device=self.logits.device) < torch.sigmoid(self.logits.double())
        )
