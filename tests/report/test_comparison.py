"""The comparison's table, figure and page."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from reportdata import comparison as fake

from policydist.claims import statistics
from policydist.errors import PolicydistError
from policydist.report import comparison, curves


def test_means_intervals_and_paired_difference(tmp_path):
    first, second = comparison.summary(comparison.read(fake(tmp_path)))
    finals = np.array([0.6, 0.61, 0.62, 0.63])
    assert second.measures["accuracy"].mean == pytest.approx(finals.mean())
    expected = statistics.percentile_interval(statistics.bootstrap([finals[None]], lambda s: s[0].mean(-1)), 0.95)
    assert second.measures["accuracy"].interval == pytest.approx(expected)
    assert first.difference is None
    # Both methods gain 0.01 a seed: unpaired, the difference would have spread; paired, it has none.
    assert second.difference.mean == pytest.approx(0.1)
    assert second.difference.interval == pytest.approx((0.1, 0.1))
    assert second.difference.p_signflip == pytest.approx(2 / 2**4)
    assert second.measures["tokens"].mean == pytest.approx(1201.5)


def test_pairs_are_made_by_seed_not_by_order(tmp_path):
    path = fake(tmp_path)
    data = json.loads((path / "compare.json").read_text())
    grpo = [run for run in data["runs"] if run["method"] == "grpo"]
    bnpo = [run for run in data["runs"] if run["method"] == "bnpo"]
    data["runs"] = grpo[1:] + bnpo[::-1]  # the first method's seed 0 is missing
    (path / "compare.json").write_text(json.dumps(data))
    second = comparison.summary(comparison.read(path))[1]
    assert second.difference.seeds == 3
    assert second.difference.interval == pytest.approx((0.1, 0.1))
    assert any(
        "lack a number" in note
        for note in comparison.notes(comparison.read(path), comparison.summary(comparison.read(path)))
    )
    assert [row["runs"] for row in comparison.table(path)] == ["3", "4"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_no_interval(tmp_path, seeds):
    path = fake(tmp_path, seeds=seeds)
    lines = comparison.summary(comparison.read(path))
    assert all(
        found.interval is None and found.p_signflip is None for line in lines for found in line.measures.values()
    )
    assert lines[1].difference.interval is None
    assert "[" not in "".join(value for row in comparison.table(path) for value in row.values())
    assert "too few for an interval" in comparison.write(path).read_text()
    assert curves.band([(np.arange(3.0), np.arange(3.0))] * seeds).low is None


def test_an_old_evaluation_is_not_the_final_one(tmp_path):
    path = fake(tmp_path)
    data = json.loads((path / "compare.json").read_text())
    for run in data["runs"]:
        run["metrics"] = run["metrics"][:-1]
    (path / "compare.json").write_text(json.dumps(data))
    assert "accuracy" not in comparison.table(path)[0]
    assert "No run ended with a held-out evaluation" in comparison.write(path).read_text()


def test_page_and_figure(tmp_path):
    hostile = "<script>alert(1)</script>"
    page = comparison.write(fake(tmp_path / "cmp", task=hostile, model="a&b")).read_text()
    assert hostile not in page
    assert "&lt;script&gt;" in page
    assert "a&amp;b" in page
    assert 'src="curves.png"' in page
    assert "+0.100 [0.100, 0.100]" in page
    assert (tmp_path / "cmp" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in (tmp_path / "cmp").iterdir()) == ["compare.json", "curves.png", "index.html"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"schema": "compare/2"}', "schema"),
        ("[]", "the whole file"),
    ],
)
def test_damaged_records_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    with pytest.raises(PolicydistError, match=message) as caught:
        comparison.table(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "index.html").exists()


def test_bands_cover_only_what_every_seed_reached():
    slow, fast = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])), (np.array([0.0, 30.0]), np.array([0.0, 3.0]))
    found = curves.band([slow, fast])
    assert (found.x[0], found.x[-1]) == (0.0, 20.0)
    assert found.mean == pytest.approx(found.x / 10)


def test_band_is_the_pointwise_bootstrap():
    values = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    found = curves.band([(np.arange(2.0), row) for row in values])
    assert found.mean == pytest.approx([1.5, 1.0])
    assert found.low[0] < 1.0 < 2.0 < found.high[0]
    assert (found.low[1], found.high[1]) == pytest.approx((1.0, 1.0))


def test_running_mean_keeps_constants_and_length():
    assert curves.smooth(np.full(9, 2.0), 4) == pytest.approx(np.full(9, 2.0))
    assert curves.smooth(np.arange(5.0), 3) == pytest.approx([0.5, 1, 2, 3, 3.5])
    assert len(curves.smooth(np.arange(4.0), 99)) == 4


def test_import_is_light():
    code = (
        "import sys, policydist.report; from policydist.report import comparison, pages, words, style; "
        "print([m for m in ('matplotlib', 'torch', 'jinja2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_narrow_terminal_shows_whole_numbers_of_fewer_columns():
    from policydist.cli.compare import fitting

    row = {
        "method": "grpo",
        "accuracy": "0.791 [0.775, 0.807]",
        "tokens": "103k",
        "responses": "7.68k",
        "memory MiB": "574",
    }
    assert fitting([row], 200) == [row]
    narrow = fitting([row, {**row, "method": "reinforce_pp"}], 50)
    assert list(narrow[0]) == ["method", "accuracy", "tokens"]
    assert narrow[1]["accuracy"] == row["accuracy"]
