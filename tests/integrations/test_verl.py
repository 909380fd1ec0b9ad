"""verl's real functions against ours, and ours through verl's registries.

Run in an environment of its own: ``bash scripts/verl-env.sh``, then
``.venv-verl/bin/python -m pytest -m verl tests/integrations``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("verl", reason="needs the verl environment: bash scripts/verl-env.sh")
pytestmark = pytest.mark.verl

from verl.trainer.config import AlgoConfig  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

PLUGGED = set(core_algos.ADV_ESTIMATOR_REGISTRY)  # before our module is imported by hand

from policydist import functional as F  # noqa: E402
from policydist.errors import UsageError  # noqa: E402
from policydist.integrations import verl as ours  # noqa: E402
from policydist.integrations.hosting import HostedPrompts  # noqa: E402
from policydist.language import methods  # noqa: E402
from policydist.language.policies.tabular import TabularPolicy  # noqa: E402
from policydist.language.recipe import Setting  # noqa: E402
from policydist.language.trainer import TrainConfig, Trainer  # noqa: E402
from policydist.language.types import Prompts, Sampling  # noqa: E402


@dataclass
class Batch:
    """A ragged batch as verl holds it: uids, token rewards on the last token, masks, log-probabilities."""

    uid: np.ndarray
    group: Tensor
    rewards: Tensor
    token_rewards: Tensor
    mask: Tensor
    old: Tensor
    new: Tensor
    advantages: Tensor


def batch(seed: int, width: int = 7) -> Batch:
    """Groups of one to five responses in mixed order, unequal lengths, log-ratios well beyond the clip range."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1, 2, 3, 5, 4])
    group = torch.repeat_interleave(torch.arange(5), sizes)[torch.randperm(15, generator=draw)]
    count = len(group)
    lengths = torch.randint(1, width + 1, (count,), generator=draw)
    mask = (torch.arange(width) < lengths[:, None]).long()
    rewards = torch.rand(count, generator=draw)
    rewards[group == 2] = 0.3  # a group without spread
    token_rewards = torch.zeros(count, width)
    token_rewards[torch.arange(count), lengths - 1] = rewards
    old = -torch.rand(count, width, generator=draw)
    new = (old + torch.randn(count, width, generator=draw)).requires_grad_()
    advantages = torch.randn(count, width, generator=draw) * mask
    uid = np.array([f"prompt-{int(g)}" for g in group], dtype=object)
    return Batch(uid, group, rewards, token_rewards, mask, old, new, advantages)


def actor(**changes: Any) -> Any:
    settings = {"strategy": "fsdp", "rollout_n": 4, "ppo_micro_batch_size_per_gpu": 4, **changes}
    return ActorConfig(**settings)


def close(mine: Tensor, theirs: Tensor, atol: float = 2e-6) -> None:
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=1e-5, check_dtype=False)


def over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    return advantages.unsqueeze(1) * mask


# --- verl's own functions against our functional floor -------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_grpo_dr_grpo_and_rloo_are_verls(seed: int) -> None:
    b = batch(seed)
    for scaled, mine in (
        (True, F.grpo_advantage(b.rewards, b.group, singleton="raw")),
        (False, F.dr_grpo_advantage(b.rewards, b.group, singleton="raw")),
    ):
        theirs, _ = core_algos.compute_grpo_outcome_advantage(
            b.token_rewards.clone(), b.mask, b.uid, norm_adv_by_std_in_grpo=scaled
        )
        # verl's mean of equal rewards is off by one rounding, which its division by 1e-6 makes visible
        close(over_tokens(mine, b.mask), theirs, atol=0.2 if scaled else 2e-6)
        spread = b.group != 2
        close(over_tokens(mine, b.mask)[spread], theirs[spread], atol=2e-5)
        theirs, _ = core_algos.compute_grpo_vectorized_outcome_advantage(
            b.token_rewards, b.mask, b.uid, norm_adv_by_std_in_grpo=scaled
        )
        close(over_tokens(mine, b.mask)[spread], theirs[spread], atol=2e-5)
    theirs, _ = core_algos.compute_rloo_outcome_advantage(b.token_rewards.clone(), b.mask, b.uid)
    close(over_tokens(F.rloo_advantage(b.rewards, b.group, singleton="raw"), b.mask), theirs)
    theirs, _ = core_algos.compute_rloo_vectorized_outcome_advantage(b.token_rewards.clone(), b.mask, b.uid)
    close(over_tokens(F.rloo_advantage(b.rewards, b.group, singleton="zero"), b.mask), theirs)


def test_verls_two_rloo_estimators_differ_for_a_group_of_one() -> None:
    b = batch(0)
    loop, _ = core_algos.compute_rloo_outcome_advantage(b.token_rewards.clone(), b.mask, b.uid)
    vector, _ = core_algos.compute_rloo_vectorized_outcome_advantage(b.token_rewards.clone(), b.mask, b.uid)
    alone = b.group == 0
    close(loop[alone], over_tokens(b.rewards, b.mask)[alone])
    assert bool((vector[alone] == 0).all())


@pytest.mark.parametrize("seed", range(4))
def test_reinforce_pp_and_remax_are_verls(seed: int) -> None:
    b = batch(seed)
    b.mask[3, 1] = 0  # a token that the policy did not choose, in the middle
    config = AlgoConfig(gamma=0.9)
    theirs, _ = core_algos.compute_reinforce_plus_plus_outcome_advantage(b.token_rewards, b.mask, config=config)
    close(F.reinforce_pp_advantage(b.token_rewards, b.mask.bool(), gamma=0.9), theirs, atol=1e-5)
    theirs, _ = core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(
        b.token_rewards.clone(), b.mask, b.uid
    )
    scores = b.token_rewards.sum(1)
    mine = F.reinforce_pp_baseline_advantage(scores, b.group, b.mask.bool(), singleton="raw")
    close(mine, theirs, atol=1e-5)
    greedy = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    theirs, _ = core_algos.compute_remax_outcome_advantage(b.token_rewards * b.mask, greedy[b.group], b.mask)
    whole = torch.arange(len(b.group)) != 3
    mine = over_tokens(F.remax_advantage(b.rewards, greedy, b.group), b.mask)
    close(mine[whole], theirs[whole])


INFO: list[dict[str, Any]] = [
    {},
    {"dp_size": 2, "batch_num_tokens": 100, "global_batch_size": 40, "loss_scale_factor": 50},
]


@pytest.mark.parametrize("info", INFO, ids=["alone", "global"])
@pytest.mark.parametrize("mode", list(ours.MODES))
def test_aggregations_are_verls(mode: str, info: dict[str, Any]) -> None:
    b = batch(1)
    b.mask[2] = 0  # fully masked: verl does not count it
    losses = torch.randn(b.mask.shape, generator=torch.Generator().manual_seed(9))
    theirs = core_algos.agg_loss(losses, b.mask, mode, **info)
    close(ours.total(losses, b.mask.bool(), mode, info), theirs)


def test_verl_divides_the_normalised_sum_by_the_batch() -> None:
    losses, mask = torch.ones(6, 4), torch.ones(6, 4)
    theirs = float(core_algos.agg_loss(losses, mask, "seq-mean-token-sum-norm"))
    assert theirs == float(F.aggregate(losses, mask.bool(), "dr-grpo", max_length=4)) == 1.0
    assert float(F.aggregate(losses, mask.bool(), "seq-mean-token-sum-norm", max_length=4)) == 6.0


def both(name: str, b: Batch, config: Any, mode: str, weights: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """(loss, gradient) by verl's loss ``name`` and by our registered one."""
    results = []
    twin = {"vanilla": "policydist_clipped", "gspo": "policydist_gspo"}[name]
    for loss_name in (name, twin):
        b.new.grad = None
        loss, _ = core_algos.get_policy_loss_fn(loss_name)(
            old_log_prob=b.old,
            log_prob=b.new,
            advantages=b.advantages,
            response_mask=b.mask.bool(),
            loss_agg_mode=mode,
            config=config,
            rollout_is_weights=weights,
        )
        loss.backward()
        results.append((loss.detach(), b.new.grad.clone()))
    return results


@pytest.mark.parametrize("mode", list(ours.MODES))
@pytest.mark.parametrize("name", ["vanilla", "gspo"])
def test_losses_and_gradients_are_verls(name: str, mode: str) -> None:
    b = batch(5)
    config = actor(clip_ratio_low=0.1, clip_ratio_high=0.28, clip_ratio_c=1.5)
    weights = torch.rand(b.mask.shape, generator=torch.Generator().manual_seed(2)) * 2
    for w in (None, weights):
        (theirs, their_grad), (mine, my_grad) = both(name, b, config, mode, w)
        close(mine, theirs)
        close(my_grad, their_grad)
        assert bool(my_grad.ne(0).any())
        assert bool(my_grad[b.mask.bool()].eq(0).any())  # some tokens are clipped


def test_vanilla_always_clips_twice_and_an_infinite_bound_switches_it_off() -> None:
    b = batch(6)
    free, tight = actor(clip_ratio_c=math.inf), actor(clip_ratio_c=1.01)
    arguments = (b.old, b.new, b.advantages, b.mask.bool(), "token-mean")
    plain = F.aggregate(F.clipped_surrogate(b.new, b.old, b.advantages), b.mask.bool())
    close(ours.clipped(*arguments, free)[0], plain)
    assert float((ours.clipped(*arguments, tight)[0] - plain).detach()) < -1e-3


def test_numbers_for_verls_log_are_verls() -> None:
    b = batch(7)
    arguments = (b.old, b.new, b.advantages, b.mask.bool(), "token-mean", actor())
    _, theirs = core_algos.compute_policy_loss_vanilla(*arguments)
    _, mine = ours.clipped(*arguments)
    for name, value in mine.items():
        assert value == pytest.approx(theirs[name], abs=1e-6), name


@pytest.mark.parametrize(("name", "kind"), [("kl", "k1"), ("mse", "k2"), ("low_var_kl", "k3")])
def test_kl_estimates_are_verls(name: str, kind: Any) -> None:
    b = batch(8)
    b.old[0, 0] = b.new.detach()[0, 0] + 30  # beyond both clamps
    limits = {"exponent_clamp": 20.0, "value_clamp": 10.0} if kind == "k3" else {}
    mine = F.kl_estimate(b.new, b.old, kind, **limits)
    close(mine, core_algos.kl_penalty(b.new, b.old, name), atol=1e-5)
    if kind == "k3":
        assert float(F.kl_estimate(b.new, b.old, kind).detach()[0, 0]) > 1e6


# --- ours through verl's registries --------------------------------------------------------------------------------


def test_verl_finds_us_by_itself() -> None:
    assert {"policydist_bnpo", "policydist_rloo"} <= PLUGGED
    assert ours.register() == ours.register()


def estimate(name: str, b: Batch, config: Any = None, uid: Any = None) -> Tensor:
    """As verl's compute_advantage calls any estimator but gae and grpo."""
    function = core_algos.get_adv_estimator_fn(name)
    advantages, returns = function(
        token_level_rewards=b.token_rewards,
        response_mask=b.mask,
        config=AlgoConfig() if config is None else config,
        index=b.uid if uid is None else uid,
    )
    assert advantages.shape == returns.shape == b.mask.shape
    return advantages


def test_registered_bnpo_is_the_formula_on_ragged_groups() -> None:
    b = batch(3)
    before = b.token_rewards.clone()
    mine = estimate("policydist_bnpo", b)
    p = torch.stack([b.rewards[b.group == g].mean() for g in range(5)]).double()
    mean, variance = p.mean(), p.var()
    scale = mean * (1 - mean) / variance - 1
    alpha, beta = 1 + scale * mean / 3, 1 + scale * (1 - mean) / 3
    density = torch.distributions.Beta(alpha, beta).log_prob(p).exp()
    expected = over_tokens((b.rewards - p[b.group]) / density[b.group], b.mask)
    close(mine, expected, atol=1e-5)
    assert torch.equal(before, b.token_rewards)
    assert bool((mine[b.mask == 0] == 0).all())


def test_uids_may_be_anything_in_any_order() -> None:
    b = batch(4)
    expected = estimate("policydist_bnpo", b)
    close(estimate("policydist_bnpo", b, uid=b.group.numpy()), expected)
    close(estimate("policydist_bnpo", b, uid=b.group), expected)
    close(estimate("policydist_bnpo", b, uid=[("prompt", -int(g)) for g in b.group]), expected)
    merged = estimate("policydist_bnpo", b, uid=np.zeros(len(b.group), dtype=object))
    assert not torch.allclose(merged, expected)


def test_knobs_come_from_verls_config() -> None:
    from omegaconf import OmegaConf

    b = batch(3)
    config = OmegaConf.create({"gamma": 0.5, "policydist": {"eps": 1e-4, "ddof": 0}})
    close(
        estimate("policydist_grpo", b, config),
        over_tokens(F.grpo_advantage(b.rewards, b.group, eps=1e-4, ddof=0), b.mask),
    )
    close(
        estimate("policydist_reinforce_pp", b, OmegaConf.create({"gamma": 0.5})),
        F.reinforce_pp_advantage(b.token_rewards, b.mask.bool(), gamma=0.5),
    )
    for section, words in (
        ({"clip_high": 0.3}, "actor.clip_ratio_high"),
        ({"epss": 1.0}, "eps"),
        ({"decompose": True}, "gdpo"),
    ):
        with pytest.raises(UsageError, match=words):
            estimate("policydist_bnpo", b, OmegaConf.create({"policydist": section}))
    with pytest.raises(UsageError, match="policydist_dr_grpo"):
        estimate("policydist_grpo", b, AlgoConfig(norm_adv_by_std_in_grpo=False))


@pytest.mark.parametrize("method", sorted(ours.REFUSED))
def test_what_verl_cannot_express_says_why(method: str) -> None:
    with pytest.raises(UsageError, match=f"{method} is no advantage estimator in verl"):
        estimate(f"policydist_{method}", batch(0))


def test_every_method_is_registered_or_refused() -> None:
    assert sorted([*ours.ESTIMATORS, *ours.REFUSED]) == methods.names()


class Contexts(HostedPrompts):
    """Four prompts of a tabular policy."""

    def __len__(self) -> int:
        return 4

    def take(self, rows: Tensor, samples: Any) -> Prompts:
        counts = torch.full_like(rows, samples) if isinstance(samples, int) else samples
        ids = rows.unsqueeze(1)
        return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), counts, rows)


def many_zeros(rollouts: Any, ctx: Any) -> Any:
    return replace(rollouts, rewards=(rollouts.response_ids == 0).float().mean(1).round())


METHOD_LOSS = {
    "grpo": ("policydist_grpo", "policydist_clipped", {}),
    "bnpo": (
        "policydist_bnpo",
        "policydist_clipped",
        {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0, "loss_agg_mode": "seq-mean-token-sum"},
    ),
    "reinforce_pp": ("policydist_reinforce_pp", "policydist_clipped", {}),
    "reinforce": ("policydist_reinforce", "policydist_clipped", {}),
    "rloo": ("policydist_rloo", "policydist_clipped", {}),
    "dr_grpo": (
        "policydist_dr_grpo",
        "policydist_clipped",
        {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 3},
    ),
    "gspo": (
        "policydist_grpo",
        "policydist_gspo",
        {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4, "loss_agg_mode": "seq-mean-token-mean"},
    ),
}


@pytest.mark.parametrize("method", sorted(METHOD_LOSS))
def test_verls_advantage_and_loss_are_our_trainers(method: str) -> None:
    """Two optimiser steps on one batch by our trainer; each step's loss and gradient once more through verl."""
    torch.manual_seed(0)
    policy = TabularPolicy(4, 3, 3, init=torch.randn(4, 3, 3))
    module = methods.load(method)
    knobs = {} if method in ("bnpo", "gspo", "dr_grpo") else {"dual_clip": 3.0}
    recipe = module.build(module.Config(**knobs), Setting(Contexts(), many_zeros, Sampling(3), 4, 6))
    trainer = Trainer(policy, recipe, TrainConfig(steps=1, updates=2, lr=2.0, optimiser="sgd", grad_clip=0.0))
    estimator, loss_name, changes = METHOD_LOSS[method]
    config = actor(**{"clip_ratio_c": math.inf if method == "dr_grpo" else 3.0, **changes})
    inner, losses = trainer.minibatch, []

    def checked(part: Any) -> Any:
        config.global_batch_info["loss_scale_factor"] = config.loss_scale_factor
        scores = policy.score(part).logprobs
        loss, _ = core_algos.get_policy_loss_fn(loss_name)(
            old_log_prob=part.old_logprobs,
            log_prob=scores,
            advantages=part.advantages,
            response_mask=part.response_mask,
            loss_agg_mode=config.loss_agg_mode,
            config=config,
        )
        (gradient,) = torch.autograd.grad(loss, policy.module.logits)
        before = policy.module.logits.detach().clone()
        row = inner(part)
        assert row["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
        close((before - policy.module.logits.detach()) / 2.0, gradient, atol=1e-5)
        losses.append(row["loss"])
        return row

    def through_verl(rollouts: Any, ctx: Any) -> Any:
        credited = module.build(module.Config(**knobs), Setting(Contexts(), many_zeros, Sampling(3))).credit(
            rollouts, ctx
        )
        uid = np.array([str(int(g)) for g in rollouts.group], dtype=object)
        token_rewards = torch.zeros(rollouts.response_mask.shape)
        token_rewards[:, -1] = rollouts.rewards
        theirs, _ = core_algos.get_adv_estimator_fn(estimator)(
            token_level_rewards=token_rewards, response_mask=rollouts.response_mask, config=AlgoConfig(), index=uid
        )
        close(theirs, credited.advantages)
        assert bool(theirs.ne(0).any())
        return replace(rollouts, advantages=theirs)

    trainer.minibatch = checked
    trainer.recipe = replace(recipe, credit=through_verl)
    trainer.step()
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_no_actor_config_is_a_clear_error() -> None:
    b = batch(0)
    with pytest.raises(UsageError, match="actor config"):
        ours.clipped(b.old, b.new, b.advantages, b.mask)
    with pytest.raises(UsageError, match="global batch numbers"):
        ours.total(b.old, b.mask.bool(), "token-mean", {"dp_size": 2})
