"""The command line: what it prints, what it leaves behind, its exit codes, and one clear line for everything asked wrongly."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from policydist.claims import record
from policydist.cli.main import main, parse
from policydist.errors import PolicydistError
from policydist.language.experiment import assemble, configure
from policydist.language.world import World
from policydist.runs.directory import read_metrics, read_status

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, words: list[str], code: int, *parts: str, out: Path | None = None) -> str:
    """Run the command; it must fail with ``code`` and at most two lines that hold ``parts``; ``out`` must not appear."""
    capsys.readouterr()
    assert main(words) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith(("grpo on", "step "))]
    assert captured.out == ""
    assert 1 <= len(lines) <= 2, captured.err
    assert lines[0].startswith("policydist: ")
    for part in parts:
        assert part in " ".join(lines)
    if out is not None:
        assert not out.exists()
    return " ".join(lines)


def test_papers_are_listed_filtered_and_searched(capsys: Capture) -> None:
    assert main(["papers", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert len(everything) == 51
    assert {"slug", "title", "arxiv", "family", "implemented", "verdict"} == everything[0].keys()
    assert main(["papers", "--family", "language", "--search", "entropy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < len(found) < 51
    assert {paper["family"] for paper in found} == {"language"}
    assert main(["papers", "--search", "beta normal"]) == 0
    text = capsys.readouterr().out
    assert "bnpo" in text
    assert "1 papers" in text or "papers" in text.splitlines()[-1]


def test_an_unknown_family_names_the_nearest(capsys: Capture) -> None:
    refused(capsys, ["papers", "--family", "langage"], 2, "langage", "language")


@pytest.mark.parametrize("slug", ["bnpo", "grpo", "r3d"])
def test_show_gives_text_and_json(slug: str, capsys: Capture) -> None:
    assert main(["show", slug, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["slug"] == slug
    assert main(["show", slug]) == 0
    text = capsys.readouterr().out
    if slug == "grpo":
        assert "title" not in data
        assert data["knobs"]["scale"] == "group"
        assert "policydist train grpo" in text
    else:
        assert data["title"][:30] in text
    if slug == "bnpo":
        assert "policydist claim bnpo" in text


@pytest.mark.parametrize("slug", ["herl", "doge", "brpo", "icpo", "dump", "rexrag", "bnpo"])
def test_the_command_that_show_prints_is_not_refused(slug: str, capsys: Capture) -> None:
    assert main(["show", slug]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("policydist train ")]
    asked = parse(shlex.split(line)[1:])
    words = [*(f"task.name={name}" for name in [asked.task] if name), "task.train_size=32", "task.test_size=8"]
    assemble(configure(asked.slug, {}, [*words, *asked.set]), World())


def test_show_of_a_paper_without_a_method_says_so(capsys: Capture) -> None:
    assert main(["papers", "--json"]) == 0
    absent = next(paper["slug"] for paper in json.loads(capsys.readouterr().out) if not paper["implemented"])
    assert main(["show", absent]) == 0
    assert "not yet" in capsys.readouterr().out
    refused(capsys, ["train", absent], 2, absent, "not implemented")


def test_unknown_names_offer_the_nearest(capsys: Capture) -> None:
    refused(capsys, ["show", "bnop"], 2, "bnop", "bnpo")
    refused(capsys, ["train", "grop"], 2, "grop", "grpo")
    refused(capsys, ["compare", "grpo", "dcop"], 2, "dcop", "dcpo")
    refused(capsys, ["claim", "aepoo"], 2, "aepoo", "aepo")


@pytest.mark.parametrize("slug", ["grpo", "sft"])
def test_methods_of_single_responses_refuse_a_task_of_searches(slug: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    words = ["train", slug, "--task", "two-hop", "--model", "embedded-search", "--steps", "1", "--out", str(out)]
    refused(capsys, words, 2, "two-hop is answered by searching", slug, "policydist train rexrag --set knobs.p_rev=0")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["give a command: papers, show, train"]),
        (["trian", "grpo"], ["'trian'", "did you mean train?"]),
        (["--stepz"], ["--stepz", "options follow a command"]),
        (["train", "grpo", "--stepz", "3"], ["train has no option --stepz", "did you mean --steps", "train --help"]),
        (["compare", "a", "b", "--seedz=2"], ["compare has no option --seedz", "--seeds"]),
        (["show", "--jsonn"], ["show has no option --jsonn", "--json"]),
        (["show"], ["show needs SLUG"]),
        (["claim", "--json"], ["claim needs SLUG"]),
        (["train", "grpo", "--steps", "many"], ["--steps: 'many' is not a whole number"]),
        (["claim", "bnpo", "--seeds", "2.5"], ["--seeds: '2.5' is not a whole number"]),
        (["claim", "bnpo", "--engine", "rai"], ["--engine", "'rai'", "local, ray", "did you mean ray?"]),
        (["train", "grpo", "--steps"], ["--steps needs a value"]),
        (["train", "grpo", "--model", "--steps", "3"], ["--model needs a value"]),
        (["train", "grpo", "rloo"], ["'rloo'", "train --help"]),
    ],
)
def test_words_that_are_no_command(words: list[str], parts: list[str], capsys: Capture) -> None:
    assert len(refused(capsys, words, 2, *parts)) < 200


def test_without_the_parsers_hook_the_exit_code_stays(capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "grpo", "--stepz", "3"])
    assert stopped.value.code == 2
    assert "--stepz" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["papers", "show", "train", "compare", "claim", "report"])
def test_help_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"policydist {command}" in " ".join(capsys.readouterr().out.split("Example")[1].split())


def test_train_writes_a_run_and_prints_pure_json(tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    words = tiny.train(
        "grpo", 2, "--out", str(out), "--set", "trackers=[tensorboard]", "--set", "eval_every=1", "--json"
    )
    assert main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["run"] == str(out)
    assert data["metrics"]["step"] == 2
    assert "eval/accuracy" in data["metrics"]
    assert [row["step"] for row in read_metrics(out)] == [0, 1, 2]
    assert read_status(out)["state"] == "finished"
    assert json.loads((out / "summary.json").read_text()) == data["metrics"]
    assert json.loads((out / "environment.json").read_text())["packages"]["torch"]
    assert (out / "model" / "model.safetensors").is_file()
    assert (out / "checkpoints" / "step-00000002" / "manifest.json").is_file()
    assert list(out.rglob("events.out.tfevents.*"))
    assert not list(out.rglob(".*"))

    assert main(["train", "--resume", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"run: {out}" in text
    refused(capsys, tiny.train("grpo", 2, "--out", str(out)), 2, str(out), "exists", "--resume")
    refused(capsys, ["train", "--resume", str(out), "--set", "train.lr=1e-4"], 2, "train.lr", "0.01", "0.0001")
    refused(capsys, ["train", "--resume", str(out), "--steps", "9"], 2, "--steps", "stored config")
    refused(capsys, ["train", "grpo", "--resume", str(out)], 2, "one of the two")

    assert main(tiny.train("grpo", 1, "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again"))) == 0
    assert "reward" in capsys.readouterr().out

    config = out / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.02"))
    refused(capsys, ["train", "--resume", str(out)], 2, "config.yaml", "changed")
    config.write_text(config.read_text().replace("lr: 0.02", "lr: 0.01"))
    weights = out / "checkpoints" / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    refused(capsys, ["train", "--resume", str(out)], 1, "model.safetensors", "truncated", "start again")


def test_resume_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    refused(capsys, ["train", "--resume", str(tmp_path / "no")], 2, "not a run directory")
    (tmp_path / "config.yaml").write_text("name: x\n")
    refused(capsys, ["train", "--resume", str(tmp_path)], 2, "names no method")
    refused(capsys, ["train"], 2, "--resume")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train.lrr=1"], ["train.lrr", "lr"]),
        (["learning_rate=1"], ["learning_rate"]),
        (["train.lr=fast"], ["train.lr", "'fast'", "number"]),
        (["train.steps=2.5"], ["train.steps", "2.5", "integer"]),
        (["train.lr=-1"], ["train.lr", "positive"]),
        (["train.optimiser=adam"], ["train.optimiser", "adamw"]),
        (["train=3"], ["train", "3"]),
        (["seed=1"], ["ambiguous", "train.seed"]),
        (["lr"], ["key=value"]),
        (["rollout.samples=0"], ["rollout.samples is 0", "at least 1"]),
        (["rollout.temperature=-1"], ["rollout.temperature is -1"]),
        (["rollout.top_p=1.5"], ["rollout.top_p", "(0, 1]"]),
        (["train.keep=0"], ["train.keep", "at least 1"]),
        (["train.eval_every=-2"], ["train.eval_every", "negative"]),
        (["eval.rows=0"], ["eval.rows", "at least 1"]),
        (["model.lora_rank=-1"], ["model.lora_rank"]),
        (["model.device=gpu"], ["model.device", "cuda"]),
        (["rollout.max_new_tokens=40"], ["max_new_tokens (40 tokens)", "context of 32"]),
        (["rollout.max_new_tokens=29"], ["row 0", "4 tokens", "3 that fit", "shorten"]),
        (["trackers=[tensorbord]"], ["tensorbord", "tensorboard"]),
        (["task.grader=tiny_rewards:absent"], ["tiny_rewards", "absent"]),
        (["task.grader=tiny_rewards:UNREADABLE"], ["UNREADABLE", "not a function"]),
        (["task.grader=exact"], ["unknown grader", "exact_match"]),
        (["task.prompt_column=question"], ["sums.jsonl:1", "question", "prompt"]),
        (["task.grader=exact_match", "task.answer_column=solution"], ["sums.jsonl:1", "solution", "answer"]),
        (["knobs.clip_hi=0.3"], ["clip_hi", "clip_high"]),
    ],
)
def test_bad_settings_are_named(words: list[str], parts: list[str], tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    sets = [part for word in words for part in ("--set", word)]
    refused(capsys, tiny.train("grpo", 1, *sets, "--out", str(tmp_path / "run")), 2, *parts, out=tmp_path / "run")


def test_a_gpu_that_is_not_there(tiny: Any, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = tiny.train("grpo", 1, "--set", "model.device=cuda", "--out", str(tmp_path / "run"))
    refused(capsys, words, 2, "model.device is cuda", "auto or cpu", out=tmp_path / "run")


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_steps_below_one(steps: str, tiny: Any, capsys: Capture) -> None:
    refused(capsys, tiny.train("grpo", steps), 2, f"train.steps is {steps}")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"prompt": "1+1=", "answer": "2"}\n{"prompt": \n', [":2", "not valid JSON"]),
        ('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2="}\n', [":2", "answer"]),
        ('["1+1="]\n', [":1", "JSON object"]),
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        ('{"prompt": "' + "1+" * 20 + '", "answer": "20"}\n' * 1, ["row 0", "40 tokens", "29 that fit"]),
    ],
)
def test_bad_data_files_are_named(content: str, parts: list[str], tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    file, out = tmp_path / "bad.jsonl", tmp_path / "run"
    file.write_text(content)
    words = ["--set", "task.grader=numeric", "--set", f"task.name=jsonl:{file},{tiny.sums}", "--out", str(out)]
    line = refused(capsys, tiny.train("grpo", 1, *words)[:2] + tiny.train("grpo", 1, *words)[4:], 2, *parts, out=out)
    assert "bad.jsonl" in line or "row 0" in line


def test_unknown_tasks_and_models(tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "run")]
    refused(capsys, ["train", "grpo", "--task", "arithmetics", *out], 2, "arithmetics", "arithmetic")
    refused(capsys, ["train", "grpo", "--task", "sums.jsonl", *out], 2, "jsonl:sums.jsonl")
    refused(capsys, ["train", "grpo", "--task", "jsonl:absent.jsonl", *out], 2, "absent.jsonl", "no such file")
    refused(capsys, ["train", "grpo", "--task", tiny.task, "--model", "./absent", *out], 2, "absent")
    (tmp_path / "empty").mkdir()
    refused(capsys, ["train", "grpo", "--task", tiny.task, "--model", str(tmp_path / "empty"), *out], 2, "config.json")
    assert not (tmp_path / "run").exists()


def test_config_files_that_do_not_fit(tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "c.yaml"
    words = ["train", "grpo", "--config", str(file)]
    refused(capsys, words, 2, "c.yaml", "No such file")
    for text, parts in {
        "train: {lr: 1\n": ["c.yaml, line"], "- 1\n": ["c.yaml", "key: value"], "method: bnpo\n": ["bnpo", "not grpo"],
        "trian: {lr: 1}\n": ["trian", "train"], "train: null\n": ["train"],
    }.items():  # fmt: skip
        file.write_text(text)
        refused(capsys, words, 2, *parts)


def test_tokenizers_without_a_pad_token(tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    import shutil

    from conftest import character_tokenizer

    for special, code in (({"eos_token": "<end>", "unk_token": "<unk>"}, 0), ({"unk_token": "<unk>"}, 2)):
        model = tmp_path / f"model{code}"
        shutil.copytree(tiny.model, model)
        character_tokenizer(**special).save_pretrained(model)
        config = json.loads((model / "config.json").read_text())
        generation = json.loads((model / "generation_config.json").read_text())
        for held, name in ((config, "config.json"), (generation, "generation_config.json")):
            (model / name).write_text(json.dumps({k: v for k, v in held.items() if not k.endswith("token_id")}))
        out = tmp_path / f"run{code}"
        words = tiny.train("grpo", 1, "--set", f"model.name={model}", "--out", str(out))
        words = words[:4] + words[6:]
        if code:
            refused(capsys, words, 2, "neither a pad", "eos_token", out=out)
        else:
            assert main(words) == 0


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        ("raises", ["ValueError", "no teacher today"]),
        ("nan", ["nan", "finite"]),
        ("short", ["15 rewards for 16 responses"]),
        ("words", ["'good'", "not a number"]),
        ("number", ["float", "list of 16 numbers"]),
    ],
)
def test_faulty_reward_functions(function: str, parts: list[str], tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    words = tiny.train("grpo", 1, "--set", f"task.grader=tiny_rewards:{function}", "--out", str(out))
    line = refused(capsys, words, 1, f"reward tiny_rewards:{function}", *parts)
    status = read_status(out)
    assert status["state"] == "failed"
    assert status["error"] in line
    assert not (out / "model").exists()
    assert read_metrics(out) == []


def test_a_loss_that_is_not_finite(tiny: Any, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    from policydist.language.objectives import PolicyGradient

    real, calls = PolicyGradient.__call__, []

    def poisoned(self: Any, *given: Any) -> Any:
        calls.append(1)
        loss, numbers = real(self, *given)
        return loss * (float("nan") if len(calls) == 3 else 1.0), numbers

    monkeypatch.setattr(PolicyGradient, "__call__", poisoned)
    out = tmp_path / "run"
    words = tiny.train("grpo", 9, "--set", "save_every=1", "--out", str(out))
    line = refused(capsys, words, 1, "loss is nan", "weights were not changed", "last good checkpoint", "train.lr")
    failed = read_status(out)
    assert failed["state"] == "failed"
    file = out / f"failed-batch-step-{failed['step'] + 1}.safetensors"
    assert file.is_file()
    assert str(file) in line
    assert f"step-{failed['step']:08d}" in line


def test_an_expression_bomb_in_a_response_is_a_wrong_answer(
    tiny: Any, tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    from policydist.language import judges

    monkeypatch.setattr(judges, "decode", lambda rollouts, tokenizer: ["9**9**9**9"] * len(rollouts))
    file = tmp_path / "countdown.jsonl"
    file.write_text('{"prompt": "1+2=", "numbers": [9, 9, 9, 9], "target": 3}\n' * 8)
    words = tiny.train("grpo", 1, "--set", "task.grader=expression", "--out", str(tmp_path / "run"), "--json")
    assert main([*words[:3], f"jsonl:{file}", *words[4:]]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["reward"] == 0.0


def test_missing_extras_name_the_pip_command(tiny: Any, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    out = tmp_path / "run"
    words = tiny.train("grpo", 1, "--set", "trackers=[wandb]", "--out", str(out))
    refused(capsys, words, 2, "wandb is not installed", "pip install 'policydist[wandb]'", out=out)
    gym = ["train", "grpo", "--task", "reasoning-gym:chain_sum", "--model", str(tiny.model), "--out", str(out)]
    refused(capsys, gym, 2, "pip install 'policydist[tasks]'", out=out)


def test_places_that_cannot_be_written(tiny: Any, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("mine")
    refused(capsys, tiny.train("grpo", 1, "--out", str(tmp_path / "file")), 2, "file exists")
    refused(capsys, tiny.train("grpo", 1, "--out", str(tmp_path / "file" / "run")), 2, "cannot write run directory")
    assert (tmp_path / "file").read_text() == "mine"

    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device", "/somewhere/model.safetensors")

    monkeypatch.setattr("policydist.runs.checkpoint.save", full)
    out = tmp_path / "run"
    refused(capsys, tiny.train("grpo", 1, "--out", str(out)), 1, "/somewhere/model.safetensors", "No space left")
    assert read_status(out)["state"] == "failed"


@pytest.mark.parametrize(("reward", "mean"), [("always", "1.000"), ("never", "0.000")])
def test_a_run_that_could_learn_nothing_says_so(
    reward: str, mean: str, tiny: Any, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--out", str(tmp_path / "run"), "--set", f"task.grader=tiny_rewards:{reward}"]
    assert main(tiny.train("grpo", 1, *words)) == 0
    assert f"no step had a gradient (mean reward {mean})" in capsys.readouterr().err
    assert main(tiny.train("grpo", 2, "--out", str(tmp_path / "other"))) == 0
    assert "gradient" not in capsys.readouterr().err


def test_compare_asked_wrongly(tiny: Any, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "comparison")]
    refused(capsys, ["compare", "grpo", *out], 2, "two different methods")
    refused(capsys, ["compare", "grpo", "grpo", *out], 2, "two different methods")
    refused(capsys, ["compare", "grpo", "a=rloo", "a=grpo", *out], 2, "two different methods", "plain=rexrag")
    refused(capsys, ["compare", "grpo", "a/b=grpo", *out], 2, "a/b=grpo", "letters, digits")
    refused(capsys, ["compare", "grpo", "a=dcop", *out], 2, "dcop", "dcpo")
    refused(capsys, ["compare", "grpo", "rloo", "--seeds", "0", *out], 2, "--seeds is 0")
    refused(capsys, ["compare", "grpo", "rloo", "--workers", "0", *out], 2, "workers is 0")
    refused(capsys, ["compare", "grpo", "rloo", "--set", "dcpo:lr=1", *out], 2, "dcpo", "grpo, rloo")
    refused(capsys, ["compare", "grpo", "rloo", "--set", "train.lrr=1", *out], 2, "lrr", "lr")
    assert not (tmp_path / "comparison").exists()


def test_claims_that_do_not_exist(capsys: Capture, monkeypatch: Any) -> None:
    assert main(["papers", "--json"]) == 0
    absent = next(paper["slug"] for paper in json.loads(capsys.readouterr().out) if not paper["implemented"])
    refused(capsys, ["claim", absent], 2, absent, "no claim yet", "bnpo")


def test_a_report_never_replaces_foreign_files(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("method: grpo\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    words = ["report", "--out", str(tmp_path / "thesis"), "--runs", str(tmp_path / "run")]
    refused(capsys, words, 2, "chapter.tex", "another --out")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_errors_and_interruptions_have_their_exit_codes(capsys: Capture, monkeypatch: Any) -> None:
    for error, code, text in (
        (PolicydistError("it broke; mend it"), 1, "policydist: it broke; mend it\n"),
        (KeyboardInterrupt(), 130, "policydist: interrupted\n"),
    ):

        def fail(error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(record, "verdicts", fail)
        assert main(["papers"]) == code
        assert capsys.readouterr().err == text
