"""Two gloo processes train to the weights and metrics of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policydist.language.experiment import train
from policydist.runs.directory import read_metrics, read_status

ROOT = Path(__file__).parents[1]

PROGRAM = """
import json, sys
import torch
torch.set_num_threads(1)
from policydist.language.experiment import train
for job in json.loads(sys.argv[1]):
    train(job["method"], task=job["task"], model=job["model"], steps=3, settings=job["settings"], out=job["out"])
"""


def jobs(tiny: Any, folder: Path) -> list[dict[str, Any]]:
    """GRPO with a KL penalty and mini-batches, DCPO, DPO's pairs, and GRPO with fewer prompts than processes."""
    common = [*tiny.words, "eval_every=2", "trackers=[tensorboard]"]
    cases = {
        "grpo": ["kl_coef=0.1", "train.updates=2", "train.micro_tokens=40"],
        "dcpo": ["rollout.prompts=3"],
        "dpo": ["rollout.prompts=5", "train.updates=2", "train.micro_tokens=1"],
        "one-prompt": ["rollout.prompts=1", "rollout.samples=6"],
    }
    return [
        {"method": name if name in ("dcpo", "dpo") else "grpo", "task": tiny.task, "model": str(tiny.model),
         "settings": [*common, *words], "out": str(folder / name)}
        for name, words in cases.items()
    ]  # fmt: skip


def launch(work: list[dict[str, Any]], processes: int) -> None:
    """Start the processes as a launcher does, by environment variables, and wait for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent / "src")]),
    }
    shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(work)]
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen(command, env=shared | own, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=280)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)


@pytest.mark.slow
def test_two_processes_are_as_one(tiny: Any, tmp_path: Path) -> None:
    alone, together = jobs(tiny, tmp_path / "one"), jobs(tiny, tmp_path / "two")
    launch(together, 2)
    for job in alone:
        train(job["method"], task=job["task"], model=job["model"], steps=3, settings=job["settings"], out=job["out"])
    for first, second in zip(alone, together, strict=True):
        one, two = Path(first["out"]), Path(second["out"])
        weights = [load_file(path / "model" / "model.safetensors") for path in (one, two)]
        for name, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-5)
        rows = [read_metrics(path) for path in (one, two)]
        assert [row["step"] for row in rows[1]] == [0, 1, 2, 3]
        assert any(row.get("grad_norm", 0) > 0 for row in rows[0])
        for mine, other in zip(*rows, strict=True):
            assert mine.keys() == other.keys()
            for key in mine:
                if not key.startswith(("seconds", "memory")):
                    assert other[key] == pytest.approx(mine[key], abs=1e-5), (two.name, key)
        assert read_status(two)["state"] == "finished"
        logs = [len(list(path.rglob("events.out.tfevents.*"))) for path in (one, two)]
        assert logs[0] == logs[1] > 0
        assert [path.name for path in (two / "checkpoints").iterdir()] == ["step-00000003"]
