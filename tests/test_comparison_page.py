"""The comparison page says what its kept runs say, and its settings are ones that every method takes."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from policydist.language.experiment import configure

ROOT = Path(__file__).resolve().parents[1]


def quoted(name):
    return json.loads((ROOT / "benchmarks" / "quoted" / f"{name}.json").read_text())


def page_text(page):
    """The page with every line break a space."""
    return " ".join((ROOT / "docs" / page).read_text().split())


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
    ],
)
def test_pages_quote_the_means_of_the_runs_that_were_kept(page, kept, digits):
    for rows in quoted(kept)["runs"].values():
        assert f"{sum(row['accuracy'] for row in rows) / len(rows):.{digits}f}" in page_text(page)


def mean(values):
    return sum(values) / len(values)


def signed(number):
    return f"{number:.3f}".replace("-", "−")


@pytest.mark.parametrize("people", [3, 4, 5])
def test_dump_page_has_the_rewards_by_level_that_were_measured(people):
    rates = {name: found["accuracy"] for name, found in quoted(f"dump_people_{people}")["models"].items()}
    grpo, dump = ([rates[f"compare-people/{method}-seed{seed}"] for seed in range(3)] for method in ("grpo", "dump"))
    gaps = [ours - theirs for ours, theirs in zip(dump, grpo, strict=True)]
    ranges = [f"{signed(mean(x))} ({signed(min(x))} to {signed(max(x))})" for x in (grpo, dump, gaps)]
    row = " | ".join([str(people), signed(rates["logic-base"]), *ranges])
    assert f"| {row} |" in page_text("methods/dump.md")


def test_dump_page_has_the_difference_on_the_mix():
    grpo, dump = ([run["accuracy"] for run in quoted("dump_people")["runs"][method]] for method in ("grpo", "dump"))
    assert f"the difference is {signed(mean(dump) - mean(grpo))} " in page_text("methods/dump.md")


def test_doge_page_says_how_far_a_run_fell_in_its_first_stage():
    paths = quoted("doge_lr2e-3_path")
    worst = min(paths["accuracy"]["doge"], key=lambda path: min(path.values()))
    step, low = min(worst.items(), key=lambda point: point[1])
    assert int(step) <= paths["stage1_steps"]
    end = worst[str(paths["steps"])]
    assert f"accuracy falls to {low:.2f} before stage 2 brings it back to {end:.2f}" in page_text("methods/doge.md")


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
