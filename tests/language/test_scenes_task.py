"""The task of drawings: pictures show what rows say, answers follow from pictures, and only a shortcut helps without them."""

import io
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from policydist.errors import MissingExtraError, UsageError
from policydist.language import contexts
from policydist.language.tasks.procedural import rows, scenes
from policydist.language.tasks.sources import load_task

TASK = scenes.build(3, 160, 60)
GRADE = TASK.graders["accuracy"]


def seen(row):
    """The shapes of a row's picture, read off its pixels by means of no code of the task."""
    image = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")).astype(int)
    assert image.shape == (48, 48, 3)
    inks = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 220), "yellow": (240, 200, 30)}
    words = []
    for down, row_name in enumerate(("top", "middle", "bottom")):
        for right, column in enumerate(("left", "centre", "right")):
            cell = image[16 * down : 16 * down + 16, 16 * right : 16 * right + 16]
            inked = (cell < 255).any(2)
            if inked.any():
                colour = next(name for name, ink in inks.items() if (cell[inked] == ink).all())
                widths = inked.sum(1)[inked.any(1)]
                kind = "square" if len(set(widths)) == 1 else "triangle" if widths[-1] == widths.max() else "circle"
                words.append(f"{row_name} {column} {kind} {colour}")
    return ", ".join(words)


def test_the_picture_shows_what_the_row_says():
    for row in TASK.train[:100]:
        assert seen(row) == row["description"]
        assert len(seen(row).split(",")) == row["difficulty"]


def test_answers_follow_from_the_picture():
    for row in TASK.test:
        shapes = [text.rsplit(" ", 2) for text in row["description"].split(", ")]
        words = row["question"].rstrip("?").split()
        match row["source"]:
            case "colour" | "where":
                kind = next(word for word in words if word in scenes.KINDS)
                (found,) = [shape for shape in shapes if shape[1] == kind]
                assert row["answer"] == found[{"where": 0, "colour": 2}[row["source"]]]
            case "shape":
                assert [row["answer"]] == [shape[1] for shape in shapes if shape[2] == words[-1]]
            case "at":
                assert [row["answer"]] == [shape[1] for shape in shapes if shape[0] == " ".join(words[-2:])]
            case "count":
                assert row["answer"] == str(sum(shape[2] == words[-1] for shape in shapes))
            case "relation":
                place = {shape[1]: [r.index(w) for r, w in zip((scenes.ROWS, scenes.COLUMNS), shape[0].split(), strict=True)]
                         for shape in shapes}  # fmt: skip
                axis = int("left" in words)
                assert row["answer"] == ("yes" if place[words[2]][axis] < place[words[-1]][axis] else "no")


def test_worked_answers_are_right_and_have_the_form_that_doge_judges():
    for row in TASK.train:
        assert GRADE([row["completion"]], [row]) == [1.0]
        assert contexts.has_boxed_answer(row["completion"])
        assert not contexts.contains(row["context"], row["question"])
        assert row["prompt"].count("<image>") == row["context"].count("<image>") == 1
        assert row["question"] in row["prompt"]


@given(st.integers(0, 159), st.text("abcdeghilnorstuwy ", max_size=12))
@settings(max_examples=60, deadline=None)
def test_only_the_boxed_answer_counts(index, guess):
    row = TASK.train[index]
    answer = row["answer"]
    assert GRADE([f"\\boxed{{{guess}}}"], [row]) == [float(" ".join(guess.split()) == answer)]
    assert GRADE([answer], [row]) == [0.0]
    assert GRADE([f"\\boxed{{{answer}}} \\boxed{{{answer}{answer}}}"], [row]) == [0.0]


def test_a_seed_fixes_the_rows_and_drawings_of_the_test_side_are_never_trained_on():
    again = scenes.build(3, 160, 60)
    assert (again.train, again.test) == (TASK.train, TASK.test)
    assert scenes.build(4, 160, 1).train != TASK.train
    trained = {row["description"] for seed in (3, 4) for row in scenes.build(seed, 160, 0, shortcut=0.5).train}
    tested = {row["description"] for seed in (3, 4) for row in scenes.build(seed, 0, 60).test}
    assert not trained & tested
    assert not any(rows.in_test_pool("scenes", description) for description in trained)


def best_guess(train, test):
    """Accuracy on ``test`` of the most frequent answer that each wording has in ``train``."""
    counted = defaultdict(Counter)
    for row in train:
        counted[row["question"]][row["answer"]] += 1
    right = [
        counted[row["question"]].most_common(1)[0][0] == row["answer"] for row in test if row["question"] in counted
    ]
    return np.mean(right)


def test_a_shortcut_pays_in_training_alone():
    task = scenes.build(0, 800, 120, shortcut=0.95)
    assert best_guess(task.train, task.train) > 0.9
    assert best_guess(task.train, task.test) < 0.5
    assert task.test == scenes.build(0, 1, 120).test


def test_without_a_shortcut_the_wording_tells_nothing():
    task = scenes.build(1, 800, 1)
    counted = Counter(row["answer"] for row in task.train if row["source"] == "relation")
    assert abs(counted["yes"] / counted.total() - 0.5) < 0.15
    colours = Counter(row["answer"] for row in task.train if row["source"] == "colour")
    assert max(colours.values()) < 0.38 * colours.total()


def test_slips_make_worked_answers_wrong_but_keep_their_form():
    rng = np.random.default_rng(0)
    drawn = [problem for problem in (scenes.draw(rng, 3) for _ in range(100)) if problem is not None]
    told = [scenes.solution(problem, rng, 0.3) for problem in drawn]
    right = GRADE(told, [{"answer": problem.answer} for problem in drawn])
    assert 0.2 < np.mean(right) < 0.8
    assert all(contexts.has_boxed_answer(text) for text in told)
    assert scenes.misread(drawn[0].shapes, rng, 0.0) == drawn[0].shapes


def test_what_cannot_be_asked_for_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"shortcut is 1\.5"):
        load_task("scenes", options={"shortcut": 1.5})
    with pytest.raises(UsageError, match="difficulty"):
        load_task("scenes", options={"difficulty": 9})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"policydist\[vision\]"):
        load_task("scenes", train_size=2, test_size=0)
