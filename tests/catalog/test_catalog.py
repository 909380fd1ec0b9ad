"""The catalogue is complete and well formed, and look-up finds what it should and nothing else."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import policydist
from policydist import catalog
from policydist.catalog import FAMILIES, Paper, lookup
from policydist.errors import UsageError

LISTED = """
aepo affordance_flow aurora bnpo breeze brpo calibrl cdsa cosmos_policy crmarena cues dcpo dcppo did
diffuser_actor_3d diffusiondrive distribution_inference distributional_dp distributional_miplib doge drema drrpo
dump ebt_policy fdpg herl icpo integer_dists kdrl knapsack lang4sim2real maxmin_rlhf mini_diffuser opsd optdist
otr pft_study pgd policyflow prdc props r3d rexrag rlm_blueprint robopocket scope sdzero subnetworks vade
veri_hvac webrl
"""
SLUGS = set(LISTED.split())
NUMBERLESS = {  # the papers of whose results no number could be obtained
    *("bnpo", "cdsa", "dcppo", "did", "distribution_inference", "distributional_dp", "distributional_miplib"),
    *("drrpo", "fdpg", "otr", "pft_study", "pgd", "prdc"),
}


def slugs(found: list[Paper]) -> list[str]:
    return [paper.slug for paper in found]


def test_the_51_papers_are_there_once_and_in_order() -> None:
    listed = [paper.slug for paper in catalog.papers()]
    assert len(SLUGS) == 51
    assert listed == sorted(SLUGS)
    assert len({paper.arxiv for paper in catalog.papers()}) == 51
    assert len({paper.title for paper in catalog.papers()}) == 51


@pytest.mark.parametrize("paper", catalog.papers(), ids=lambda paper: paper.slug)
def test_every_field_is_well_formed(paper: Paper) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", paper.slug)
    assert re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{5}", paper.arxiv)
    assert paper.year == 2000 + int(paper.arxiv[:2])
    assert paper.family in FAMILIES
    assert paper.official_code is None or re.fullmatch(r"[\w.-]+/[\w.-]+", paper.official_code)
    assert paper.title == paper.title.strip()
    assert len(paper.title) > 10
    assert not paper.title.endswith(".")
    assert 3 <= len(paper.keywords) <= 6
    assert len({word.casefold() for word in paper.keywords}) == len(paper.keywords)
    assert all(word == word.strip() and word for word in paper.keywords)


@pytest.mark.parametrize("paper", catalog.papers(), ids=lambda paper: paper.slug)
def test_summary_and_headline_are_single_sentences(paper: Paper) -> None:
    assert 60 <= len(paper.summary) <= 240
    for sentence in filter(None, (paper.summary, paper.headline)):
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert not re.search(r"[.!?]\s", sentence)
        assert "\n" not in sentence
        assert "  " not in sentence


@pytest.mark.parametrize("paper", catalog.papers(), ids=lambda paper: paper.slug)
def test_a_headline_has_a_number_and_a_missing_one_has_a_reason(paper: Paper) -> None:
    assert paper.headline_source == paper.headline_source.strip() != ""
    if paper.slug in NUMBERLESS:
        assert paper.headline is None
        assert len(paper.headline_source) > 40
    else:
        assert paper.headline is not None
        assert re.search(r"\d", paper.headline)


def test_papers_are_immutable_and_loaded_once() -> None:
    assert catalog.papers() is catalog.papers()
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalog.get("bnpo").year = 1999  # type: ignore[misc]
    assert all(isinstance(paper.keywords, tuple) for paper in catalog.papers())


def test_get_finds_each_slug_and_offers_near_names() -> None:
    assert all(catalog.get(slug).slug == slug for slug in SLUGS)
    with pytest.raises(UsageError, match=r"'bmpo'.*did you mean .*bnpo"):
        catalog.get("bmpo")
    with pytest.raises(UsageError, match=r"known: aepo"):
        catalog.get("!!")


def test_search_wants_every_word_in_any_case() -> None:
    assert slugs(catalog.search("BETA density")) == ["bnpo"]
    assert "bnpo" in slugs(catalog.search("beta"))
    assert catalog.search("beta zebra") == []
    assert slugs(catalog.search("density BETA")) == ["bnpo"]
    both = set(slugs(catalog.search("entropy temperature")))
    assert both == {"aepo", "dcpo"}
    assert both < set(slugs(catalog.search("entropy")))


def test_search_without_words_lists_all_and_family_restricts() -> None:
    assert slugs(catalog.search("")) == sorted(SLUGS)
    agents = catalog.search("", family="agents")
    assert slugs(agents) == ["crmarena", "cues", "webrl"]
    assert slugs(catalog.search("curriculum", family="agents")) == ["webrl"]
    assert sum(len(catalog.search("", family=family)) for family in FAMILIES) == 51
    with pytest.raises(UsageError, match=r"did you mean language"):
        catalog.search("bnpo", family="langage")


def test_search_ranks_slug_before_title_before_keyword_before_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataclasses.replace(catalog.get("bnpo"), slug="x", title="x", summary="x", keywords=("x",))
    ranked = (
        dataclasses.replace(plain, slug="a", summary="holds the NEEDLE"),
        dataclasses.replace(plain, slug="b", keywords=("one", "Needle two")),
        dataclasses.replace(plain, slug="c", title="A needle"),
        dataclasses.replace(plain, slug="needle"),
        dataclasses.replace(plain, slug="d", title="Another needle", summary="needle"),
        dataclasses.replace(plain, slug="e"),
    )
    monkeypatch.setattr(lookup, "papers", lambda: ranked)
    assert slugs(catalog.search("needle")) == ["needle", "c", "d", "b", "a"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An empty package in place of the real one; the returned function puts a file into it."""
    monkeypatch.setattr(lookup, "_PACKAGE", tmp_path)

    def add(path: str) -> None:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("raise RuntimeError('must not be imported')\n")

    return add


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], False),
        (["language/methods/bnpo.py"], False),
        (["claims/bnpo.py"], False),
        (["control/methods/bnpo.py", "claims/bnpo.py"], False),
        (["language/methods/bnpo.py", "claims/aepo.py"], False),
        (["language/methods/bnpo.py", "claims/bnpo.py"], True),
    ],
)
def test_implemented_needs_method_and_claim(package: Callable[[str], None], paths: list[str], expected: bool) -> None:
    for path in paths:
        package(path)
    assert catalog.implemented("bnpo") is expected


def test_implemented_refuses_unknown_slugs() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        catalog.implemented("bnpoo")


def test_method_modules_stand_in_the_room_that_the_catalogue_names() -> None:
    root = Path(policydist.__file__).parent
    for family in FAMILIES:
        for path in root.glob(f"{family}/methods/*.py"):
            if path.stem in SLUGS:
                assert catalog.get(path.stem).family == family, f"{path.name}: change the family in papers.json"


def test_import_and_look_up_load_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import policydist.catalog as c; "
        "c.search('beta'); c.implemented('bnpo'); "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['policydist']"
