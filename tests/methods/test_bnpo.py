"""BNPO's recipe in the real trainer: its limit REINFORCE, and decomposition by reward component."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from at_work import FAST
from policydist.errors import PolicydistError
from policydist.language import methods
from policydist.language.trainer import Trainer
from policydist.language.worlds import LinearBandit, run


def test_bnpo_without_spread_of_success_rates_is_reinforce() -> None:
    world = LinearBandit.best_answer(0, contexts=64)
    method = methods.load("bnpo")
    work = Trainer(world.policy, method.build(method.Config(), world.setting(8, 4)), replace(FAST, steps=1))
    object.__setattr__(work.recipe, "judge", lambda r, ctx: replace(r, rewards=(torch.arange(len(r)) % 2).float()))
    row = work.step()
    assert row["beta/alpha"] == row["beta/beta"] == 1.0
    assert row["advantage_max"] == 0.5


def test_bnpo_decomposes_by_reward_component() -> None:
    world = LinearBandit.best_answer(0, contexts=64).with_parity()
    rows = run("bnpo", {"decompose": True}, world.policy, world.setting(16, 8), replace(FAST, steps=1))
    assert rows[0]["beta/accuracy/alpha"] != rows[0]["beta/parity/alpha"]
    plain = LinearBandit.best_answer(0, contexts=64)
    with pytest.raises(PolicydistError, match="several reward components"):
        run("bnpo", {"decompose": True}, plain.policy, plain.setting(16, 8), FAST)
