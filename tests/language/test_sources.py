import json
import os
import sys

import pandas as pd
import pytest

from policydist.errors import MissingExtraError, UsageError
from policydist.language.tasks import sources
from policydist.language.tasks.gym import EVALUATED, gym_grader
from policydist.language.tasks.sources import automatic, load_task, make_grader, task_names

ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(40)]


@pytest.fixture
def jsonl(tmp_path):
    """Write rows (objects, or raw lines) to a JSONL file and give its task name."""

    def write(rows, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"jsonl:{tmp_path / name}"

    return write


@pytest.fixture
def parquet(tmp_path):
    def write(rows, name="rows.parquet"):
        pd.DataFrame(rows).to_parquet(tmp_path / name)
        return f"parquet:{tmp_path / name}"

    return write


def prompts(rows):
    return [row["prompt"] for row in rows]


def test_jsonl_is_split_by_the_seed_without_overlap(jsonl):
    spec = jsonl(ROWS)
    task = load_task(spec, seed=3)
    assert (len(task.train), len(task.test)) == (36, 4)
    assert sorted(prompts(task.train) + prompts(task.test)) == sorted(prompts(ROWS))
    assert prompts(load_task(spec, seed=3).test) == prompts(task.test)
    assert prompts(load_task(spec, seed=4).test) != prompts(task.test)
    small = load_task(spec, seed=3, train_size=5, test_size=7)
    assert (len(small.train), len(small.test)) == (5, 7)
    assert len(load_task(spec, test_size=0).test) == 0
    assert task.graders["accuracy"](["it is 3", "4"], [{"answer": "3"}, {"answer": "3"}]) == [1, 0]


def test_jsonl_with_a_test_file_keeps_the_parts(jsonl):
    first, second = jsonl(ROWS[:30], "a.jsonl"), jsonl(ROWS[30:], "b.jsonl")
    task = load_task(f"{first},{second.removeprefix('jsonl:')}", test_size=4)
    assert prompts(task.train) == prompts(ROWS[:30])
    assert len(task.test) == 4
    assert set(prompts(task.test)) <= set(prompts(ROWS[30:]))


def test_columns_are_renamed_and_others_kept(jsonl):
    rows = [{"question": "q", "gold": "x", "level": 3, "prompt": "old", "answer": "old"}] * 2
    row = load_task(jsonl(rows), prompt_column="question", answer_column="gold").train[0]
    assert row == {"prompt": "q", "answer": "x", "level": 3}


def test_chat_prompts_blank_lines_and_a_byte_order_mark(jsonl):
    chat = [{"role": "user", "content": "hi"}]
    task = load_task(jsonl(["\ufeff" + json.dumps({"prompt": chat, "answer": "x"}), "", "  ", ROWS[0]]), test_size=0)
    assert prompts(task.train) == [chat, ROWS[0]["prompt"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", ', r"rows\.jsonl:2: not valid JSON"),
        ("[1]", r":2: a row must be a JSON object, not a list"),
        ("null", r":2: a row must be a JSON object, not null"),
        ("[" * 100_000, r":2: JSON that is nested too deeply|:2: not valid JSON"),
        ("9" * 10_000, r":2: JSON that is nested too deeply or holds a number that is too long"),
        (
            '{"question": "a", "answer": "b"}',
            r":2: no column 'prompt'; there are: question, answer\. Set prompt_column",
        ),
        ('{"prompt": "a"}', r":2: no column 'answer'; there are: prompt\. Set answer_column"),
        ('{"prompt": null, "answer": "b"}', r":2: column 'prompt' is null"),
        ('{"prompt": "a", "answer": null}', r":2: column 'answer' is null"),
        ('{"prompt": " ", "answer": "b"}', r":2: the prompt is empty"),
        ('{"prompt": 3, "answer": "b"}', r":2: the prompt is a int; it must be a text or a list of chat messages"),
        ('{"prompt": [], "answer": "b"}', r":2: the prompt is an empty list"),
        ('{"context": "", "question": "a", "answer": "b"}', r":2: column 'context' is empty; it must be a text"),
        ('{"context": "a", "question": null, "answer": "b"}', r":2: column 'question' is null; it must be a text"),
        ('{"prompt": [{"role": "user"}], "answer": "b"}', r":2: chat message 1 needs a role and a content"),
    ],
)
def test_bad_jsonl_rows_are_named_by_file_and_line(jsonl, line, words):
    with pytest.raises(UsageError, match=words) as raised:
        load_task(jsonl([ROWS[0], line, ROWS[1]]))
    assert "\n" not in str(raised.value)


def test_bytes_that_are_not_text_are_named_by_line(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"prompt": "\xe9", "answer": "b"}\n')
    with pytest.raises(UsageError, match=r"latin\.jsonl:2: not UTF-8 text"):
        load_task(f"jsonl:{tmp_path / 'latin.jsonl'}")


def test_missing_empty_and_unreadable_files(tmp_path, jsonl, monkeypatch):
    spec = jsonl(ROWS)
    with pytest.raises(UsageError, match=r"row\.jsonl: no such file; did you mean rows\.jsonl\?"):
        load_task(spec.replace("rows.jsonl", "row.jsonl"))
    with pytest.raises(UsageError, match="the dataset is empty"):
        load_task(jsonl(["", " "], "empty.jsonl"))
    with pytest.raises(UsageError, match="is a directory"):
        load_task(f"jsonl:{tmp_path}")
    locked = tmp_path / "locked.jsonl"
    locked.write_text("{}")
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root reads everything
        monkeypatch.setattr(type(locked), "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Denied")))
    for kind in ("jsonl", "parquet"):
        with pytest.raises(UsageError, match=r"locked\.jsonl: cannot be read: "):
            load_task(f"{kind}:{locked}")


def test_sizes_beyond_the_rows_are_refused(jsonl):
    spec, one = jsonl(ROWS), jsonl(ROWS[:1], "one.jsonl")
    for sizes, words in [
        ({"train_size": 37}, "train_size is 37, but only 36 rows are left"),
        ({"test_size": 40}, "test_size is 40, but there are only 40 rows"),
        ({"train_size": 0}, "train_size is 0; it must be at least 1"),
        ({"test_size": -1}, "test_size is -1"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_task(spec, **sizes)
    with pytest.raises(UsageError, match="one row cannot be split"):
        load_task(one)
    with pytest.raises(UsageError, match="test_size is 2, but there are only 1 test rows"):
        load_task(f"{spec},{one.removeprefix('jsonl:')}", test_size=2)
    with pytest.raises(UsageError, match="<train file>,<test file>"):
        load_task(f"{spec},")


def test_parquet(parquet):
    chat = [{"role": "user", "content": "hi"}]
    task = load_task(parquet([{"prompt": chat, "answer": 1}, {"prompt": chat, "answer": 2}]), test_size=0)
    assert task.train[1] == {"prompt": chat, "answer": 2}
    for rows, words in [
        ([ROWS[0], {"prompt": None, "answer": "1"}], r"rows\.parquet row 2: column 'prompt' is null"),
        ([ROWS[0], {"prompt": "a", "answer": None}], r"rows\.parquet row 2: column 'answer' is null"),
        ([{"q": "a", "a": "b"}], r"no column 'prompt'; there are: q, a\."),
        ({"prompt": [], "answer": []}, "the dataset is empty"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_task(parquet(rows))


def test_a_file_that_is_no_parquet(jsonl):
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        load_task(jsonl(ROWS).replace("jsonl:", "parquet:"))


@pytest.mark.parametrize(
    ("rows", "grader"),
    [
        ([{"answer": "1,234"}, {"answer": -2.5}], "numeric"),
        ([{"answer": "1"}, {"answer": "about 1"}], "exact_match"),
        ([{"answer": "1"}, {"answer": "$x$"}], "math_verify"),
        ([{"answer": r"\frac12"}], "math_verify"),
        ([{"answer": ["1", "2"]}], "numeric"),
        ([{"answer": ["one", "2"]}], "exact_match"),
        ([{"answer": "B", "choices": ["x", "y"]}], "choice"),
        ([{"numbers": [1, 2], "target": 3}], "expression"),
        ([{"rubric": [{"kind": "keyword", "value": "x"}], "answer": "1"}], "rubric"),
    ],
)
def test_the_automatic_grader_follows_the_rows(rows, grader):
    assert automatic(rows) == grader


def test_graders_that_need_no_answer(jsonl, tmp_path, monkeypatch):
    rubric = [{"kind": "keyword", "value": "x"}]
    task = load_task(jsonl([{"prompt": "p", "rubric": rubric}] * 2))
    assert task.graders["accuracy"](["x"], task.train) == [1]
    assert load_task(jsonl([{"prompt": "p", "numbers": [1, 2], "target": 3}] * 2)).graders["accuracy"](
        ["1+2"], [{"numbers": [1, 2], "target": 3}]
    ) == [1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "reward_of_sources.py").write_text("def f(prompts, completions, **k): return [2.0 for _ in prompts]\n")
    own = load_task(jsonl([{"prompt": "p"}] * 2), grader="reward_of_sources:f")
    assert own.graders["reward"](["x"], own.train) == [2]


def test_rows_that_their_grader_cannot_use_fail_on_loading(jsonl):
    spec = jsonl([*ROWS[:2], {"prompt": "p", "answer": "many"}])
    with pytest.raises(UsageError, match=r"rows\.jsonl row 3: answer 'many' holds no number"):
        load_task(spec, grader="numeric")
    with pytest.raises(UsageError, match="row 1: rubric criterion 1: unknown kind"):
        load_task(jsonl([{"prompt": "p", "rubric": [{"kind": "?"}]}] * 2))
    with pytest.raises(UsageError, match="row 1: answer 'Z' points outside the row's 2 choices"):
        load_task(jsonl([{"prompt": "p", "answer": "Z", "choices": ["x", "y"]}] * 2))


def test_grader_names_and_options(jsonl):
    spec = jsonl(ROWS)
    strict = load_task(spec, grader="exact_match", options={"ignore_case": False})
    assert strict.graders["accuracy"](["A"], [{"answer": "a"}]) == [0]
    with pytest.raises(UsageError, match=r"unknown grader 'exact_mtch': did you mean exact_match"):
        load_task(spec, grader="exact_mtch")
    with pytest.raises(UsageError, match=r"grader numeric has no option 'tolerence': did you mean tolerance"):
        load_task(spec, options={"tolerence": 1})
    with pytest.raises(UsageError, match="takes no options"):
        make_grader("os.path:join", {"x": 1})
    with pytest.raises(UsageError, match="no module 'no_such_module'"):
        load_task("jsonl:missing.jsonl", grader="no_such_module:f")


def build(seed=0, train_size=4, test_size=2, difficulty=1):
    return (seed, train_size, test_size, difficulty)


def test_procedural_tasks_by_name(monkeypatch):
    monkeypatch.setattr(sources, "_procedural", lambda: {"countdown": build, "logic": build})
    assert load_task("countdown", seed=7, test_size=3, options={"difficulty": 5}) == (7, 4, 3, 5)
    assert task_names()[:3] == ["countdown", "logic", "reasoning-gym:<name>"]
    for spec, words in [
        ("coutdown", r"unknown task 'coutdown': did you mean countdown\? \(or: reasoning-gym:<name>"),
        ("json:x", r"unknown task 'json:x': did you mean jsonl\? \(forms: reasoning-gym:<name>, jsonl:<file>"),
        ("rows.jsonl", r"for a file write jsonl:rows\.jsonl"),
        ("data.parquet", r"for a file write parquet:data\.parquet"),
        ("jsonl:", r"write jsonl:<file>"),
        ("reasoning-gym:", r"write reasoning-gym:<name>"),
        ("", "unknown task ''"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_task(spec)
    with pytest.raises(UsageError, match=r"task countdown has no option 'dificulty': did you mean difficulty"):
        load_task("countdown", options={"dificulty": 3})
    with pytest.raises(UsageError, match="brings its own grader"):
        load_task("countdown", grader="numeric")


def test_every_built_in_procedural_task_loads():
    for name in sources._procedural():
        task = load_task(name, train_size=3, test_size=2)
        assert (len(task.train), len(task.test)) == (3, 2)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A local directory that `datasets` loads like a repository, and a cache of its own."""
    folder = tmp_path_factory.mktemp("hub")
    for split, rows in (("train", ROWS[:30]), ("test", ROWS[30:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, {"cache_dir": str(tmp_path_factory.mktemp("cache"))}


def test_hub_datasets(hub):
    folder, options = hub
    task = load_task(f"hub:{folder}", options=options)
    assert (len(task.train), len(task.test)) == (30, 10)
    assert task.train[0] == ROWS[0]
    only = load_task(f"hub:{folder}@test", test_size=3, options=options)
    assert (len(only.train), len(only.test)) == (7, 3)
    with pytest.raises(UsageError, match=r"no split 'tset': did you mean test"):
        load_task(f"hub:{folder}@tset", options=options)
    with pytest.raises(UsageError, match=r"@train row 1: no column 'question'; there are: prompt, answer"):
        load_task(f"hub:{folder}", prompt_column="question", options=options)
    with pytest.raises(UsageError, match="at most two splits"):
        load_task(f"hub:{folder}@train,test,train", options=options)
    with pytest.raises(UsageError, match=r"could not load the dataset: ValueError: BuilderConfig 'nope' not found"):
        load_task(f"hub:{folder}:nope", options=options)
    with pytest.raises(UsageError, match="no such directory"):
        load_task("hub:./no_such_directory")


def test_hub_without_network(monkeypatch):
    import datasets

    def offline(name, config, **options):
        assert (name, config, options) == ("someone/some-data", "main", {"revision": "v1"})
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UsageError, match=r"ConnectionError: Couldn't reach the Hub\. Check the name and the network"
    ) as raised:
        load_task("hub:someone/some-data:main@train", options={"revision": "v1"})
    assert "\n" not in str(raised.value)


def test_reasoning_gym_is_graded_by_its_own_scorer():
    task = load_task(
        "reasoning-gym:countdown", seed=1, train_size=3, test_size=2, options={"min_numbers": 3, "max_numbers": 3}
    )
    assert (len(task.train), len(task.test)) == (3, 2)
    row = task.train[0]
    assert len(row["entry"]["metadata"]["numbers"]) == 3
    rewards = task.graders["accuracy"]
    right = row["entry"]["metadata"]["expression"]
    assert rewards([f"<answer>{right}</answer>", "<answer>1+1</answer>", ""], [row] * 3) == [1.0, 0.05, 0.0]
    assert load_task("reasoning-gym:countdown", seed=1, train_size=3, test_size=2).train[0] != row
    for options, words in [
        ({"min_number": 3}, "has no option 'min_number': did you mean min_numbers"),
        ({"size": 3}, "has no option 'size'"),
        ({"min_numbers": 9, "max_numbers": 2}, "reasoning-gym:countdown: AssertionError"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_task("reasoning-gym:countdown", options=options)
    with pytest.raises(UsageError, match=r"unknown reasoning-gym task 'countdwn': did you mean countdown"):
        load_task("reasoning-gym:countdwn")


def test_scorers_that_evaluate_never_see_code(tmp_path):
    seen = []

    def scorer(answer, entry):
        seen.append(answer)
        return 0.5

    entry = {"answer": "1 2", "metadata": {}}
    code = f"__import__('pathlib').Path({str(tmp_path / 'mark')!r}).touch()"
    for name in EVALUATED:
        assert gym_grader(name, scorer)([f"<answer>{code}</answer>"], [{"entry": entry}]) == [0.5]
    assert seen == [None] * len(EVALUATED)
    gym_grader("spiral_matrix", scorer)(["1 2", "[1, 2]", "9**9**9**9"], [{"entry": entry}] * 3)
    assert seen[-3:] == ["1 2", "[1, 2]", None]


def test_the_list_of_evaluating_scorers_is_complete():
    """Reads the installed library's scorers: whichever calls eval or a parser that evaluates must be in the list."""
    import inspect
    import re

    from reasoning_gym.factory import DATASETS

    calls = re.compile(r"\b(?:eval|exec|parse_expr|sympify|S)\(\s*(?:answer|user_answer)\b")
    found = {name for name, (cls, _) in DATASETS.items() if calls.search(inspect.getsource(cls.score_answer))}
    assert found <= set(EVALUATED)
    assert {"countdown", "spiral_matrix", "simple_integration"} <= found


def test_code_in_an_answer_is_not_run_by_the_real_scorer(tmp_path):
    mark = tmp_path / "mark"
    task = load_task("reasoning-gym:spiral_matrix", train_size=1, test_size=0)
    code = f"[__import__('pathlib').Path({str(mark)!r}).touch()]"
    assert task.graders["accuracy"]([f"<answer>{code}</answer>"], task.train) == [0.0]
    assert not mark.exists()


def test_a_scorer_that_raises_gives_nothing():
    def scorer(answer, entry):
        raise KeyError(answer)

    assert gym_grader("any", scorer)(["x"], [{"entry": {"answer": "y", "metadata": {}}}]) == [0.0]


def test_reasoning_gym_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'policydist\[tasks\]'"):
        load_task("reasoning-gym:countdown")
