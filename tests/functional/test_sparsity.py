"""Sparsity, rank and overlap: the identities of bfloat16 updates, and the nulls."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import sparsity
from policydist.functional.sparsity import (
    changed,
    count_changes,
    difference_rank,
    layer_of,
    magnitude_matched_random_mask,
    overlap,
    quantile_bins,
    random_mask_like,
    round_bf16,
    subnetwork_mask,
    temporal_split,
    update_rank,
    update_sparsity,
)


def weights(seed: int = 0, scale: float = 0.05) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.w": (24, 16), "layers.0.b": (16,), "layers.1.w": (16, 40), "norm.weight": (16, 2)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(start: dict[str, Tensor], seed: int, share: float = 0.3, size: float = 0.01) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return {
        name: x + size * torch.randn(x.shape, generator=generator) * (torch.rand(x.shape, generator=generator) < share)
        for name, x in start.items()
    }


@given(st.integers(0, 1000), st.floats(-30, 2), st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 0.3]))
@settings(max_examples=40, deadline=None)
def test_counting_on_bits_is_comparing_values(seed: int, exponent: float, tol: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, generator=generator) * 10**exponent
    y = x * (1 + 0.02 * torch.randn(500, generator=generator))
    x[:4], y[:4] = torch.tensor([0.0, -0.0, 1.0, math.inf]), torch.tensor([-0.0, 0.0, math.nan, math.inf])
    x, y = torch.cat([x, x[:50]]), torch.cat([y, -y[:50]])
    keep = torch.isfinite(x)
    assert count_changes(x[keep], y[keep], (tol,)) == [int(changed(x[keep], y[keep], "bf16", tol).sum())]
    assert count_changes(x[keep], y[keep], (tol,), "fp32") == [int(changed(x[keep], y[keep], "fp32", tol).sum())]


def by_definition(x: Tensor, y: Tensor, tol: float) -> int:
    """Entry by entry in Python's floats; a bit pattern that did not change is no change."""
    pairs = zip(x.bfloat16().flatten(), y.bfloat16().flatten(), strict=True)
    return sum(
        int(a.view(torch.int16)) != int(b.view(torch.int16)) and not abs(float(a) - float(b)) <= tol for a, b in pairs
    )


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (7, 9), (2, 3, 5)])
@pytest.mark.parametrize("kinds", [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float16")])
def test_counts_are_the_definition_at_every_shape_and_type(
    shape: tuple[int, ...], kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsity, "_PIECE", 16)
    generator = torch.Generator().manual_seed(3)
    x = 0.004 * torch.randn(shape, generator=generator)
    y = x + 1e-5 * torch.randn(shape, generator=generator)
    if x.numel() > 8:
        nan, inf = math.nan, math.inf
        x.view(-1)[:8] = torch.tensor([nan, inf, -inf, nan, 1.0, inf, 0.0, 3e38])
        y.view(-1)[:8] = torch.tensor([nan, inf, inf, 1.0, nan, 1.0, -0.0, -3e38])
    old, new = x.to(getattr(torch, kinds[0])), y.to(getattr(torch, kinds[1]))
    tolerances = (0.0, 1e-6, 1e-5, 1.0)
    assert count_changes(old, new, tolerances) == [by_definition(old, new, tol) for tol in tolerances]
    if x.dim() == 2:
        assert count_changes(old.T, new.T, tolerances) == count_changes(old, new, tolerances)


def test_every_bfloat16_against_its_neighbours() -> None:
    codes = torch.arange(-(2**15), 2**15).to(torch.int16)
    values = codes.view(torch.bfloat16)
    finite = torch.isfinite(values)
    for step in (0, 1, 2, 5):
        others = (codes + step).view(torch.bfloat16)
        x, y = values[finite & torch.isfinite(others)], others[finite & torch.isfinite(others)]
        tolerances = (0.0, 2.0**-17, 1e-5, 1e-2)
        assert count_changes(x, y, tolerances) == [int(changed(x, y, "bf16", tol).sum()) for tol in tolerances]


def test_sparsity_is_one_at_home_symmetric_and_grows_with_the_tolerance() -> None:
    start = weights()
    after = moved(start, 1)
    assert update_sparsity(start, start).total == 1
    levels = [update_sparsity(start, after, tol=tol).total for tol in (0.0, 1e-5, 1e-3, 1e-2, 1.0)]
    assert levels == sorted(levels)
    assert levels[-1] == 1
    assert update_sparsity(after, start).total == update_sparsity(start, after).total


def test_small_steps_vanish_in_bfloat16_and_the_visible_step_grows_with_the_weight() -> None:
    assert float(round_bf16(torch.tensor(0.5 + 0.001))) == 0.5
    assert float(round_bf16(torch.tensor(0.5 + 0.003))) > 0.5
    assert float(round_bf16(torch.tensor(0.0625 + 0.001))) > 0.0625
    tie = 1 + 2.0**-8  # halfway between 1 and 1 + 2^-7: to even
    assert float(round_bf16(torch.tensor(tie))) == 1.0
    assert float(round_bf16(torch.tensor(1 + 3 * 2.0**-8))) == 1 + 2 * 2.0**-7
    one = {"w": torch.full((10, 10), 0.5)}
    assert update_sparsity(one, {"w": one["w"] + 0.0005}).total == 1
    assert update_sparsity(one, {"w": one["w"] + 0.0005}, "fp32").total == 0


def test_the_tolerance_differs_from_exact_equality_below_two_to_the_minus_nine_only() -> None:
    codes = torch.arange(0, 0x4000, dtype=torch.int16)
    values, neighbours = codes.view(torch.bfloat16), (codes + 1).view(torch.bfloat16)
    excused = ~changed(values, neighbours) & (values != neighbours)
    assert bool(excused.any())
    assert float(values[excused].float().max()) < 2.0**-9
    below = (values.float() < 2.0**-9) & (values != neighbours)
    assert bool(excused[below].all())


def test_densities_add_up_and_layers_are_means_over_matrices() -> None:
    start = weights()
    after = moved(start, 1)
    found = update_sparsity(start, after)
    size = sum(x.numel() for x in start.values())
    total = sum(entry.size * entry.density for entry in found.per_param.values())
    assert total == pytest.approx(size * (1 - found.exact))
    assert found.per_layer["layers.0"] == found.per_param["layers.0.w"].density  # the bias is no matrix
    assert 0.2 < found.per_layer["layers.1"] < 0.35  # a density, not a sparsity
    assert layer_of("model.layers.11.mlp.up.weight") == "model.layers.11"
    assert layer_of("lm_head.weight") == "lm_head"


def test_other_shapes_and_names_are_left_out_and_reported() -> None:
    start = weights()
    after = moved(start, 1) | {"layers.1.w": torch.zeros(16, 41), "new": torch.zeros(2)}
    del after["norm.weight"]
    found = update_sparsity(start, after)
    assert found.skipped.keys() == {"layers.1.w", "new", "norm.weight"}
    assert "[16, 40] against [16, 41]" in found.skipped["layers.1.w"]
    with pytest.raises(UsageError, match="in common"):
        update_sparsity({"a": torch.zeros(2)}, {"b": torch.zeros(2)})
    with pytest.raises(UsageError, match="precision"):
        changed(torch.zeros(1), torch.zeros(1), "bf8")  # type: ignore[arg-type]


def test_rank_counts_independent_directions() -> None:
    start = {"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(0))}
    one = start["w"].clone()
    one[3, 4] += 1
    assert difference_rank(start["w"], one) == 1
    diagonal = start["w"].clone()
    diagonal[range(7), range(7)] += 1
    assert difference_rank(start["w"], diagonal) == 7
    assert update_rank(start, {"w": diagonal}).mean_ratio == pytest.approx(7 / 20)
    with pytest.raises(UsageError, match="no matrix"):
        update_rank({"input_layernorm": torch.ones(4, 4)}, {"input_layernorm": torch.zeros(4, 4)})


def test_overlap_of_equal_and_of_random_masks() -> None:
    start = weights()
    mask = subnetwork_mask(start, moved(start, 1))
    same = overlap(mask, mask)
    assert same.o1 == same.o2 == 1
    other = subnetwork_mask(start, moved(start, 2, share=0.6))
    both = overlap(mask, other)
    flat = [torch.cat([m.flatten() for m in masks.values()]) for masks in (mask, other)]
    assert both.o1 * int(flat[0].sum()) == pytest.approx(int((flat[0] & flat[1]).sum()))
    assert both.o2 * int(flat[1].sum()) == pytest.approx(int((flat[0] & flat[1]).sum()))
    assert both.chance1 == pytest.approx(flat[1].float().mean())
    generator = torch.Generator().manual_seed(5)
    drawn = random_mask_like(mask, generator)
    assert sum(int(m.sum()) for m in drawn.values()) == int(flat[0].sum())
    by_chance = overlap(drawn, other)
    error = math.sqrt(by_chance.chance1 * (1 - by_chance.chance1) / int(flat[0].sum()))
    assert abs(by_chance.o1 - by_chance.chance1) < 3 * error
    with pytest.raises(UsageError, match="nothing changed"):
        overlap(mask, {name: torch.zeros_like(m) for name, m in mask.items()})
    with pytest.raises(UsageError, match="differ in"):
        overlap(mask, {})


def test_the_matched_null_explains_an_overlap_that_is_only_magnitude() -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(100, 400, generator=generator)}
    chance = (1.5 - start["w"].abs()).clamp(0, 1)  # small weights change more easily
    first, second = ({"w": torch.rand(100, 400, generator=generator) < chance} for _ in range(2))
    found = overlap(first, second, start)
    assert found.o1 > found.chance1 + 0.15
    assert abs(found.o1 - found.matched1) < 0.02
    drawn = magnitude_matched_random_mask(first, start, generator)
    assert overlap(drawn, second, start).o1 == pytest.approx(found.matched1, abs=0.02)
    uniform = overlap(random_mask_like(first, generator), second, start)
    assert uniform.o1 == pytest.approx(found.chance1, abs=0.02)


def test_quantile_bins_hold_equally_many() -> None:
    codes = torch.randint(0, 1000, (50_000,), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(codes, minlength=sparsity.MAGNITUDES)
    held = torch.bincount(quantile_bins(counts, 20)[codes], minlength=20)
    assert int(held.min()) > 2300
    assert int(held.max()) < 2700


def test_weights_that_moved_and_came_back_are_counted_apart() -> None:
    at = [{"w": torch.tensor(row)} for row in ([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 1.0], [1.0, 1.0, 3.0, 4.0])]
    assert temporal_split(at) == {"never": 0.25, "cancelled": 0.25, "updated": 0.5}
