"""The static report: one folder of HTML pages and PNG figures of all claims, comparisons and runs, without scripts.

<out>/index.html                        all claims, comparisons and runs
<out>/claims/<claim>.html, <claim>/     one page a claim, its figures, and a copy of its record
<out>/comparisons/<name>.html, .png
<out>/runs/<name>.html, .png
<out>/.policydist-report                the files written; by it a later report knows what it may replace
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policydist.claims import record
from policydist.errors import PolicydistError, UsageError
from policydist.report import claim_figures, claims_page, comparison, curves, style, words
from policydist.report.pages import comparison_page, render, yaml_text
from policydist.runs.directory import read_config, read_metrics, read_status
from policydist.runs.parallel import run_jobs

MARK = ".policydist-report"
DEFAULT_RUNS = Path("runs")
FEW = 8
"""Claims that are drawn sooner in one process than others have started."""
Tell = Callable[[int, int], None]


@dataclass
class Found:
    """What there is to report on; ``problems`` are folders that look like runs but cannot be read."""

    comparisons: dict[str, Path] = field(default_factory=dict)
    runs: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def discover(folder: Path) -> Found:
    """Runs and comparisons in ``folder``, or ``folder`` itself if it is one; not the runs of a comparison."""
    found = Found()
    if not folder.is_dir():
        return found
    itself = (folder / "compare.json").is_file() or (folder / "config.yaml").is_file()
    for path in [folder] if itself else sorted(folder.iterdir()):
        if (path / "compare.json").is_file():
            found.comparisons[path.resolve().name] = path
        elif (path / "config.yaml").is_file():
            found.runs[path.resolve().name] = path
    return found


def write(out: Path, runs: Path = DEFAULT_RUNS, results: Path | None = None, tell: Tell | None = None) -> Path:
    """Write the report into ``out`` and return its first page. It is built beside ``out`` and then renamed.

    Args:
        out: a new or empty folder, or one that holds an earlier report and nothing else.
        runs: folder of runs and comparisons, or one of them; ``runs`` may be absent.
        results: folder of claim records; by default where ``policydist claim`` writes them.
        tell: called with the claims drawn so far and all of them; their figures take a second or two each, on all cores.

    Raises:
        UsageError: if ``out`` holds other files, a given folder is absent, or there is nothing to report.
        PolicydistError: if a claim record is damaged: a report without it would hide a verdict.
    """
    out = Path(out).resolve()
    records, found = _sources(Path(runs), results)
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as problem:
        raise UsageError(f"cannot write {out}: {problem.strerror}; give a writable --out") from None
    try:
        draft.chmod(0o755)
        _build(draft, records, found, str(runs), tell or (lambda done, total: None))
        _swap(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out / "index.html"


def _sources(runs: Path, results: Path | None) -> tuple[list[Path], Found]:
    folder = record.results_dir() if results is None else Path(results)
    if results is not None and not folder.is_dir():
        raise UsageError(f"--results {folder} is not a folder")
    if runs != DEFAULT_RUNS and not runs.is_dir():
        raise UsageError(f"--runs {runs} is not a folder")
    records, found = claims_page.in_order(record.files(folder)), discover(runs)
    if not (records or found.comparisons or found.runs):
        raise UsageError(
            f"nothing to report: no claim record in {folder}, no run in {runs}; run a claim or a method first"
        )
    return records, found


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; give another --out")
    there = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    mark = out / MARK
    try:
        ours = set(json.loads(mark.read_text())) | {MARK} if mark.is_file() else set()
    except (ValueError, TypeError):
        ours = set()
    foreign = sorted(there - ours)
    if foreign:
        raise UsageError(f"{out} holds files that are not of a report ({foreign[0]}); give another --out")


def _swap(draft: Path, out: Path) -> None:
    """Put the draft in place of the old report, which stays until the new one is there."""
    if not out.exists():
        os.rename(draft, out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    os.rename(out, old / "old")
    try:
        os.rename(draft, out)
    except OSError:
        os.rename(old / "old", out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _build(draft: Path, files: list[Path], found: Found, runs: str, tell: Tell) -> None:
    records = _claims(draft, files, tell)
    comparisons = _each(found, found.comparisons, lambda name, path: _comparison(draft, name, path))
    singles = _each(found, found.runs, lambda name, path: _run(draft, name, path))
    if records:
        claim_figures.forest([claim_figures.headline(data) for data in records], draft / "claims.png")
    counts = Counter(data["verdict"] for data in records)
    overview = record.overview(files[0].parent) if files else None
    page = render(
        "index.html.j2", title="Claims and runs", records=records,
        counts=[(verdict, counts[verdict]) for verdict in style.VERDICT_COLOURS if counts[verdict]],
        overview=overview, comparisons=comparisons, runs=singles, problems=found.problems, where=runs,
    )  # fmt: skip
    (draft / "index.html").write_text(page, encoding="utf-8")
    written = sorted(str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file())
    (draft / MARK).write_text(json.dumps(written))


def _each(found: Found, items: dict[str, Path], make: Callable[[str, Path], dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name, path in items.items():
        try:
            rows.append(make(name, path))
        except (PolicydistError, OSError, ValueError) as problem:
            found.problems.append(f"{name}: {problem}")
    return rows


def _claims(draft: Path, files: list[Path], tell: Tell) -> list[dict[str, Any]]:
    jobs = [(draft, file) for file in files]
    here = ((number, _claim(*job)) for number, job in enumerate(jobs))
    made = {}
    for number, data in here if len(jobs) <= FEW else run_jobs(_claim, jobs):
        made[number] = data
        tell(len(made), len(jobs))
    return [made[number] for number in range(len(jobs))]


def _claim(draft: Path, file: Path) -> dict[str, Any]:
    data, name, folder = record.read(file), file.stem, draft / "claims"
    if data["claim_id"] != name:
        raise PolicydistError(f"{file} is the record of {data['claim_id']!r}; a record's file bears its claim's name")
    images = claims_page.figures(data, folder / name, record.file_digest(file))
    (folder / f"{name}.html").write_text(claims_page.claim_page(data, images, name, "../index.html"), encoding="utf-8")
    shutil.copyfile(file, folder / f"{name}.json")
    return data


def _comparison(draft: Path, name: str, path: Path) -> dict[str, Any]:
    data = comparison.read(path)
    folder = draft / "comparisons"
    curves.draw(data, folder / f"{name}.png")
    page = comparison_page(data, name, f"{name}.png", "../index.html")
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {"name": name, "data": data, "rows": comparison.rows_of(data, comparison.summary(data))}


def _run(draft: Path, name: str, path: Path) -> dict[str, Any]:
    config, rows, status = read_config(path), read_metrics(path), read_status(path)
    folder = draft / "runs"
    image = f"{name}.png" if curves.draw_run(rows, folder / f"{name}.png") else None
    final = {key: value for key, value in comparison.measures(rows).items() if value is not None}
    shown = {comparison.TITLES.get(k, k): comparison.FORMATS.get(k, words.share)(v) for k, v in final.items()}
    environment = path / "environment.json"
    env = json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else {}
    page = render(
        "run.html.j2", title=f"Run {name}", up="../index.html", name=name, image=image, status=status, final=shown,
        config=yaml_text(config), method=config.get("method", words.NOTHING), env=claims_page.environment_pairs(env),
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
    task = config.get("task")
    named = task.get("name", words.NOTHING) if isinstance(task, dict) else words.NOTHING
    return {
        "name": name,
        "method": config.get("method", words.NOTHING),
        "task": named,
        "status": status,
        "final": shown,
    }
