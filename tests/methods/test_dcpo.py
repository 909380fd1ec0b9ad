"""DCPO's recipe in the real trainer: its limits, the controller, and batches without a correct sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from at_work import FAST, trained, trainer
from policydist.errors import PolicydistError
from policydist.language.recipe import Context


def test_dcpo_without_an_entropy_error_is_grpo() -> None:
    # Before the first update the entropy signal is 0, so a target of 0 leaves no error in step 1.
    config = replace(FAST, steps=1)
    torch.testing.assert_close(trained("dcpo", config, target_entropy=0.0, dual_clip=None), trained("grpo", config))


def test_dcpo_at_temperature_one_differs_from_grpo_only_by_the_indicator() -> None:
    same = trained("dcpo", target_entropy=0.7, high=1.0, low=1.0, reweight=True)
    torch.testing.assert_close(same, trained("dcpo", target_entropy=0.7, reweight=False))
    assert not torch.allclose(same, trained("dcpo", target_entropy=0.7, high=2.0, low=0.5))


def test_dcpo_uses_the_previous_updates_entropy_and_the_high_temperature_first() -> None:
    work = trainer("dcpo", FAST, target_entropy=0.5)
    first, second = work.step(), work.step()
    assert first["dcpo/entropy"] == 0.0
    assert first["dcpo/temperature"] == 1.2
    assert second["dcpo/entropy"] == first["entropy"]
    assert second["dcpo/temperature"] == 0.8  # an untrained table is above 0.5 nats


def test_dcpo_without_a_correct_sample_is_a_plain_step_or_an_error() -> None:
    work = trainer("dcpo", FAST, target_entropy=0.5, threshold=2.0)
    row = work.step()
    assert row["dcpo/alpha"] == 0.0
    assert row["dcpo/correct"] == 0.0
    with pytest.raises(PolicydistError, match=r"step 1 is correct.*on_no_correct=skip"):
        trainer("dcpo", FAST, threshold=2.0, on_no_correct="raise").step()


def test_dcpo_rewards_correct_samples_of_solved_groups() -> None:
    work = trainer("dcpo", FAST, target_entropy=0.5)
    object.__setattr__(work.recipe, "judge", lambda r, ctx: replace(r, rewards=torch.ones(len(r))))
    assert work.step()["grad_norm"] > 0  # GRPO's advantage is zero everywhere


def test_dcpo_takes_the_ratio_from_the_sampler_where_it_was_noted_and_looks_again_where_not() -> None:
    work = trainer("dcpo", FAST, target_entropy=0.5)
    ctx = Context(work.policy, seed=0)
    prompts = work.recipe.curriculum.select(ctx)
    sampled = work.recipe.sampler(prompts, ctx)
    sampled = ctx.judge(work.recipe.judge, sampled)
    assert "tilted_logprobs" not in sampled.extras, "a table does not note"
    again = work.recipe.credit(sampled, ctx).advantages
    at = {t: ctx.score(sampled, tilts=(t,)).tilted[t] for t in (0.8, 1.2)}
    noted = {t: replace(sampled, extras={"tilted_logprobs": tilted}) for t, tilted in at.items()}
    torch.testing.assert_close(work.recipe.credit(noted[1.2], ctx).advantages, again)
    assert not torch.allclose(work.recipe.credit(noted[0.8], ctx).advantages, again)
    inexact = replace(noted[0.8], old_logprobs=None)  # not drawn from the policy itself: the note has no counterpart
    torch.testing.assert_close(work.recipe.credit(inexact, ctx).advantages, again)


@pytest.mark.parametrize(
    ("knobs", "first", "second"),
    [({}, 1.2, 0.8), ({"entropy_source": "current_exact"}, 0, 0), ({"reweight": False}, 0, 0)],
)
def test_dcpo_asks_the_sampler_for_the_temperature_that_credit_will_use(
    knobs: dict[str, Any], first: float, second: float
) -> None:
    work = trainer("dcpo", FAST, target_entropy=0.5, **knobs)
    asked: list[float] = []
    plain = work.policy.generate

    def watched(prompts: Any, sampling: Any, uniforms: Any) -> Any:
        asked.append(sampling.tilt or 0)
        return plain(prompts, sampling, uniforms)

    object.__setattr__(work.policy, "generate", watched)
    rows = [work.step(), work.step()]
    assert asked == [first, second]
    if first:
        assert asked == [row["dcpo/temperature"] for row in rows]
