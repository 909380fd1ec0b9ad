"""HeRL's recipe in the real trainer: limits, selection, bonus, replacement, conditioning, the prompt, and bad rubrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.functional import grpo_advantage
from policydist.language import origins, revision
from policydist.language.methods import herl
from policydist.language.recipe import Context, Shuffled
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts
from policydist.language.worlds.steered import Checklist, traced

CONFIG = TrainConfig(steps=3, lr=0.05, grad_clip=0, seed=2)


def sampled(seed: int = 3, strength: float = 12.0, **knobs: Any) -> tuple[Context, Checklist, Rollouts]:
    """Judged and partly revised rollouts; the guidance all but forces what it favours."""
    world = Checklist.draw(seed, strength=strength)
    config, setting = herl.Config(**{"revision_temperature": 1.0, **knobs}), world.setting(8)
    ctx = Context(world.policy, seed)
    sampler = herl.HindsightSampler(config, setting, setting.source)
    return ctx, world, sampler(Shuffled(setting.source, 8, 8).select(ctx), ctx)


def final(slug: str, rewards: float | None = None, **knobs: Any) -> torch.Tensor:
    world = Checklist.draw(1)
    setting = world.setting(8)
    if rewards is not None:
        setting = replace(setting, judge=lambda r, ctx: replace(r, rewards=torch.full((len(r),), rewards)))
    traced(slug, knobs, world.policy, setting, CONFIG, dict)
    return world.policy.core.logits.detach()


def test_groups_at_the_threshold_are_left_to_grpo() -> None:
    torch.testing.assert_close(final("herl", threshold=0.0, dual_clip=None), final("grpo"))
    solved = final("herl", rewards=1.0)
    assert torch.equal(solved, Checklist.draw(1).policy.core.logits.detach())


def test_one_revision_replaces_one_random_row_of_each_group() -> None:
    ctx, _, rollouts = sampled()
    off = rollouts.extras["auxiliary"]
    assert torch.bincount(rollouts.group).tolist() == [8] * 8
    assert rollouts.group[off].tolist() == list(range(8))
    assert bool((rollouts.rewards[off] > 0.9).all())
    assert int(origins.off_policy(rollouts).sum()) == 8 * 6
    slots = [int((off & (rollouts.group == g)).nonzero()[0]) % 8 for g in range(8)]
    assert len(set(slots)) > 2
    assert ctx.metrics["herl/improved_groups"] == 1.0


def test_the_prompt_in_the_row_is_the_one_it_is_scored_under() -> None:
    for mode, guided in (("hindsight", True), ("original", False)):
        _, world, rollouts = sampled(off_prompt=mode)
        off = rollouts.extras["auxiliary"]
        has_prefix = rollouts.prompt_mask[off].sum(1) > 1
        assert bool((has_prefix == guided).all()), mode
        # The ratio starts at one under either prompt, because old log-probabilities are those of the row's own prompt.
        torch.testing.assert_close(rollouts.old_logprobs, world.policy.score(rollouts).logprobs.detach())
        surer = rollouts.old_logprobs[off].sum(1) > -1.0
        assert bool(surer.all()) == guided


def test_the_bonus_comes_before_the_replacement_and_may_be_negative() -> None:
    ctx, world, _ = sampled()
    setting = world.setting(8)
    prompts = Shuffled(setting.source, 8, 8).select(ctx)
    plain = world.judge(ctx.generate(prompts, setting.sampling, "rollout"), ctx)
    for judge_revision, sign in ((1.0, 1), (0.0, -1)):

        def judge(rollouts: Rollouts, _: Any, worth: float = judge_revision) -> Rollouts:
            found = world.judge(rollouts, ctx)
            guided = rollouts.prompt_mask.sum(1) > 1
            return replace(found, rewards=torch.where(guided, worth, 0.2 + 0.1 * found.rewards))

        sampler = herl.HindsightSampler(herl.Config(bonus=0.5), replace(setting, judge=judge), setting.source)
        rollouts = sampler(prompts, ctx)
        own = 0.2 + 0.1 * plain.rewards
        best = torch.stack([own[plain.group == g].max() for g in range(8)])
        kept = ~rollouts.extras["auxiliary"]
        same = (rollouts.response_ids == plain.response_ids).all(1) & kept
        tied = same & (own == best[plain.group])
        expected = own + 0.5 * (judge_revision - own)
        torch.testing.assert_close(rollouts.rewards[tied], expected[tied])
        assert bool((sign * (rollouts.rewards[tied] - own[tied]) > 0).all())
        untouched = same & (own < best[plain.group])
        torch.testing.assert_close(rollouts.rewards[untouched], own[untouched])
        if sign < 0:  # no revision as good as the best: copies of it, which are the policy's own
            assert bool(kept.all())
            assert int((~same).sum()) <= 8


def test_advantages_are_taken_over_the_mixed_group() -> None:
    world = Checklist.draw(1)
    setting = world.setting(8)
    trainer = Trainer(world.policy, herl.build(herl.Config(revision_temperature=1.0), setting), CONFIG)
    rollouts = trainer.recipe.sampler(Shuffled(setting.source, 8, 8).select(trainer.ctx), trainer.ctx)
    credited = trainer.recipe.credit(rollouts, trainer.ctx)
    torch.testing.assert_close(credited.advantages[:, 0], grpo_advantage(rollouts.rewards, rollouts.group))


@pytest.mark.parametrize("denominator", ["same_prompt", "hindsight", "none"])
def test_the_off_policy_loss_by_hand(denominator: Any) -> None:
    ctx, world, rollouts = sampled(off_prompt="original")
    config = herl.Config(off_denominator=denominator, gamma=0.5)
    recipe = herl.build(config, world.setting(8))
    credited = recipe.credit(rollouts, ctx)
    ctx.norm = replace(ctx.norm, tokens=1.0)
    rows = credited.select(credited.extras["auxiliary"])
    rows = replace(rows, behavior_logprobs=rows.behavior_logprobs - 1.0)
    loss, _ = recipe.objective(ctx.policy, rows, ctx)
    logp = world.policy.score(rows).logprobs.detach()
    behind = {"same_prompt": logp, "hindsight": rows.behavior_logprobs, "none": torch.zeros_like(logp)}[denominator]
    ratio = (logp - behind).exp()
    torch.testing.assert_close(loss.detach(), -(rows.advantages * ratio / (ratio + 0.5)).sum())


def test_it_learns_what_blind_exploration_and_blind_revision_do_not() -> None:
    knobs = {"revision_temperature": 1.0, "candidate_limit": 2, "off_prompt": "original"}
    reached = {}
    for name, slug, own in (("herl", "herl", {}), ("blind", "herl", {"diagnosis": False}), ("grpo", "grpo", None)):
        world = Checklist.draw(0, questions=2)
        full = {} if own is None else {**knobs, **own}
        traced(slug, full, world.policy, world.setting(8), replace(CONFIG, steps=60, lr=0.15), dict)
        reached[name] = world.success()
    assert reached["herl"] > max(reached["blind"], reached["grpo"]) + 0.4


def test_self_improvement_never_loses_and_needs_the_diagnosis() -> None:
    world = Checklist.draw(5)
    setting = world.setting(1)
    prompts = setting.source.take(torch.arange(8), 4)
    best, rewards = herl.improve(prompts, Context(world.policy, 0), setting, rounds=2)
    assert rewards.shape == (3, 32)
    assert bool((rewards[1:] >= rewards[:-1]).all())
    assert float(rewards[1].mean() - rewards[0].mean()) > 0.5
    assert torch.equal(world.judge(best, Context(world.policy, 0)).rewards, rewards[-1])
    assert best.prompt_mask.sum(1).max() == 1


# --- text ------------------------------------------------------------------------------------------------------------

ITEMS = [
    revision.Item("uses a verb", 2, True),
    revision.Item("ends early", 1, False),
    revision.Item("is kind", 1, None),
]


def test_the_prompt_has_its_sections_in_order_and_hides_the_diagnosis() -> None:
    text = revision.build_hindsight_prompt("Write.", "My draft", ITEMS)
    order = [
        "Write.",
        "Requirements met",
        "uses a verb (weight 2)",
        "not met",
        "ends early",
        "not be judged",
        "My draft",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    naive = revision.build_hindsight_prompt("Write.", "My draft", ITEMS, diagnosis=False)
    assert "My draft" in naive
    assert "verb" not in naive
    assert "early" not in naive


def setting_of(tiny: Any, rows: list[dict[str, Any]]) -> Any:
    from policydist.language.judges import TaskJudge
    from policydist.language.policies.loading import load_policy
    from policydist.language.prompts import TextPrompts
    from policydist.language.recipe import Setting
    from policydist.language.tasks.base import Task
    from policydist.language.tasks.grading import rubric
    from policydist.language.types import Sampling

    policy = load_policy(str(tiny.model), device="cpu")
    judge = TaskJudge(Task("t", rows, rows, {"rubric": rubric()}), policy.tokenizer)
    return policy, Setting(TextPrompts(rows, policy.tokenizer, 32), judge, Sampling(3), 2, 4)


RUBRIC = [
    {"kind": "regex", "value": "[0-9]", "text": "a digit"},
    {"kind": "regex", "value": "\\+", "text": "plus", "weight": -1},
    {"kind": "min_words", "value": 5, "weight": 2},
]


def test_text_is_revised_by_the_rows_rubric(tiny: Any) -> None:
    rows = [{"prompt": "1+1=", "rubric": RUBRIC}, {"prompt": "2+1=", "rubric": RUBRIC}]
    policy, setting = setting_of(tiny, rows)
    config = herl.Config(template="{unmet}|{met}|{draft}|{instruction}")
    reviser: Any = herl.reviser_of(config, setting)
    items = reviser.verdicts("1+1", rows[0])
    assert [(item.text, item.weight, item.met) for item in items] == [
        ("a digit", 1.0, True), ("avoid: plus", 1.0, False), ("has at least 5 words", 2.0, False),
    ]  # fmt: skip
    written = reviser.write("1+1=", "1+1", items, True)
    assert written == "avoid: plus, has at least 5 words|a digit|1+1|1+1="
    row = Trainer(policy, herl.build(herl.Config(template="{draft} {instruction}"), setting), CONFIG).step()
    assert row["herl/revised"] > 0
    long = Trainer(
        policy, herl.build(herl.Config(), setting), CONFIG
    ).step()  # the full prompt exceeds the context of 32
    assert long["herl/too_long"] == 1.0
    assert long["herl/revised"] == 0.0


def test_rows_without_criteria_are_refused(tiny: Any) -> None:
    for rubric in (None, [], [{"kind": "keywrd", "value": "x"}]):
        _, setting = setting_of(tiny, [{"prompt": "1+1=", "rubric": RUBRIC}, {"prompt": "2+1=", "rubric": rubric}])
        with pytest.raises(UsageError, match="row 1 has no usable criteria in column 'rubric'"):
            herl.build(herl.Config(), setting)
    with pytest.raises(UsageError, match="candidate_limit is 0"):
        herl.Config(candidate_limit=0)
    with pytest.raises(UsageError, match=r"template .* cannot be filled in"):
        herl.Config(template="{answer}")
