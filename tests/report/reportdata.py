"""Comparisons, runs and claim records with known contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def metric_rows(method: int, seed: int, steps: int = 12, every: int = 4) -> list[dict[str, Any]]:
    """Accuracy at the end is exactly ``0.5 + 0.1 method + 0.01 seed``."""
    noise = np.random.default_rng([method, seed])
    rows: list[dict[str, Any]] = [{"step": 0, "eval/accuracy": 0.2, "eval/pass@4": 0.4}]
    for step in range(1, steps + 1):
        share = step / steps
        level = 0.2 + (0.3 + 0.1 * method + 0.01 * seed) * share
        row = {
            "step": step,
            "tokens": 100 * step + seed,
            "seconds": 0.5 * step,
            "reward": level + 0.01 * noise.normal(),
        }
        rows.append(row | ({"eval/accuracy": level, "eval/pass@4": 0.9} if step % every == 0 else {}))
    return rows


def comparison(folder: Path, methods: tuple[str, ...] = ("grpo", "bnpo"), seeds: int = 4, **rest: Any) -> Path:
    """A folder with ``compare.json``."""
    runs = [
        {"method": method, "seed": seed, "metrics": metric_rows(place, seed)}
        for seed in range(seeds) for place, method in enumerate(methods)
    ]  # fmt: skip
    data = {
        "schema": "compare/1", "methods": list(methods), "seeds": list(range(seeds)), "task": "chain",
        "model": "embedded", "config": {"method": methods[0], "train": {"steps": 12}}, "runs": runs,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(data | rest))
    return folder


def run_folder(folder: Path, **config: Any) -> Path:
    """A finished run directory."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"method": "grpo", "task": {"name": "chain"}} | config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metric_rows(0, 0)))
    (folder / "status.json").write_text('{"state": "finished", "step": 12}')
    return folder


def effect(estimate: float | None, ci: list[float] | None, **more: Any) -> dict[str, Any]:
    """The effect part of a record."""
    return {
        "estimand": "mean of score: method - baseline", "estimate": estimate, "ci": ci, "level": 0.95,
        "method": "bootstrap", "resamples": 10_000, "bootstrap_seed": 0, "p_signflip": None, "prob_improvement": None,
        "iqm": None, "p_bootstrap": 0.0001, "equivalence_ci": ci,
    } | more  # fmt: skip


def claim_record(claim_id: str = "toy.C1", verdict: str = "reproduced", **changes: Any) -> dict[str, Any]:
    """A record of three arms, six units and two strata; unit 1003 of the method diverged."""
    raw = [
        {
            "unit": unit, "stratum": stratum, "arm": arm, "metric": metric, "value": value,
            "wall_s": 0.25 * (place + 1), "diverged": arm == "method" and unit == 1003,
        }
        for unit in range(1000, 1006)
        for stratum in ("easy", "hard")
        for place, arm in enumerate(("method", "baseline", "broken"))
        for metric, value in (("score", 1.0 - 0.3 * place + 0.01 * (unit - 1000)), ("cost", 10.0 ** (unit - 1000)))
    ]  # fmt: skip
    for row in raw:
        row["value"] = None if row["diverged"] else row["value"]
    threshold = {"direction": ">", "min_effect": 0.2, "equivalence_margin": None}
    main = effect(0.3, [0.25, 0.35])
    inside = {"direction": "inside", "low": -0.1, "high": 0.1, "min_effect": None, "equivalence_margin": 0.1}
    record = {
        "schema": "claim-result/1", "claim_id": claim_id, "claim_version": 1, "source": "Table 1", "module": "toy",
        "paper": {"slug": claim_id.partition(".")[0], "arxiv": "0000.00000"},
        "statement": "The method beats the baseline.",
        "preregistered_sha256": "0" * 64, "rules_sha256": "1" * 64, "primary": claim_id.endswith(".C1"),
        "arms": [
            {"name": "method", "role": "method", "config_sha256": "a" * 64, "settings": {"lr": 1, "gain": 2}},
            {"name": "baseline", "role": "baseline", "config_sha256": "b" * 64, "settings": {"lr": 1, "gain": 0}},
            {"name": "broken", "role": "broken", "config_sha256": "c" * 64, "settings": {"lr": 1, "gain": -1}},
        ],
        "metric": {"name": "score", "unit": "points", "better": "higher"},
        "metrics": [
            {"name": "cost", "unit": "s", "better": "lower"}, {"name": "score", "unit": "points", "better": "higher"},
        ],
        "settings": {"lr": {"value": 1, "source": "paper"}},
        "design": {
            "unit": "seed", "n_units": 6, "paired": True, "seeds": [1000, 1005], "strata": ["easy", "hard"],
            "full_design": True,
        },
        "raw": raw, "effect": main, "threshold": threshold, "verdict": verdict,
        "reason": "" if verdict == "reproduced" else "why",
        "rules": [
            {"name": "gain", "must": True, "verdict": verdict, "reason": "", "effect": main, "threshold": threshold},
            {"name": "same cost", "must": False, "verdict": "null", "reason": "", "quorum": "most",
             "effect": effect(0.0, [-0.05, 0.05]), "threshold": inside},
            {"name": "no number", "must": False, "verdict": "invalid", "reason": "not finite",
             "effect": effect(None, None), "threshold": threshold},
            {"name": "most", "must": True, "need": 1, "verdict": "null", "reason": ""},
        ],
        "sanity": [{"check": "the broken arm loses", "ok": True, "detail": "0.6"}], "diverged": {"method": 2},
        "deviations": [{"what": "small", "why": "time", "tag": "SCALED_DOWN"}], "tuning": {"trials": 0, "space": {}},
        "cannot_show": "anything about the world", "warnings": ["thin ice"],
        "env": {"git_commit": "f" * 40, "dirty": False, "python": "3.11", "packages": {"torch": "2.13.0"}, "cores": 2},
        "time": {
            "started_utc": "2026-01-01T00:00:00Z", "wall_s": 41.0, "cpu_s": 40.0, "budget_s": 300, "peak_rss_mb": 400,
        },
        "history": [{"claim_version": 1, "verdict": "not_separated", "started_utc": "2025-12-01T00:00:00Z"}],
    }  # fmt: skip
    return record | changes


def results_folder(folder: Path, *records: dict[str, Any]) -> Path:
    """A results folder with these records."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in records:
        (folder / f"{data['claim_id']}.json").write_text(json.dumps(data))
    return folder
