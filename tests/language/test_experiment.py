"""Whole runs on the tiny model: killed and resumed, interrupted, LoRA, SFT, the Python interface, comparisons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import policydist
from policydist.errors import UsageError
from policydist.language.compare import compare, drawn_order
from policydist.language.policies.loading import load_policy
from policydist.language.types import Sampling
from policydist.runs import checkpoint
from policydist.runs.directory import read_config, read_metrics, read_status

ROOT = Path(__file__).parents[1]


def command(words: list[str]) -> subprocess.Popen[str]:
    """`policydist` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent / "src")])}
    return subprocess.Popen(
        [sys.executable, "-m", "policydist.cli.main", *words],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def numbers(path: Path) -> list[dict[str, float]]:
    """Metric rows without the clock's."""
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "memory"))} for row in read_metrics(path)]


def same_weights(first: Path, second: Path) -> None:
    one, two = (load_file(path / "model" / "model.safetensors") for path in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.slow
def test_a_killed_run_and_an_interrupted_one_end_as_an_uninterrupted_one(tiny: Any, tmp_path: Path) -> None:
    settings = [*tiny.words, "task.grader=tiny_rewards:slow", "eval_every=3", "save_every=2", "kl_coef=0.05"]
    settings += ["schedule=linear", "updates=2"]
    sets = [part for word in settings for part in ("--set", word)]
    names = ("killed", "interrupted")
    runs = {name: tmp_path / name for name in names}
    words = ["train", "grpo", "--task", tiny.task, "--model", str(tiny.model), "--steps", "7", *sets]
    for name, path in runs.items():
        process = command([*words, "--out", str(path)])
        wait_for(lambda path=path: len(checkpoint.complete(path / "checkpoints")) == 2, process)
        process.send_signal(signal.SIGKILL if name == "killed" else signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        if name == "killed":
            assert process.returncode == -signal.SIGKILL
            assert read_status(path)["state"] == "running"
            with (path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 5, "rew')  # the kill may come in the middle of a line
        else:
            assert process.returncode == 130
            assert errors.splitlines()[-1] == "policydist: interrupted"
            status = read_status(path)
            assert status["state"] == "interrupted"
            assert checkpoint.newest(path / "checkpoints").name == f"step-{status['step']:08d}"
            assert read_metrics(path)[-1]["step"] == status["step"]
        assert not (path / "model").exists()

    whole = tmp_path / "whole"
    quick = [*settings, "task.grader=tiny_rewards:has_digit"]  # the same rewards without the wait
    outcome = policydist.train("grpo", task=tiny.task, model=str(tiny.model), steps=7, settings=quick, out=whole)
    assert outcome.final["step"] == 7
    assert any(row.get("grad_norm", 0) > 0 for row in outcome.metrics)
    for path in runs.values():
        resumed = policydist.resume(path)
        assert [row["step"] for row in resumed.metrics] == list(range(8))
        assert numbers(path) == numbers(whole)
        same_weights(path, whole)
        assert read_status(path)["state"] == "finished"


def test_the_python_interface(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[float] = []
    settings = [word for word in tiny.words if not word.startswith(("train.lr", "task.grader"))]
    outcome = policydist.train(
        "bnpo",
        task=tiny.task,
        model=str(tiny.model),
        steps=2,
        config={"train": {"lr": 1e-3}, "task": {"grader": "tiny_rewards:has_digit"}},
        settings=settings,
        on_step=lambda row: seen.append(row["step"]),
    )
    assert seen == [1, 2]
    assert outcome.path.parent == Path("runs")
    assert outcome.path.name.startswith("bnpo-jsonl-sums-")
    assert read_config(outcome.path)["train"]["lr"] == 1e-3
    assert outcome.final["step"] == 2
    again = load_policy(outcome.path / "model")
    for name, tensor in outcome.policy.core.state_dict().items():
        assert torch.equal(again.core.state_dict()[name], tensor)


def test_a_second_run_may_have_another_precision(tiny: Any, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        words = [*tiny.words, f"model.precision={precision}"]
        done = policydist.train(
            "grpo", task=tiny.task, model=str(tiny.model), steps=1, settings=words, out=tmp_path / precision
        )
        assert done.final["step"] == 1


def test_lora_trains_only_the_adapter(tiny: Any, tmp_path: Path) -> None:
    before = load_file(tiny.model / "model.safetensors")
    words = [*tiny.words, "model.lora_rank=2", "train.lr=0.1"]
    outcome = policydist.train(
        "grpo", task=tiny.task, model=str(tiny.model), steps=3, settings=words, out=tmp_path / "run"
    )
    assert (outcome.path / "model" / "adapter_config.json").is_file()
    assert not (outcome.path / "model" / "model.safetensors").exists()
    saved = load_file(checkpoint.newest(outcome.path / "checkpoints") / "model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    for name, tensor in before.items():
        inside = next(
            v for k, v in outcome.policy.model.state_dict().items() if k.replace(".base_layer", "").endswith(name)
        )
        assert torch.equal(inside, tensor)

    again = load_policy(outcome.path / "model")
    taken = [policy.model.state_dict() for policy in (outcome.policy, again)]
    assert any(bool(taken[0][name].ne(0).any()) for name in taken[0] if "lora_B" in name)
    for name, tensor in taken[0].items():
        assert torch.equal(taken[1][name], tensor), name
    assert any(p.requires_grad for p in again.module.parameters())


def test_sft_lowers_the_loss_of_its_completions(tiny: Any, tmp_path: Path) -> None:
    words = [*tiny.words, "rollout.prompts=21", "train.lr=0.03"]
    options: dict[str, Any] = {"task": tiny.task, "model": str(tiny.model), "settings": words}
    outcome = policydist.train("sft", steps=25, out=tmp_path / "run", **options)
    losses = [row["loss"] for row in outcome.metrics]
    # The first loss is near that of guessing (about log 16); the sums 0-8 then take at most the entropy of their distribution.
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(UsageError, match="row 0 has no text in column 'solution'"):
        policydist.train(
            "sft", steps=1, out=tmp_path / "no", **(options | {"settings": [*words, "completion_column=solution"]})
        )
    assert not (tmp_path / "no").exists()


def test_completions_longer_than_a_response_are_refused_or_cut_as_asked(tiny: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "completion": str(n + 1)} for n in range(7)]
    rows[4]["completion"] = "1" * 9
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"task": f"jsonl:{file},{file}", "model": str(tiny.model), "steps": 1}
    words = [*tiny.words, "rollout.prompts=7", "rollout.max_new_tokens=6"]
    for slug in ("sft", "dft", "otr"):
        with pytest.raises(UsageError, match="row 4 has 10 tokens with its end, more than the 6 of a response"):
            policydist.train(slug, settings=words, out=tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()
    cut = policydist.train("sft", settings=[*words, "long_completion=cut"], out=tmp_path / "cut", **options)
    assert cut.metrics[0]["response_tokens"] == 6 * 2 + 6  # six digits with their ends, and six tokens of the long one
    rows[4]["completion"] = ""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="row 4 has no text in column 'completion'"):
        policydist.train("sft", settings=words, out=tmp_path / "no", **options)


def test_a_task_without_test_rows_trains_and_is_not_evaluated(tiny: Any, tmp_path: Path) -> None:
    words = [word for word in tiny.words if not word.startswith(("task.test_size", "train.eval_every"))]
    options: dict[str, Any] = {"task": tiny.task, "model": str(tiny.model), "steps": 1}
    run = policydist.train("grpo", settings=[*words, "task.test_size=0"], out=tmp_path / "run", **options)
    assert not any(key.startswith("eval/") for key in run.final)
    settings = [*words, "task.test_size=0", "train.eval_every=1"]
    with pytest.raises(UsageError, match=r"train\.eval_every is 1, but task\.test_size=0"):
        policydist.train("grpo", settings=settings, out=tmp_path / "no", **options)
    with pytest.raises(UsageError, match="no test rows to measure on"):
        policydist.evaluate(tmp_path / "run")


def test_context_that_just_fits(tiny: Any, tmp_path: Path) -> None:
    words = [*tiny.words, "rollout.max_new_tokens=28"]
    outcome = policydist.train(
        "grpo", task=tiny.task, model=str(tiny.model), steps=1, settings=words, out=tmp_path / "run"
    )
    assert outcome.final["step"] == 1


def test_sampling_of_a_resumed_policy_is_that_of_the_trained_one(tiny: Any) -> None:
    first, second = load_policy(tiny.model), load_policy(tiny.model)
    from policydist.language.prompts import TextPrompts

    prompts = TextPrompts([{"prompt": "1+1="}], first.tokenizer, 8).take(torch.tensor([0]), 5)
    uniforms = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    drawn = [policy.generate(prompts, Sampling(max_new_tokens=6), uniforms) for policy in (first, second)]
    assert torch.equal(drawn[0].ids, drawn[1].ids)


def test_runs_of_a_comparison_have_other_neighbours_on_every_seed() -> None:
    jobs: list[Any] = [(seed, method) for seed in range(20) for method in range(5)]
    order = drawn_order(jobs, 5)
    assert [seed for seed, _ in order] == [seed for seed, _ in jobs]  # a seed is finished before the next begins
    assert sorted(order) == jobs
    assert {method for _, method in order[::5]} == set(range(5))
    assert order == drawn_order(jobs, 5)  # where it goes on after an interruption


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_stopped_and_refuses_other_settings(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    words = [word for word in tiny.words if not word.startswith("trackers")]
    options: dict[str, Any] = {
        "task": tiny.task, "model": str(tiny.model), "seeds": 2, "settings": [*words, "rloo:train.lr=2e-2"], "workers": 1,
    }  # fmt: skip
    told: list[dict[tuple[str, int], int]] = []
    (tmp_path / "comparison" / "grpo-seed0").mkdir(parents=True)  # as left by a kill before anything was written
    result = compare(["grpo", "rloo"], steps=2, out=out, on_progress=lambda done, total: told.append(done), **options)
    assert {key: len(rows) for key, rows in result.curves.items()} == {
        (method, seed): 2 for method in ("grpo", "rloo") for seed in (0, 1)
    }
    assert told[-1] == dict.fromkeys(result.curves, 2)
    assert read_config(out / "rloo-seed1")["train"]["lr"] == 2e-2
    assert read_config(out / "grpo-seed1")["train"]["seed"] == 1
    first = {seed: result.curves["grpo", seed][0] for seed in (0, 1)}
    assert first[0]["tokens"] != first[1]["tokens"]
    assert result.curves["rloo", 0][0]["tokens"] == first[0]["tokens"]  # equal seeds sample the same first batch
    assert json.loads((out / "compare.json").read_text())["methods"] == ["grpo", "rloo"]

    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/model/*")}
    (out / "compare.json").unlink()
    again = compare(["grpo", "rloo"], steps=2, out=out, **options)
    assert again.curves == result.curves
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/model/*")} == stamps
    with pytest.raises(UsageError, match="other settings"):
        compare(["grpo", "rloo"], steps=3, out=out, **options)


@pytest.mark.parametrize(
    ("task", "message"), [("two-hop", "grpo trains on single responses"), ("no-such", "unknown task")]
)
def test_a_comparison_of_what_cannot_be_is_refused_before_any_run(
    tiny: Any, tmp_path: Path, task: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compare(["rexrag", "grpo"], task=task, model=str(tiny.model), steps=1, seeds=1, out=tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()


def test_a_method_is_compared_with_itself_under_a_name(tiny: Any, tmp_path: Path) -> None:
    words = [word for word in tiny.words if not word.startswith("trackers")]
    result = compare(
        ["grpo", "low=grpo"], task=tiny.task, model=str(tiny.model), steps=1, seeds=1, workers=1,
        settings=[*words, "low:train.lr=1e-9"], out=tmp_path / "comparison",
    )  # fmt: skip
    configs = [read_config(tmp_path / "comparison" / f"{name}-seed0") for name in ("grpo", "low")]
    assert [config["method"] for config in configs] == ["grpo", "grpo"]
    assert configs[1]["train"]["lr"] == 1e-9 != configs[0]["train"]["lr"]
    assert set(result.curves) == {("grpo", 0), ("low", 0)}
