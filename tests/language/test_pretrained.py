"""Small worlds of text: what the transformer learns, whose weights are whose, and formats that are those the methods write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from policydist.language import guided
from policydist.language.methods import icpo
from policydist.language.tasks.base import Row, Task
from policydist.language.trainer import TrainConfig
from policydist.language.worlds import alphabets, pretrained, run

LETTERS = "abcd"


def capitals(rng: np.random.Generator) -> Iterator[pretrained.Pairs]:
    """One letter, and its capital."""
    while True:
        yield [(f"{c}>", c.upper()) for c in rng.choice(list(LETTERS), size=16)]


def right(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
    return [float(response == row["answer"]) for response, row in zip(responses, rows, strict=True)]


def odd(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
    return [float(sum(map(ord, response)) % 2) for response in responses]


ROWS = [{"prompt": f"{c}>", "answer": c.upper()} for c in LETTERS]
WRONG = [{"prompt": f"{c}>", "answer": c} for c in LETTERS]


def world(rows: list[Row], steps: int = 40, seed: int = 3) -> pretrained.TextWorld:
    return pretrained.TextWorld(
        pretrained.policy(capitals, steps, seed), Task("letters", rows, rows, {"accuracy": right}, max_new_tokens=3)
    )


def weights(policy: object) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])  # type: ignore[attr-defined]


def test_the_corpus_is_learnt_and_what_it_does_not_say_is_not() -> None:
    assert world(ROWS, steps=1).score(8) < 0.2
    assert world(ROWS).score(8) > 0.9
    assert world(WRONG).score(8) < 0.05
    assert world(ROWS).score(8, WRONG) < 0.05


def test_arms_start_equal_and_do_not_share_what_they_learn() -> None:
    first, second = (pretrained.policy(capitals, 3, 3) for _ in range(2))
    start = weights(first).clone()
    assert torch.equal(start, weights(second))
    task = Task("odd", ROWS, ROWS, {"odd": odd}, max_new_tokens=3)
    run("grpo", {}, first, pretrained.TextWorld(first, task).setting(4, 8), TrainConfig(steps=2, lr=0.01))
    assert not torch.equal(start, weights(first))
    assert torch.equal(start, weights(second))
    assert torch.equal(start, weights(pretrained.policy(capitals, 3, 3)))


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = weights(pretrained.policy(capitals, 2, 0))
    assert torch.equal(before, torch.get_rng_state())
    pretrained.pretrained.cache_clear()
    torch.manual_seed(2)
    assert torch.equal(one, weights(pretrained.policy(capitals, 2, 0)))
    assert not torch.equal(one, weights(pretrained.policy(capitals, 2, 1)))


# --- alphabets -------------------------------------------------------------------------------------------------------


def told(example: str, number: str) -> str:
    """The answer that an answered question tells of another number."""
    places = [next(a for a, letters in enumerate(alphabets.ALPHABETS) if c in letters) for c in example]
    return "".join(alphabets.ALPHABETS[a][int(digit)] for a, digit in zip(places, number, strict=True))


def test_any_example_tells_the_task_and_a_question_does_not() -> None:
    task = alphabets.task(5, 30, 10)
    rows = [*task.train, *task.test]
    assert len({row["prompt"] for row in rows}) == 40
    for shown, asked in pairwise(rows):
        number = asked["prompt"].removesuffix(">")
        assert told(shown["answer"], number) == asked["answer"] == asked["completion"]
        assert right([asked["answer"]], [asked]) == [1.0] == alphabets.right([asked["answer"]], [asked])
    misled = [told(row["unrelated"], "12345") == told(rows[0]["answer"], "12345") for row in rows]
    assert sum(misled) <= 1
    other = alphabets.task(6, 1, 0).train[0]
    assert told(other["answer"], "12345") != told(rows[0]["answer"], "12345")


def test_the_corpus_shows_examples_as_icpo_writes_them() -> None:
    policy = pretrained.policy(capitals, 1, 0)
    text = pretrained.TextWorld(policy, alphabets.task(0, 8, 4))
    steering = icpo.examples(icpo.Config(**alphabets.KNOBS), text.setting(4, 4))
    assert isinstance(steering, guided.ExamplePrompts)
    written = steering.with_examples(text.task.test[0]["prompt"], torch.Generator().manual_seed(0))
    form = re.compile(r"(\d{5}>(\w{5})\n)?(\d{5})>")
    assert form.fullmatch(written)
    pairs = next(alphabets.corpus(np.random.default_rng(0)))
    found = [(form.fullmatch(prompt), answer) for prompt, answer in pairs]
    assert all(match for match, _ in found)
    behind = [(match, answer) for match, answer in found if match and match[1]]
    assert 0.5 * len(pairs) < len(behind) < len(pairs)
    assert all(told(match[2], match[3]) == answer for match, answer in behind)
