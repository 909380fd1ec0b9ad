"""The runner on made-up claims: verdicts, resume, engines, records and what continuous integration checks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toys import synthetic

from policydist.claims import engines, jobs, record
from policydist.claims.declare import level_of
from policydist.claims.journal import Journal
from policydist.claims.runner import run_claim
from policydist.errors import MissingExtraError, PolicydistError, UsageError

SLUG = "toys.synthetic"


@pytest.fixture
def run(tmp_path):
    def go(number, **options):
        options = {"workers": 1, "allow_uncommitted": True} | options
        return run_claim(
            SLUG, f"toy.C{number}", results_dir=tmp_path / "results", state_dir=tmp_path / "state", **options
        )

    return go


def comparable(result):
    """A record without what differs between two runs of one experiment: clock, machine load, engine."""
    timeless = [{k: v for k, v in row.items() if k not in ("wall_s", "cpu_s")} for row in result["raw"]]
    drop = ("raw", "time", "env", "sanity", "history")
    return {k: v for k, v in result.items() if k not in drop} | {
        "raw": timeless,
        "ok": [s["ok"] for s in result["sanity"]],
    }


@pytest.mark.parametrize(
    ("number", "verdicts", "reason"),
    [
        (1, {"reproduced"}, ""),
        (2, {"null", "not_separated"}, "gain over the baseline"),
        (3, {"contradicted"}, "other side of zero"),
        (4, {"invalid"}, "broken arm loses"),
        (6, {"reproduced"}, ""),
        (7, {"invalid"}, "rerun of 2 units is identical"),
        (8, {"invalid"}, "not finite in unit 1004"),
        (9, {"not_separated"}, "gain over the baseline"),  # one of twelve units at the worst score
        (10, {"invalid"}, "budget"),
    ],
)
def test_known_outcomes(run, number, verdicts, reason):
    result = run(number)
    assert result["verdict"] in verdicts
    assert reason in result["reason"]


def test_record_holds_what_tables_and_figures_need(run, tmp_path):
    result = run(1)
    assert record.read(tmp_path / "results" / "toy.C1.json") == result
    assert result["design"]["seeds"] == [1000, 1011]
    assert result["design"]["n_units"] == 12
    assert result["design"]["full_design"]
    assert len(result["raw"]) == 12 * 3 * 2
    assert {"unit", "stratum", "arm", "metric", "value", "diverged", "wall_s"} <= result["raw"][0].keys()
    assert result["preregistered_sha256"] == record.file_digest(Path(synthetic.__file__))
    assert result["env"]["python"]
    assert result["env"]["packages"]["numpy"]
    assert result["env"]["threads"] == 1
    assert result["arms"][0]["settings"] == {"effect": 0.5}
    assert result["settings"]["effect"]["source"] == "sheet"
    assert [rule["name"] for rule in result["rules"]] == ["gain over the baseline", "cost is told"]
    row = record.summary(result)
    assert row["claim_id"] == "toy.C1"
    assert row["n_units"] == 12
    assert row["deviations"] == 0
    assert row["wall_s"] < 60
    assert record.verdicts(tmp_path / "results") == {"toy": "reproduced"}
    assert not list((tmp_path / "state" / "journal").iterdir())
    shown = record.overview(tmp_path / "results")
    assert shown["expected_false_greens"] == 0.025
    assert shown["false_discovery_list"] == ["toy.C1"]


def test_two_processes_give_the_same_record(run):
    assert comparable(run(1, workers=2)) == comparable(run(1))


@pytest.mark.slow
def test_ray_gives_the_same_record(run):
    pytest.importorskip("ray")
    assert comparable(run(1, engine="ray", workers=2)) == comparable(run(1))


@pytest.mark.slow
def test_ray_errors_name_the_job_and_keep_the_rest(run, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    flag = tmp_path / "fail"
    flag.touch()
    monkeypatch.setenv("TOY_FAIL", str(flag))
    with pytest.raises(PolicydistError, match="seed 1003, stratum all: RuntimeError: out of luck"):
        run(5, engine="ray", workers=1)
    assert list((tmp_path / "state" / "journal").iterdir())


def test_ray_is_an_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"policydist\[ray\]"):
        run(1, engine="ray")


@pytest.mark.parametrize(("how", "error"), [("error", PolicydistError), ("interrupt", KeyboardInterrupt)])
def test_interrupted_run_continues_to_the_same_record(run, tmp_path, monkeypatch, how, error):
    flag = tmp_path / "fail"
    flag.touch()
    monkeypatch.setenv("TOY_FAIL", str(flag))
    monkeypatch.setenv("TOY_FAIL_HOW", how)
    with pytest.raises(error):
        run(5)
    (journal,) = (tmp_path / "state" / "journal").iterdir()
    kept = journal.read_text().splitlines()
    assert len(kept) == 1 + 9  # the session, and three arms of units 1000, 1001 and 1002
    journal.write_text("\n".join(kept) + '\n{"key": "all/1003/meth')  # a kill in the middle of a line
    flag.unlink()
    seen = []
    resumed = run(5, progress=lambda p: seen.append((p.done, p.total)))
    assert seen[0] == (9, 42)
    assert seen[-1] == (42, 42)
    assert resumed["time"]["sessions"] == 2
    shutil.rmtree(tmp_path / "results")
    assert comparable(run(5)) == comparable(resumed)


def test_interrupt_ends_the_workers_and_keeps_finished_jobs(run, tmp_path):
    import multiprocessing

    def stop(progress):
        if progress.done == 4:
            raise KeyboardInterrupt

    before = set(multiprocessing.active_children())  # what other tests of this process may have left
    with pytest.raises(KeyboardInterrupt):
        run(1, workers=2, progress=stop)
    (journal,) = (tmp_path / "state" / "journal").iterdir()
    assert len(journal.read_text().splitlines()) == 1 + 4
    assert not set(multiprocessing.active_children()) - before


def test_journal_of_other_settings_is_not_used(tmp_path):
    first = Journal(tmp_path, "toy.C1", "a" * 64)
    first.begin({"started": 0.0, "commit": None})
    first.add({"key": "all/1000/method"})
    assert Journal(tmp_path, "toy.C1", "b" * 64).done == {}
    assert set(Journal(tmp_path, "toy.C1", "a" * 64).done) == {"all/1000/method"}
    with pytest.raises(PolicydistError, match="another claim file"):
        Journal(tmp_path, "toy.C1", "a" * 16 + "c" * 48)
    first.path.write_text("nonsense\n")
    with pytest.raises(PolicydistError, match="line 1: damaged"):
        Journal(tmp_path, "toy.C1", "a" * 64)


def test_experiment_errors_name_the_job(run, tmp_path, monkeypatch):
    flag = tmp_path / "fail"
    flag.touch()
    monkeypatch.setenv("TOY_FAIL", str(flag))
    with pytest.raises(PolicydistError, match=r"toy\.C5, arm \w+, seed 1003, stratum all: RuntimeError: out of luck"):
        run(5, workers=2)


def test_limited_runs_use_development_seeds_and_are_not_published(run, tmp_path):
    result = run(1, seeds=3, allow_uncommitted=False)
    assert result["design"]["seeds"] == [0, 2]
    assert not result["design"]["full_design"]
    assert "not the full design" in result["design"]["note"]
    assert not (tmp_path / "results").exists()
    assert (tmp_path / "state" / "development" / "toy.C1.json").is_file()
    assert run(1, smoke=True)["design"]["n_units"] == 2
    with pytest.raises(UsageError, match="1 to 100"):
        run(1, seeds=101)


def test_sanity_can_pass_on_few_units(run):
    assert all(row["ok"] for row in run(1, seeds=2)["sanity"])


def test_seeds_never_exceed_the_design(run):
    assert run(1, seeds=50)["design"]["seeds"] == [0, 11]


def test_spread_of_a_random_claim_is_recorded(run):
    result = run(11)
    (check,) = [row for row in result["sanity"] if row["check"].startswith("rerun")]
    assert check["ok"]
    assert "largest difference" in check["detail"]


def test_warnings_and_strata_are_recorded(run):
    result = run(12)
    assert result["warnings"] == ["UserWarning: thin ice"]
    assert len(result["raw"]) == 12 * 3 * 2 * 2


def test_levels_of_primary_and_secondary_claims():
    assert level_of(synthetic.CLAIMS[0], synthetic.CLAIMS) == 0.95
    assert level_of(synthetic.CLAIMS[1], synthetic.CLAIMS) == pytest.approx(1 - 0.05 / (len(synthetic.CLAIMS) - 1))


def test_history_keeps_earlier_verdicts_and_ci_sees_a_silent_change(run, tmp_path):
    run(1)
    path = tmp_path / "results" / "toy.C1.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"verdict": "contradicted"}))
    result = run(1)
    assert [entry["verdict"] for entry in result["history"]] == ["contradicted"]
    faults = record.problems(tmp_path / "results")
    assert any("verdict changed within version 1" in text for text in faults)


def test_changed_rules_need_a_new_version(run, tmp_path):
    run(1)
    path = tmp_path / "results" / "toy.C1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rules_sha256": "0" * 64}))
    with pytest.raises(UsageError, match="raise version"):
        run(1)


def test_ci_problems(run, tmp_path):
    run(1)
    run(3)
    run(4)
    folder = tmp_path / "results"
    path = folder / "toy.C1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preregistered_sha256": "0" * 64, "committed": True}))
    (folder / "toy.C9.json").write_text('{"schema": "claim-result/1", "claim_id":')
    faults = "\n".join(record.problems(folder))
    assert "toy.C1: claim file changed since the run" in faults
    assert "toy.C4: invalid" in faults
    assert "toy.C9.json is not a claim record: not JSON" in faults
    assert "toy.C3: invalid" not in faults


def test_confirmation_needs_a_committed_claim_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "committed", lambda path: (False, None))
    with pytest.raises(UsageError, match=r"commit synthetic\.py before its confirmation run"):
        run(1, allow_uncommitted=False)
    assert run(1)["committed"] is False


def test_committed(tmp_path):
    file = tmp_path / "claim.py"
    file.write_text("x = 1\n")
    assert record.committed(file) == (None, None)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert record.committed(file) == (False, None)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    state, commit = record.committed(file)
    assert state is True
    assert commit is not None
    assert len(commit) == 40
    file.write_text("x = 2\n")
    assert record.committed(file) == (False, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "the whole file"), ('{"schema": "other/9"}', "schema"), ("\x00\xff", "not JSON")],
)
def test_corrupt_records_are_named(tmp_path, text, message):
    path = tmp_path / "toy.C1.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PolicydistError, match=message) as caught:
        record.read(path)
    assert "toy.C1.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert record.verdicts(tmp_path) == {"toy": "unreadable"}
    with pytest.raises(UsageError, match="run the claim first"):
        record.read(tmp_path / "toy.C2.json")


def test_unknown_names_offer_near_ones():
    with pytest.raises(UsageError, match=r"no claim 'toy.C99'; did you mean toy.C9"):
        jobs.find(SLUG, "toy.C99")
    with pytest.raises(UsageError, match="no claim for 'nonsense'"):
        jobs.load("nonsense")
    assert not set(jobs.available()) & jobs.MACHINERY


def test_public_names():
    import policydist.claims as package

    assert all(getattr(package, name) for name in package.__all__)
    assert sorted(name for names in package._HOME.values() for name in names) == sorted(package.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018


def test_every_machinery_module_is_known():
    folder = Path(jobs.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} >= jobs.MACHINERY


def test_imports_stay_light():
    heavy = "('torch', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'ray')"
    code = f"import policydist.claims, policydist.claims.record, sys; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_workers_get_one_thread():
    task = jobs.Task(SLUG, "toy.C1", "method", 1, "all", False)
    (row, *_) = engines.local([task], 1)
    assert row["rows"][0]["arm"] == "method"
    assert row["rss_mb"] > 1
