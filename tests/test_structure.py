"""The house: floors, one slug everywhere, short modules, a light import, nothing evaluated."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from policydist import catalog

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "policydist"
MODULES = sorted(SOURCE.rglob("*.py"))
IMPLEMENTED = [paper.slug for paper in catalog.papers() if catalog.implemented(paper.slug)]

IMPORT = "import policydist, sys; print(*(name for name in {heavy} if name in sys.modules))"
HEAVY = ("torch", "transformers", "numpy", "pandas", "sklearn", "matplotlib", "ray", "trl", "datasets", "accelerate")


@pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed")
def test_rooms_import_only_from_floors_below() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_families_do_not_import_each_other() -> None:
    families = [name for name in catalog.FAMILIES if (SOURCE / name).is_dir()]
    for path in MODULES:
        own = path.relative_to(SOURCE).parts[0]
        if own in families:
            for name in imported(path):
                other = name.removeprefix("policydist.").partition(".")[0]
                allowed = own == "agents" and other == "language"
                assert other not in families or other == own or allowed or other == "generative", (
                    f"{path} imports {name}"
                )


def imported(path: Path) -> list[str]:
    """Every module that a file imports, at its top or in a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("slug", IMPLEMENTED)
def test_a_slug_names_method_claim_test_and_page(slug: str) -> None:
    family = catalog.get(slug).family
    for path in (
        SOURCE / family / "methods" / f"{slug}.py",
        SOURCE / "claims" / f"{slug}.py",
        ROOT / "tests" / "methods" / f"test_{slug}.py",
        ROOT / "docs" / "methods" / f"{slug}.md",
    ):
        assert path.is_file(), f"{slug} has no {path.relative_to(ROOT)}"


def test_every_method_is_a_paper_or_a_baseline_and_has_a_page() -> None:
    assert {"bnpo", "aepo", "dcpo"} <= set(IMPLEMENTED)
    papers = {paper.slug for paper in catalog.papers()}
    for folder in SOURCE.glob("*/methods"):
        for path in folder.glob("*.py"):
            if path.stem in papers:
                assert path.stem in IMPLEMENTED, f"{path.stem} has a method but no claim"
                assert catalog.get(path.stem).family == folder.parent.name


def test_no_module_is_long() -> None:
    long = {str(path): lines for path in MODULES if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long


def test_no_function_is_long() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_nothing_is_evaluated_or_unpickled() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), f"{path}:{node.lineno}"
                if called == "torch.load":
                    assert any(word.arg == "weights_only" for word in node.keywords), f"{path}:{node.lineno}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(heavy=HEAVY)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
