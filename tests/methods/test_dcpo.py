"""DCPO's recipe in the real trainer: its limits, the controller, and batches without a correct sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from at_work import FAST, trained, trainer
from policydist.errors import PolicydistError


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
