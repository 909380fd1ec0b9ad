"""Without the engine, importing its integration is one clear line."""

from __future__ import annotations

import importlib
import sys

import pytest

from policydist.errors import MissingExtraError


@pytest.mark.parametrize("engine", ["trl", "verl"])
def test_an_absent_engine_names_the_pip_command(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {name for name in sys.modules if name.split(".")[0] == engine}
    for name in absent:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"policydist.integrations.{engine}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden(engine), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=rf"policydist\[{engine}\]"):
        importlib.import_module(f"policydist.integrations.{engine}")


class Hidden:
    """An import finder for which one package does not exist."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)
