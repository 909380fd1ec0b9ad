"""OTR and its neighbours in the real trainer: limits, batching, demonstrations from data, other processes' view."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import policydist
from policydist.errors import UsageError
from policydist.language.prompts import ContextPrompts
from policydist.language.tasks.files import Columns, read_jsonl
from policydist.language.tasks.procedural import PROCEDURAL
from policydist.language.trainer import TrainConfig
from policydist.language.types import Sampling
from policydist.language.world import to_rollouts
from policydist.language.worlds import run
from policydist.language.worlds.supervised import ShiftedDomain

FAST = TrainConfig(steps=6, lr=0.5, optimiser="sgd", grad_clip=0, seed=2)


def trained(method: str, config: TrainConfig = FAST, **knobs: Any) -> torch.Tensor:
    world = ShiftedDomain.draw(1, 0.3, train=40, test=10)
    run(method, knobs, world.policy, world.setting(16), config)
    return world.policy.core.weights.detach()


def test_exact_otr_is_dft_at_a_scaled_rate() -> None:
    ours = trained("otr", estimator="exact", beta=-0.5)
    theirs = trained("dft", replace(FAST, lr=FAST.lr * 1.5), aggregation="seq-mean-token-mean")
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, trained("sft"))


def test_otr_does_not_depend_on_how_the_batch_is_cut() -> None:
    torch.testing.assert_close(trained("otr", k=5), trained("otr", replace(FAST, micro_tokens=3), k=5))


def test_a_step_draws_other_tokens_than_the_one_before() -> None:
    world = ShiftedDomain.draw(1, 0.3, train=16, test=10)
    rows = run("otr", {"k": 3}, world.policy, world.setting(16), replace(FAST, lr=1e-12))
    assert len({row["otr/hit_rate"] for row in rows}) > 1  # same items, same policy, fresh samples
    assert {"otr/zero_hits", "otr/negative", "entropy"} <= rows[0].keys()


def test_a_constant_reward_teaches_nothing_in_expectation() -> None:
    start = ShiftedDomain.draw(1, 0.3, train=40, test=10).policy.core.weights.detach()
    torch.testing.assert_close(trained("otr", estimator="exact", beta=1.0), start)


def test_sft_with_its_baselines_knobs_moves_elsewhere() -> None:
    plain = trained("sft")
    assert not torch.allclose(trained("sft", smoothing=0.2), plain)
    assert not torch.allclose(trained("sft", entropy_coef=0.2), plain)
    torch.testing.assert_close(trained("sft", unlikelihood=1.0), plain)  # one token: nothing earlier to push down


def test_rejection_sampling_imitates_rewarded_samples_only() -> None:
    from policydist.language.worlds import LinearBandit

    world = LinearBandit.best_answer(0, contexts=64)
    before = world.mass(held_out=False).mean()
    rows = run("rft", {}, world.policy, world.setting(32, 8), TrainConfig(steps=40, lr=0.03, grad_clip=0))
    assert world.mass(held_out=False).mean() > before + 0.1
    assert rows[0]["rft/accepted"] == pytest.approx(rows[0]["reward"])


def test_otr_and_unlikelihood_train_a_language_model_on_messages(tiny: Any, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in tiny.sums.read_text().splitlines()]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": r["prompt"], "completion": r["completion"]}) + "\n" for r in rows))
    words = [w for w in tiny.words if not w.startswith("rollout.prompts")] + ["rollout.prompts=21", "train.lr=0.03"]
    options: dict[str, Any] = {"task": f"jsonl:{file}", "model": str(tiny.model)}
    for method, more in (("otr", ["k=32"]), ("sft", ["unlikelihood=0.5"])):
        out = policydist.train(method, steps=12, out=tmp_path / method, settings=[*words, *more], **options)
        losses = [row["entropy"] for row in out.metrics]
        assert losses[-1] < losses[0]


def test_messages_and_completions_become_demonstrations(tmp_path: Path) -> None:
    def read(*rows: dict[str, Any]) -> list[Any]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_jsonl(file, Columns())

    user, first, more, last = (
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"},
        {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "4"},
    )  # fmt: skip
    (row,) = read({"messages": [user, first, more, last, more]})
    assert row["prompt"] == [user, first, more]
    assert row["completion"] == row["answer"] == "4"
    (row,) = read({"prompt": "a", "completion": "b"})
    assert (row["completion"], row["answer"]) == ("b", "b")
    (row,) = read({"prompt": [user], "completion": [last], "answer": "four"})
    assert (row["completion"], row["answer"]) == ("4", "four")
    for bad, word in (
        ({"messages": [user]}, "turn of the assistant"),
        ({"messages": [last]}, "something before it"),
        ({"messages": "hello"}, "messages is a text"),
        ({"messages": [user, {"role": "assistant", "content": None}]}, "chat message 2"),
        ({"prompt": "a", "completion": [user]}, "one message of the assistant"),
    ):
        with pytest.raises(UsageError, match=word):
            read(bad)


def test_procedural_rows_carry_right_completions() -> None:
    for build in PROCEDURAL.values():
        task = build(0, 20, 5)
        for rows in (task.train, task.test):
            (grader,) = task.graders.values()
            assert set(grader([row["completion"] for row in rows], rows)) == {1.0}


@pytest.mark.parametrize("kind", ["qwen2", "bloom", "table"])
def test_token_terms_see_the_logits_of_their_own_place(kind: str) -> None:
    """Packed, padded and tabular policies alike; a loss that got another token's logits would not be its cross-entropy."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
    import tiny_models

    from policydist.functional.supervised import sft_terms
    from policydist.language.worlds import ModularSum

    def terms(logits: torch.Tensor, targets: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**sft_terms(logits, targets), "place": places.float()}

    if kind == "table":
        policy: Any = ModularSum.draw(0).policy
        prompts = ContextPrompts(32).take(torch.arange(5), 3)
        generation = policy.generate(prompts, Sampling(3), torch.rand(15, 3))
        rollouts = to_rollouts(prompts, generation)
    else:
        policy = tiny_models.policy(kind)
        rollouts = tiny_models.rollouts(policy.generate(tiny_models.prompts(), Sampling(12), tiny_models.uniforms()))
    scores = policy.score(rollouts, terms=terms)
    real = rollouts.response_attention
    torch.testing.assert_close(scores.terms["loss"], -scores.logprobs, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores.terms["place"][real].long(), real.flatten().nonzero()[:, 0])
    assert not bool(scores.terms["place"][~real].any())
