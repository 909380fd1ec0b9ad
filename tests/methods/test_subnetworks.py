"""Confined training: bit for bit where the mask allows, still where it does not; sparsity logged over steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import policydist
from policydist.errors import UsageError
from policydist.functional.sparsity import subnetwork_mask, update_sparsity
from policydist.language import methods
from policydist.language.methods.subnetworks import Config, SparsityLog, confine, extended, read_masks
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.worlds.mlp import StoredNetwork

CONFIG = TrainConfig(steps=6, lr=2e-4, weight_decay=0.1, grad_clip=0.5, seed=1)


@pytest.fixture(scope="module")
def world() -> StoredNetwork:
    return StoredNetwork.draw(3, contexts=60, hidden=12, actions=6, dim=8, pretraining=15)


def trained(world: StoredNetwork, config: TrainConfig = CONFIG, **parts: Any) -> tuple[dict[str, Tensor], list[Any]]:
    own = world.fresh()
    method = methods.load("grpo")
    recipe = extended(method.build(method.Config(), own.setting("reward", 8, 4)), **parts)
    rows = Trainer(own.policy, recipe, config).train()
    return own.weights(), rows


def filled(world: StoredNetwork, value: bool) -> dict[str, Tensor]:
    return {name: torch.full(x.shape, value) for name, x in world.weights().items()}


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_full_and_empty_masks_even_under_weight_decay(world: StoredNetwork, optimiser: Any) -> None:
    config = replace(CONFIG, optimiser=optimiser)
    free, _ = trained(world, config)
    everything, _ = trained(world, config, masks=filled(world, True))
    nothing, _ = trained(world, config, masks=filled(world, False))
    for name, start in world.weights().items():
        assert torch.equal(everything[name], free[name])
        assert torch.equal(nothing[name], start)
        assert not torch.equal(free[name], start)


def note(seen: Tensor, grad: Tensor) -> None:
    seen.logical_or_(grad != 0)


def test_a_mask_of_all_that_ever_gets_a_gradient_changes_no_bit(world: StoredNetwork) -> None:
    own = world.fresh()
    with torch.no_grad():  # a dead hidden unit: its outgoing weights get gradient zero, whatever the data
        own.policy.core.first.weight[0] = 0
        own.policy.core.first.bias[0] = 0
        own.policy.core.second.weight[:, 0] = 0
    ever = {name: torch.zeros(x.shape, dtype=torch.bool) for name, x in own.weights().items()}
    config = replace(CONFIG, weight_decay=0.0)
    twin = own.fresh()
    for name, parameter in twin.policy.module.named_parameters():
        parameter.register_hook(partial(note, ever[name]))
    method = methods.load("grpo")
    Trainer(twin.policy, method.build(method.Config(), twin.setting("reward", 8, 4)), config).train()
    assert not all(bool(mask.all()) for mask in ever.values())
    masked, _ = trained(own, config, masks=ever)
    for name, value in twin.weights().items():
        assert torch.equal(masked[name], value)


def test_training_the_subnetwork_alone_moves_nothing_else(world: StoredNetwork) -> None:
    full, _ = trained(world)
    mask = subnetwork_mask(world.weights(), full)
    assert 0 < sum(int(m.sum()) for m in mask.values()) < sum(m.numel() for m in mask.values())
    alone, _ = trained(world, masks=mask)
    for name, start in world.weights().items():
        assert torch.equal(alone[name][~mask[name]], start[~mask[name]])


def test_sparsity_is_logged_and_is_that_of_the_weights(world: StoredNetwork) -> None:
    after, rows = trained(world, log=SparsityLog(3))
    logged = [row.get("subnetworks/sparsity") for row in rows]
    assert [value is None for value in logged] == [True, True, False, True, True, False]
    assert logged[-1] == pytest.approx(update_sparsity(world.weights(), after).total)
    assert logged[2] > logged[5]


def test_wrong_masks_are_refused(world: StoredNetwork, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no entry for first\.weight"):
        trained(world, masks={"other": torch.ones(2, dtype=torch.bool)})
    short = filled(world, True) | {"first.bias": torch.ones(5, dtype=torch.bool)}
    with pytest.raises(UsageError, match=r"first\.bias has shape \[5\], the weight \[12\]"):
        trained(world, masks=short)
    with pytest.raises(UsageError, match="cannot be read"):
        read_masks(tmp_path / "no.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "floats.safetensors")
    with pytest.raises(UsageError, match="not bool"):
        read_masks(tmp_path / "floats.safetensors")
    for bad, word in (
        ({"base": "subnetworks"}, "itself"),
        ({"every": -1}, "every"),
        ({"tolerance": -1.0}, "tolerance"),
    ):
        with pytest.raises(UsageError, match=word):
            Config(**bad)  # type: ignore[arg-type]


def test_names_of_the_model_inside_find_their_parameters() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    confine([("model.w", weight)], optimiser, {"w": torch.tensor([True, False, False])})
    weight.sum().backward()
    optimiser.step()
    assert weight.tolist() == [0, 1, 1]


def test_a_language_model_is_trained_inside_the_mask_of_another_run_and_resumes(tiny: Any, tmp_path: Path) -> None:
    from policydist.runs.difference import compare, write_mask

    options: dict[str, Any] = {"task": tiny.task, "model": str(tiny.model)}
    policydist.train("grpo", steps=2, out=tmp_path / "full", settings=tiny.words, **options)
    density = write_mask(tiny.model, tmp_path / "full", tmp_path / "mask.safetensors")
    words = [
        *tiny.words,
        f"knobs.mask={tmp_path / 'mask.safetensors'}",
        "train.weight_decay=0.1",
        "settings=[clip_high=0.3]",
    ]
    out = policydist.train("subnetworks", steps=2, out=tmp_path / "alone", settings=words, **options)
    left = compare(tiny.model, tmp_path / "alone", precision="fp32", tolerances=(0.0,)).at[0.0]
    assert left >= 1 - density > 0
    assert "subnetworks/sparsity" in out.final
