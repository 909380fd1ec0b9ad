"""Estimation runs: the user's table, the run directory, what is refused and what an interruption leaves."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import policydist
from policydist.errors import PolicydistError, UsageError
from policydist.estimation import experiment, methods
from policydist.estimation.frames import numeric, read_frame
from policydist.estimation.methods.integer_dists import IntegerRegressor, load_model, save_model
from policydist.estimation.methods.r3d import R3D
from policydist.runs.directory import read_config, read_metrics, read_status, write_whole

QUICK = ["n_draws=200"]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 schools with 12 scores each; those with poverty of 60 or more gain 5 points."""
    rng = np.random.default_rng(0)
    poverty = np.repeat(rng.uniform(30, 90, 60), 12)
    score = 50 + 5 * (poverty >= 60) + rng.normal(0, 3, poverty.size)
    table = pd.DataFrame({"school": np.repeat(np.arange(60), 12), "poverty": poverty, "score": score, "size": 2.0})
    path = tmp_path_factory.mktemp("data") / "scores.csv"
    table.to_csv(path, index=False)
    return path


COLUMNS = ["unit=school", "running=poverty", "outcome=score", "cutoff=60", *QUICK]


def test_a_run_equals_the_estimator_and_keeps_everything(scores: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    outcome = experiment.train(
        "r3d", data=scores, settings=COLUMNS, out=tmp_path / "run", on_progress=lambda done, all, _: seen.append((done, all))
    )  # fmt: skip
    model = R3D(cutoff=60, n_draws=200).fit_frame(
        pd.read_csv(scores), unit="school", running="poverty", outcome="score"
    )
    estimates = pd.read_csv(outcome.path / "estimates.csv")
    np.testing.assert_allclose(estimates["effect"], model.tau_)
    np.testing.assert_allclose(estimates["upper"], model.bootstrap().upper)
    assert outcome.final["average_effect"] == pytest.approx(model.average_effect_)
    assert outcome.final["nullity_p"] < 0.05
    assert outcome.summary.startswith(model.summary())
    assert seen == [(1, 2), (2, 2)]
    assert [row["step"] for row in read_metrics(outcome.path)] == [1, 2]
    assert read_status(outcome.path)["state"] == "finished"
    assert json.loads((outcome.path / "summary.json").read_text()) == outcome.final
    assert json.loads((outcome.path / "environment.json").read_text())["packages"]["pandas"]
    assert (outcome.path / "effect.png").read_bytes().startswith(b"\x89PNG")
    assert not list(outcome.path.glob(".*"))


def test_the_stored_config_repeats_the_run(scores: Path, tmp_path: Path) -> None:
    first = policydist.train("r3d", data=scores, settings=[*COLUMNS, "seed=3"], out=tmp_path / "a")
    stored = read_config(first.path)
    assert stored["method"] == "r3d"
    assert stored["data"] == str(scores)
    assert stored["knobs"]["seed"] == 3
    again = policydist.train("r3d", config=stored, out=tmp_path / "b")
    assert again.final == first.final
    other = policydist.train("r3d", config=stored, settings=["seed=4"], out=tmp_path / "c")
    assert (
        other.final["nullity_p"] != first.final["nullity_p"]
        or other.final["homogeneity_p"] != first.final["homogeneity_p"]
    )
    with pytest.raises(UsageError, match="exists"):
        policydist.train("r3d", config=stored, out=tmp_path / "b")


def test_weights_and_take_up_reach_the_estimator(scores: Path, tmp_path: Path) -> None:
    table = pd.read_csv(scores)
    crossed = (table["poverty"] >= 60).to_numpy()
    table["took"] = np.where(table["school"] % 4 == 0, ~crossed, crossed).astype(int)
    table["weight"] = 1.0 + table.index % 3
    table.to_parquet(tmp_path / "scores.parquet")
    words = [*COLUMNS, "treatment=took", "weight=weight", "unit_weight=size"]
    outcome = experiment.train("r3d", data=tmp_path / "scores.parquet", settings=words, out=tmp_path / "run")
    model = R3D(cutoff=60, fuzzy=True).fit_frame(
        table, unit="school", running="poverty", outcome="score", treatment="took", weight="weight", unit_weight="size"
    )
    assert outcome.final["first_stage"] == pytest.approx(model.first_stage_)
    assert outcome.final["average_effect"] == pytest.approx(model.average_effect_)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["unit=scool"], ["'scool'", "school"]),
        (["cutof=3"], ["cutof", "cutoff"]),
        (["kernel=gauss"], ["knobs.kernel", "triangular"]),
        (["cutoff=100"], ["no unit lies at or above"]),
        (["bandwidth=mse"], ["frechet", "imse"]),
        (["quantiles=[0.5, 0.2]"], ["strictly increasing"]),
        (["n_draws=1"], ["n_draws must be at least 2"]),
        (["outcome=school", "running=score"], ["'score' varies inside unit"]),
    ],
)
def test_refusals_leave_no_run(words: list[str], parts: list[str], scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        experiment.train("r3d", data=scores, settings=[*COLUMNS, *words], out=tmp_path / "run")
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, part in (
        ("a.csv", b"", "empty"),
        ("b.csv", b"unit,score\n", "no rows"),
        ("c.csv", b"unit,score\n1,2\n1,2,3\n", "line 3"),
        ("d.csv", b"unit,score\n\xff\xfe,2\n", "utf-8"),
        ("e.parquet", b"not parquet", "parquet"),
        ("f.jsonl", b'{"unit": 1}\n{"unit": \n', "jsonl"),
        ("g.xlsx", b"PK", ".xlsx"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=part) as refused:
            read_frame(tmp_path / name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="no such file"):
        read_frame(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="folder"):
        read_frame(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_columns_are_chosen_and_ordered(kind: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [0.5, 1.5]})
    file = tmp_path / f"t.{kind}"
    {"csv": lambda: table.to_csv(file, index=False), "parquet": lambda: table.to_parquet(file),
     "jsonl": lambda: table.to_json(file, orient="records", lines=True)}[kind]()  # fmt: skip
    pd.testing.assert_frame_equal(read_frame(file, ["c", "a", "c"]), table[["c", "a"]])
    pd.testing.assert_frame_equal(read_frame(file), table, check_dtype=False)
    with pytest.raises(UsageError, match=r"no column 'bb'.*did you mean b"):
        read_frame(file, ["a", "bb"])


@dataclass(frozen=True)
class ToyConfig:
    error: str = ""
    seed: int = 0


def toy_train(config: ToyConfig, data: Path | None, run: Any, progress: methods.Progress) -> dict[str, float]:
    progress(1, 3, {"loss": 2.0})
    write_whole(run.path / "half.csv", "a\n1\n")
    if config.error == "interrupt":
        raise KeyboardInterrupt
    if config.error:
        raise (UsageError if config.error == "usage" else PolicydistError)(config.error)
    progress(3, 3, {"loss": 1.0})
    return {"loss": 1.0, "seed": float(config.seed)}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("policydist.estimation.methods.toy")
    module.Config, module.train = ToyConfig, toy_train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    real = methods.names
    monkeypatch.setattr(methods, "names", lambda: [*real(), "toy"])


@pytest.mark.usefixtures("toy")
def test_how_a_run_ended_is_recorded(tmp_path: Path) -> None:
    for error, kind, state in (
        ("interrupt", KeyboardInterrupt, "interrupted"), ("broke", PolicydistError, "failed"),
        ("usage", UsageError, "failed"),  # there is a file that must not be lost
    ):  # fmt: skip
        out = tmp_path / error
        with pytest.raises(kind):
            experiment.train("toy", settings=[f"error={error}"], out=out)
        status = read_status(out)
        assert (status["state"], status["step"]) == (state, 1)
        assert (out / "half.csv").is_file()
        assert not (out / "summary.json").exists()
    outcome = policydist.train("toy", settings=["seed=7"], out=tmp_path / "good")
    assert outcome.final == {"loss": 1.0, "seed": 7.0}
    assert [row["loss"] for row in outcome.metrics] == [2.0, 1.0]
    assert outcome.summary == ""


def test_methods_without_a_command_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "policydist.estimation.methods.bare", types.ModuleType("bare"))
    monkeypatch.setattr(methods, "names", lambda: ["bare"])
    with pytest.raises(UsageError, match="use it from Python"):
        methods.load("bare")


def test_options_of_the_other_family_are_refused(scores: Path) -> None:
    with pytest.raises(UsageError, match="leave out --task, --steps and give --data"):
        policydist.train("r3d", task="arithmetic", steps=3)
    with pytest.raises(UsageError, match="leave out --data and give --task"):
        policydist.train("grpo", data=scores)
    with pytest.raises(UsageError, match="no such file"):
        policydist.train("r3d", data="absent.csv")
    with pytest.raises(UsageError, match="for method grpo, not r3d"):
        policydist.train("r3d", config={"method": "grpo"})


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"age": rng.uniform(20, 60, 240), "visits": 0, "urban": rng.random(240) < 0.5})
    table["visits"] = rng.poisson(table["age"] / 10)
    path = tmp_path_factory.mktemp("data") / "visits.csv"
    table.to_csv(path, index=False)
    return path


FAST = ["target=visits", "max_steps=20", "hidden=[8]", "head=negative_binomial", "device=cpu"]


def test_the_integer_regressor_run_keeps_model_and_predictions(counts: Path, tmp_path: Path) -> None:
    outcome = experiment.train("integer_dists", data=counts, settings=FAST, out=tmp_path / "run")
    table, made = pd.read_csv(counts), pd.read_csv(outcome.path / "predictions.csv")
    assert len(made) == outcome.final["test_rows"] == 48
    np.testing.assert_array_equal(made["visits"], table["visits"].iloc[made["row"]])
    model = load_model(outcome.path / "model")
    held = table.iloc[made["row"]][["age", "urban"]]
    np.testing.assert_allclose(model.predict(held), made["mean"])
    assert -model.score(held, made["visits"]) == pytest.approx(outcome.final["bits"])
    assert outcome.final["bits"] == pytest.approx(made["bits"].mean())
    fitted = table.drop(index=made["row"])
    again = IntegerRegressor("negative_binomial", hidden=(8,), max_steps=20, random_state=0, device="cpu")
    again.fit(fitted[["age", "urban"]].astype(float), fitted["visits"])
    np.testing.assert_allclose(again.predict(held.astype(float)), made["mean"])
    assert [row["step"] for row in outcome.metrics] == list(range(1, 21))


@pytest.mark.parametrize("head", ["bitwise", "dalap", "discrete_weibull"])
def test_a_saved_model_predicts_the_same(head: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    model = IntegerRegressor(head, components=2, upper=90, max_steps=3, random_state=np.random.RandomState(0)).fit(
        x, rng.integers(0, 60, 50)
    )
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.head_ == model.head_
    assert again.get_params() == {**model.get_params(), "random_state": None}
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(UsageError, match="no readable model"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match=r"model\.json"):
        load_model(tmp_path / "absent")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["target=visit"], ["no column 'visit'", "visits"]),
        (["target=visit", "features=[age]"], ["no column 'visit'", "visits"]),
        (["features=[agee]"], ["no column 'agee'", "age"]),
        (["target=age"], ["whole numbers", "y[0]"]),
        (["head=dalapp"], ["'dalapp'", "dalap?"]),
        (["test_fraction=0"], ["test_fraction must lie between 0 and 1"]),
        (["upper=2", "lower=0"], ["covers [0, 2]", "widen lower/upper"]),
    ],
)
def test_integer_runs_asked_wrongly(words: list[str], parts: list[str], counts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        experiment.train("integer_dists", data=counts, settings=[*FAST, *words], out=tmp_path / "run")
    for part in parts:
        assert part in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_numeric_columns(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1, 2], "flag": [True, False], "town": ["x", "y"], "gap": [0.5, np.nan]})
    assert numeric(table, ["flag", "a"]).to_numpy().tolist() == [[1.0, 1.0], [0.0, 2.0]]
    for column, text in (("town", "not numeric"), ("gap", "1 missing or infinite values, the first in row 1")):
        with pytest.raises(UsageError, match=f"'{column}'.*{text}"):
            numeric(table, ["a", column])
