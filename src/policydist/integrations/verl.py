"""Our advantages and losses in verl's registries (verl 0.9): importing this module registers them.

With policydist installed beside verl, every verl process imports it by itself (entry point ``verl.plugins``), and

    algorithm.adv_estimator=policydist_bnpo
    actor_rollout_ref.actor.policy_loss.loss_mode=policydist_clipped

are the one line that each takes. A method's advantage knobs go to ``+algorithm.policydist.<knob>=…``; the loss takes
verl's own actor settings (clip_ratio_low, clip_ratio_high, clip_ratio_c, loss_agg_mode).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import MissingExtraError, UsageError
from policydist.functional import Aggregation, aggregate, clip_fraction, clipped_surrogate, gspo_surrogate
from policydist.integrations.hosting import NEEDS, hosted
from policydist.language import methods
from policydist.language.recipe import Context
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms

try:
    from verl.trainer.ppo import core_algos
except ModuleNotFoundError as absent:
    if absent.name != "verl":
        raise
    raise MissingExtraError("verl", "verl") from None

ESTIMATORS = ("bnpo", "dr_grpo", "grpo", "reinforce", "reinforce_pp", "rloo")
CHOICE = (
    "its advantage is policydist_grpo's; its choice of prompts is trainer.v1.trainer_mode=policydist_{} "
    "(with VERL_USE_EXTERNAL_MODULES=policydist.integrations.verl_trainer)"
)
REFUSED: Mapping[str, str] = MappingProxyType(
    {method: f"it needs {what}" for method, what in NEEDS.items()}
    | {
        "dapo": "its advantage is policydist_grpo's; the rest are verl settings: actor.clip_ratio_high=0.28, "
        "algorithm.filter_groups, the reward manager's overlong buffer",
        "dcpo": "it needs the previous update's entropy and log-probabilities at a second temperature, and verl hands an "
        "estimator rewards, mask and uid only. A trainer of your own can compute it with policydist.functional",
        "dft": "it imitates data and has no rewards",
        "dump": CHOICE.format("dump"),
        "gspo": "its advantage is policydist_grpo's; the rest is policy_loss.loss_mode=policydist_gspo",
        "knapsack": "it gives prompts unequal numbers of responses; verl asks for rollout.n of every row and tells "
        "groups by a uid of its own for each row",
        "otr": "it imitates data and has no rewards",
        "ppo": "verl brings its own critic: adv_estimator=gae",
        "remax": "verl brings its own greedy baseline: adv_estimator=remax",
        "sft": "it imitates data and has no rewards: verl's SFT trainer",
        "vade": CHOICE.format("vade"),
    }
)
"""Methods that no advantage estimator of verl can express, and why."""
LOSS_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "clip_low": "clip_ratio_low",
        "clip_high": "clip_ratio_high",
        "dual_clip": "clip_ratio_c",
        "aggregation": "loss_agg_mode",
        "kl_coef": "kl_loss_coef",
        "kl_kind": "kl_loss_type",
        "entropy_coef": "entropy_coeff",
        "max_length": "loss_scale_factor",
    }
)
"""Knobs of our losses and the setting of verl's actor that takes their place."""
MODES: Mapping[str, Aggregation] = MappingProxyType(
    {
        "token-mean": "token-mean",
        "token-sum": "token-mean",
        "seq-mean-token-mean": "seq-mean-token-mean",
        "seq-mean-token-sum": "seq-mean-token-sum",
        "seq-mean-token-sum-norm": "dr-grpo",
    }
)
"""verl 0.9's ``loss_agg_mode`` as modes of `aggregate`; ``token-sum`` is a token mean over one token. verl 0.9 divides
``seq-mean-token-sum-norm`` by the batch as well, which earlier releases did not."""


class Blind:
    """The policy as a verl estimator sees it: not at all."""

    module = torch.nn.Module()
    device = torch.device("cpu")

    def add_value_head(self) -> None:
        raise UsageError("a verl advantage estimator has no policy to give a value head")

    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        raise UsageError("a verl advantage estimator cannot sample")

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        raise UsageError("a verl advantage estimator cannot score: verl hands it rewards, mask and uid only")


@dataclass(frozen=True)
class Estimator:
    """A method's credit with the signature of verl's advantage estimators."""

    method: str

    @torch.no_grad()
    def __call__(
        self,
        token_level_rewards: Float[Tensor, "N T"],
        response_mask: Tensor,
        index: Iterable[Hashable] | Tensor | None = None,
        config: Any = None,
        **others: Any,
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Advantages [N, T], zero outside the mask, twice: verl's second result, the returns, only feeds its metrics.

        The outcome reward of a response is the sum of its token rewards, as in verl's own estimators; ``index`` is
        verl's uid array, equal for the responses to one prompt, in any order and number.

        Raises:
            UsageError: a knob that does not exist or belongs to the loss; no ``index``.
        """
        if index is None:
            raise UsageError(f"policydist_{self.method} needs the prompts' uid (non_tensor_batch['uid'])")
        _, recipe = hosted(self.method, knobs_of(self.method, config), "verl", 1)
        mask = response_mask.bool()
        group = group_of(index).to(mask.device)
        rollouts = outcomes(token_level_rewards, mask, group, group)
        advantages = recipe.credit(rollouts, Context(Blind(), seed=0)).advantages
        assert advantages is not None
        return advantages, advantages


def outcomes(
    token_rewards: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    group: Int[Tensor, " N"],
    index: Int[Tensor, " N"],
    advantages: Float[Tensor, "N T"] | None = None,
) -> Rollouts:
    """What verl tells of its responses, as rollouts; their texts stay with verl."""
    nothing = mask.new_zeros(len(mask), 0)
    return Rollouts(
        prompt_ids=nothing.long(),
        prompt_mask=nothing,
        response_ids=torch.zeros_like(mask, dtype=torch.long),
        response_attention=mask,
        response_mask=mask,
        group=group,
        index=index,
        behavior_logprobs=torch.full(mask.shape, torch.nan, device=mask.device),
        rewards=token_rewards.sum(1),
        token_rewards=token_rewards,
        advantages=advantages,
    )


@dataclass(frozen=True)
class Refusal:
    """Answers for a method that verl's estimators cannot express."""

    method: str

    def __call__(self, **batch: Any) -> tuple[Tensor, Tensor]:
        raise UsageError(f"{self.method} is no advantage estimator in verl: {REFUSED[self.method]}")


def knobs_of(method: str, config: Any) -> dict[str, Any]:
    """The method's advantage knobs: the section ``policydist`` of verl's algorithm config, and its ``gamma``.

    Raises:
        UsageError: a knob of the loss, with verl's name for it; a setting of verl that would be ignored.
    """
    section = None if config is None else config.get("policydist")
    given = dict(section or {})
    for name in given.keys() & LOSS_SETTINGS.keys():
        raise UsageError(f"algorithm.policydist.{name} belongs to the loss: set actor.{LOSS_SETTINGS[name]}")
    if given.get("decompose"):
        raise UsageError("algorithm.policydist.decompose: verl hands reward components to its own gdpo estimator only")
    if method == "grpo" and config is not None and not config.get("norm_adv_by_std_in_grpo", True):
        raise UsageError("norm_adv_by_std_in_grpo=False is another method: adv_estimator=policydist_dr_grpo")
    own = {field.name for field in dataclasses.fields(methods.load(method).Config)}
    if "gamma" in own and config is not None:
        given.setdefault("gamma", config.get("gamma", 1.0))
    return given


def group_of(index: Iterable[Hashable] | Tensor) -> Int[Tensor, " N"]:
    """verl's uids, of whatever type, as numbers in order of appearance."""
    numbers: dict[Hashable, int] = {}
    if isinstance(index, Tensor):  # its elements are equal by identity only, which would make every group one of one
        index = index.tolist()
    return torch.tensor([numbers.setdefault(uid, len(numbers)) for uid in index], dtype=torch.int64)


def clipped(
    old_log_prob: Float[Tensor, "N T"],
    log_prob: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Float[Tensor, "N T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """`clipped_surrogate` with verl's actor settings: the loss of every method of ours but GSPO.

    ``clip_ratio_c`` is the dual clip; infinity (``clip_ratio_c=inf``) switches it off.
    """
    low, high = clip_range(config)
    dual = float(config.get("clip_ratio_c", 3.0))
    losses = clipped_surrogate(
        log_prob,
        old_log_prob,
        advantages,
        clip_low=low,
        clip_high=high,
        dual_clip=None if math.isinf(dual) else dual,
    )
    return finish(losses, old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights)


def gspo(
    old_log_prob: Float[Tensor, "N T"],
    log_prob: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    response_mask: Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    config: Any = None,
    rollout_is_weights: Float[Tensor, "N T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """`gspo_surrogate` with verl's actor settings; the paper asks for clip 3e-4 / 4e-4 and seq-mean-token-mean."""
    low, high = clip_range(config)
    losses = gspo_surrogate(log_prob, old_log_prob, advantages, response_mask.bool(), clip_low=low, clip_high=high)
    return finish(losses, old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights)


def clip_range(config: Any) -> tuple[float, float]:
    """verl's lower and upper clip: the specific setting, else the common one.

    Raises:
        UsageError: no actor config.
    """
    if config is None:
        raise UsageError("a policydist loss reads its clip range from verl's actor config; pass config")
    low, high = config.get("clip_ratio_low"), config.get("clip_ratio_high")
    return (
        float(config.clip_ratio if low is None else low),
        float(config.clip_ratio if high is None else high),
    )


def finish(
    losses: Float[Tensor, "N T"],
    old_log_prob: Float[Tensor, "N T"],
    log_prob: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    response_mask: Tensor,
    mode: str,
    config: Any,
    weights: Float[Tensor, "N T"] | None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Rollout-correction weights, aggregation, and the numbers that verl's own losses report."""
    mask = response_mask.bool()
    loss = total(losses if weights is None else losses * weights, mask, mode, config.get("global_batch_info") or {})
    low, high = clip_range(config)
    fraction = clip_fraction(log_prob.detach(), old_log_prob, advantages, mask, clip_low=low, clip_high=high)
    kl = aggregate((old_log_prob - log_prob).detach(), mask)
    return loss, {"actor/pg_clipfrac": float(fraction), "actor/ppo_kl": float(kl)}


def total(losses: Float[Tensor, "N T"], mask: Tensor, mode: str, info: Mapping[str, Any]) -> Float[Tensor, ""]:
    """verl's aggregation of a micro-batch: global denominators where verl knows them, times the data-parallel size.

    Raises:
        UsageError: unknown mode, or several processes without global denominators.
    """
    if mode not in MODES:
        raise UsageError(f"unknown loss_agg_mode {mode!r}; known: {', '.join(MODES)}")
    processes = info.get("dp_size") or 1
    tokens, sequences = info.get("batch_num_tokens"), info.get("global_batch_size")
    needed = {"token-mean": tokens, "token-sum": 1}.get(mode, sequences)
    if processes > 1 and needed is None:
        raise UsageError(f"loss_agg_mode {mode} over {processes} processes needs verl's global batch numbers")
    if mode == "token-sum":
        tokens = 1
    if sequences is None:  # verl leaves fully masked responses out of the count
        sequences = mask.any(1).sum().clamp(min=1)
    longest = info.get("loss_scale_factor") or mask.shape[1]
    summed = aggregate(losses, mask, MODES[mode], tokens=tokens, sequences=sequences, max_length=longest)
    return summed * processes


LOSSES: Mapping[str, Callable[..., tuple[Tensor, dict[str, float]]]] = MappingProxyType(
    {"policydist_clipped": clipped, "policydist_gspo": gspo}
)


def register() -> list[str]:
    """Enter everything into verl's registries; the names. Done on import; doing it again changes nothing."""
    entries: dict[str, Any] = {f"policydist_{method}": Estimator(method) for method in ESTIMATORS}
    entries |= {f"policydist_{method}": Refusal(method) for method in REFUSED}
    for name, function in entries.items():
        core_algos.register_adv_est(name)(function)
    for name, loss in LOSSES.items():
        core_algos.register_policy_loss(name)(loss)
    return sorted([*(f"policydist_{method}" for method in ESTIMATORS), *LOSSES])


register()
