"""Tables and figures for README and docs, made from the claim records and the catalogue, and never typed.

A page says where they go:

    <!-- results:start -->          all claims; <!-- results:start bnpo aepo --> only those of these papers;
                                    <!-- results:start first --> every paper's first claim
    …whatever stands here is replaced…
    <!-- results:end -->

    <!-- status:start -->           how many papers of each family are implemented
    <!-- status:end -->

Figures go to ``docs/figures/<claim_id>.png``, and one of all first claims to ``docs/figures/claims.png``. Each carries the
digest of its record in its metadata, so that a stale one is known without drawing it again (pixels differ between
versions of the plotting library).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policydist import catalog
from policydist.claims import record
from policydist.errors import UsageError
from policydist.report import claim_figures, words
from policydist.report.claims_page import in_order
from policydist.runs.directory import write_whole

Record = Mapping[str, Any]
START = re.compile(r"^[ \t]*<!-- (?P<kind>results|status):start(?P<slugs>(?: [a-z0-9_]+)*) -->[ \t]*$", re.MULTILINE)
END = re.compile(r"^[ \t]*<!-- (?P<kind>results|status):end -->[ \t]*$", re.MULTILINE)
FIRST = "first"
OVERVIEW = "claims"  # the figure of all first claims
COLUMNS = ("claim", "statement", "verdict", "effect", "needs", "units", "time", "deviations")


def markdown_table(results: Path | None = None, slugs: Sequence[str] = (), first: bool = False) -> str:
    """A Markdown table of the records in ``results``, of all papers or of some, or of first claims only; all verdicts look
    alike.

    Raises:
        UsageError: if a paper is named that has no record.
        PolicydistError: if a record is damaged.
    """
    folder = results or record.results_dir()
    records = [record.read(file) for file in in_order(record.files(folder))]
    known = {data["claim_id"].partition(".")[0] for data in records}
    for slug in slugs:
        if slug not in known:
            raise UsageError(f"no record of {slug} in {folder}; run policydist claim {slug} first")
    rows = [data for data in records if not slugs or data["claim_id"].partition(".")[0] in slugs]
    rows = [data for data in rows if not first or is_first(data["claim_id"])]
    if not rows:
        return "No claim has been recorded yet."
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|---|--:|--:|--:|", *(_row(data) for data in rows)]
    if slugs:
        return "\n".join(lines)
    return "\n".join([*lines, "", *_footnotes(folder, len(records))])


def is_first(claim: str) -> bool:
    """Whether a claim is its paper's first one, which decides the badge."""
    return claim.endswith(".C1")


def _row(data: Record) -> str:
    effect = data["effect"]
    value = words.number(effect["estimate"]) + (f" {words.interval(effect['ci'])}" if effect["ci"] else "")
    statement = data["statement"] + (f" ({data['reason']})" if data["reason"] else "")
    trial = "" if data["design"]["full_design"] else " (trial run)"
    cells = (
        data["claim_id"], statement, data["verdict"].replace("_", " ") + trial, value,
        words.threshold(data["threshold"]),
        data["design"]["n_units"], words.seconds(data["time"]["wall_s"]), len(data["deviations"]),
    )  # fmt: skip
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: Any) -> str:
    """Text that cannot end the cell or start markup."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", " ".join(str(value).split())).replace("<", "&lt;")


def _footnotes(folder: Path, count: int) -> list[str]:
    seen = record.overview(folder)
    survivors = ", ".join(seen["false_discovery_list"]) or "none"
    return [
        f"{words.plural(count, 'claim')}. A paper's first claim (C1) decides its badge. If no first claim were true, "
        f"{words.number(seen['expected_false_greens'])} of them would be expected to come out as reproduced by chance. "
        f"First claims that survive at a false-discovery rate of 10 % (Benjamini–Hochberg; only claims of an effect "
        f"beyond a bound have a p-value): {survivors}."
    ]


def status() -> str:
    """How many papers the catalogue holds and which are implemented, in a sentence and a table of families."""
    papers = catalog.papers()
    done = [paper for paper in papers if catalog.implemented(paper.slug)]
    rest = len(papers) - len(done)
    others = f" The other {rest} are listed, described and not there yet." if rest else ""
    lines = [
        f"The catalogue holds {words.plural(len(papers), 'paper')}; **{len(done)} of them are implemented**.{others}",
        "", "| family | papers | implemented |", "|---|--:|---|",
    ]  # fmt: skip
    for family in catalog.FAMILIES:
        slugs = [f"`{paper.slug}`" for paper in done if paper.family == family]
        named = f"{len(slugs)}: {', '.join(slugs)}" if slugs else words.NOTHING
        if count := sum(paper.family == family for paper in papers):
            lines.append(f"| {family} | {count} | {named} |")
    return "\n".join(lines)


def fill(text: str, where: str, results: Path | None = None) -> str:
    """The text with every marked block made anew.

    Raises:
        UsageError: naming ``where``, if a block has no end or no start.
    """
    parts, place = [], 0
    while start := START.search(text, place):
        end = END.search(text, start.end())
        following = START.search(text, start.end())
        kind = start["kind"]
        if end is None or end["kind"] != kind or (following and following.start() < end.start()):
            raise UsageError(f"{where}: a {kind}:start has no {kind}:end")
        named = start["slugs"].split()
        first = named == [FIRST]
        table = status() if kind == "status" else markdown_table(results, [] if first else named, first)
        parts.append(f"{text[place : start.end()]}\n\n{table}\n\n{end.group()}")
        place = end.end()
    rest = text[place:]
    if lone := END.search(rest):
        raise UsageError(f"{where}: a {lone['kind']}:end has no {lone['kind']}:start")
    return "".join(parts) + rest


def refresh(root: Path, results: Path, check: bool = False) -> list[str]:
    """Bring README, docs pages and figures up to date; returns what was stale. With ``check`` nothing is written.

    Raises:
        UsageError: before anything is written, if a page's marks do not match or name an unknown paper.
    """
    pages = [page for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if page.is_file()]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    changed = {page: new for page, old in texts.items() if (new := fill(old, str(page), results)) != old}
    if not check:
        for page, text in changed.items():
            write_whole(page, text)
    stale = [f"{page.relative_to(root)}: a table differs from the records" for page in changed]
    return stale + _refresh_figures(root / "docs" / "figures", results, check)


def _refresh_figures(folder: Path, results: Path, check: bool) -> list[str]:
    files = {file.stem: file for file in in_order(record.files(results))}
    digests = {name: record.file_digest(file) for name, file in files.items()}
    if firsts := [digest for name, digest in digests.items() if is_first(name)]:
        digests[OVERVIEW] = hashlib.sha256("".join(firsts).encode()).hexdigest()
    stale = []
    for name, digest in digests.items():
        figure = folder / f"{name}.png"
        if figure_source(figure) != digest:
            stale.append(f"docs/figures/{name}.png: not of the present record")
            if not check:
                claim_figures.forest(_effects(name, files), figure, digest)
    for figure in sorted({*folder.glob("*.C*.png"), *folder.glob(f"{OVERVIEW}.png")}):
        if figure.stem not in digests:
            stale.append(f"docs/figures/{figure.name}: there is no such record")
            if not check:
                figure.unlink()
    return stale


def _effects(name: str, files: Mapping[str, Path]) -> list[claim_figures.Effect]:
    if name == OVERVIEW:
        return [claim_figures.headline(record.read(file)) for claim, file in files.items() if is_first(claim)]
    return claim_figures.effects(record.read(files[name]))


def figure_source(figure: Path) -> str | None:
    """The digest of the record that a figure was drawn from; None if there is no such figure."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(figure) as image:
            return str(image.info.get("Source"))
    except (FileNotFoundError, UnidentifiedImageError):
        return None
