"""Tables and figures of README and docs, and the script that keeps them up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reportdata import claim_record, results_folder

from policydist import catalog
from policydist.errors import UsageError
from policydist.report import markdown

SCRIPT = Path(__file__).parents[2] / "scripts" / "render_results.py"
MARKS = "# Title\n\n<!-- results:start{} -->\nold\n<!-- results:end -->\n\nrest\n"


@pytest.fixture
def root(tmp_path):
    verdicts = {"toy.C1": "reproduced", "toy.C2": "contradicted", "other.C1": "null"}
    for name, verdict in verdicts.items():
        data = claim_record(name, verdict)
        results_folder(tmp_path / "results", data | {"rules": data["rules"][:1]})
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    (tmp_path / "README.md").write_text(MARKS.format(""))
    (tmp_path / "docs" / "methods" / "toy.md").write_text(MARKS.format(" toy"))
    (tmp_path / "docs" / "plain.md").write_text("nothing here\n")
    return tmp_path


def test_table_is_that_of_the_records(root):
    text = markdown.markdown_table(root / "results")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| claim | statement | verdict | effect | needs | units | time | deviations |"
    assert rows[1].startswith("| other.C1 | The method beats the baseline. (why) | null | 0.3 ")
    assert (
        rows[2]
        == "| toy.C1 | The method beats the baseline. | reproduced | 0.3 \\[0.25, 0.35\\] | > 0.2 | 6 | 41 s | 1 |"
    )
    assert [row.split(" | ")[2] for row in rows[1:]] == ["null", "reproduced", "contradicted"]
    assert "0.05 of them" in text  # two first claims at 2.5 %
    assert markdown.markdown_table(root / "results", ["toy"]).count("\n| ") == 2
    first = markdown.fill(MARKS.format(" first"), "page", root / "results")
    assert "| other.C1 |" in first
    assert "| toy.C1 |" in first
    assert "| toy.C2 |" not in first
    assert "3 claims." in first
    with pytest.raises(UsageError, match="no record of absent"):
        markdown.markdown_table(root / "results", ["absent"])


def test_cells_cannot_break_out(root):
    results_folder(root / "results", claim_record("toy.C1", statement="a | b\n<img src=x> *c*"))
    text = markdown.markdown_table(root / "results")
    assert "| a \\| b &lt;img src=x> \\*c\\* |" in text


def test_trial_runs_are_told_apart(root):
    data = claim_record("toy.C1")
    data["design"]["full_design"] = False
    results_folder(root / "results", data)
    assert "| reproduced (trial run) |" in markdown.markdown_table(root / "results")


def test_refresh_and_check(root):
    before = (root / "README.md").read_text()
    stale = markdown.refresh(root, root / "results", check=True)
    assert len(stale) == 2 + 4
    assert (root / "README.md").read_text() == before
    assert not (root / "docs" / "figures").exists()

    assert markdown.refresh(root, root / "results") == stale
    readme, page = (root / "README.md").read_text(), (root / "docs" / "methods" / "toy.md").read_text()
    assert "old" not in readme
    assert readme.startswith("# Title\n\n<!-- results:start -->\n\n| claim |")
    assert readme.endswith("<!-- results:end -->\n\nrest\n")
    assert "other.C1" in readme
    assert "other.C1" not in page
    figures = {file.name for file in (root / "docs" / "figures").iterdir()}
    assert figures == {"toy.C1.png", "toy.C2.png", "other.C1.png", "claims.png"}
    assert markdown.refresh(root, root / "results", check=True) == []


def test_a_changed_or_removed_record_is_noticed(root):
    markdown.refresh(root, root / "results")
    results_folder(root / "results", claim_record("toy.C2", "direction_only"))
    (root / "results" / "other.C1.json").unlink()
    stale = markdown.refresh(root, root / "results")
    assert [line.partition(":")[0] for line in stale] == [
        "README.md", "docs/methods/toy.md", "docs/figures/toy.C2.png", "docs/figures/claims.png",
        "docs/figures/other.C1.png",
    ]  # fmt: skip
    assert not (root / "docs" / "figures" / "other.C1.png").exists()
    assert markdown.refresh(root, root / "results", check=True) == []


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results:start -->\n",
        "<!-- results:end -->\n",
        "<!-- results:start -->\n<!-- results:start -->\n<!-- results:end -->\n",
        "<!-- results:start -->\n<!-- results:end -->\n<!-- results:end -->\n",
        "<!-- results:start -->\n<!-- status:end -->\n",
        "<!-- status:end -->\n",
    ],
)
def test_unmatched_marks_are_named_and_nothing_is_written(root, text):
    (root / "docs" / "plain.md").write_text(text)
    before = (root / "README.md").read_text()
    with pytest.raises(UsageError, match=r"plain\.md"):
        markdown.refresh(root, root / "results")
    assert (root / "README.md").read_text() == before


def test_implemented_papers_are_counted(root, monkeypatch):
    (root / "README.md").write_text(f"{MARKS.format('')}<!-- status:start -->\nfive\n<!-- status:end -->\n")
    monkeypatch.setattr(catalog, "implemented", lambda slug: slug in ("bnpo", "r3d", "dcpo"))
    markdown.refresh(root, root / "results")
    text = (root / "README.md").read_text()
    assert "five" not in text
    assert "holds 51 papers; **3 of them are implemented**. The other 48 are" in text
    assert "| language | 24 | 2: `bnpo`, `dcpo` |\n" in text
    assert "| estimation | 5 | 1: `r3d` |\n" in text
    assert "| control | 10 | – |\n" in text
    assert "generative" not in text  # no paper of the catalogue
    monkeypatch.setattr(catalog, "implemented", lambda slug: True)
    assert markdown.refresh(root, root / "results", check=True) == ["README.md: a table differs from the records"]
    assert "51 of them are implemented**.\n" in markdown.status()


def test_without_records(tmp_path):
    (tmp_path / "README.md").write_text(MARKS.format(""))
    markdown.refresh(tmp_path, tmp_path / "results")
    assert "No claim has been recorded yet." in (tmp_path / "README.md").read_text()
    assert markdown.refresh(tmp_path, tmp_path / "results", check=True) == []


def test_script_exit_codes(tmp_path):
    (tmp_path / "README.md").write_text(MARKS.format(""))

    def script(*words: str) -> int:
        return subprocess.run(
            [sys.executable, str(SCRIPT), "--root", str(tmp_path), *words], capture_output=True
        ).returncode

    assert script("--check") == 1
    assert script() == 0
    assert "No claim" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("<!-- results:end -->\n")
    assert script() == 2
