"""Every script in `benchmarks/` runs at its smallest size, and what it prints is what its page reads off. Says nothing about speed.

The scripts run in this process, so that torch is imported once; where a script starts processes of its own code, they are
run here too. Programs of other code, whose own start-up or memory is measured, stay processes.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NUMBER = r"(-?[\d,]+(?:\.\d+)?)"
Load = Callable[[str], ModuleType]
Run = Callable[..., str]
pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Some scripts restrict torch to one thread."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """A script as the module of its name, as which its dataclasses and its grader are looked up."""

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a script prints when it is called with these words."""

    def printed(script: ModuleType, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(script.__file__), *words])
        capsys.readouterr()
        script.main()
        return capsys.readouterr().out

    return printed


def in_this_process(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, begin: Callable[[], None] = lambda: None
) -> None:
    """Have a script that starts itself with other words call its ``main`` with them instead."""

    def start(words: Sequence[str], stdout: int | None = None, **_: Any) -> SimpleNamespace:
        assert list(words[:2]) == [sys.executable, script.__file__]
        begin()
        kept = io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(kept if stdout else sys.stdout):
            patch.setattr(sys, "argv", list(words[1:]))
            script.main()
        return SimpleNamespace(stdout=kept.getvalue())

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=start, PIPE=subprocess.PIPE))


def numbers(pattern: str, text: str) -> list[list[float]]:
    """The numbers at every place that fits ``pattern``, in which # stands for one."""
    found = re.findall(pattern.replace("#", NUMBER), text)
    assert found, f"nothing like {pattern!r} in\n{text}"
    rows = [[float(word.replace(",", "")) for word in ([row] if isinstance(row, str) else row)] for row in found]
    assert all(math.isfinite(value) for row in rows for value in row)
    return rows


def test_every_script_has_a_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.stem for path in FOLDER.glob("*.py") if f'load("{path.stem}")' not in text] == []


def test_allocation(load: Load, run: Run) -> None:
    text = run(load("allocation"), "--repeats", "2")
    rows = {
        name: numbers(rf"(?m)^{name} +# +# +#$", text)
        for name in (
            "knapsack, 8 rollouts a prompt",
            "the same by dynamic programming",
            "Thompson draws and the best 256",
        )
    }
    assert [[row[0] for row in found] for found in rows.values()] == [
        [256, 1000, 10_000, 100_000],
        [64],
        [10_000, 100_000],
    ]
    assert all(0 <= best <= worst for found in rows.values() for _, best, worst in found)
    assert all(found[-1][2] > 0 for found in rows.values())


@pytest.mark.skipif(sys.platform != "linux", reason="drops files from Linux's page cache and reads Linux's /proc")
def test_diff_speed(load: Load, run: Run, tmp_path: Path) -> None:
    script = load("diff_speed")
    text = run(script, "--gigabytes", "0.01", "--share", "0.25", "--repeats", "1")
    assert "0.02 GB in two, 25% of entries changed" in text
    line = "read +# GB/s, # processor s/GB +diff +# GB/s, # processor s/GB +diff takes # x reading"
    for source in ("from disk", "from cache"):
        ((read, _, diff, _, ratio),) = numbers(f"{source} +{line}", text)
        assert ratio > 0
        half = 0.005  # everything is rounded to two decimals; of one round the medians are its numbers
        assert (read - half) / (diff + half) - half <= ratio <= (read + half) / max(diff - half, 1e-9) + half
    ((_, share, _),) = numbers("memory grows by # MiB at its peak, # of the largest tensor \\(# MiB\\)", text)
    assert share > 0
    # The work to be timed is the one that was asked for.
    script.write(tmp_path / "a", 0.002, 0.0, 0)
    script.write(tmp_path / "b", 0.002, 0.25, 0)
    assert 1 - script.compare(tmp_path / "a", tmp_path / "b").at[0.0] == pytest.approx(0.25, abs=0.01)


def test_milp_generation(load: Load, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("milp_generation")
    names = ("sc/tiny", "cflp/100")
    monkeypatch.setattr(script, "DISTRIBUTIONS", {name: script.DISTRIBUTIONS[name] for name in names})
    text = run(script, "--seconds", "0")  # one instance each, of all that are registered
    for name in names:
        ((variables, rows, drawn, written),) = numbers(rf"(?m)^{name} +# +# +# +#$", text)
        milp = script.get(name).sample(0)
        assert (variables, rows) == (milp.n_variables, milp.n_rows)
        assert drawn > 0
        assert written > 0
    assert drawn > written  # MPS text of cflp/100 takes ten times as long as drawing it
    assert "ca/tiny" not in text
    assert len(run(script, "--seconds", "0", "ca/tiny").splitlines()) == 2


def test_optdist_streaming(load: Load, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("optdist_streaming")
    full = script.table
    monkeypatch.setattr(script, "CATEGORIES", 5)
    monkeypatch.setattr(
        script, "table", lambda rows, seed: full(min(rows, 3000), seed)
    )  # the 50,000 customers to predict
    in_this_process(script, monkeypatch)
    text = run(script, "--rows", "3000", "--steps", "30")
    assert text.startswith("3,000 rows, ")
    for part in ("streamed", "two_stages"):
        ((_, _, peak, gini),) = numbers(rf"(?m)^{part} +wall +# s +cpu +# s +peak # GiB +Norm-GINI #$", text)
        assert peak > 0.05
        assert 0.3 < gini <= 1, "the part that was timed does not learn to rank customers"


def test_r3d_scaling(load: Load, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib import pyplot

    script = load("r3d_scaling")
    monkeypatch.setattr(script, "BASE", {"units": 60, "quantiles": 9, "draws": 50})
    sweeps = {"units": (60, 90), "quantiles": (5,), "draws": (20,)}
    monkeypatch.setattr(script, "SWEEPS", sweeps)
    monkeypatch.setattr(script, "REPEATS", 1)
    text = run(script, "--figure", str(tmp_path / "scaling.png"))
    pyplot.close("all")
    for kind in ("frechet", "simple"):
        rows = numbers(rf"(?m)^{kind} +# +# +# +# +# +#$", text)
        assert [row[:3] for row in rows] == [[60, 9, 50], [90, 9, 50], [60, 5, 50], [60, 9, 20]]
        assert all(fit > 0 and bootstrap > 0 and peak >= 0 for *_, fit, bootstrap, peak in rows)
        assert rows[1][-1] > 0
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_r3d_scaling_at_the_size_of_the_application(load: Load, run: Run) -> None:
    text = run(load("r3d_scaling"), "--application")
    ((observations, units, *_, quantiles, rest, peak),) = numbers(
        "# observations, # units, # quantiles, # draws: quantiles # s, bandwidth \\+ fit \\+ bootstrap # s, process peak # MB",
        text,
    )
    assert (observations, units) == (5_000_020, 356)
    assert quantiles > 0
    assert rest > 0
    assert peak > observations * 8 / 1e6, "the samples alone take more"


def test_startup(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("startup")
    monkeypatch.setattr(script, "REPEATS", 1)
    easy = {name: (words, 1000) for name, (words, _) in script.CASES.items()}
    monkeypatch.setattr(script, "CASES", easy)
    assert script.main() == 0
    text = capsys.readouterr().out
    for name in ("import policydist", "policydist --help"):
        ((median, aim),) = numbers(rf"(?m)^{name} +# s +aim # s$", text)
        assert 0.01 < median < aim, "no Python starts as fast"
    quick = [sys.executable, "-c", ""]
    monkeypatch.setattr(script, "CASES", {"met": (quick, 1000), "missed": (quick, 0.0)})
    assert script.main() == 1
    with pytest.raises(subprocess.CalledProcessError):
        script.seconds([sys.executable, "-c", "raise SystemExit(3)"])


def test_step_cost(load: Load, run: Run) -> None:
    sizes = ("task.train_size=8", "rollout.prompts=2", "rollout.samples=2", "rollout.max_new_tokens=8")
    sets = [word for size in sizes for word in ("--set", size)]
    text = run(load("step_cost"), "bnpo", "grpo:rollout.samples=4", "herl", "--steps", "1", *sets)
    ((seconds,),) = numbers("^grpo: # processor seconds a step, task.name=arithmetic task.train_size=8", text)
    assert seconds > 0
    rows = {
        name: numbers(rf"(?m)^{name} +# +# +#(?:   above the aim)?$", text)[0]
        for name in ("grpo", "bnpo", "grpo:rollout.samples=4")
    }
    assert rows["grpo"] == [1, 1, 1]
    assert rows["bnpo"][1] == 1, "not the same prompts and random numbers"
    assert rows["bnpo"][0] > 0
    cost, tokens, net = rows["grpo:rollout.samples=4"]
    assert tokens > 1.2, "twice the samples"
    assert net == pytest.approx(cost / tokens, abs=0.02)
    assert re.search(r"(?m)^herl +not measured: .*criteria", text)
    for name, (_, _, net) in rows.items():
        above = re.search(rf"(?m)^{name} .*above the aim$", text) is not None
        assert above == (net > 1.10) or net == 1.10


def test_vs_trl(load: Load, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="needs the trl extra")
    from policydist.language import experiment

    script = load("vs_trl")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in {"PROMPTS": 4, "SAMPLES": 2, "LIMITS": {"equal": 4, "skewed": 12}}.items():
        monkeypatch.setattr(script, name, value)
    graded, asked = [], []
    train = experiment.train

    def noted(*words: Any, **named: Any) -> Any:
        asked.append(named["settings"])
        return train(*words, **named)

    monkeypatch.setattr(experiment, "train", noted)

    def begin() -> None:
        graded.append(len(script.lengths))
        script.lengths.clear()

    in_this_process(script, monkeypatch, begin)
    text = run(script, "--rounds", "1", "--steps", "3", "--threads", "1")
    assert [*graded, len(script.lengths)] == [0, 24, 24, 24, 24], "steps, prompts or samples are not those of the other"
    assert all("model.device=cpu" in settings for settings in asked), "TRL's side has use_cpu=True"
    for case, limit in script.LIMITS.items():
        own = text.partition(f"{case}: 4 prompts x 2 samples, up to {limit} tokens, 1 rounds of 3 steps\n")[2]
        line = "# completions/s +# a processor second +peak +# MB +reward # -> #\\n +length: mean # +median # +p90 #"
        (ours,), (theirs,) = (numbers(f"{engine} +{line}", own)[:1] for engine in ("ours", "trl"))
        for rate, cpu_rate, peak, *rewards, mean, _, p90 in (ours, theirs):
            assert min(rate, cpu_rate, peak) > 0
            assert all(0 <= reward <= 1 for reward in rewards)
            assert 0 < mean <= limit
            assert p90 <= limit
            assert case == "skewed" or mean == limit, "equal lengths are not equal"
        ratios = numbers(r"ours / trl: speed # \(rounds: #\), per processor second #, memory #", own)[0]
        speed = ours[0] / theirs[0]
        assert ratios == pytest.approx([speed, speed, ours[1] / theirs[1], ours[2] / theirs[2]], rel=0.05, abs=0.01)
    with pytest.raises(SystemExit):
        run(script, "--steps", "2")  # nothing would be left to count


@pytest.fixture
def comparison(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script with two small budgets, and with folders of its own in place of what is kept in the repository."""
    import policydist.language.compare as comparing

    script = load("comparison")
    small = ("task.train_size=8", "eval.rows=4", "rollout.prompts=2", "rollout.samples=2")
    changes: dict[str, Any] = {
        "KEPT": tmp_path / "kept", "DOCS": tmp_path / "docs", "SEEDS": 1, "RATES": (1e-3, 3e-3),
        "COMMON": (*script.COMMON, *small), "PLANS": {"arithmetic": script.Plan((), tokens=10, seconds=0.01, steps=2)},
        "NAMES": ["arithmetic-tokens", "arithmetic-seconds"],
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(script, name, value)

    def one_by_one(
        function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int, *_: Any, **__: Any
    ) -> Any:
        """In this process: each of the script's own would import torch and transformers again."""
        assert workers == 1
        for number, job in enumerate(jobs):
            yield number, function(*job)

    for module in (script, comparing):
        monkeypatch.setattr(module, "run_jobs", one_by_one)
    return script


def test_comparison(comparison: ModuleType, run: Run, tmp_path: Path) -> None:
    kept, docs = tmp_path / "kept", tmp_path / "docs"
    words = ("--out", str(tmp_path / "runs"), "--workers", "1", "--only", "sft", "grpo")
    assert "tuning: 4 of 4 runs" in run(comparison, "tune", *words)
    tuned = json.loads((kept / "rates.json").read_text())
    assert tuned["seed"] == comparison.TUNING_SEED
    assert list(tuned["rates"]) == ["grpo", "sft"]
    for method, rate in tuned["rates"].items():
        accuracies = {float(key): found["arithmetic"] for key, found in tuned["accuracy"][method].items()}
        assert set(accuracies) == {1e-3, 3e-3}
        assert all(0 <= value <= 1 for value in accuracies.values())
        assert accuracies[rate] == max(accuracies.values())

    earlier = {"runs": {"rloo": [{"seed": 0, "accuracy": 0.5}], "sft": []}}
    (kept / "arithmetic-tokens.json").write_text(json.dumps(earlier))
    assert "arithmetic-seconds: 2 of 2 runs begun or done" in run(comparison, "run", *words)
    runs = {name: json.loads((kept / f"{name}.json").read_text())["runs"] for name in comparison.NAMES}
    tokens, seconds = runs["arithmetic-tokens"], runs["arithmetic-seconds"]
    assert tokens.pop("rloo") == earlier["runs"]["rloo"], "what was kept of other methods is gone"
    for rows in (*tokens.values(), *seconds.values()):
        assert [row["seed"] for row in rows] == [0]
        assert all(0 <= row["accuracy"] <= 1 and row["steps"] >= 1 for row in rows)
    assert tokens["grpo"][0]["tokens"] >= 10
    assert tokens["sft"][0]["steps"] == 2, "a method that samples nothing takes GRPO's number of steps"
    assert all(seconds[method][0]["seconds"] >= 0.01 for method in ("grpo", "sft"))

    write_kept = {name: {"runs": found} for name, found in runs.items()}
    for name, data in write_kept.items():
        (kept / f"{name}.json").write_text(json.dumps(data))
    docs.mkdir()
    places = [f"<!-- table:start {name} -->\nold\n<!-- table:end {name} -->" for name in comparison.NAMES]
    (docs / "comparison.md").write_text("\n".join(places))
    run(comparison, "page")
    page = (docs / "comparison.md").read_text()
    assert "old" not in page
    assert len(re.findall(r"(?m)^\| (?:grpo|sft †) \|", page)) == 4
    assert (docs / "comparison_arithmetic.png").read_bytes().startswith(b"\x89PNG")
