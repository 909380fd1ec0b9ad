"""Where each token of a response came from: one code a token, kept beside the rollouts as ``extras["origin"]`` (int8).

``Rollouts.response_mask`` says which tokens carry gradient; the origin says how they came about, which is what an
objective needs to weigh them rightly. Rows without the extra are the policy's own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from policydist.errors import PolicydistError
from policydist.language.types import Rollouts

PROMPT = 0
"""No response token: prompt or padding."""
MODEL = 1
"""Drawn from the policy under the prompt that the row is trained on."""
FORCED = 2
"""Put there by a method as if the policy had written it (a hint)."""
TOOL = 3
"""An observation: a tool's, an environment's or a retriever's output."""
EXPERT = 4
"""Written by somebody else: a demonstration."""
GUIDED = 5
"""Drawn from the policy under *another* prompt than the row was sampled for (examples, a diagnosis in front of it)."""

NAMES = {PROMPT: "prompt", MODEL: "model", FORCED: "forced", TOOL: "tool", EXPERT: "expert", GUIDED: "guided"}
TRAINED = (MODEL, FORCED, EXPERT, GUIDED)
"""Codes that carry gradient unless a method says otherwise: all but what the environment wrote."""
OFF_POLICY = (EXPERT, GUIDED)
"""Codes that get the off-policy loss."""
EXTRA = "origin"


def of(rollouts: Rollouts) -> Int[Tensor, "N T"]:
    """The origin of every token; without the extra, `MODEL` on the real tokens."""
    found = rollouts.extras.get(EXTRA)
    return rollouts.response_attention.to(torch.int8) * MODEL if found is None else found


def mark(rollouts: Rollouts, code: int) -> Rollouts:
    """Give all real tokens one origin. `TOOL` rows would carry no gradient; every other code leaves the mask alone."""
    return assign(rollouts, rollouts.response_attention.to(torch.int8) * code)


def assign(rollouts: Rollouts, origin: Int[Tensor, "N T"], trained: Collection[int] = TRAINED) -> Rollouts:
    """Set the origins, and the mask to the real tokens whose code is in ``trained``.

    Raises:
        PolicydistError: for a wrong shape or an unknown code.
    """
    if origin.shape != rollouts.response_ids.shape:
        raise PolicydistError(
            f"origins have shape {tuple(origin.shape)}, the responses {tuple(rollouts.response_ids.shape)}"
        )
    unknown = set(origin.unique().tolist()) - set(NAMES)
    if unknown:
        raise PolicydistError(f"unknown origin code {min(unknown)}; known: {NAMES}")
    mask = rollouts.response_attention & among(origin, trained)
    return replace(rollouts, response_mask=mask, extras={**rollouts.extras, EXTRA: origin.to(torch.int8)})


def among(origin: Int[Tensor, "N T"], codes: Collection[int]) -> Bool[Tensor, "N T"]:
    """Tokens whose code is one of ``codes``."""
    return torch.isin(origin, torch.tensor(sorted(codes), dtype=origin.dtype, device=origin.device))


def off_policy(rollouts: Rollouts) -> Bool[Tensor, "N T"]:
    """Gradient-carrying tokens that the policy did not draw under the row's prompt."""
    return among(of(rollouts), OFF_POLICY) & rollouts.response_mask


def off_policy_rows(rollouts: Rollouts) -> Bool[Tensor, " N"]:
    """Rows with an off-policy token."""
    return off_policy(rollouts).any(1)
