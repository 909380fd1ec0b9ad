"""Look-up over ``papers.json``. Standard library only, because every command of the program starts here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from policydist.errors import UsageError, nearest

_PACKAGE = Path(__file__).parents[1]

FAMILIES = ("language", "agents", "control", "robotics", "estimation", "generative")
"""The rooms of the package where a method may live: ``policydist/<family>/methods/<slug>.py``."""


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper. The texts are the library's own wording, not the paper's.

    Attributes:
        slug: the one name that the paper has in module, claim, test and page names.
        title: the title of the latest known version.
        arxiv: arXiv identifier, ``YYMM.NNNNN``, without version.
        year: year of the first arXiv version.
        family: one of ``FAMILIES``.
        official_code: ``owner/name`` of the repository that the authors publish or announce; None if there is none.
        summary: one sentence on what the paper adds.
        headline: the headline result as reported, with numbers; None where no number could be obtained.
        headline_source: where the numbers stand, or why there are none.
        keywords: three to six search terms.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    family: str
    official_code: str | None
    summary: str
    headline: str | None
    headline_source: str
    keywords: tuple[str, ...]


@cache
def papers() -> tuple[Paper, ...]:
    """Every paper, ordered by slug."""
    entries = json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
    return tuple(Paper(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in entries)


@cache
def _by_slug() -> dict[str, Paper]:
    return {paper.slug: paper for paper in papers()}


def get(slug: str) -> Paper:
    """The paper with this slug.

    Raises:
        UsageError: no paper has this slug; the text offers the nearest ones.
    """
    known = _by_slug()
    if slug not in known:
        raise UsageError(f"no paper is called {slug!r}: {nearest(slug, known)}")
    return known[slug]


def search(words: str, family: str | None = None) -> list[Paper]:
    """The papers in which every one of the space-separated ``words`` occurs, regardless of case.

    Slug, title, keywords and summary are searched, in this order of weight: a paper ranks by the places where its
    words are first found, summed over the words; ties are in slug order. No words match every paper.

    Raises:
        UsageError: ``family`` is not one of ``FAMILIES``.
    """
    if family is not None and family not in FAMILIES:
        raise UsageError(f"no family is called {family!r}: {nearest(family, FAMILIES)}")
    wanted = words.casefold().split()
    ranked = []
    for paper in papers():
        places = [_place(paper, word) for word in wanted]
        found = [place for place in places if place is not None]
        if len(found) == len(wanted) and family in (None, paper.family):
            ranked.append((sum(found), paper.slug, paper))
    return [paper for _, _, paper in sorted(ranked, key=lambda entry: entry[:2])]


def _place(paper: Paper, word: str) -> int | None:
    """Index of the first searched field that contains ``word``; None if none does."""
    fields = (paper.slug, paper.title, "\n".join(paper.keywords), paper.summary)
    return next((index for index, text in enumerate(fields) if word in text.casefold()), None)


def implemented(slug: str) -> bool:
    """Whether the package holds both the paper's method module, in its family's room, and its claim.

    Decided from the files alone, so that listing the catalogue imports no method.

    Raises:
        UsageError: no paper has this slug.
    """
    paper = get(slug)
    method = _PACKAGE / paper.family / "methods" / f"{slug}.py"
    return method.is_file() and (_PACKAGE / "claims" / f"{slug}.py").is_file()
