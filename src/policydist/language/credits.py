"""Credit from outcome rewards: one advantage a response, compared within its group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import PolicydistError
from policydist.language.recipe import Context, broadcast
from policydist.language.types import Rollouts

GroupAdvantage = Callable[[Float[Tensor, " N"], Int[Tensor, " N"]], Float[Tensor, " N"]]


def rewards_of(rollouts: Rollouts) -> Float[Tensor, " N"]:
    """The judged rewards.

    Raises:
        PolicydistError: if no judge has set them.
    """
    if rollouts.rewards is None:
        raise PolicydistError("rollouts carry no rewards; the recipe's judge must set them before credit is given")
    return rollouts.rewards


def at_last_token(rewards: Float[Tensor, " N"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Outcome rewards [N] as token rewards [N, T], all on the last token the policy chose."""
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    place = torch.nn.functional.one_hot(last, mask.shape[1]).to(rewards.dtype)
    return place * rewards.unsqueeze(1) * mask


@dataclass(frozen=True)
class GroupCredit:
    """Advantages by a pure function of (rewards [N], group [N]), spread over the response's tokens."""

    advantage: GroupAdvantage

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        advantages = self.advantage(rewards_of(rollouts), rollouts.group)
        return replace(rollouts, advantages=broadcast(advantages, rollouts))
