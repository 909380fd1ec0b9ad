"""The procedural tasks: what is drawn is right, what is graded is strict, and nothing in a response can do harm."""

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import UsageError
from policydist.language.tasks.procedural import PROCEDURAL, final_answer, logic, rows, solution

NAMES = sorted(PROCEDURAL)
TASKS = {name: build(3, 120, 40) for name, build in PROCEDURAL.items()}
names = st.sampled_from(NAMES)


def grade(name, response, row):
    (value,) = TASKS[name].graders["accuracy"]([response], [row])
    return value


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_rows_and_another_changes_them(name):
    again, other = PROCEDURAL[name](3, 120, 40), PROCEDURAL[name](4, 120, 40)
    assert again.train == TASKS[name].train
    assert again.test == TASKS[name].test
    assert other.train != again.train
    assert PROCEDURAL[name](3, 10, 40).test == again.test
    assert json.loads(json.dumps(again.train)) == [json.loads(json.dumps(row)) for row in again.train]


@pytest.mark.parametrize("name", NAMES)
def test_no_seed_trains_on_the_test_rows_of_another(name):
    trained = {key(name, row) for seed in (3, 4) for row in PROCEDURAL[name](seed, 120, 0).train}
    tested = {key(name, row) for seed in (3, 4) for row in PROCEDURAL[name](seed, 0, 40).test}
    assert not trained & tested
    assert len({key(name, row) for row in TASKS[name].train}) == 120


def key(name, row):
    """What makes two rows the same problem, worked out apart from the task's own keys."""
    match name:
        case "countdown":
            return tuple(sorted(row["numbers"])), row["target"]
        case "multi":
            return frozenset(row["constraints"])
    return row["prompt"]


@given(names, st.integers(0, 119), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_worked_solution_is_right_and_fits_the_length(name, index, seed):
    row = TASKS[name].train[index]
    text = solution(name, row, np.random.default_rng(seed))
    assert grade(name, text, row) == 1
    assert len(text) < TASKS[name].max_new_tokens
    assert len(row["prompt"]) < 24


@given(names, st.integers(0, 119), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_right_answer_in_the_wrong_format_is_wrong(name, index, seed):
    row = TASKS[name].train[index]
    text = solution(name, row, np.random.default_rng(seed))
    answer = final_answer(text)
    for corrupted in (
        answer,
        text + "#",
        text + "#0000",
        text.replace("#", ""),
        text + ".",
        text + " = x",
        f"#{answer};",
        "",
    ):
        assert grade(name, corrupted, row) == 0


@given(st.sampled_from(["arithmetic", "chain", "logic"]), st.integers(0, 119), st.text("0123456789KN,-", max_size=6))
@settings(max_examples=100, deadline=None)
def test_an_exact_task_accepts_its_answer_alone(name, index, guess):
    row = TASKS[name].train[index]
    assert grade(name, f"#{guess}", row) == (guess == row["answer"])


@pytest.mark.parametrize("name", NAMES)
def test_slips_make_solutions_wrong(name):
    rng = np.random.default_rng(0)
    wrong = [grade(name, solution(name, row, rng, 1.0), row) for row in TASKS[name].train]
    assert np.mean(wrong) < 0.35


def test_arithmetic_working_is_true_line_by_line():
    for row in PROCEDURAL["arithmetic"](0, 50, 0, difficulty=(1, 4)).train:
        text = solution("arithmetic", row, np.random.default_rng(0))
        lines = [row["prompt"].rstrip("="), *text.replace("#", "=").strip("=").split("=")]
        assert len({sum(map(int, line.replace("-", "+-").split("+"))) for line in lines}) == 1


def test_chain_answers_follow_from_the_prompt():
    for row in TASKS["chain"].test:
        body, modulus = row["prompt"].rstrip(":").split("%")
        value = int(body[0])
        for op, digit in pairs(body[1:]):
            value = {"+": value + digit, "-": value - digit, "*": value * digit}[op] % int(modulus)
        assert row["answer"] == str(value)


def pairs(text):
    return [(text[i], int(text[i + 1])) for i in range(0, len(text), 2)]


@pytest.mark.parametrize("people", [3, 4, 5])
def test_puzzles_have_one_solution_by_brute_force(people):
    for row in PROCEDURAL["logic"](0, 60, 0, difficulty=people).train:
        statements = row["prompt"].rstrip("?").split(",")
        assert brute_force(statements) == [row["answer"]]


@given(st.lists(st.sampled_from(["A+", "B-", "A=C", "B/C", "A&B", "B|C"]), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_solver_finds_what_brute_force_finds(statements):
    assert sorted(logic.solutions(statements)) == sorted(brute_force(statements))


def brute_force(statements):
    """Every world tried with plain booleans."""
    found = []
    for world in itertools.product("KN", repeat=len(statements)):
        knight = {name: kind == "K" for name, kind in zip("ABCDE", world, strict=False)}
        if all(knight["ABCDE"[i]] == true(statement, knight) for i, statement in enumerate(statements)):
            found.append("".join(world))
    return found


def true(statement, knight):
    left, kind, right = knight[statement[0]], statement[1], knight[statement[2]] if statement[2:] else None
    match kind:
        case "+":
            return left
        case "-":
            return not left
        case "=":
            return left == right
        case "/":
            return left != right
        case "&":
            return left and right
    return left or right


ROW = {"numbers": [3, 7, 2, 3], "target": 23}


@pytest.mark.parametrize("answer", ["3*7+2", "7*3+2", "(7)*(3)+2", "2+3*7", "2--3*7"])
def test_countdown_accepts_any_expression_that_fits(answer):
    assert grade("countdown", f"#{answer}", ROW) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "23",
        "7*2+3*3+0",
        "7+7+7+2",
        "3*7+2=23",
        "3*7+1",
        "37-14",
        "46/2",
        "2**4+7",
        "3*7+2.0",
        "0x17",
        "٢٣",
        "3 *7+2",
        "",
        "()",
        "3*",
        "-",
    ],
)
def test_countdown_rejects_what_breaks_a_rule(answer):
    assert grade("countdown", f"#{answer}", ROW) == 0


def test_multi_lists_exactly_the_answers_that_the_grader_accepts():
    for row in TASKS["multi"].train:
        spelt = [f"{a},{b}" for a in range(10) for b in range(10)] if row["kind"] == "pair" else map(str, range(100))
        assert [text for text in spelt if grade("multi", f"#{text}", row)] == row["answers"]
        assert 3 <= len(row["answers"]) <= 30


@pytest.mark.parametrize(
    ("constraints", "kind", "right", "wrong"),
    [
        (["n>20", "n%7=3"], "number", ["24", "31", "94"], ["17", "25", "024", "101", "3,4", "٢٤"]),
        (["a+b=9", "a*b>9"], "pair", ["4,5", "7,2"], ["1,8", "4,6", "9", "45", "4, 5"]),
        (["a-b<3"], "pair", ["2,0", "0,9"], ["9,0"]),
    ],
)
def test_multi_constraints_mean_what_they_say(constraints, kind, right, wrong):
    row = {"constraints": constraints, "kind": kind}
    assert [grade("multi", f"#{a}", row) for a in right] == [1] * len(right)
    assert [grade("multi", f"#{a}", row) for a in wrong] == [0] * len(wrong)


BOMBS = [
    "9**9**9**9",
    "9*" * 500 + "9",
    "(" * 5000 + "1" + ")" * 5000,
    "-" * 5000 + "1",
    "9" * 5000,
    "__import__('os')",
    "#" * 5000,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_wrong_and_cheap(name, bomb):
    start = time.process_time()
    assert grade(name, f"#{bomb}", TASKS[name].test[0]) == 0
    assert time.process_time() - start < 0.2


@given(names, st.integers(0, 39), st.text(max_size=40), st.text("0123456789+-*(),#KN ²٣\x00\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_garbage_is_graded_without_complaint(name, index, head, tail):
    assert grade(name, f"{head}#{tail}", TASKS[name].test[index]) in (0, 1)


def test_the_tail_option_skews_the_lengths():
    task = PROCEDURAL["arithmetic"](0, 400, 10, tail=0.1)
    rng = np.random.default_rng(0)
    lengths = np.array([len(solution("arithmetic", row, rng)) for row in task.train])
    assert len(lengths) == 400
    assert np.median(lengths) < 20
    assert np.mean(lengths > 80) == pytest.approx(0.1)
    assert 120 < lengths.max() < task.max_new_tokens
    assert max(len(row["prompt"]) for row in task.test) < 20


@pytest.mark.parametrize("name", NAMES)
def test_wrong_requests_are_refused_in_one_line(name):
    for options in (
        {"difficulty": 0},
        {"difficulty": 99},
        {"difficulty": ()},
        {"difficulty": True},
        {"train_size": -1},
    ):
        with pytest.raises(UsageError, match=name) as caught:
            PROCEDURAL[name](**options)
        assert "\n" not in str(caught.value)


def test_more_rows_than_there_are_is_an_error_not_a_repetition():
    with pytest.raises(UsageError, match="smaller train_size"):
        PROCEDURAL["countdown"](0, 4096, 10, difficulty=2)
    with pytest.raises(UsageError, match="tail"):
        PROCEDURAL["arithmetic"](tail=1.5)
    with pytest.raises(UsageError, match="did you mean chain"):
        solution("chains", {}, np.random.default_rng(0))


def test_an_eighth_of_all_problems_is_for_tests():
    share = np.mean([rows.in_test_pool("chain", str(i)) for i in range(4000)])
    assert 0.1 < share < 0.15


def test_constraints_can_be_graded_one_by_one() -> None:
    task = PROCEDURAL["multi"](0, 40, 8, rubric=True)
    grade, exact = task.graders["rubric"], task.graders["accuracy"]
    assert task.weights == {"accuracy": 0.0, "rubric": 1.0}
    shares = set()
    for row in task.train:
        answers = [f"#{n // 10},{n % 10}" if row["kind"] == "pair" else f"#{n}" for n in range(100)]
        scores, right = grade(answers, [row] * 100), exact(answers, [row] * 100)
        assert [score == 1 for score in scores] == [value == 1 for value in right]
        shares |= {round(score * len(row["rubric"])) for score in scores}
        assert [item["text"] for item in row["rubric"]] == row["constraints"]
    assert shares >= {0, 1, 2}
