"""What a record says of the source tree that it was made with."""

import subprocess

import pytest

from policydist.runs.environment import git_state


@pytest.fixture
def tree(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init")
    for name in ("src/code.py", "results/one.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "first")
    return tmp_path


def test_a_tree_is_dirty_by_its_code_and_not_by_a_record_just_written(tree):
    commit, dirty = git_state(tree / "src")
    assert len(commit) == 40
    assert not dirty
    (tree / "results" / "one.json").write_text("2")
    assert git_state(tree / "src") == (commit, False)
    (tree / "src" / "code.py").write_text("2")
    assert git_state(tree / "src") == (commit, True)


def test_outside_git_nothing_is_known(tmp_path):
    assert git_state(tmp_path) == (None, False)
