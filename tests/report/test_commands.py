"""The commands that print or write reports."""

from __future__ import annotations

import io
import json

from reportdata import claim_record, comparison, results_folder, run_folder
from rich.console import Console

from policydist.cli.claim import show
from policydist.cli.main import main
from policydist.report.comparison import plain


def test_report_command(tmp_path, capsys):
    run_folder(tmp_path / "runs" / "one").joinpath("metrics.jsonl").unlink()
    words = ["report", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    results_folder(tmp_path / "results")
    assert main([*words, "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out == f"report: {(tmp_path / 'out' / 'index.html').resolve()}\n"
    assert main([*words, "--results", str(tmp_path / "absent")]) == 2
    assert main(["report", "--out", str(tmp_path / "runs"), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "holds files that are not of a report" in error


def test_claim_is_shown_with_quorums_and_missing_numbers():
    console = Console(width=120, record=True, file=io.StringIO())
    show(claim_record(), console)
    text = console.export_text()
    assert "0.3     [0.25, 0.35]" in text
    assert "within [−0.1, 0.1]" in text
    assert "most" in text


def test_json_of_a_comparison_has_full_numbers(tmp_path):
    rows = json.loads(json.dumps(plain(comparison(tmp_path))))
    assert [row["method"] for row in rows] == ["grpo", "bnpo"]
    assert rows[0]["difference"] is None
    assert abs(rows[1]["difference"]["mean"] - 0.1) < 1e-12
    assert rows[1]["measures"]["accuracy"]["seeds"] == 4
