"""AEPO's recipe in the real trainer: budgets, replacement, halving, and its limit GRPO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from at_work import FAST, trained, trainer
from policydist.functional import aggregate, grpo_advantage
from policydist.language import methods
from policydist.language.methods.aepo import AuxiliarySampler, MixedCredit
from policydist.language.recipe import Context, Shuffled
from policydist.language.worlds import ModularSum


def test_aepo_without_a_budget_is_grpo() -> None:
    torch.testing.assert_close(trained("aepo", budget=0, dual_clip=None), trained("grpo"))


def aepo_parts(**knobs: Any) -> tuple[Context, Any, Any]:
    world = ModularSum.draw(2, prompts=12)
    method = methods.load("aepo")
    config = method.Config(**knobs)
    setting = world.setting(8, 8)
    ctx = Context(world.policy, 0)
    rollouts = AuxiliarySampler(config, setting)(Shuffled(setting.source, 8, 8).select(ctx), ctx)
    return ctx, world.judge(rollouts, ctx), MixedCredit(config)


def test_aepo_samples_the_first_quarter_again_in_groups_of_their_own() -> None:
    _, rollouts, _ = aepo_parts()
    auxiliary = rollouts.extras["auxiliary"]
    assert int(auxiliary.sum()) == 16
    assert set(rollouts.group[auxiliary].tolist()) == {8, 9}
    main_first = rollouts.prompt_ids[:16]
    assert torch.equal(rollouts.prompt_ids[auxiliary], main_first)
    assert rollouts.old_logprobs is None  # taken anew at temperature 1, never at the sampling temperature


def test_aepo_replaces_the_first_main_responses_by_correct_auxiliary_ones() -> None:
    ctx, rollouts, credit = aepo_parts(budget=3)
    final = credit(rollouts, ctx)
    assert len(final) == 64
    assert final.extras["auxiliary"].tolist() == [True] * 3 + [False] * 61
    assert bool((final.advantages[:3] == 1).all())
    assert bool((final.rewards[:3] == 1).all())
    main = rollouts.select(~rollouts.extras["auxiliary"])
    assert torch.equal(final.response_ids[3:], main.response_ids[3:])
    before = grpo_advantage(rollouts.rewards, rollouts.group)[3:64]
    torch.testing.assert_close(final.advantages[3:, 0], before)  # not renormalised after dropping


def test_aepo_halves_the_count_above_the_target_and_not_at_it() -> None:
    ctx, rollouts, credit = aepo_parts(budget=3, target_entropy=0.5)
    ctx.metrics["aepo/entropy"] = 0.5
    credit(rollouts, ctx)
    assert ctx.metrics["aepo/kept"] == 3
    ctx.metrics["aepo/entropy"] = 0.51
    credit(rollouts, ctx)
    assert ctx.metrics["aepo/kept"] == 1


def test_aepo_takes_nothing_from_pure_auxiliary_groups() -> None:
    ctx, rollouts, credit = aepo_parts()
    solved = torch.where(rollouts.extras["auxiliary"], torch.ones(()), rollouts.rewards)
    final = credit(replace(rollouts, rewards=solved), ctx)
    assert ctx.metrics["aepo/kept"] == 0
    assert not bool(final.extras["auxiliary"].any())


def test_aepo_with_an_explicit_alpha_is_the_sum_of_two_token_means() -> None:
    ctx, rollouts, credit = aepo_parts(mode="explicit_alpha", alpha=0.3)
    final = credit(rollouts, ctx)
    logp = ctx.policy.score(final).logprobs
    loss = aggregate(-final.advantages * logp, final.response_mask, "token-mean")
    auxiliary = final.extras["auxiliary"]
    main, second = final.select(~auxiliary), final.select(auxiliary)
    plain = grpo_advantage(main.rewards, main.group).unsqueeze(1)
    expected = aggregate(-plain * ctx.policy.score(main).logprobs, main.response_mask, "token-mean")
    pulled = aggregate(
        -second.rewards.unsqueeze(1) * ctx.policy.score(second).logprobs, second.response_mask, "token-mean"
    )
    torch.testing.assert_close(loss, expected + 0.3 * pulled)


def test_aepo_reports_auxiliary_rewards_apart() -> None:
    row = trainer("aepo", FAST, target_entropy=9.0).step()
    assert {"reward", "reward_auxiliary"} <= row.keys()
