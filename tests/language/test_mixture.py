"""Tasks that mix sources: rows, graders, options, and accuracy by source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from policydist.errors import UsageError
from policydist.language.evaluate import by_source
from policydist.language.prompts import ContextPrompts, row_sources
from policydist.language.tasks.sources import load_task
from policydist.language.types import Prompts


@pytest.fixture
def sums(tmp_path: Path) -> str:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "source": "even" if n % 2 == 0 else "odd"} for n in range(30)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"jsonl:{path}"


def test_rows_take_turns_and_are_graded_by_their_own_task(sums: str) -> None:
    options = {"arithmetic": {"difficulty": 1}}
    task = load_task(f"mix:arithmetic,{sums},logic", train_size=20, test_size=6, options=options)
    assert [row["source"].partition("/")[0] for row in task.test[:6]] == ["arithmetic", "sums", "logic"] * 2
    assert {row["source"] for row in task.train} == {"arithmetic", "sums/even", "sums/odd", "logic"}
    assert all(row["difficulty"] == 1 for row in task.train if row["source"] == "arithmetic")
    assert list(task.graders) == ["accuracy"]
    rows = task.test[:6]
    # Procedural tasks want the marker before the answer, the file's numeric grader does not.
    right = [row["answer"] if row["source"].startswith("sums") else f"#{row['answer']}" for row in rows]
    assert task.graders["accuracy"](right, rows) == [1.0] * 6
    assert task.graders["accuracy"](["#0"] * 6, rows) == [0.0] * 6
    assert task.max_new_tokens == 256


def test_what_a_mixture_refuses(sums: str) -> None:
    with pytest.raises(UsageError, match="write mix:"):
        load_task("mix:")
    with pytest.raises(UsageError, match="write mix:"):
        load_task("mix:arithmetic,,chain")
    with pytest.raises(UsageError, match="arithmetic is named twice"):
        load_task("mix:arithmetic,chain,arithmetic")
    with pytest.raises(UsageError, match="unknown task 'chian'"):
        load_task("mix:arithmetic,chian", train_size=4, test_size=4)
    with pytest.raises(UsageError, match="options for 'chian'"):
        load_task("mix:arithmetic,chain", options={"chian": {}})
    with pytest.raises(UsageError, match="two-hop brings documents to search"):
        load_task("mix:chain,two-hop", train_size=4, test_size=4)
    with pytest.raises(UsageError, match=r"task\.options\.chain"):
        load_task("mix:arithmetic,chain", options={"chain": 3})


def test_accuracy_by_source() -> None:
    items = ({"source": "a"}, {"source": "b"}, {"source": "a"})
    ones = torch.ones(3, 1, dtype=torch.long)
    prompts = Prompts(ones, ones.bool(), ones[:, 0], torch.arange(3), items)
    found = by_source(prompts, torch.tensor([1.0, 0.25, 0.0]))
    assert found == {"eval/accuracy/a": 0.5, "eval/accuracy/b": 0.25}
    assert by_source(Prompts(ones, ones.bool(), ones[:, 0], torch.arange(3)), torch.ones(3)) == {}


def test_sources_of_a_small_world_and_of_rows_without_any() -> None:
    assert row_sources(ContextPrompts(3, ["a", "b", "a"])) == ["a", "b", "a"]
    with pytest.raises(UsageError, match="mix tasks"):
        row_sources(ContextPrompts(3))
    with pytest.raises(UsageError, match="2 sources for 3 contexts"):
        ContextPrompts(3, ["a", "b"])
