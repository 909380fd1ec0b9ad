"""Entropy controllers of AEPO (arXiv 2510.08141) and DCPO (arXiv 2601.12730).

Both read the sampled entropy of the previous update (nats; 0 before the first) and pull the policy towards a hotter
target when it is below the set-point, towards a colder one when above.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError


def entropy_switch(entropy: float, target: float, high: float = 1.2, low: float = 0.8) -> float:
    """The temperature of the target distribution: ``high`` if ``entropy <= target``, else ``low``.

    The papers write a strict inequality; the released code, followed here, counts equality as below.
    """
    return high if entropy <= target else low


def dcpo_alpha(entropy: float, target: float, fraction_correct: float, cap: float = 0.1) -> float:
    """Weight of DCPO's target term, ``alpha = a / (1 + a)`` with ``a = min(|target - entropy|, cap) / q``.

    Source: arXiv 2601.12730, released code.

    q is the fraction of correct responses in the whole batch, so that ``alpha q / (1 - alpha)``, the term's mass
    relative to GRPO's, is the capped entropy error whatever the accuracy. Without any correct response there is no
    term: 0.0 (the released code yields NaN).

    Raises:
        UsageError: ``fraction_correct`` is outside [0, 1].
    """
    if not 0 <= fraction_correct <= 1:
        raise UsageError(f"fraction_correct is {fraction_correct}; it must lie in [0, 1]")
    if fraction_correct == 0:
        return 0.0
    error = min(abs(target - entropy), cap)
    return error / (error + fraction_correct)


def dcpo_advantage(
    advantages: Float[Tensor, " N"] | Float[Tensor, "N T"],
    correct: Bool[Tensor, " N"],
    log_rho: Float[Tensor, "N T"],
    alpha: float,
    mask: Bool[Tensor, "N T"],
) -> Float[Tensor, "N T"]:
    """``A' = (1 - alpha) A + alpha 1[correct] rho`` on valid tokens, 0 elsewhere (arXiv 2601.12730, code).

    The second term is never negative and reaches correct responses of groups where A = 0. ``log_rho`` is
    `tilt_logratio` of the rollout-time policy, the same for all mini-batches; rho is neither clipped nor
    differentiated.

    Raises:
        UsageError: alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}; it must lie in [0, 1]")
    base = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    mixed = (1 - alpha) * base
    if alpha > 0:
        mixed = mixed + alpha * torch.where(correct.bool().unsqueeze(1), log_rho.detach().exp(), 0.0)
    return torch.where(mask.bool(), mixed, 0.0)


def aepo_select(aux_advantages: Float[Tensor, " M"], threshold: float = 0.05) -> Int[Tensor, " K"]:
    """Rows of the auxiliary rollouts that AEPO keeps, in order: group advantage above ``threshold`` (AEPO 3.2, step 4).

    These are the correct responses of mixed groups; an all-correct group has advantage 0 and contributes nothing. Their
    advantage in the update is 1, not the value that selected them.
    """
    return (aux_advantages > threshold).nonzero().flatten()


def aepo_count(selected: int, budget: int, entropy: float, target: float) -> int:
    """How many auxiliary responses replace main ones: ``min(budget, selected)``, halved (floor) above the target."""
    count = min(budget, selected)
    return count if entropy <= target else count // 2
