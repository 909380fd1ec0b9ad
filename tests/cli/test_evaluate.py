"""``policydist evaluate``: its numbers, its files, runs beside models, and every way of asking wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import policydist
from policydist.cli.main import main
from policydist.language import embedded
from policydist.language.policies import loading
from policydist.language.retrieval import BM25Retriever
from policydist.language.service import Service
from policydist.language.tasks import twohop

Capture = pytest.CaptureFixture[str]
QUICK = ("--rows", "12", "--samples", "2", "--set", "eval.answer_tokens=4", "--set", "task.train_size=8")
CURVE = ("accuracy@3", "accuracy@6", "accuracy@13")


def asked(capsys: Capture, *words: str) -> Any:
    capsys.readouterr()
    assert main(["evaluate", *words, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("measuring ")]
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a task of its own, measured with its own number of rows."""
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = [
        "rollout.prompts=4", "rollout.samples=2", "task.train_size=8", "task.test_size=8", "eval.rows=8", "eval.samples=1",
        "train.save_every=0", "model.device=cpu",
    ]  # fmt: skip
    policydist.train("grpo", task="chain", steps=1, settings=settings, out=path)
    return path


def test_numbers_and_the_area_under_the_curve(capsys: Capture) -> None:
    found = asked(capsys, "embedded", "--task", "chain", "--budgets", "3,6,13")["models"]["embedded"]
    assert {"accuracy", "pass@2", "entropy", "length", "anytime", *CURVE} == found.keys()
    assert found["anytime"] == pytest.approx(sum(found[name] for name in CURVE) / 3)
    assert found["accuracy@3"] < found["accuracy@13"]
    assert found["accuracy"] <= found["pass@2"]
    here = policydist.evaluate(
        "embedded",
        task="chain",
        budgets=[3, 6, 13],
        rows=12,
        samples=2,
        settings=["eval.answer_tokens=4", "task.train_size=8"],
    )
    assert {name: here[name] for name in ("accuracy", *CURVE)} == {name: found[name] for name in ("accuracy", *CURVE)}


def test_runs_and_models_side_by_side_on_the_runs_task(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    words = ["embedded", str(run), "--budgets", "3,13", "--set", "eval.answer_tokens=4", "--out", str(out)]
    assert main(["evaluate", *words]) == 0
    text = capsys.readouterr().out
    assert "anytime (mean over budgets)" in text
    stored = json.loads((out / "evaluation.json").read_text())
    assert stored["task"] == "chain"
    assert list(stored["models"]) == ["embedded", str(run)]
    assert f"{stored['models'][str(run)]['accuracy']:.3f}" in text
    assert "pass@1" in stored["models"]["embedded"]  # the run's own number of samples
    assert (out / "anytime.png").read_bytes()[:4] == b"\x89PNG"
    assert "already holds an evaluation" in refused(capsys, *words)


def test_without_budgets_there_is_no_figure(tmp_path: Path, capsys: Capture) -> None:
    found = asked(capsys, "embedded", "--task", "logic", "--out", str(tmp_path))
    assert "anytime" not in found["models"]["embedded"]
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_what_is_asked_wrongly_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert "needs a model" in refused(capsys)
    assert "given twice" in refused(capsys, "embedded", "embedded")
    assert "6 does not" in refused(capsys, "embedded", "--budgets", "6,6")
    assert "no list of whole numbers" in refused(capsys, "embedded", "--budgets", "6,many")
    assert "no list of whole numbers" in refused(capsys, "embedded", "--budgets", "")
    long = refused(capsys, "embedded", "--budgets", "8,500")
    assert "eval.budgets (500 tokens)" in long
    assert "context of 512" in long
    assert "no model directory" in refused(capsys, str(tmp_path / "nowhere"))
    assert "chain" in refused(capsys, "embedded", "--task", "chian")
    assert "eval.row is not a setting" in refused(capsys, "embedded", "--set", "eval.row=3")
    (tmp_path / "config.yaml").write_text("method: grpo\n")
    assert "is a run without a trained model" in refused(capsys, str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "--out takes a folder" in refused(capsys, "embedded", "--out", str(tmp_path / "file"))


SEARCH = ("--task", "two-hop")
"""A task that is answered by searching."""


def test_a_task_of_searches_is_played_in_the_episodes_of_a_run(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded.search_path(), folder)
    found = asked(capsys, "embedded-search", str(folder), *SEARCH)["models"]
    assert 0.2 < found["embedded-search"]["accuracy"] < 0.7
    assert found[str(folder)] == found["embedded-search"]
    stored = {"method": "rexrag", "task": {"name": "two-hop", "train_size": 8}}
    assert policydist.evaluate("embedded-search", rows=12, samples=2, config=stored) == found["embedded-search"]
    alone = asked(capsys, "embedded-search", *SEARCH, "--set", "knobs.max_turns=1")["models"]["embedded-search"]
    assert alone["accuracy"] < 0.2
    assert alone["length"] <= twohop.ANSWER_TOKENS


def test_a_run_of_single_responses_searches_too_where_the_task_asks_for_it(run: Path, capsys: Capture) -> None:
    quick = ("--rows", "2", "--samples", "1", "--set", "knobs.max_turns=2")
    assert main(["evaluate", str(run), *SEARCH, *quick, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"][str(run)]
    assert found["length"] > twohop.ANSWER_TOKENS  # it has never seen a tag, but is told so and has a second turn


def test_own_questions_with_a_corpus_or_a_service(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = twohop.build()
    lines = {"qa": task.test[:40], "corpus": [{"contents": text} for text in task.documents]}
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["embedded-search", "--task", f"jsonl:{tmp_path / 'qa.jsonl'}", "--set", "task.grader=short_answer"]
    words += ["--set", "task.test_size=16", "--set", "rollout.max_new_tokens=24"]
    found = asked(capsys, *words, "--set", f"knobs.corpus={tmp_path / 'corpus.jsonl'}")["models"]["embedded-search"]
    assert found["accuracy"] > 0.2
    searched: list[int] = []

    def post(_: Service, body: dict[str, Any]) -> dict[str, Any]:
        searched.append(body["topk"])
        texts = BM25Retriever(task.documents).search(body["queries"], body["topk"])
        return {"result": [[{"document": {"contents": text}} for text in found] for found in texts]}

    monkeypatch.setattr(Service, "post", post)
    served = asked(capsys, *words, "--set", "retriever=http://127.0.0.1:9/retrieve")["models"]["embedded-search"]
    assert served == found
    assert set(searched) == {1}


def test_what_episodes_cannot_do_is_refused_before_a_model_is_loaded(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_policy", None)
    assert "leave the budgets out" in refused(capsys, "embedded-search", *SEARCH, "--budgets", "3,6")
    assert "nothing to search" in refused(capsys, "embedded", "--task", "chain", "--set", "knobs.max_turns=3")
    both = ("--set", "knobs.corpus=docs.jsonl", "--set", "knobs.retriever=http://127.0.0.1:9")
    assert "not both" in refused(capsys, "embedded", "--task", "chain", *both)
    assert "did you mean max_turns" in refused(capsys, "embedded-search", *SEARCH, "--set", "knobs.max_turn=3")


def test_a_model_without_an_end_of_thinking_is_told_how_to_name_one(tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(embedded.path(), tmp_path, dirs_exist_ok=True)
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert stated.pop("think_end") == "#"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    assert "no token </think>; name the token" in refused(capsys, str(tmp_path), "--budgets", "2,4")


def test_help_has_an_example(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--help"])
    assert stopped.value.code == 0
    assert "policydist evaluate embedded --task chain" in capsys.readouterr().out
