"""Cutting traces of thinking, closing them, answering after each cut, and what counts as a right answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import UsageError
from policydist.language.evaluate import Anytime
from policydist.language.policies.loading import load_policy
from policydist.language.recipe import Context
from policydist.language.segmented import (
    Answers,
    TextAnswering,
    Thinking,
    anytime_metrics,
    cut_traces,
    parse_budgets,
    think,
    thinking_of,
)
from policydist.language.types import Generation, Prompts, Rollouts, Sampling
from policydist.language.world import World
from policydist.language.worlds.progress import Chain

END, STOP, HEADER, DOTS, RIGHT, WRONG = 5, 1, 6, 7, 8, 9
THINKING = Thinking(END, (DOTS, END, HEADER), (HEADER,))
BUDGETS = (2, 4, 6)


@dataclass
class Scripted:
    """A policy whose answers are written down beforehand, row after row; it keeps the prompts that it was asked with."""

    answers: list[list[int]]
    ends: tuple[int, ...] = (STOP,)
    asked: list[list[int]] = field(default_factory=list)
    device: str = "cpu"

    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: torch.Tensor) -> Generation:
        for ids, mask, wanted in zip(prompts.ids, prompts.mask, prompts.samples.tolist(), strict=True):
            self.asked += [ids[mask].tolist()] * wanted
        rows = [self.answers[i % len(self.answers)] for i in range(len(self.asked))]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
        return Generation(ids, mask, torch.zeros(ids.shape))


def traces(*rows: list[int]) -> Rollouts:
    """Traces of thinking to questions 20, 21, …, each a group of its own, with padding of unequal length before them."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    number = torch.arange(len(rows))
    prompt = torch.stack([torch.zeros_like(number), 20 + number], 1)
    return Rollouts(
        prompt, torch.tensor([False, True]).expand(len(rows), 2), ids, mask, mask, number, number,
        torch.zeros(ids.shape), items=tuple({"place": i} for i in range(len(rows))),
    )  # fmt: skip


def judge(rollouts: Rollouts, ctx: Any) -> Rollouts:
    """1 if the right token is anywhere in what is shown."""
    shown = (rollouts.response_ids == RIGHT) & rollouts.response_attention
    return replace(rollouts, rewards=shown.any(1).float())


def answered(policy: Scripted, *rows: list[int], count: int = 1) -> Answers:
    answering = TextAnswering(THINKING, judge, Sampling(4))
    return answering.answer(traces(*rows), BUDGETS, count, Context(policy, 0))  # type: ignore[arg-type]


LENGTHS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(["closed", "finished", "going"])), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.sampled_from([(6,), (2, 4, 6), (1, 2, 3, 6), (3, 6)]))
def test_cuts_are_those_of_one_trace_at_a_time(kinds: list[tuple[int, str]], budgets: tuple[int, ...]) -> None:
    kinds = [(6 if kind == "going" else length, kind) for length, kind in kinds]
    lengths = torch.tensor([length for length, _ in kinds])
    closed, finished = (torch.tensor([kind == name for _, kind in kinds]) for name in ("closed", "finished"))
    cuts = cut_traces(lengths, closed, finished, budgets)
    seen: list[tuple[int, int, bool, bool]] = []
    for row, (length, kind) in enumerate(kinds):
        for s, budget in enumerate(budgets):
            whole = length <= budget
            kept = min(length, budget) - (whole and kind == "finished")
            wanted = (row, kept, whole and kind == "closed", whole and kind == "finished")
            if not seen or seen[-1] != wanted:
                seen.append(wanted)
            assert int(cuts.of[row, s]) == len(seen) - 1
    found = zip(cuts.trace.tolist(), cuts.length.tolist(), cuts.closed.tolist(), cuts.ended.tolist(), strict=True)
    assert list(found) == seen


def test_what_is_asked_holds_nothing_beyond_the_cut() -> None:
    policy = Scripted([[RIGHT]])
    answered(policy, [11, 12, 13, 14, 15, 16])
    assert policy.asked == [
        [20, 11, 12, DOTS, END, HEADER],
        [20, 11, 12, 13, 14, DOTS, END, HEADER],
        [20, 11, 12, 13, 14, 15, 16, DOTS, END, HEADER],
    ]


def test_a_trace_that_closed_early_is_shared_by_the_budgets_beyond_its_end() -> None:
    policy = Scripted([[RIGHT], [RIGHT], [WRONG], [RIGHT], [WRONG], [WRONG]])
    found = answered(policy, [11, 12, END], count=2)
    assert policy.asked == [[20, 11, 12, DOTS, END, HEADER]] * 2 + [[20, 11, 12, END, HEADER]] * 4
    assert found.scores.tolist() == [[1.0, 0.5, 0.0]]  # every budget has answers of its own
    assert found.rows is not None
    assert found.cut is not None
    assert found.budget is not None
    assert found.cut.tolist() == [0, 0, 1, 1, 1, 1]
    assert found.budget.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.rows.rewards is not None
    assert found.rows.rewards.tolist() == [1, 1, 0, 1, 0, 0]


def test_a_trace_that_closes_on_the_budget_is_not_closed_again() -> None:
    policy = Scripted([[RIGHT]])
    answered(policy, [11, END], [11, 12, END])
    assert policy.asked[0] == [20, 11, END, HEADER]
    assert policy.asked[3] == [21, 11, 12, DOTS, END, HEADER]


def test_answers_belong_to_their_question() -> None:
    found = answered(Scripted([[RIGHT], [WRONG], [WRONG], [WRONG], [RIGHT], [RIGHT]]), [11] * 6, [12] * 6)
    assert found.scores.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert found.rows is not None
    assert found.rows.group.tolist() == found.rows.index.tolist() == [0, 0, 0, 1, 1, 1]
    assert [item["place"] for item in found.rows.items] == [0, 0, 0, 1, 1, 1]


def test_a_response_ended_inside_its_thinking_scores_nothing_beyond_its_end() -> None:
    """At smaller budgets it is cut like any other; the end token is never part of a prompt."""
    policy = Scripted([[RIGHT]])
    assert answered(policy, [11, 12, 13, STOP]).scores.tolist() == [[1, 0, 0]]
    assert all(STOP not in asked for asked in policy.asked)
    # On the last budget exactly, where length alone cannot tell.
    assert answered(Scripted([[RIGHT]]), [11, 12, 13, 14, 15, STOP]).scores.tolist() == [[1, 1, 0]]
    assert answered(Scripted([[RIGHT]]), [11, 12, 13, 14, 15, 16]).scores.tolist() == [[1, 1, 1]]
    assert answered(Scripted([[RIGHT]]), [STOP]).scores.tolist() == [[0, 0, 0]]


def test_a_second_end_of_thinking_scores_nothing() -> None:
    assert answered(Scripted([[RIGHT, END], [RIGHT], [END, RIGHT]]), [11] * 6).scores.tolist() == [[0, 1, 0]]
    assert answered(Scripted([[RIGHT, END]]), [11, END]).scores.tolist() == [[0, 0, 0]]


def test_a_right_number_in_the_trace_earns_nothing_by_itself() -> None:
    assert answered(Scripted([[WRONG]]), [RIGHT] * 6).scores.tolist() == [[0, 0, 0]]
    assert answered(Scripted([[WRONG]]), [RIGHT, END]).scores.tolist() == [[0, 0, 0]]


def test_the_judge_sees_end_header_and_answer() -> None:
    seen: list[list[int]] = []

    def watch(rollouts: Rollouts, ctx: Any) -> Rollouts:
        seen.extend(
            ids[real].tolist() for ids, real in zip(rollouts.response_ids, rollouts.response_attention, strict=True)
        )
        return judge(rollouts, ctx)

    answering = TextAnswering(THINKING, watch, Sampling(4))
    answering.answer(traces([11, END], [12] * 6), (2, 6), 1, Context(Scripted([[RIGHT, STOP], [WRONG]]), 0))  # type: ignore[arg-type]
    assert seen == [[END, HEADER, RIGHT, STOP], [END, HEADER, WRONG]] * 2


def test_inserted_tokens_are_no_response_and_answers_are_scored_as_sampled() -> None:
    """With a real model: what the trainer will score is what was sampled, and a change beyond the cut changes nothing."""
    policy = tiny.policy()
    ctx = Context(policy, 0)
    sampling = THINKING.sampling(Sampling(8))
    drawn = think(replace(tiny.prompts(), items=tuple({} for _ in range(5))), sampling, (3, 6), ctx)
    assert drawn.response_ids.shape[1] <= 6
    stopped = (drawn.response_ids == END) & drawn.response_attention
    assert not bool((stopped[:, :-1] & drawn.response_attention[:, 1:]).any())  # the end of thinking ends a trace
    going = drawn.select((drawn.lengths == 6) & ~stopped.any(1) & (drawn.response_ids[:, -1] != tiny.END))
    assert len(going) > 3
    answering = TextAnswering(THINKING, judge, Sampling(5))
    first = answering.answer(going, (3, 6), 2, ctx)
    assert first.rows is not None
    assert first.budget is not None
    assert torch.equal(first.rows.response_mask, first.rows.response_attention)
    scored = policy.score(first.rows).logprobs.detach()
    torch.testing.assert_close(scored, first.rows.behavior_logprobs, atol=2e-5, rtol=1e-4)
    changed = going.response_ids.clone()
    changed[:, 3:] = 30
    second = answering.answer(replace(going, response_ids=changed), (3, 6), 2, ctx)
    assert second.rows is not None
    early = first.budget == 0
    for name in ("response_ids", "response_attention", "behavior_logprobs"):
        one, two = (getattr(rows, name) for rows in (first.rows, second.rows))
        width = min(one.shape[1], two.shape[1])
        torch.testing.assert_close(one[early, :width], two[early, :width])
    assert not torch.equal(first.rows.prompt_ids, second.rows.prompt_ids)


def test_the_end_of_thinking_of_a_tokenizer() -> None:
    own: Any = load_policy("embedded").tokenizer
    found = thinking_of(own, None, None, None)
    assert found == Thinking(own.convert_tokens_to_ids("#"), (own.convert_tokens_to_ids("#"),), ())
    named = thinking_of(own, ";", "..", "=")
    assert [own.decode(list(part)) for part in (named.closing, named.header)] == ["..;=", "="]
    with pytest.raises(UsageError, match="no token </think>"):
        thinking_of(tiny.tokenizer(), None, None, None)
    with pytest.raises(UsageError, match="is 2 tokens"):
        thinking_of(own, "##", None, None)
    reasoning = tiny.tokenizer()
    reasoning.add_special_tokens({"additional_special_tokens": ["</think>"]})
    found = thinking_of(reasoning, None, None, None)
    assert found.end == reasoning.convert_tokens_to_ids("</think>")
    assert found.closing.count(found.end) == 1
    assert found.closing[-len(found.header) :] == found.header


def test_budgets_in_words_and_metrics() -> None:
    assert parse_budgets("16,32, 64") == (16, 32, 64)
    for text in ("", "a,b", "8,4", "4,4", "1.5"):
        with pytest.raises(UsageError):
            parse_budgets(text)
    found = anytime_metrics(torch.tensor([[0.0, 1.0], [0.5, 1.0]]), (3, 9))
    assert found == {"accuracy@3": 0.25, "accuracy@9": 1.0, "anytime": 0.625}


def test_the_worlds_own_answers_agree_with_its_exact_accuracy() -> None:
    """Progress is counted along the trace: the mean score at each budget is the enumerated one."""
    world = Chain.draw(0)
    torch.nn.init.normal_(world.policy.core.logits, generator=torch.Generator().manual_seed(1))
    setting = world.setting(400, 8)
    prompts = setting.source.take(torch.arange(400), 8)
    answering: Any = setting.source
    metrics = Anytime((6, 12, 24), setting.sampling, answering).measure(prompts, world.policy, World())
    exact = world.accuracy()[[5, 11, 23]]
    found = torch.tensor([metrics[f"eval/accuracy@{budget}"] for budget in (6, 12, 24)], dtype=torch.float64)
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)
    assert metrics["eval/anytime"] == pytest.approx(float(found.mean()))
