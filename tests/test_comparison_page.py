"""The comparison page says what its kept runs say, and its settings are ones that every method takes."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from policydist.language.experiment import configure

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("comparison_script", ROOT / "benchmarks" / "comparison.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_page_are_those_of_the_kept_runs(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "DOCS", tmp_path)
    page = Path(shutil.copy(ROOT / "docs" / "comparison.md", tmp_path))
    script.page()
    assert page.read_text() == (ROOT / "docs" / "comparison.md").read_text()
    assert {file.name for file in tmp_path.glob("*.png")} == {"comparison_arithmetic.png", "comparison_multi.png"}


@pytest.mark.parametrize(
    ("page", "kept", "digits"),
    [
        ("methods/doge.md", "doge", 2),
        ("methods/doge.md", "doge_lr2e-3", 2),
        ("methods/rexrag.md", "rexrag", 3),
        ("comparison.md", "comparison_arithmetic-seconds_second_grpo", 3),
        ("comparison.md", "comparison_multi-seconds_second_grpo", 3),
    ],
)
def test_pages_quote_the_means_of_the_runs_that_were_kept(page, kept, digits):
    text = (ROOT / "docs" / page).read_text()
    for rows in json.loads((ROOT / "benchmarks" / "quoted" / f"{kept}.json").read_text())["runs"].values():
        assert f"{sum(row['accuracy'] for row in rows) / len(rows):.{digits}f}" in text


def test_every_method_had_all_seeds_and_differences_are_paired_with_grpo(script):
    for name in script.NAMES:
        runs = json.loads((script.KEPT / f"{name}.json").read_text())["runs"]
        assert set(runs) == set(script.methods_of(name.split("-")[0]))
        assert all([row["seed"] for row in rows] == list(range(script.SEEDS)) for rows in runs.values())
        for line in script.lines(name):
            if line.difference:
                pairs = zip(runs[line.method], runs["grpo"], strict=True)
                expected = sum(a["accuracy"] - b["accuracy"] for a, b in pairs) / script.SEEDS
                assert line.difference.mean == pytest.approx(expected)


def test_every_method_takes_its_settings_and_was_tuned_on_the_same_rates(script):
    kept = json.loads((script.KEPT / "rates.json").read_text())
    assert kept["seed"] not in range(script.SEEDS)
    assert all(set(found) == {str(rate) for rate in script.RATES} for found in kept["accuracy"].values())
    for name in script.NAMES:
        task, budget = name.split("-")
        for method in script.methods_of(task):
            own = [*script.OWN.get(method, ()), *script.limits(task, budget, method)]
            config = configure(method, {"trackers": []}, [*script.COMMON, *script.PLANS[task].words, *own])
            ends = (config.train.token_budget, config.train.second_budget, config.train.steps < 1000)
            assert sum(map(bool, ends)) == 1
