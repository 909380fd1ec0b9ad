"""ReMax on a small world: the baseline is the greedy response's reward, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from at_work import FAST
from policydist.errors import UsageError
from policydist.integrations.hosting import hosted
from policydist.language.methods import remax
from policydist.language.recipe import Context
from policydist.language.worlds import ModularSum, run


def credited(world: ModularSum, samples: int = 4) -> tuple:
    """Judged rollouts of a step with groups out of order, before and after credit, and what was logged."""
    setting = world.setting(6, samples)
    recipe, ctx = remax.build(remax.Config(), setting), Context(world.policy, seed=3)
    drawn = world.judge(recipe.sampler(recipe.curriculum.select(ctx), ctx), ctx)
    ctx.metrics = {"reward/main": 7.0}
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))
    before = drawn.select(order)
    return before, recipe.credit(before, ctx), ctx


def test_the_baseline_is_the_reward_of_the_most_probable_response() -> None:
    world = ModularSum.draw(1, prompts=12)
    before, after, ctx = credited(world)
    best = world.policy.probabilities().argmax(1)  # symbols are independent, so the greedy response is the likeliest
    likeliest = world.policy.sequences()[best]
    reward = (likeliest.sum(1) % world.modulus == world.targets).float()
    baseline = reward[before.prompt_ids[:, 0]]
    torch.testing.assert_close(after.advantages, (before.rewards - baseline).unsqueeze(1) * before.response_mask)
    assert 0 < baseline.mean() < 1
    rows = before.prompt_ids[:, 0].unique()
    assert ctx.metrics == {"reward/main": 7.0, "greedy_reward": pytest.approx(float(reward[rows].mean()))}
    assert ctx.generated == before.response_attention.sum() + world.policy.length * len(rows)


def test_cuts_of_the_samples_leave_the_greedy_response_alone() -> None:
    world = ModularSum.draw(1, prompts=12)
    hot = replace(world.setting(6, 4), sampling=replace(world.setting(6, 4).sampling, temperature=3.0, top_p=0.9))
    ctx = Context(world.policy, seed=3)
    rollouts, plain, _ = credited(world)
    other = remax.build(remax.Config(), hot).credit(rollouts, ctx)
    torch.testing.assert_close(other.advantages, plain.advantages)


def test_it_learns_from_one_response_a_prompt() -> None:
    gained = {}
    for slug in ("remax", "rloo"):
        world = ModularSum.draw(1, prompts=12)
        before = world.accuracy()
        run(slug, {}, world.policy, world.setting(12, 1), replace(FAST, steps=60, lr=32.0))
        gained[slug] = world.accuracy() - before
    assert gained["remax"] > 0.2
    assert gained["rloo"] == 0  # nobody to compare with


def test_hosts_refuse_it_with_the_reason() -> None:
    with pytest.raises(UsageError, match="remax cannot run inside TRL: it needs a greedy response"):
        hosted("remax", {}, "TRL", 8)
