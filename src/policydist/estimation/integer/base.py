"""What every integer-valued distribution here can do beyond ``torch.distributions.Distribution``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from policydist.errors import UsageError

Bound = int | Tensor | None
LARGEST = 2**62  # samples and quantiles of very heavy tails saturate here
_CHUNK = 2**20
_MOST_TERMS = 2**31


class _Integers(Constraint):
    """All of ℤ; torch.distributions only ships the bounded and half-bounded kinds."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return value % 1 == 0


integers = _Integers()


class IntegerDistribution(Distribution):
    """A scalar law over integers. Samples are int64; ``log_prob`` takes any dtype that holds whole numbers.

    Subclasses give ``_bounds``, ``_log_mass`` and ``sample``. All parameters live in attributes named by
    ``arg_constraints`` and start with the batch shape.
    """

    has_enumerate_support = False

    def _bounds(self) -> tuple[int | None, int | None]:
        """Smallest and largest integer of the support, ``None`` where there is none."""
        return None, None

    def _log_mass(self, lo: Tensor | None, hi: Tensor | None) -> Tensor:
        """log P(lo ≤ N ≤ hi) for lo ≤ hi inside the support."""
        raise NotImplementedError

    @property
    def support(self) -> Constraint:
        """ℤ, the integers from a bound on, or an interval of integers."""
        lo, hi = self._bounds()
        if lo is None and hi is None:
            return integers
        if lo is not None and hi is not None:
            return constraints.integer_interval(lo, hi)
        if lo == 0:
            return constraints.nonnegative_integer
        return constraints.greater_than_eq(lo) if lo is not None else constraints.less_than(hi)  # pragma: no cover

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same law with its batch shape broadcast to ``batch_shape`` (no memory is copied)."""
        new = self._get_checked_instance(type(self), _instance)
        shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            value = getattr(self, name)
            setattr(new, name, value.expand(shape + value.shape[len(self.batch_shape) :]))
        self._copy_options(new)
        Distribution.__init__(new, shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _copy_options(self, new: Any) -> None:
        """Carry attributes that are not tensors over to an expanded copy."""

    def _validate_sample(self, value: Tensor) -> None:
        lo, hi = self._bounds()
        whole = value % 1 == 0
        inside = whole & (value >= (-torch.inf if lo is None else lo)) & (value <= (torch.inf if hi is None else hi))
        if not bool(inside.all()):
            worst = value[~inside].flatten()[0].item()
            left, right = "(-inf" if lo is None else f"[{lo}", "inf)" if hi is None else f"{hi}]"
            raise ValueError(
                f"{type(self).__name__} gives probability to whole numbers in {left}, {right}; got the value {worst}: "
                "choose a head or a range that holds every target"
            )
        torch.broadcast_shapes(value.shape, self.batch_shape)

    def log_mass(self, lo: Bound, hi: Bound) -> Float[Tensor, "*s"]:
        """log P(lo ≤ N ≤ hi), ``None`` for an open end; −inf where the range is empty."""
        low, high = self._bounds()
        device = self._device()
        start = _tighten(lo, low, torch.maximum, device)
        stop = _tighten(hi, high, torch.minimum, device)
        if start is None or stop is None:
            return self._log_mass(start, stop).expand(self._result_shape(start, stop))
        start, stop = torch.broadcast_tensors(start, stop)
        empty = start > stop
        mass = self._log_mass(start, torch.where(empty, start, stop))
        return torch.where(empty, torch.full_like(mass, -torch.inf), mass)

    def _result_shape(self, *bounds: Tensor | None) -> torch.Size:
        return torch.broadcast_shapes(self.batch_shape, *(b.shape for b in bounds if b is not None))

    def _device(self) -> torch.device:
        return self.mean.device

    def cdf(self, value: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
        """P(N ≤ value), value floored; 0 below and 1 above the support."""
        return torch.exp(self.log_mass(None, torch.floor(value.double()).long())).clamp(max=1.0)

    @torch.no_grad()
    def icdf(self, value: Float[Tensor, "*#s"]) -> Int[Tensor, "*s"]:
        """The smallest n with P(N ≤ n) ≥ value: doubling steps from the mean, then bisection (exact, no gradient)."""
        low, high = self._bounds()
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        bottom, top = (-LARGEST if low is None else low - 1), (LARGEST if high is None else high)
        centre = torch.nan_to_num(self._start().double()).clamp(-1e17, 1e17).long().expand(value.shape)
        left, right = self._bracket(value, centre.clamp(bottom, top), bottom, top)
        while bool(((right - left) > 1).any()):  # invariant: cdf(left) < value ≤ cdf(right)
            middle = left + (right - left) // 2
            reached = self.cdf(middle) >= value
            left, right = torch.where(reached, left, middle), torch.where(reached, middle, right)
        return right

    def _start(self) -> Tensor:
        """Where the search of ``icdf`` begins."""
        return self.mean

    def _bracket(self, value: Tensor, centre: Tensor, bottom: int, top: int) -> tuple[Tensor, Tensor]:
        left, right = centre.clone(), centre.clone()
        step = 1
        while step < LARGEST:
            high = (self.cdf(left) >= value) & (left > bottom)
            low = (self.cdf(right) < value) & (right < top)
            if not bool((high | low).any()):
                break
            left = torch.where(high, (left - step).clamp(min=bottom), left)
            right = torch.where(low, (right + step).clamp(max=top), right)
            step *= 2
        return left.clamp(max=top - 1), right


def _tighten(
    bound: Bound, limit: int | None, pick: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> Tensor | None:
    """The tighter of a caller's bound and the support's, as int64."""
    if bound is None:
        return None if limit is None else torch.tensor(limit, device=device)
    given = torch.as_tensor(bound, device=device).long()
    return given if limit is None else pick(given, torch.tensor(limit, device=device))


def enumerated_log_mass(law: Distribution, lo: Tensor, hi: Tensor) -> Float[Tensor, "*s"]:
    """log Σ_{n=lo}^{hi} p(n) term by term, in chunks; for laws without a closed form."""
    start, stop = int(lo.min()), int(hi.max())
    shape = torch.broadcast_shapes(law.batch_shape, lo.shape, hi.shape)
    rows = max(1, shape.numel())
    if (stop - start + 1) * rows > _MOST_TERMS:
        raise UsageError(
            f"{type(law).__name__} has no closed-form mass and {stop - start + 1} integers x {rows} rows are too many "
            "to sum: narrow the range, or use dalap, discretized_laplace, discretized_normal or bitwise"
        )
    size = max(1, _CHUNK // rows)
    total = None
    for first in range(start, stop + 1, size):
        n = torch.arange(first, min(first + size, stop + 1), device=lo.device).view(-1, *[1] * len(shape))
        logs = law.log_prob(n)
        logs = torch.where((n >= lo) & (n <= hi), logs, torch.full_like(logs, -torch.inf)).logsumexp(0)
        total = logs if total is None else torch.logaddexp(total, logs)
    assert total is not None
    return total


@torch.no_grad()
def enumerated_moments(law: Distribution, lo: int, hi: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``law`` summed over lo … hi, in chunks, in float64; carries no gradient."""
    rows = max(1, law.batch_shape.numel())
    if (hi - lo + 1) * rows > _MOST_TERMS:
        raise UsageError(
            f"the moments of {type(law).__name__} need {hi - lo + 1} integers x {rows} rows: narrow the range or "
            "predict the median instead"
        )
    size = max(1, _CHUNK // rows)
    centre = 0.5 * (lo + hi)
    first_moment = torch.zeros(law.batch_shape, dtype=torch.float64)
    second_moment, mass = first_moment.clone(), first_moment.clone()
    for first in range(lo, hi + 1, size):
        n = torch.arange(first, min(first + size, hi + 1)).view(-1, *[1] * len(law.batch_shape))
        p = torch.exp(law.log_prob(n).double())
        mass, first_moment = mass + p.sum(0), first_moment + (p * (n - centre)).sum(0)
        second_moment = second_moment + (p * (n - centre) ** 2).sum(0)
    mean = first_moment / mass
    return centre + mean, second_moment / mass - mean.square()
