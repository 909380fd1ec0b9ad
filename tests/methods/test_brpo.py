"""BRPO's recipe in the real trainer: its limit Dr. GRPO, who gets which advantage, the constant divisor, wrong requests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.functional import (
    anytime_advantage,
    budget_prior,
    budget_segments,
    dr_grpo_advantage,
    group_centred,
    grpo_advantage,
    length_shaped,
)
from policydist.integrations.hosting import hosted
from policydist.language.experiment import Parts, assemble, configure
from policydist.language.methods import brpo
from policydist.language.recipe import Context, Setting
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts, Sampling
from policydist.language.world import World
from policydist.language.worlds import ModularSum, run
from policydist.language.worlds.progress import Chain

BUDGETS = (3, 6, 9, 13)
SHORT = (
    "task.name=chain", "task.train_size=64", "task.test_size=8", "rollout.prompts=4", "rollout.samples=6", "eval.rows=8",
    "eval.samples=1", "knobs.answer_tokens=4", "answers=3", "model.device=cpu",
)  # fmt: skip


def parts(*words: str) -> Parts:
    return assemble(configure("brpo", None, [*SHORT, *words]), World())


@cache
def sampled() -> tuple[Parts, Context, Rollouts]:
    """Traces and answers of the embedded model, judged."""
    own = parts()
    ctx = Context(own.policy, 4)
    return own, ctx, own.recipe.sampler(own.recipe.curriculum.select(ctx), ctx)


def credited(**knobs: Any) -> Rollouts:
    _, ctx, rollouts = sampled()
    return brpo.BudgetCredit(brpo.Config(answers=3, **knobs), BUDGETS)(rollouts, ctx)


def advantages(rollouts: Rollouts) -> torch.Tensor:
    assert rollouts.advantages is not None
    return rollouts.advantages


def test_one_budget_and_one_answer_is_dr_grpo() -> None:
    own = parts("cuts=1", "answers=1", "aggregation=token-mean")
    ctx = Context(own.policy, 4)
    rollouts = own.recipe.sampler(own.recipe.curriculum.select(ctx), ctx)
    given = advantages(own.recipe.credit(rollouts, ctx))
    answer = rollouts.extras["auxiliary"]
    assert rollouts.rewards is not None
    assert torch.equal(rollouts.rewards[~answer], rollouts.rewards[answer])
    for rows in (~answer, answer):
        expected = dr_grpo_advantage(rollouts.rewards[rows], rollouts.group[rows])
        torch.testing.assert_close(given[rows], expected.unsqueeze(1) * rollouts.response_mask[rows])
    assert bool(given.ne(0).any())


def test_a_token_of_a_trace_has_its_segments_advantage_and_none_beyond_its_end() -> None:
    _, _, rollouts = sampled()
    answer = rollouts.extras["auxiliary"]
    traces = rollouts.select(~answer)
    scores = torch.stack([traces.extras[f"score/{s}"] for s in range(4)], 1)
    found = credited(prior="linear", aggregation="token-mean").select(~answer)
    segment = anytime_advantage(scores, traces.group, budget_prior("linear", BUDGETS)).advantages
    assert found.advantages is not None
    assert bool((traces.lengths <= BUDGETS[-2]).any())  # some closed early
    owner = budget_segments(BUDGETS[-1], BUDGETS)
    for row, length in enumerate(traces.lengths.tolist()):
        torch.testing.assert_close(found.advantages[row, :length], segment[row, owner[:length]])
        assert not bool(found.advantages[row, length:].any())
    # Budgets beyond an early end are rated by answers to one and the same prompt.
    early = int((traces.lengths <= BUDGETS[1]).nonzero()[0])
    own = answer & (rollouts.extras["cut"] >= 0) & (rollouts.group == traces.group[early])
    shared = torch.bincount(rollouts.extras["cut"][own])
    assert int(shared.max()) >= 3 * 3


def test_answers_are_compared_within_their_cut_whatever_the_prior() -> None:
    _, _, rollouts = sampled()
    answer = rollouts.extras["auxiliary"]
    found = credited(aggregation="token-mean").select(answer)
    other = credited(aggregation="token-mean", prior="base").select(answer)
    assert found.rewards is not None
    assert torch.equal(advantages(found), advantages(other))
    first, cut = advantages(found)[:, 0], found.extras["cut"]
    torch.testing.assert_close(first, group_centred(found.rewards, cut))
    sums = torch.zeros(int(cut.max()) + 1).index_add(0, cut, first)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-6, rtol=0)
    assert bool(first.ne(0).any())
    _, ctx, judged = sampled()
    same = replace(judged, rewards=torch.ones(len(judged)))
    level = brpo.BudgetCredit(brpo.Config(answers=3), BUDGETS)(same, ctx).select(answer)
    assert not bool(advantages(level).any())


def test_without_decoupling_only_answers_at_the_last_budget_are_trained() -> None:
    _, _, rollouts = sampled()
    answer = rollouts.extras["auxiliary"]
    found = credited(aggregation="token-mean", decouple=False).select(answer)
    assert found.advantages is not None
    assert found.rewards is not None
    last = found.extras["budget"] == 3
    assert not bool(found.advantages[~last].any())
    torch.testing.assert_close(found.advantages[last, 0], group_centred(found.rewards[last], found.group[last]))


def test_mini_batches_keep_traces_and_answers_together() -> None:
    _, _, rollouts = sampled()
    assert len(rollouts) == 4 * 6 * (1 + 4 * 3)
    for half in rollouts.split(len(rollouts) // 2):
        assert torch.unique_consecutive(half.group).tolist() == sorted(set(half.group.tolist()))
        assert int((~half.extras["auxiliary"]).sum()) == 2 * 6
        assert int(half.extras["auxiliary"].sum()) == 2 * 6 * 4 * 3


def test_the_step_is_the_gradient_of_what_was_chosen_over_traces_times_a_constant() -> None:
    """Fails if closing tokens are trained, if answers change the divisor, or if long traces are averaged away."""
    own = parts()
    config = TrainConfig(steps=1, lr=1.0, optimiser="sgd", grad_clip=0, seed=4)
    trainer = Trainer(own.policy, own.recipe, config)
    _, ctx, rollouts = sampled()
    plain = brpo.BudgetCredit(brpo.Config(answers=3, aggregation="token-mean"), BUDGETS)(rollouts, ctx)
    logprobs = own.policy.score(plain).logprobs
    loss = -(advantages(plain) * logprobs * plain.response_mask).sum() / (24 * (BUDGETS[-1] + 4))
    weights = [p for p in own.policy.module.parameters() if p.requires_grad]
    expected = [p.detach() - g for p, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    trainer.step()
    for found, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, atol=2e-6, rtol=1e-4)


def test_reward_is_that_of_the_last_budget_and_every_budget_is_logged() -> None:
    own = parts()
    row = Trainer(own.policy, own.recipe, TrainConfig(steps=1, seed=4, updates=2)).step()
    assert row["reward"] == pytest.approx(row["brpo/accuracy@13"])
    assert row["brpo/anytime"] == pytest.approx(sum(row[f"brpo/accuracy@{budget}"] for budget in BUDGETS) / 4)
    assert 0 < row["brpo/variance_left"] < 2
    assert row["brpo/thinking_length"] <= 13


def test_rating_early_budgets_teaches_early_answers() -> None:
    early = {}
    for name, knobs in (("several", {"budgets": (6, 12, 18, 24)}), ("last", {"budgets": (24,), "answers": 1})):
        world = Chain.draw(2)
        run("brpo", knobs, world.policy, world.setting(4, 8), TrainConfig(steps=40, lr=0.05, grad_clip=0, seed=2))
        early[name] = float(world.accuracy()[5])
    assert early["several"] > early["last"] + 0.1


def test_a_world_without_budgets_can_be_trained_on_by_others() -> None:
    world = Chain.draw(2)
    before = float(world.accuracy()[-1])
    run("dr_grpo", {}, world.policy, world.setting(8, 8), TrainConfig(steps=15, lr=0.05, grad_clip=0, seed=2))
    assert float(world.accuracy()[-1]) > before


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"budgets": (4, 20)}, "exceeds rollout.max_new_tokens=13"),
        ({"budgets": (4, 4)}, "ascend"),
        ({"cuts": 14}, "14 cuts do not fit"),
        ({"answers": 0}, "answers is 0"),
        ({"answers": 1, "decouple": True}, "raise answers"),
        ({"discount": 1.5}, "discount is 1.5"),
    ],
)
def test_wrong_settings_are_named(knobs: dict[str, Any], words: str) -> None:
    world = Chain.draw(0, length=13)
    with pytest.raises(UsageError, match=words):
        brpo.build(brpo.Config(**knobs), world.setting(2, 2))


def test_it_needs_text_or_a_world_that_answers() -> None:
    world = ModularSum.draw(0)
    setting = Setting(world.setting(2, 2).source, world.judge, Sampling(3), 2, 2)
    with pytest.raises(UsageError, match="give it a task with text"):
        brpo.build(brpo.Config(cuts=1), setting)


# --- its baseline, GRPO with a length penalty ------------------------------------------------------------------------

PENALISED = ("task.name=countdown", *(word for word in SHORT[1:] if "answer" not in word))
LIMIT = 19


def shorter(form: str, judged: bool) -> tuple[Rollouts, Rollouts, dict[str, float], dict[str, float]]:
    """The embedded model's responses before and after credit, all of them right unless ``judged``; metrics; a real step's row."""
    own = assemble(configure("grpo", None, [*PENALISED, f"length_penalty={form}"]), World())
    ctx = Context(own.policy, 4)
    rollouts = ctx.judge(own.recipe.judge, own.recipe.sampler(own.recipe.curriculum.select(ctx), ctx))
    if not judged:
        ones = torch.ones(len(rollouts))
        rollouts = replace(rollouts, rewards=ones, extras={"reward/accuracy": ones})
    found = own.recipe.credit(rollouts, ctx)
    config = TrainConfig(steps=1, lr=0.1, optimiser="sgd", grad_clip=0, seed=4)
    return rollouts, found, ctx.metrics, Trainer(own.policy, own.recipe, config).step()


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_a_length_penalty_shapes_advantages_and_leaves_the_reward_alone(form: Any) -> None:
    rollouts, found, metrics, row = shorter(form, judged=True)
    assert rollouts.rewards is not None
    shaped = length_shaped(
        rollouts.rewards, rollouts.rewards > 0.5, rollouts.lengths, rollouts.group, form, max_length=LIMIT
    )
    expected = grpo_advantage(shaped, rollouts.group).unsqueeze(1) * rollouts.response_mask
    torch.testing.assert_close(advantages(found), expected)
    assert torch.equal(found.rewards, rollouts.rewards)  # type: ignore[arg-type]
    assert metrics["shaped_reward"] == pytest.approx(float(shaped.mean()))
    assert row["shaped_reward"] == pytest.approx(metrics["shaped_reward"])
    assert row["reward"] == pytest.approx(float(rollouts.rewards.mean()))
    assert 0 < row["shaped_reward"] < row["reward"]


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_of_right_responses_the_shorter_gain_and_their_groups_count(form: str) -> None:
    rollouts, found, metrics, _ = shorter(form, judged=False)
    differing = 0
    for q in rollouts.group.unique():
        own = rollouts.group == q
        length, advantage = rollouts.lengths[own], advantages(found)[own, 0]
        if len(length.unique()) > 1:
            differing += 1
            assert bool((advantage[length == length.min()] > 0).all())
            assert bool((advantage[length == length.max()] < 0).all())
        else:
            assert not bool(advantage.any())
    assert differing > 0
    assert metrics["effective_groups"] == differing / 4


def test_a_length_penalty_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"length_alpha is 1\.0"):
        configure("grpo", None, ["length_alpha=1.0"])
    hosted("grpo", {"length_penalty": "absolute"}, "TRL", 8)
    hosted("grpo", {"length_penalty": "relative"}, "verl", 1)
    with pytest.raises(UsageError, match="verl tells an estimator no length limit"):
        hosted("grpo", {"length_penalty": "absolute"}, "verl", 1)
