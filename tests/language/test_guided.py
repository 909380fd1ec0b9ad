"""Guided rows: origins, prompt swap, in-group joins and replacement, example pools, steered prompts, expert rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policydist.errors import PolicydistError, UsageError
from policydist.functional import grpo_advantage
from policydist.language import guided, methods, origins
from policydist.language.mixed_objective import MIXTURE, MixedPolicyGradient
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Norm, broadcast
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts, Sampling
from policydist.language.worlds.steered import Checklist, ClosedTask, ExpertTree
from policydist.runs import checkpoint
from policydist.runs.directory import Run


def drawn(samples: int = 3, steer: bool = False, temperature: float = 1.0) -> tuple[Context, ClosedTask, Rollouts]:
    world = ClosedTask.draw(0, questions=4)
    ctx = Context(world.policy, 0)
    prompts = world.source.take(torch.arange(4), samples)
    if steer:
        prompts = world.source.steer(prompts, ctx.generator("x"))
    return ctx, world, ctx.generate(prompts, Sampling(3, temperature=temperature), "draw")


# --- origins ---------------------------------------------------------------------------------------------------------


def test_origins_default_to_the_model_and_mark_whole_rows() -> None:
    _, _, rollouts = drawn()
    assert bool((origins.of(rollouts) == origins.MODEL).all())
    assert not bool(origins.off_policy(rollouts).any())
    marked = origins.mark(rollouts, origins.EXPERT)
    assert marked.extras["origin"].dtype == torch.int8
    assert bool(origins.off_policy_rows(marked).all())
    assert torch.equal(marked.response_mask, rollouts.response_mask)


def test_assigned_origins_decide_what_carries_gradient() -> None:
    _, _, rollouts = drawn()
    codes = torch.tensor([origins.MODEL, origins.FORCED, origins.TOOL]).repeat(12, 1)
    mixed = origins.assign(rollouts, codes)
    assert mixed.response_mask.all(0).tolist() == [True, True, False]
    assert not bool(origins.off_policy(mixed).any())  # hints go through the clip, under their own denominator
    strict = origins.assign(rollouts, codes, trained=(origins.MODEL,))
    assert strict.response_mask.all(0).tolist() == [True, False, False]
    with pytest.raises(PolicydistError, match="unknown origin code 9"):
        origins.assign(rollouts, torch.full((12, 3), 9))
    with pytest.raises(PolicydistError, match=r"origins have shape \(3,\)"):
        origins.assign(rollouts, torch.zeros(3))


def test_origins_survive_padding_trimming_and_selection() -> None:
    _, _, rollouts = drawn()
    marked = origins.mark(rollouts, origins.GUIDED)
    wide = replace(marked.map(lambda x: torch.nn.functional.pad(x, (0, 2)) if x.dim() == 2 and x.shape[1] == 3 else x))
    joined = Rollouts.cat([wide, marked])
    assert origins.of(joined)[-1].tolist() == [origins.GUIDED] * 3 + [origins.PROMPT] * 2
    assert origins.of(joined.trimmed()).shape == (24, 3)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_swap_changes_the_prompt_and_forgets_what_hung_on_it() -> None:
    _, world, rollouts = drawn(steer=True)
    assert rollouts.prompt_ids.shape[1] == 4
    plain = world.source.take(torch.arange(4), 1)
    swapped = guided.swap_prompts(rollouts, plain, rollouts.group)
    assert swapped.prompt_ids[:, -1].tolist() == rollouts.prompt_ids[:, -1].tolist()
    assert swapped.old_logprobs is None
    assert torch.equal(swapped.behavior_logprobs, rollouts.behavior_logprobs)
    score = world.policy.score
    assert not torch.allclose(score(swapped).logprobs, score(rollouts).logprobs)
    other = guided.swap_prompts(drawn(steer=True)[2], plain, rollouts.group)
    torch.testing.assert_close(score(other).logprobs, score(swapped).logprobs)


def test_joined_rows_get_old_logprobs_under_their_own_prompts() -> None:
    ctx, world, own = drawn()
    steered = replace(drawn(steer=True)[2], old_logprobs=None)
    joined = guided.join(own, steered, ctx)
    torch.testing.assert_close(joined.old_logprobs, world.policy.score(joined).logprobs.detach())
    hot = drawn(temperature=1.3)[2]
    assert hot.old_logprobs is None
    assert guided.join(hot, steered, ctx).old_logprobs is None  # the trainer takes all of them anew
    assert guided.join(own, steered.select(torch.tensor([], dtype=torch.long)), ctx) is own
    assert guided.by_group(joined).group.tolist() == sorted(joined.group.tolist())


def test_replacement_keeps_count_order_and_group() -> None:
    ctx, _, own = drawn()
    new = drawn(steer=True)[2].select(torch.tensor([0, 1]))
    slots = torch.tensor([7, 2])
    found = guided.replace_rows(own, slots, new, ctx)
    assert found.group.tolist() == own.group.tolist()
    assert torch.equal(found.response_ids[slots], new.response_ids)
    kept = torch.ones(12, dtype=torch.bool).index_fill(0, slots, False)
    assert torch.equal(found.response_ids[kept], own.response_ids[kept])
    with pytest.raises(PolicydistError, match="one distinct slot a row"):
        guided.replace_rows(own, torch.tensor([2, 2]), new, ctx)


def test_several_updates_keep_the_off_policy_ratio_against_the_policy_before_them() -> None:
    ctx, world, rollouts = drawn()
    rollouts = guided.tag(rollouts, origins.GUIDED)
    rollouts = replace(rollouts, advantages=broadcast(torch.ones(12), rollouts))
    ctx.norm, ctx.updates = Norm(36.0, 12.0, 3), 2
    with torch.no_grad():
        world.policy.core.logits += torch.randn(world.policy.core.logits.shape)
    loss, numbers = MixedPolicyGradient(LossConfig(), gamma=1.0)(world.policy, rollouts, ctx)
    ratio = (world.policy.score(rollouts).logprobs - rollouts.old_logprobs).exp().detach()
    torch.testing.assert_close(loss.detach(), -(ratio / (ratio + 1)).mean())
    assert float(numbers["off_tokens"]) == 1.0


def test_a_mixture_takes_the_place_of_the_old_policy_even_with_one_update() -> None:
    ctx, world, rollouts = drawn()
    rollouts = replace(rollouts, advantages=broadcast(torch.ones(12), rollouts))
    ctx.norm = Norm(36.0, 12.0, 3)
    lower = {MIXTURE: rollouts.old_logprobs - torch.tensor(0.8).log()}
    plain, _ = MixedPolicyGradient(LossConfig())(world.policy, rollouts, ctx)
    mixed, _ = MixedPolicyGradient(LossConfig())(world.policy, replace(rollouts, extras=lower), ctx)
    assert float(plain.detach()) == pytest.approx(-1.0)
    assert float(mixed.detach()) == pytest.approx(-0.8)


def test_importance_weights_are_taken_from_what_was_really_sampled() -> None:
    ctx, world, rollouts = drawn()
    rollouts = replace(rollouts, advantages=broadcast(torch.ones(12), rollouts))
    rollouts = replace(rollouts, behavior_logprobs=rollouts.old_logprobs - 0.5)
    ctx.norm = Norm(36.0, 12.0, 3)
    for cap, weight in ((2.0, 1.6487), (1.2, 1.2)):
        loss, _ = MixedPolicyGradient(LossConfig(), truncation=cap)(world.policy, rollouts, ctx)
        assert float(loss.detach()) == pytest.approx(-weight, rel=1e-3)


def test_prompts_without_room_are_found() -> None:
    prompts = ClosedTask.draw(0, questions=2).source.take(torch.arange(2), 1)
    policy: Any = SimpleNamespace(context=4)
    assert guided.fitting(prompts, policy, 3).tolist() == [True, True]
    assert guided.fitting(prompts, policy, 4).tolist() == [False, False]


# --- examples --------------------------------------------------------------------------------------------------------


def pool(**options: Any) -> guided.SolvedExamples:
    found = guided.SolvedExamples(**options)
    for number in range(6):
        found.add(f"Question {number}", f"answer {number}", reward=number / 5)
    return found


def test_examples_never_show_the_question_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    for match in ("random", "similarity", "best_reward"):
        for _ in range(30):
            shown = pool(match=match).sample("  question 3 ", 2, generator)
            assert len({example.question for example in shown}) == 2
            assert all(example.question != "Question 3" for example in shown)
    assert len(pool().sample("Question 3", 9, generator)) == 5
    alone = guided.SolvedExamples()
    alone.add("only", "one")
    assert alone.sample("ONLY", 1, generator) == []


def test_examples_are_drawn_alike_by_similarity_or_by_reward_and_the_oldest_leave() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(6)
    for _ in range(600):
        counts[int(pool().sample("x", 1, generator)[0].answer[-1])] += 1
    assert float((counts / 600 - 1 / 6).abs().max()) < 0.06
    assert [e.answer for e in pool(match="best_reward").sample("Question 5", 2, generator)] == ["answer 4", "answer 3"]
    words = guided.SolvedExamples(match="similarity", threshold=0.5)
    for question in ("a b c d", "a b c e", "x y", "a q r s"):
        words.add(question, question)
    close = {words.sample("a b c f", 1, generator)[0].question for _ in range(40)}
    assert close == {"a b c d", "a b c e"}  # both at or above the threshold: equally good
    assert [e.question for e in words.sample("A Q", 1, generator)] == ["a q r s"]
    small = pool(max_size=2)
    assert [e.answer for e in small.examples] == ["answer 4", "answer 5"]
    with pytest.raises(UsageError, match="at least 1"):
        guided.SolvedExamples(max_size=0)


def test_steering_writes_into_the_last_user_message() -> None:
    examples = guided.ExamplePrompts(pool(), None, 1, "{question} is {answer}; ", "{question}?")
    generator = torch.Generator().manual_seed(0)
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "{odd} one"}]
    steered = examples.with_examples(chat, generator)
    assert steered[0] == chat[0]
    assert steered[1]["content"].endswith("; {odd} one?")
    assert chat[1]["content"] == "{odd} one"
    with pytest.raises(UsageError, match="without a user message"):
        guided.question_of([{"role": "system", "content": "S"}])
    empty = guided.ExamplePrompts(guided.SolvedExamples(), None)
    with pytest.raises(PolicydistError, match="nothing but the question itself"):
        empty.with_examples("q", generator)


# --- experts ---------------------------------------------------------------------------------------------------------


def test_expert_rows_stand_in_their_prompts_groups() -> None:
    ctx, world, own = drawn()
    source: Any = SimpleNamespace(experts=lambda prompts: [torch.tensor([1, 2, 3]), None, torch.tensor([4, 5]), None])
    prompts = world.source.take(torch.arange(4), 5)
    rows = guided.expert_rows(source, prompts, ctx)
    assert rows is not None
    assert rows.group.tolist() == [0, 2]
    assert rows.lengths.tolist() == [3, 2]
    assert bool(rows.extras["auxiliary"].all())
    joined = guided.by_group(guided.join(guided.tag(own, origins.MODEL), rows, ctx))
    assert torch.bincount(joined.group).tolist() == [4, 3, 4, 3]
    none: Any = SimpleNamespace(experts=lambda prompts: [None] * 4)
    assert guided.expert_rows(none, prompts, ctx) is None
    assert len(grpo_advantage(torch.zeros(14), joined.group)) == 14


@pytest.mark.parametrize("slug", ["herl", "icpo", "calibrl"])
def test_a_resumed_run_gives_the_uninterrupted_weights(slug: str, tmp_path: Path) -> None:
    config = TrainConfig(steps=4, lr=0.05, updates=2, save_every=2, seed=4)

    def trainer(folder: str, reopen: bool = False) -> Trainer:
        world: Any = {"herl": Checklist, "icpo": ClosedTask, "calibrl": ExpertTree}[slug].draw(3)
        method = methods.load(slug)
        run = Run.reopen(tmp_path / folder, config, 2) if reopen else Run.create(tmp_path / folder, config)
        return Trainer(world.policy, method.build(method.Config(), world.setting(4)), config, run=run)

    whole, half = trainer("whole"), trainer("half")
    whole.train()
    while half.done < 3:
        half.record(half.step())
        if half.due(2):
            half.save()
    again = trainer("half", reopen=True)
    again.restore(checkpoint.newest(tmp_path / "half" / "checkpoints"))
    again.train()
    assert torch.equal(again.parameters[0], whole.parameters[0])
