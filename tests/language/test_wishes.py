"""The world of wishes: what its corpus grants and mends, and that it asks for revisions in HeRL's words."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from policydist.language import revision
from policydist.language.methods import herl
from policydist.language.tasks.rubrics import check_rubric, rubric_score
from policydist.language.worlds import wishes


def split(prompt: str) -> tuple[list[str], str, str]:
    """What a draft misses, the draft, and the wishes of a revision prompt."""
    unmet, draft, question = prompt.split("/")
    return [c for c in unmet.split(", ") if c], draft, question.removesuffix(">")


def test_plain_answers_leave_hard_letters_out_and_revisions_mend_what_they_are_told() -> None:
    pairs = [pair for batch in islice(wishes.CORPORA["seldom"](np.random.default_rng(1)), 60) for pair in batch]
    plain = [(prompt.removesuffix(">"), answer) for prompt, answer in pairs if "/" not in prompt]
    easy = [
        c.upper() == got for asked, answer in plain for c, got in zip(asked, answer, strict=True) if c in wishes.EASY
    ]
    hard = [
        c.upper() == got for asked, answer in plain for c, got in zip(asked, answer, strict=True) if c in wishes.HARD
    ]
    assert all(easy)
    assert sum(hard) / len(hard) == pytest.approx(0.02, abs=0.01)
    never = next(wishes.CORPORA["never"](np.random.default_rng(1)))
    assert not any(set(answer) & set(wishes.HARD.upper()) for prompt, answer in never if "/" not in prompt)
    mended = []
    for prompt, answer in pairs:
        if "/" in prompt:
            unmet, draft, asked = split(prompt)
            assert unmet == [c for c in asked if c.upper() not in draft]
            for c, old, new in zip(asked, draft, answer, strict=True):
                if c in unmet:
                    mended.append(new == c.upper())
                else:
                    assert new == old
    assert sum(mended) / len(mended) == pytest.approx(wishes.MENDED, abs=0.03)


def test_the_corpus_shows_revisions_as_herl_asks_for_them() -> None:
    row = wishes.task(0, 4, 2).train[0]
    asked = row["prompt"].removesuffix(">")
    assert set(asked) & set(wishes.HARD)
    draft = asked[0].upper() + "-" * (wishes.LENGTH - 1)
    reviser = revision.TextReviser(
        None, revision.rubric_items("rubric"), herl.Config(template=wishes.TEMPLATE).template
    )
    items = reviser.verdicts(draft, row)
    assert split(reviser.write(row["prompt"], draft, items, True)) == (list(asked[1:]), draft, asked)
    assert split(reviser.write(row["prompt"], draft, items, False)) == ([], draft, asked)
    assert rubric_score(draft, check_rubric(row["rubric"])) == 1 / wishes.LENGTH
    assert rubric_score(asked[::-1].upper(), check_rubric(row["rubric"])) == 1.0
