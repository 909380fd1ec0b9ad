"""DPO on the policy's own samples: of every group the best response against the worst, as the reward grades them, with the
initial policy as reference (arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.functional import best_worst_pairs, dpo_loss, dpo_margin, group_count
from policydist.language.credits import rewards_of
from policydist.language.recipe import Context, OnPolicy, Recipe, Setting, Shuffled
from policydist.language.types import Policy, Rollouts

DIFFERENCES: tuple[str, ...] = (
    "The paper trains on a fixed set of preferences. Here each step draws samples from the policy as it "
    "is and the task's reward prefers: best against worst of a group, the first of equals. Groups without a difference are "
    "left out.",
    "The reference is the policy at the start of the run; the paper's is the fine-tuned model that wrote the pairs, or, where "
    "there is none, one fitted to the preferred responses (section 4).",
    "The paper takes RMSprop at 1e-6, a warm-up of 150 steps and 64 pairs a batch (appendix B); here the optimiser is the "
    "trainer's, and a batch has a pair for each prompt with a difference.",
)
"""Where the paper and this module part."""


@dataclass(frozen=True)
class Config:
    """``beta``: how strongly the policy is held to the reference, the scale of the implicit reward."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"dpo: beta is {self.beta}; it must be positive")


def best_against_worst(rollouts: Rollouts, ctx: Context) -> Rollouts:
    """Rows 0 and 1 a pair, the better one first, then 2 and 3, and so on; without any pair the step is skipped."""
    pairs = best_worst_pairs(rewards_of(rollouts), rollouts.group)
    ctx.log("dpo/pairs", len(pairs) / len(group_count(rollouts.group)))
    return rollouts.select(pairs.flatten())


@dataclass(frozen=True)
class PairObjective:
    """The mean DPO loss over the mini-batch's pairs: consecutive rows, better one first."""

    beta: float
    sparse = False

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        if "reference_logprobs" not in batch.extras:
            raise PolicydistError(
                "dpo: the rollouts carry no reference_logprobs; its recipe needs the reference policy"
            )
        logprobs = policy.score(batch).logprobs
        ours, reference = (paired(values, batch) for values in (logprobs, batch.extras["reference_logprobs"]))
        loss = dpo_loss(*ours, *reference, beta=self.beta)
        margin = dpo_margin(*ours, *reference, beta=self.beta).detach()
        gains = [self.beta * (mine - theirs).detach() for mine, theirs in zip(ours, reference, strict=True)]
        count = ctx.norm.sequences / 2
        numbers = {
            "entropy": -(logprobs.detach() * batch.response_mask).sum() / ctx.norm.tokens,
            "dpo/margin": margin.sum() / count,
            "dpo/accuracy": (margin > 0).to(margin.dtype).sum() / count,
            "dpo/chosen": gains[0].sum() / count,
            "dpo/rejected": gains[1].sum() / count,
        }
        return loss.sum() / count, numbers


def paired(logprobs: Float[Tensor, "N T"], batch: Rollouts) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Log-probabilities of the better and of the worse responses."""
    whole = (logprobs * batch.response_mask).sum(1)
    return whole[0::2], whole[1::2]


def build(config: Config, setting: Setting) -> Recipe:
    return Recipe(
        curriculum=Shuffled(setting.source, setting.prompts_per_step, setting.samples_per_prompt),
        sampler=OnPolicy(setting.sampling),
        judge=setting.judge,
        credit=best_against_worst,
        objective=PairObjective(config.beta),
        needs_reference=True,
        together=2,
    )
