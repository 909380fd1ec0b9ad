"""The page of one claim, and the figures beside it, from its record alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policydist.report import claim_figures, words
from policydist.report.pages import render

Record = Mapping[str, Any]

SHOWN_METRICS = 6


def in_order(files: list[Path]) -> list[Path]:
    """Record files by paper and then by number, so that C2 comes before C10."""

    def place(file: Path) -> tuple[str, int, str]:
        slug, _, number = file.stem.rpartition(".C")
        return slug, int(number) if number.isdigit() else 0, file.stem

    return sorted(files, key=place)


def figures(record: Record, folder: Path, source: str = "") -> list[tuple[str, str]]:
    """Draw all figures into ``folder``; (file name, what it shows) of each."""
    found = []
    rows = claim_figures.effects(record)
    if rows:
        claim_figures.forest(rows, folder / "effects.png", source)
        text = "Effect of every rule with its interval. Each row has its own scale; a rule passes in the shaded part."
        found.append(("effects.png", text))
    for place, metric in enumerate(claim_figures.metrics(record)[:SHOWN_METRICS], 1):
        name = metric["name"]
        if claim_figures.paired(record, metric, folder / f"units-{place}.png", source):
            unit = record["design"]["unit"]
            text = (
                f"{name} of every {unit}: dots of one {unit} are joined, the diamond is the mean with its 95 % interval"
            )
            found.append((f"units-{place}.png", text + (", crosses diverged." if _diverged(record) else ".")))
        if claim_figures.distributions(record, metric, folder / f"scores-{place}.png", source):
            found.append((f"scores-{place}.png", f"Distribution of {name} over units."))
    claim_figures.times(record, folder / "times.png", source)
    found.append(
        ("times.png", "Time that each arm took; a simulation that runs all arms at once is shared out evenly.")
    )
    return found


def _diverged(record: Record) -> bool:
    return any(row["diverged"] for row in record["raw"])


def claim_page(record: Record, images: list[tuple[str, str]], folder: str, up: str | None = None) -> str:
    """The page; ``folder`` is the figures' folder relative to it."""
    return render(
        "claim.html.j2", title=f"{record['claim_id']}: {record['verdict'].replace('_', ' ')}", up=up, r=record,
        images=[(f"{folder}/{name}", text) for name, text in images], arms=_arms(record), design=_design(record),
        environment=environment_pairs(record["env"]), times=_times(record), settings=_settings(record),
        unshown=max(0, len(claim_figures.metrics(record)) - SHOWN_METRICS),
    )  # fmt: skip


def _arms(record: Record) -> list[dict[str, str]]:
    """Name, role, and the settings in which an arm differs from what all arms share."""
    all_settings = [arm.get("settings") or {} for arm in record["arms"]]
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    own = [key for key in keys if len({json.dumps(settings.get(key), default=str) for settings in all_settings}) > 1]
    rows = []
    for arm, settings in zip(record["arms"], all_settings, strict=True):
        differing = ", ".join(f"{key} = {_value(settings[key])}" for key in own if key in settings)
        diverged = (record.get("diverged") or {}).get(arm["name"], 0)
        rows.append({
            "arm": arm["name"], "role": arm["role"], "sets": differing or words.NOTHING,
            "diverged units": str(diverged), "config": arm["config_sha256"][:12],
        })  # fmt: skip
    return rows


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _settings(record: Record) -> list[dict[str, str]]:
    return [
        {"setting": name, "value": _value(entry["value"]), "from": words.cited(str(entry["source"]))}
        for name, entry in (record.get("settings") or {}).items()
    ]


def _design(record: Record) -> list[tuple[str, str]]:
    design = record["design"]
    strata = "" if design["strata"] == ["all"] else f" in each of {', '.join(design['strata'])}"
    tuning, metric = record["tuning"], record["metric"]
    trials = f"{tuning.get('trials', 0)} trials" + (f" over {_value(tuning['space'])}" if tuning.get("space") else "")
    found = [
        ("units", f"{words.plural(design['n_units'], design['unit'])}{strata}{', paired' if design['paired'] else ''}"),
        ("seeds", f"{design['seeds'][0]} to {design['seeds'][1]}"),
        ("metric", f"{metric['name']} ({metric['unit'] or 'no unit'}; better: {metric['better'].replace('_', ' ')})"),
        ("tuning", trials if tuning.get("trials") else "none"),
        ("claim", f"version {record['claim_version']}, {'primary' if record['primary'] else 'secondary'}"),
        ("stands for", words.cited(record.get("source", ""))),
        ("declared in", f"file with SHA-256 {record['preregistered_sha256']}"),
    ]
    if record.get("preregistered_commit"):
        found.append(("committed as", record["preregistered_commit"]))
    if not design["full_design"]:
        found.insert(0, ("note", design.get("note") or "not the full design: says nothing about the claim"))
    return [(name, text) for name, text in found if text]


def environment_pairs(env: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `policydist.runs.environment.describe` wrote, as (name, text)."""
    packages = ", ".join(f"{name} {version}" for name, version in (env.get("packages") or {}).items())
    rest = [(key.replace("_", " "), _value(value)) for key, value in env.items() if key != "packages"]
    return [*rest, ("packages", packages)] if packages else rest


def _times(record: Record) -> list[tuple[str, str]]:
    time = record["time"]
    found = [
        ("started", time["started_utc"]),
        ("wall time", f"{words.seconds(time['wall_s'])} of at most {words.seconds(time['budget_s'])}"),
        ("processor time", words.seconds(time["cpu_s"])),
    ]
    if time.get("peak_rss_mb"):
        found.append(("peak memory", f"{time['peak_rss_mb']:.0f} MB"))
    return found
