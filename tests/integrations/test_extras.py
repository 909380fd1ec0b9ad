"""Without the engine, importing its integration is one clear line."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from policydist.errors import MissingExtraError


@pytest.mark.parametrize(("module", "engine"), [("trl", "trl"), ("verl", "verl"), ("verl_trainer", "verl")])
def test_an_absent_engine_names_the_pip_command(module: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {name for name in sys.modules if name.split(".")[0] == engine}
    for name in absent:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"policydist.integrations.{module}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden(engine), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=rf"policydist\[{engine}\]"):
        importlib.import_module(f"policydist.integrations.{module}")


class Hidden:
    """An import finder for which one package does not exist."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)


ALONE = """
import sys, types, torch
heavy = {"transformers", "tokenizers", "peft", "accelerate", "datasets", "trl", "sklearn", "pandas", "matplotlib"}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
registered = {}
def register(name):
    return lambda function: registered.setdefault(name, function)
algos = types.ModuleType("verl.trainer.ppo.core_algos")
algos.register_adv_est = algos.register_policy_loss = register
package = types.ModuleType("verl.trainer.ppo")
package.core_algos = algos
sys.modules |= {"verl": types.ModuleType("verl"), "verl.trainer": types.ModuleType("verl.trainer")}
sys.modules |= {"verl.trainer.ppo": package, algos.__name__: algos}
import policydist.integrations.verl
rewards, mask = torch.tensor([[0.0], [1.0], [0.0], [0.0]]), torch.ones(4, 1)
for method in policydist.integrations.verl.ESTIMATORS:
    found, _ = registered[f"policydist_{method}"](token_level_rewards=rewards, response_mask=mask, index="aabb")
    assert bool(found.ne(0).any()) and bool(found.isfinite().all()), method
"""
"""Stand-ins for verl's two registration functions, nothing of ours replaced: in its own environment verl brings
transformers along, which would hide an import of ours."""


def test_the_verl_estimators_work_without_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
