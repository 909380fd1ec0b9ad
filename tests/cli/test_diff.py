"""``policydist diff``: what it measures on known differences, the forms of checkpoints, and every way of asking wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policydist.cli.main import main
from policydist.functional.sparsity import changed, overlap, subnetwork_mask, update_rank, update_sparsity
from policydist.runs import difference
from policydist.runs.safefiles import INDEX

Capture = pytest.CaptureFixture[str]


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.up.weight": (30, 20), "model.layers.1.up.weight": (30, 20), "model.norm.weight": (20,)}
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(seed: int = 1, share: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: x + 0.01 * (torch.rand(x.shape, generator=generator) < share) for n, x in weights().items()}


def stored(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.to(dtype) for name, x in tensors.items()}, path)
    return path


def sharded(folder: Path, tensors: dict[str, Tensor]) -> Path:
    table = {}
    for number, (name, x) in enumerate(tensors.items(), 1):
        stored(folder / f"model-{number}.safetensors", {name: x})
        table[name] = f"model-{number}.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    return folder


def asked(capsys: Capture, *words: object) -> Any:
    capsys.readouterr()
    assert main(["diff", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, *words: object) -> str:
    capsys.readouterr()
    assert main(["diff", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return stored(tmp_path / "a.safetensors", weights()), stored(tmp_path / "b.safetensors", moved())


def test_streamed_numbers_are_those_in_memory(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "PIECE", 77)
    third = moved(2, 0.5)
    other = stored(tmp_path / "c.safetensors", third)
    found = asked(capsys, *pair, "--rank", "--other", other, "--tolerances", "0", "1e-3", "1e-2")
    here = update_sparsity(weights(), moved())
    assert found["sparsity"] == here.total
    assert found["sparsity_exact"] == found["sparsity_at"]["0"] == here.exact
    assert found["sparsity_at"]["0.001"] == update_sparsity(weights(), moved(), tol=1e-3).total
    assert found["layers"] == pytest.approx(dict(here.per_layer))
    assert found["rank"] == pytest.approx(update_rank(weights(), moved()).mean_ratio)
    both = overlap(subnetwork_mask(weights(), moved()), subnetwork_mask(weights(), third), weights())
    assert found["overlap"]["o1"] == both.o1
    assert found["overlap"]["chance1"] == both.chance1
    assert found["overlap"]["matched2"] == pytest.approx(both.matched2)


def test_shards_folders_runs_and_half_precision_give_the_same(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    expected = asked(capsys, *pair)["sparsity"]
    folder = sharded(tmp_path / "shards", moved())
    assert asked(capsys, pair[0], folder)["sparsity"] == expected
    stored(tmp_path / "run" / "model" / "model.safetensors", moved())
    assert asked(capsys, pair[0], tmp_path / "run")["sparsity"] == expected
    half = stored(tmp_path / "half.safetensors", moved(), torch.bfloat16)
    mixed = asked(capsys, pair[0], half)
    assert mixed["sparsity"] == expected
    assert mixed["notes"] == ["F32 is compared with BF16, both rounded first"]
    prefixed = stored(tmp_path / "own.safetensors", {f"model.{n}": x for n, x in moved().items()})
    own = asked(capsys, pair[0], prefixed)
    assert own["sparsity"] == expected
    assert "names differ" in own["notes"][0]


def test_pieces_of_every_type_and_shape_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    shapes: tuple[tuple[int, ...], ...] = ((), (0,), (5, 0), (1,), (13, 7), (64, 33))
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    start = {f"layers.{i}.w": 0.01 * torch.randn(shapes[i % 6], generator=generator) for i in range(24)}
    after = {n: x * (1 + 0.02 * (torch.rand(x.shape, generator=generator) < 0.5)) for n, x in start.items()}
    for folder, tensors, turn in (("a", start, 0), ("b", after, 1)):
        (tmp_path / folder).mkdir()
        for shard in range(3):
            part = {n: x.to(kinds[(i + turn) % 4]) for i, (n, x) in enumerate(tensors.items()) if i % 3 == shard}
            save_file(part, tmp_path / folder / f"model-{shard}.safetensors")
        table = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
        (tmp_path / folder / INDEX).write_text(json.dumps({"weight_map": table}))
    stored = [
        {n: x for shard in range(3) for n, x in load_file(tmp_path / folder / f"model-{shard}.safetensors").items()}
        for folder in ("a", "b")
    ]
    expected = {name: int(changed(x, stored[1][name], "bf16", 0.0).sum()) for name, x in stored[0].items()}
    for piece, workers in ((2**20, 1), (50, 4)):
        monkeypatch.setattr(difference, "PIECE", piece)
        found = difference.compare(tmp_path / "a", tmp_path / "b", workers=workers, tolerances=(0.0, 1e-4))
        assert {name: entry.changed for name, entry in found.sparsity.per_param.items()} == expected
        beyond = sum(int(changed(x, stored[1][name], "bf16", 1e-4).sum()) for name, x in stored[0].items())
        assert found.at[1e-4] == 1 - beyond / found.parameters


def test_text_figure_and_mask(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    figure, mask = tmp_path / "d.png", tmp_path / "m.safetensors"
    assert main(["diff", *map(str, pair), "--out", str(figure), "--mask", str(mask), "--rank"]) == 0
    text = capsys.readouterr().out
    assert "model.layers.0" in text
    assert f"sparsity {update_sparsity(weights(), moved()).total:.4f} at tolerance 1e-05" in text
    assert "of full rank" in text
    assert figure.read_bytes()[:4] == b"\x89PNG"
    expected = subnetwork_mask(weights(), moved())
    for name, found in load_file(mask).items():
        assert torch.equal(found, expected[name])


def test_shapes_and_names_that_differ_are_reported(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    odd = moved() | {"model.layers.1.up.weight": torch.zeros(31, 20), "extra": torch.zeros(1)}
    other = stored(tmp_path / "odd.safetensors", odd)
    found = asked(capsys, pair[0], other)
    assert found["parameters"] == 620
    assert found["skipped"] == {
        "extra": "only in the second", "model.layers.1.up.weight": "shape [30, 20] against [31, 20]",
    }  # fmt: skip
    assert main(["diff", str(pair[0]), str(other)]) == 0
    assert "left out: extra" in capsys.readouterr().out


def test_tied_output_embeddings_count_once(tmp_path: Path, capsys: Capture) -> None:
    both = {"model.embed_tokens.weight": torch.ones(4, 3), "lm_head.weight": torch.ones(4, 3)}
    for name in ("a", "b"):
        stored(tmp_path / name / "model.safetensors", both)
    assert asked(capsys, tmp_path / "a", tmp_path / "b")["parameters"] == 24
    for name in ("a", "b"):
        (tmp_path / name / "config.json").write_text('{"tie_word_embeddings": true}')
    assert asked(capsys, tmp_path / "a", tmp_path / "b")["parameters"] == 12


def test_integers_are_not_weights(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    counters = {"steps": torch.ones(3, dtype=torch.int64)}
    files = [tmp_path / "i.safetensors", tmp_path / "j.safetensors"]
    for file in files:
        save_file(counters, file)
    assert "stored as I64" in refused(capsys, *files)


def test_what_cannot_be_compared_is_refused_in_one_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    first, second = pair
    assert "no such file" in refused(capsys, first, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no model.safetensors" in refused(capsys, first, tmp_path / "empty")
    strangers = stored(tmp_path / "s.safetensors", {"other.weight": torch.ones(2)})
    assert "no weights of one name and shape in common" in refused(capsys, first, strangers)
    half = stored(tmp_path / "h.safetensors", moved(), torch.bfloat16)
    assert "measures the rounding" in refused(capsys, first, half, "--precision", "fp32")
    assert "negative" in refused(capsys, first, second, "--tolerances", "-1")
    assert "must end in .png" in refused(capsys, first, second, "--out", tmp_path / "x.pdf")
    assert "no folder" in refused(capsys, first, second, "--mask", tmp_path / "no" / "m.safetensors")
    assert "nothing changed" in refused(capsys, first, second, "--other", first)


def test_damaged_files_are_refused_in_one_line(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    first, second = pair
    whole = second.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-100])
    assert "cut off" in refused(capsys, first, cut)
    cut.write_bytes(whole[:50])
    assert "cut off in its header" in refused(capsys, first, cut)
    cut.write_bytes(b"PK\x03\x04 not one of ours at all")
    assert "not a safetensors file" in refused(capsys, first, cut)
    cut.write_bytes((20).to_bytes(8, "little") + b"x" * 40)
    assert "no valid JSON" in refused(capsys, first, cut)
    folder = sharded(tmp_path / "shards", moved())
    (folder / "model-2.safetensors").unlink()
    assert "shard model-2.safetensors is missing" in refused(capsys, first, folder)
    stored(folder / "model-2.safetensors", {"something.else": torch.ones(1)})
    assert "is not in model-2.safetensors" in refused(capsys, first, folder)
    (folder / INDEX).write_text("[]")
    assert "not a safetensors header or index" in refused(capsys, first, folder)


def test_help_has_an_example(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["diff", "--help"])
    assert stopped.value.code == 0
    assert "policydist diff ./Tulu" in capsys.readouterr().out
