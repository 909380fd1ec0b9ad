"""``policydist milp``: the whole way from instances to solves on tiny programs, and what each step says to a wrong request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policydist.cli.main import main
from policydist.estimation.milp.registry import MILPDistribution

pytest.importorskip("pyscipopt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from policydist.estimation.milp.folders import generate

    path = tmp_path_factory.mktemp("instances") / "mini"
    small = MILPDistribution("gisp/mini", "gisp", {"n": 24, "p": 0.35, "alpha": 0.3})
    generate(small, path, {"train": 2, "validation": 1, "test": 2})
    return path


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["milp", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def parsed(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code, out, err = called(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_from_instances_to_solves(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    how = ("--train", 2, "--validation", 1, "--test", 1, "--query", 0.9, "--per-instance", 2)
    samples = parsed(capsys, "collect", folder, "--out", tmp_path / "samples", *how)
    assert samples["gisp"] >= 4
    short = ("--steps", 4, "--epoch", 2, "--batch", 2, "--width", 8)
    trained = parsed(capsys, "train", tmp_path / "samples", "--out", tmp_path / "policy", *short)
    assert trained["gisp"]["steps"] == 4
    assert 0 <= trained["gisp"]["acc@5"] <= 1
    solve = ("evaluate", folder, "--policy", tmp_path / "policy", "--rules", "random", "--instances", 2)
    found = parsed(capsys, *solve, "--out", tmp_path / "solves.jsonl")
    assert set(found["summary"]) == {str(tmp_path / "policy"), "random"}
    assert all(row["solved"] for row in found["solves"])

    # Interrupted after the second solve, with the third cut short: only what is missing is solved again.
    lines = (tmp_path / "solves.jsonl").read_text().splitlines()
    (tmp_path / "solves.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    code, out, err = called(capsys, *solve, "--out", tmp_path / "solves.jsonl")
    assert code == 0
    assert "solving 4/4" in err
    assert "solving 1/4" not in err
    assert "fair_nodes" in out
    again = [json.loads(line) for line in (tmp_path / "solves.jsonl").read_text().splitlines()]
    assert [row["nodes"] for row in again[1:]] == [row["nodes"] for row in found["solves"]]


def test_generate_and_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    manifest = parsed(
        capsys, "generate", "mis/tiny", "--out", tmp_path / "m", "--train", 1, "--validation", 0, "--test", 1
    )
    assert list(manifest["files"]) == ["test/000000.mps", "train/000000.mps"]
    assert parsed(capsys, "list", "--folder", tmp_path / "m") == {
        "domain": "mis",
        "train": 1,
        "validation": 0,
        "test": 1,
    }
    names = {row["name"] for row in parsed(capsys, "list")["distributions"]}
    assert {"gisp/easy", "cflp/100"} <= names
    code, out, _ = called(capsys, "list")
    assert code == 0
    assert "neural network verification" in out


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("generate", "gisp/esy", "--out", "x"), 2, "did you mean gisp/easy"),
        (("generate", "gisp/tiny", "--out", "x", "--train", "-1"), 2, "give counts"),
        (("generate", "gisp/tiny", "--out", "x", "--workers", "0"), 2, "workers is 0"),
        (("collect", "nowhere", "--out", "x"), 2, "no distribution is called 'nowhere'"),
        (("train", "nowhere", "--out", "x"), 2, "holds no samples"),
        (("evaluate", "gisp/tiny", "--rules", "relpcost"), 2, "did you mean relpscost"),
        (("evaluate", "gisp/tiny", "--policy", "nowhere"), 2, "holds no branching policy"),
        (("list", "--folder", "nowhere"), 2, "no folder"),
    ],
)
def test_wrong_requests_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: tuple[str, ...], code: int, line: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, out, err = called(capsys, *words)
    assert (found, out) == (code, "")
    assert line in err
    assert len(err.strip().splitlines()) == 1


def test_damaged_files_fail_with_their_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/cut.mps").write_text("NAME x\nROWS\n N obj\nCOLU")
    code, _, err = called(capsys, "evaluate", tmp_path / "d", "--instances", 1)
    assert code == 1
    assert "warning" in err.splitlines()[0]
    assert "cut.mps is corrupt" in err.splitlines()[-1]


def test_without_scip(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    code, _, err = called(capsys, "collect", "gisp/tiny", "--out", tmp_path / "s")
    assert code == 2
    assert "pip install 'policydist[milp]'" in err


@pytest.mark.parametrize("command", ["generate", "collect", "train", "evaluate", "list"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["milp", command, "--help"])
    assert stopped.value.code == 0
    assert f"Example: policydist milp {command}" in " ".join(capsys.readouterr().out.split())
