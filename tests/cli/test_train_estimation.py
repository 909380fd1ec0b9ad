"""``policydist train`` for estimators: what it prints and leaves behind, and one line for everything asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import policydist
from policydist.cli.main import main
from policydist.errors import UsageError
from policydist.estimation.methods.r3d import R3D
from policydist.runs.directory import read_config, read_metrics, read_status

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    poverty = np.repeat(rng.uniform(30, 90, 60), 12)
    score = 50 + 5 * (poverty >= 60) + rng.normal(0, 3, poverty.size)
    table = pd.DataFrame({"school": np.repeat(np.arange(60), 12), "poverty": poverty, "score": score})
    table.to_csv(tmp_path / "scores.csv", index=False)
    settings = ["unit=school", "running=poverty", "outcome=score", "cutoff=60", "n_draws=100"]
    sets = [part for word in settings for part in ("--set", word)]
    return ["train", "r3d", "--data", str(tmp_path / "scores.csv"), "--out", str(tmp_path / "run"), *sets]


def failed(capsys: Capture, words: list[str], code: int) -> str:
    """Run the command; it must fail with ``code`` and one line after the one that says what began."""
    capsys.readouterr()
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith(("r3d on", "step "))]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("policydist: ")
    return lines[0]


def test_the_summary_is_printed_and_files_are_named(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "Average effect" in captured.out
    assert "curves.png, effect.png, estimates.csv, summary.txt" in captured.out
    assert str(tmp_path / "scores.csv") in captured.err
    assert read_status(tmp_path / "run")["state"] == "finished"

    again = [*words[:2], "--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again"), "--json"]
    assert main(again) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["run"] == str(tmp_path / "again")
    assert data["metrics"] == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert read_config(tmp_path / "again") == read_config(tmp_path / "run")
    (tmp_path / "claims").mkdir()
    shown = ["--runs", str(tmp_path), "--results", str(tmp_path / "claims"), "--out", str(tmp_path / "report")]
    assert main(["report", *shown]) == 0
    assert "r3d" in (tmp_path / "report" / "index.html").read_text()

    line = failed(capsys, ["train", "--resume", str(tmp_path / "run")], 2)
    assert "no checkpoints" in line
    with pytest.raises(UsageError, match="no checkpoints"):
        policydist.resume(tmp_path / "run")
    assert f"policydist train r3d --config {tmp_path / 'run' / 'config.yaml'}" in line
    assert "another --out" in failed(capsys, words, 2)


def test_a_wrong_column_offers_the_near_one(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    line = failed(capsys, [*words, "--set", "unit=scool"], 2)
    assert "no column 'scool': did you mean school" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--task", "arithmetic"], "leave out --task and give --data"),
        (["--steps", "3", "--model", "embedded"], "leave out --model, --steps"),
        (["--set", "cutof=1"], "cutoff"),
        (["--set", "order=two"], "knobs.order"),
        (["--data", "absent.csv"], "absent.csv: no such file"),
    ],
)
def test_asked_wrongly(more: list[str], part: str, words: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert part in failed(capsys, [*words, *more], 2)
    assert not (tmp_path / "run").exists()


def test_data_means_nothing_to_language_methods(words: list[str], capsys: Capture) -> None:
    assert "leave out --data" in failed(capsys, ["train", "grpo", *words[2:]], 2)
    assert "compare takes methods" in failed(capsys, ["compare", "grpo", "r3d"], 2)


def test_an_interruption_leaves_a_run_that_says_so(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(R3D, "bootstrap", interrupt)
    assert failed(capsys, words, 130) == "policydist: interrupted"
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("interrupted", 1)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.yaml", "environment.json", "metrics.jsonl", "status.json",
    ]  # fmt: skip
    assert len(read_metrics(tmp_path / "run")) == 1


def test_warnings_are_one_line(words: list[str], capsys: Capture) -> None:
    assert main([*words, "--set", "quantiles=[0.01, 0.5]"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "60 of 60 units have fewer than 100 observations" in warned[0]


def test_show_explains_every_knob(capsys: Capture) -> None:
    assert main(["show", "r3d", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["knobs"].keys() == data["knob_help"].keys()
    assert data["run"] == "policydist train r3d --data FILE"
    assert main(["show", "integer_dists"]) == 0
    text = capsys.readouterr().out
    assert "Column of whole numbers" in text
    assert "policydist train integer_dists --data FILE" in text
