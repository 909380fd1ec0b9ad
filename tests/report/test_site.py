"""The static report: what is on its pages, and what it may and may not overwrite."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from reportdata import claim_record, comparison, results_folder, run_folder

from policydist.claims import record
from policydist.errors import PolicydistError, UsageError
from policydist.report import site
from policydist.report.words import cited

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced, collects links and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    verdicts = ("reproduced", "contradicted", "direction_only")
    records = [claim_record(f"toy.C{n}", verdict) for n, verdict in zip((1, 2, 10), verdicts, strict=True)]
    records[0] |= {
        "statement": f"It wins {HOSTILE}",
        "cannot_show": HOSTILE,
        "deviations": [{"what": HOSTILE, "why": "&"}],
    }
    kept = [row for row in records[0]["raw"] if (row["metric"], row["stratum"]) != ("cost", "hard")]
    records[0]["raw"] = kept
    for data in records[1:]:  # one claim with all figures is enough
        data["raw"] = [row | {"value": None} for row in data["raw"]]
    results_folder(root / "results", *records)
    comparison(root / "runs" / "my comparison", task=HOSTILE)
    run_folder(root / "runs" / "grpo-1", note=HOSTILE)
    run_folder(root / "runs" / "damaged").joinpath("metrics.jsonl").write_text("{\n{}\n")
    site.write(root / "out", root / "runs", root / "results")
    return root


def pages(root: Path) -> dict[str, Page]:
    return {str(path.relative_to(root)): Page(path) for path in sorted(root.rglob("*.html"))}


def test_pages_are_balanced_and_links_lead_somewhere(report):
    found = pages(report / "out")
    assert set(found) == {
        "index.html", "claims/toy.C1.html", "claims/toy.C2.html", "claims/toy.C10.html",
        "comparisons/my comparison.html", "runs/grpo-1.html",
    }  # fmt: skip
    for name, page in found.items():
        for link in page.links:
            if not link.startswith("https://arxiv.org/"):
                assert ((report / "out" / name).parent / unquote(link)).is_file(), link


def test_untrusted_text_is_escaped_everywhere(report):
    for path in (report / "out").rglob("*.html"):
        assert "<script" not in path.read_text()
    assert HOSTILE in pages(report / "out")["claims/toy.C1.html"].text


def test_all_verdicts_stand_in_one_table_alike(report):
    text = (report / "out" / "index.html").read_text()
    rows = re.findall(r'<td><span class="verdict (\w+)">', text)
    assert rows == ["reproduced", "contradicted", "direction_only"]  # C2 before C10
    assert "0.025" in text
    assert "survives at a false-discovery rate of 10 %" in text
    assert "damaged" in text
    assert "not JSON" in text


def test_claim_page_says_what_the_record_says(report):
    text = pages(report / "out")["claims/toy.C2.html"].text
    for words in (
        "The method beats the baseline.", "contradicted", "0.3 [0.25, 0.35]", "> 0.2", "within [−0.1, 0.1]", "why",
        "the broken arm loses", "anything about the world", "scaled down", "torch 2.13.0", "gain = 2", "thin ice",
        "not separated", "counts towards: most", "at least 1 of its rules",
    ):  # fmt: skip
        assert words in " ".join(text.split()), words
    assert "lr = 1" not in text  # all arms share it
    copied = json.loads((report / "out" / "claims" / "toy.C2.json").read_text())
    assert record.check(copied, "copy")["verdict"] == "contradicted"


def test_figures_are_there_for_every_metric(report):
    files = {file.name for file in (report / "out" / "claims" / "toy.C1").iterdir()}
    assert files == {"effects.png", "units-1.png", "units-2.png", "scores-1.png", "scores-2.png", "times.png"}


@pytest.fixture
def small(tmp_path):
    run_folder(tmp_path / "runs" / "one").joinpath("metrics.jsonl").unlink()  # quick: nothing to draw
    (tmp_path / "results").mkdir()
    return tmp_path


def test_an_earlier_report_is_replaced_whole(small):
    page = site.write(small / "out", small / "runs", small / "results")
    assert "No step is finished yet" in (small / "out/runs/one.html").read_text()
    (small / "runs" / "one").rename(small / "runs" / "two")
    assert site.write(small / "out", small / "runs", small / "results") == page
    assert [file.name for file in (small / "out" / "runs").iterdir()] == ["two.html"]
    assert sorted(file.name for file in small.iterdir()) == ["out", "results", "runs"]


def test_claims_drawn_on_all_cores_give_the_same_report(small, monkeypatch):
    records = [claim_record(f"toy.C{n}", "reproduced") for n in (1, 2, 10)]
    for data in records:
        data["raw"] = [row | {"value": None} for row in data["raw"]]
    results_folder(small / "results", *records)
    told = []
    site.write(small / "here", small / "runs", small / "results", lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(site, "FEW", 2)
    site.write(small / "there", small / "runs", small / "results", lambda *done: told.append(done))
    assert told[3:] == told[:3]
    here, there = (
        {str(path.relative_to(small / out)): path.read_bytes() for path in (small / out).rglob("*") if path.is_file()}
        for out in ("here", "there")
    )
    assert here == there


@pytest.mark.parametrize("place", ["out/mine.txt", "out/runs/mine.txt"])
@pytest.mark.parametrize("reported", [False, True])
def test_foreign_files_are_never_removed(small, place, reported):
    if reported:
        site.write(small / "out", small / "runs", small / "results")
    (small / place).parent.mkdir(parents=True, exist_ok=True)
    (small / place).write_text("precious")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        site.write(small / "out", small / "runs", small / "results")
    assert (small / place).read_text() == "precious"


def test_a_file_in_the_way_is_refused(small):
    (small / "out").write_text("precious")
    with pytest.raises(UsageError, match="is a file"):
        site.write(small / "out", small / "runs", small / "results")
    assert (small / "out").read_text() == "precious"


def test_a_failure_leaves_the_old_report(small):
    site.write(small / "out", small / "runs", small / "results")
    before = (small / "out" / "index.html").read_text()
    (small / "results" / "toy.C1.json").write_text("{")
    with pytest.raises(PolicydistError, match=r"toy\.C1\.json"):
        site.write(small / "out", small / "runs", small / "results")
    assert (small / "out" / "index.html").read_text() == before
    assert sorted(file.name for file in small.iterdir()) == ["out", "results", "runs"]


def test_a_record_cannot_write_outside_the_report(small):
    (small / "results" / "toy.C1.json").write_text(json.dumps(claim_record("../../toy.C1")))
    with pytest.raises(PolicydistError, match="bears its claim's name"):
        site.write(small / "out", small / "runs", small / "results")


def test_requests_that_make_no_sense(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="nothing to report"):
        site.write(tmp_path / "out", tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(UsageError, match=r"--runs .* is not a folder"):
        site.write(tmp_path / "out", tmp_path / "absent", tmp_path / "empty")
    with pytest.raises(UsageError, match=r"--results .* is not a folder"):
        site.write(tmp_path / "out", tmp_path / "empty", tmp_path / "absent")
    assert not (tmp_path / "out").exists()


def test_references_to_the_specification_read_as_such() -> None:
    assert cited("variance theorem (sheet 3.7, E1)") == "variance theorem"
    assert cited("the sheet's settings (E1)") == "the specification's settings (E1)"
    assert cited("sheet") == "specification"
    assert cited("a worksheet (sheets)") == "a worksheet (sheets)"
