"""Run directories and checkpoints: whole files, nothing overwritten, damage named."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from policydist.errors import PolicydistError, UsageError
from policydist.runs import checkpoint
from policydist.runs.directory import Run, fresh_name, read_metrics, read_status, write_whole


@dataclass(frozen=True)
class Settings:
    lr: float = 1e-3
    name: str = "x"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "deep" / "file.json"
    write_whole(file, "old")
    assert file.stat().st_mode & 0o777 == 0o644

    def fail(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space"):
                write_whole(file, b"new")
        assert file.read_text() == "old"
        assert list(file.parent.iterdir()) == [file]
    write_whole(file, b"new")
    assert file.read_text() == "new"


def test_fresh_names_do_not_exist_yet(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("time.gmtime", lambda: (2026, 1, 2, 3, 4, 5, 0, 2, 0))
    names = []
    for _ in range(3):
        path = fresh_name(tmp_path, "run")
        path.mkdir()
        names.append(path.name)
    assert names == ["run-20260102-030405", "run-20260102-030405-2", "run-20260102-030405-3"]


def test_reopening_drops_later_rows_and_torn_lines(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Settings())
    for step in range(5):
        run.log({"step": step, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    Run.reopen(run.path, Settings(), 3).log({"step": 4, "loss": 0.25})
    assert [row["step"] for row in read_metrics(run.path)] == [0, 1, 2, 3, 4]
    assert read_metrics(run.path)[-1]["loss"] == 0.25
    assert read_status(run.path)["state"] == "running"

    with pytest.raises(UsageError, match=r"config changed \(lr was 0.001, now 0.1\)"):
        Run.reopen(run.path, Settings(lr=0.1), 3)
    (run.path / "config.yaml").write_text("lr: 0.1\nname: x\n")
    with pytest.raises(UsageError, match=r"config\.yaml: config changed since the run began"):
        Run.reopen(run.path, Settings(lr=0.1), 3)
    (run.path / "environment.json").unlink()
    with pytest.raises(PolicydistError, match=r"environment\.json cannot be read"):
        Run.reopen(run.path, Settings(lr=0.1), 3)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nmine\n{"step": 2}\n')
    with pytest.raises(PolicydistError, match="line 2: not JSON"):
        read_metrics(run.path)


def test_a_directory_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", Settings()).path == tmp_path / "empty"
    with pytest.raises(UsageError, match="exists; give another --out, or continue"):
        Run.create(tmp_path / "empty", Settings())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write run directory"):
        Run.create(tmp_path / "file" / "run", Settings())
    with pytest.raises(UsageError, match="not a run directory"):
        Run.reopen(tmp_path, Settings(), 0)
    assert read_metrics(tmp_path) == []
    assert read_status(tmp_path) == {"state": "unknown"}


def saved(root: Path, step: int, keep: int = 2, value: float = 1.0) -> Path:
    weights = {"w": torch.full((3, 2), value).T}
    return checkpoint.save(root, step, weights, {"moment": torch.ones(2), "step": step}, {"note": [1, None]}, keep)


def test_checkpoints_come_back_and_old_ones_go(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        saved(tmp_path, step, value=step)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-00000004", "step-00000006"]
    weights, optimiser, state = checkpoint.load(checkpoint.newest(tmp_path))
    assert torch.equal(weights["w"], torch.full((2, 3), 6.0))
    assert optimiser["step"] == 6
    assert state == {"step": 6, "note": [1, None]}
    saved(tmp_path, 6, value=7.0)
    assert float(checkpoint.load(checkpoint.newest(tmp_path))[0]["w"][0, 0]) == 7.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_saving_that_fails_leaves_the_earlier_checkpoints(tmp_path: Path, monkeypatch: Any) -> None:
    saved(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            saved(tmp_path, 2)
    assert checkpoint.newest(tmp_path).name == "step-00000001"
    assert checkpoint.damage(checkpoint.newest(tmp_path)) is None
    assert saved(tmp_path, 2).name == "step-00000002"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.safetensors", lambda data: data[:-1], "model.safetensors is truncated"),
        ("optimiser.pt", lambda data: data[:50] + b"x" + data[51:], "optimiser.pt is truncated or was changed"),
        ("state.json", None, "state.json is missing"),
        ("manifest.json", lambda data: data[:20], "manifest.json is missing or unreadable"),
        ("manifest.json", None, "manifest.json is missing"),
        ("manifest.json", lambda data: b"\xff\xfe", "manifest.json is missing or unreadable"),
        ("manifest.json", lambda data: b"[]", "manifest.json does not list all files"),
        ("manifest.json", lambda data: b"{}", "manifest.json does not list all files"),
    ],
)
def test_damage_is_named_with_the_last_whole_checkpoint(tmp_path: Path, name: str, change: Any, words: str) -> None:
    saved(tmp_path, 1)
    last = saved(tmp_path, 2)
    file = last / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(PolicydistError, match=rf"{words}.*resume from the earlier .*step-00000001") as caught:
        checkpoint.load(last)
    assert not isinstance(caught.value, UsageError)
    (tmp_path / "step-00000001" / "state.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(PolicydistError, match="no earlier checkpoint is whole"):
        checkpoint.load(last)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint under"):
        checkpoint.newest(tmp_path / "checkpoints")
