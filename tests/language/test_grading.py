import sys
import threading
import time
from fractions import Fraction
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import PolicydistError, UsageError
from policydist.language.tasks import math_checking
from policydist.language.tasks.extraction import check_ways, extract_answer
from policydist.language.tasks.grading import choice, exact_match, expression, last_number, math_verify_grader, numeric
from policydist.language.tasks.grading import rubric as rubric_grader
from policydist.language.tasks.rewards import load_function, python_function
from policydist.language.tasks.rubrics import check_rubric, rubric_score, rubric_verdicts


def one(grader, response, **row):
    (reward,) = grader([response], [row])
    return reward


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1} or \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"\boxed{a{b}c} but \boxed{unclosed", "a{b}c"),
        (r"\boxed{outer \boxed{inner}}", "inner"),
        (r"} \boxed {5} }", "5"),
        ("work\n#### 42\n", "42"),
        ("#### 1\n#### 2", "2"),
        ("The answer is 7. Wait, the answer is: **8**.", "8"),
        ("Final answer: x\nbye", "x"),
        ("one\ntwo\n\n", "two"),
        ("<answer>a\nb</answer> \\boxed{c}", "a\nb"),
        ("<answer>never closed", "<answer>never closed"),
        ("  ", ""),
        ("", ""),
    ],
)
def test_auto_extraction(text, answer):
    assert extract_answer(text) == answer


def test_extraction_by_one_way():
    assert extract_answer("x => 3\nrest", ["marker:=>"]) == "3"
    assert extract_answer("no box", ["boxed"]) == ""
    assert extract_answer("a\nb", ["all"]) == "a\nb"
    assert check_ways("all") == ("all",)
    with pytest.raises(UsageError, match=r"unknown answer extraction 'boxd': did you mean boxed"):
        check_ways(["boxd"])


def test_extraction_of_hostile_text_is_quick():
    start = time.process_time()
    for text in ("\\boxed{" * 100_000, "{" * 1_000_000, "<answer>" * 100_000, "answer is " * 100_000):
        extract_answer(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("The answer is  New   York.", "new york", 1),
        ("1.5", "15", 0),
        ("-3", "3", 0),
        ("5!", "5", 0),
        ("", "", 0),
        ("", ".", 0),
        ("...", ".", 0),
        ("paris", ["London", "Paris"], 1),
        ("Rome", ["London", "Paris"], 0),
        ("7", 7, 1),
        ("the answer is not 7", 7, 0),
    ],
)
def test_exact_match(response, answer, reward):
    assert one(exact_match(), response, answer=answer) == reward


def test_exact_match_options():
    assert one(exact_match(ignore_case=False), "Paris", answer="paris") == 0
    assert one(exact_match(ignore_punctuation=False), "answer: 'x'", answer="x") == 0
    assert one(exact_match(ignore_space=False, extraction="all"), "a  b", answer="a b") == 0


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("costs $1,234.50 in all", "1234.5", 1),
        ("it is 3/4", 0.75, 1),
        (r"\boxed{-\frac{3}{4}}", "-0.75", 1),
        ("1e3", 1000, 1),
        ("42.", "42", 1),
        ("421", "42", 0),
        ("-42", "42", 0),
        ("50%", "50", 1),
        ("1/0", 1, 0),
        ("no number", 0, 0),
        ("1e999", 1, 0),
        ("#### 1,000,000", "1000000", 1),
    ],
)
def test_numeric(response, answer, reward):
    assert one(numeric(), response, answer=answer) == reward


def test_numeric_tolerance_is_relative_above_one():
    assert one(numeric(tolerance=0.01), "1005", answer=1000) == 1
    assert one(numeric(tolerance=0.01), "0.015", answer=0) == 0
    with pytest.raises(UsageError, match="tolerance is 2"):
        numeric(tolerance=2)
    with pytest.raises(PolicydistError, match="'many' holds no number"):
        one(numeric(), "1", answer="many")
    with pytest.raises(PolicydistError, match="needs column 'answer'; the row has prompt"):
        one(numeric(), "1", prompt="x")


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_last_number_reads_what_python_writes(whole, bottom):
    assert last_number(f"it is 9 then {whole:,}") == whole
    assert last_number(f"{whole}/{bottom}") == pytest.approx(float(Fraction(whole, bottom)))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_graders_digest_any_response(text):
    assert one(numeric(), text, answer=1) in (0, 1)
    assert one(exact_match(), text, answer="x") in (0, 1)
    assert one(expression(), text, numbers=[1, 2], target=3) in (0, 1)
    assert one(choice(), text, answer="B", choices=["x", "y"]) in (0, 1)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("(1+2)*3*4", 0),
        ("<answer>4*(3+2+1)</answer>", 1),
        ("4 × (3 + 2 + 1) = 24", 1),
        ("4*6", 0),
        ("24", 0),
        ("4*3*2*1", 1),
        ("4*3*2*1*1", 0),
        ("9**9**9**9", 0),
        ("__import__('os')", 0),
        ("1/(2-2)", 0),
        ("", 0),
    ],
)
def test_expression_uses_every_number_once(response, reward):
    assert one(expression(), response, numbers=[1, 2, 3, 4], target=24) == reward


def test_expression_options_and_bad_rows():
    assert one(expression(use_all=False), "4*6", numbers=[1, 4, 6], target=24) == 1
    assert one(expression(use_all=False), "4*4+8", numbers=[4, 8, 1], target=24) == 0
    assert one(expression(), "1/3", numbers=[1, 3], target=0.3333333) == 0
    assert one(expression(operators="+"), "4*6", numbers=[4, 6], target=24) == 0
    with pytest.raises(PolicydistError, match="a number and a list of numbers"):
        one(expression(), "1", numbers=[1], target="much")


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("(B)", "B", 1),
        ("B) Paris", "B", 1),
        ("B. Paris", 1, 1),
        ("The answer is b", "b", 1),
        ("Paris", "B", 1),
        ("**paris**.", "B", 1),
        ("I think a city", "A", 0),
        ("option B because", "Paris", 1),
        ("A", "B", 0),
        ("it is either B or C", "B", 0),
        ("", "A", 0),
        ("\\boxed{C}", "Rome", 1),
    ],
)
def test_choice(response, answer, reward):
    assert one(choice(), response, answer=answer, choices=["London", "Paris", "Rome"]) == reward


@pytest.mark.parametrize(
    ("answer", "words"), [("D", "outside"), (7, "outside"), ("Oslo", "no letter"), (-1, "outside")]
)
def test_choice_with_a_wrong_reference_is_an_error(answer, words):
    with pytest.raises(PolicydistError, match=words):
        one(choice(), "A", answer=answer, choices=["London", "Paris", "Rome"])


def test_rubric_score_is_the_share_of_met_weight():
    rubric = [
        {"kind": "keyword", "value": "Therefore", "weight": 3},
        {"kind": "regex", "value": r"^Answer: \d+$"},
        {"kind": "max_words", "value": 6},
        {"kind": "keyword", "value": "sorry", "weight": -2},
    ]
    score = lambda text: one(rubric_grader(), text, rubric=rubric)  # noqa: E731
    assert score("it is, therefore,\nAnswer: 4") == 1
    assert score("therefores never count in this one") == pytest.approx(1 / 5)
    assert score("therefore sorry") == pytest.approx((3 + 1 - 2) / 5)
    assert score("sorry " * 9) == 0
    assert (
        rubric_score("abc", check_rubric([{"kind": "min_chars", "value": 3}, {"kind": "min_words", "value": 2}])) == 0.5
    )


@pytest.mark.parametrize(
    ("rubric", "words"),
    [
        ([], "list of criteria"),
        ("x", "list of criteria"),
        (["x"], "criterion 1 is a str"),
        ([{"kind": "keywrd", "value": "x"}], "did you mean keyword"),
        (
            [{"kind": "keyword", "value": "x"}, {"kind": "regex", "value": "("}],
            "criterion 2: '\\(' is no regular expression",
        ),
        ([{"kind": "keyword", "value": ""}], "needs a text"),
        ([{"kind": "max_words", "value": "3"}], "needs a whole number"),
        ([{"kind": "keyword", "value": "x", "wait": 1}], "unknown key 'wait'"),
        ([{"kind": "keyword", "value": "x", "weight": float("nan")}], "not a finite number"),
        ([{"kind": "keyword", "value": "x", "weight": -1}], "positive weight"),
    ],
)
def test_bad_rubrics(rubric, words):
    with pytest.raises(PolicydistError, match=words):
        check_rubric(rubric)


@pytest.fixture(scope="module")
def mathematics():
    return math_verify_grader(seconds=2)


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("42", "so it is $42$", 1),
        (r"\frac{1}{2}", r"hence \boxed{0.5}", 1),
        ("x^2+1", "$1+x^2$", 1),
        ("x^2+1", "$2$", 0),
        (["7", "1,000"], "the result is 1000", 1),
        ("3", "no idea", 0),
        ("3", "", 0),
    ],
)
def test_math_verify(mathematics, answer, response, reward):
    assert one(mathematics, response, answer=answer) == reward


def test_math_verify_off_the_main_thread_with_a_bomb_and_afterwards(mathematics):
    rewards = []
    responses = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3}"]
    start = time.perf_counter()
    thread = threading.Thread(target=lambda: rewards.extend(mathematics(responses, [{"answer": "3"}] * 2)))
    thread.start()
    thread.join(30)
    assert rewards == [0, 1]
    assert time.perf_counter() - start < 15


WORKER = """
import sys, time
print('"ready"', flush=True)
for line in sys.stdin:
    if "hang" in line:
        time.sleep(60)
    if "die" in line:
        sys.exit(1)
    print('"yes"', flush=True)
"""


def test_a_checking_process_that_hangs_or_dies_is_replaced(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(math_checking, "WORKER", worker)
    checker = math_checking.MathChecker(seconds=2)
    assert [checker.equal("3", text) for text in ("3", "die", "3", "hang", "3")] == [True, False, True, False, True]
    child = checker._child
    checker.close()
    assert child.poll() is not None


def test_a_checking_process_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit(1)")
    monkeypatch.setattr(math_checking, "WORKER", worker)
    with pytest.raises(PolicydistError, match="did not start"):
        math_checking.MathChecker().equal("3", "3")


def test_math_verify_names_a_reference_it_cannot_read(mathematics):
    with pytest.raises(PolicydistError, match="reference answer '' is no mathematics"):
        one(mathematics, "3", answer="")
    with pytest.raises(UsageError, match="at least 1"):
        math_verify_grader(seconds=0)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of reward functions in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_rewards.py").write_text(
        "seen = []\nLIMIT = 3\n"
        "def length(prompts, completions, answer, **kwargs):\n"
        "    seen.append((prompts, completions, answer, kwargs))\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "my_raising.py").write_text("1 / 0\n")
    yield "my_rewards"
    for name in ("my_rewards", "my_broken", "my_raising"):
        sys.modules.pop(name, None)


def test_python_function_is_called_as_trl_calls_it(module):
    chat = [{"role": "user", "content": "q"}]
    rows = [{"prompt": "p", "answer": "1", "level": 2}, {"prompt": chat, "answer": None}]
    assert python_function("my_rewards:length")(["abc", "d"], rows) == [3.0, 1.0]
    ((prompts, completions, answer, extra),) = sys.modules["my_rewards"].seen
    assert prompts == ["p", chat]
    assert completions == ["abc", [{"role": "assistant", "content": "d"}]]
    assert answer == ["1", None]
    assert extra == {"level": [2, None]}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("my_rewards:lenth", "has no 'lenth': did you mean length"),
        ("my_rewards:LIMIT", "is a int, not a function"),
        ("my_reward:length", "no module 'my_reward' is installed"),
        ("my_broken:f", "importing my_broken failed: No module named 'nothing_of_this_name'"),
        ("my_raising:f", "importing my_raising failed: ZeroDivisionError"),
        ("length", "not of the form"),
        (":length", "not of the form"),
        ("a/b.py:f", "not of the form"),
    ],
)
def test_bad_function_specs(module, spec, words):
    with pytest.raises(UsageError, match=words):
        load_function(spec)


@settings(deadline=None)
@given(st.text(alphabet="0123456789eE+-.,/ xyz", max_size=12))
def test_any_text_either_holds_a_finite_number_or_none(text: str) -> None:
    found = last_number(text)
    assert found is None or isfinite(found)


def test_an_exponent_without_a_mantissa_is_no_number() -> None:
    assert last_number("x*e7ly") == 7
    assert last_number("e") is None
    assert last_number("1.5e3") == 1500
    assert last_number("a .5") == 0.5


def test_a_criterion_speaks_for_itself_or_by_its_kind() -> None:
    criteria = check_rubric(
        [{"kind": "max_words", "value": 2, "text": "be brief"}, {"kind": "keyword", "value": "so", "weight": -1}]
    )
    assert [criterion.words for criterion in criteria] == ["be brief", 'mentions "so"']
    assert rubric_verdicts("and so on", criteria) == [False, True]
    with pytest.raises(PolicydistError, match="text is a int"):
        check_rubric([{"kind": "max_words", "value": 2, "text": 3}])
