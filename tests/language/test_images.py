"""Rows with images: which forms there are, how they are read, and one clear line for each that cannot be; whole runs on them."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_vision import build, picture

from policydist.cli.main import main
from policydist.errors import MissingExtraError, UsageError
from policydist.language import images
from policydist.language.experiment import resume, train
from policydist.language.policies.loading import load_policy
from policydist.language.tasks.sources import load_task
from policydist.runs.directory import read_metrics

WORDS = [
    "model.device=cpu", "rollout.prompts=4", "rollout.samples=4", "rollout.max_new_tokens=4", "train.lr=1e-2", "eval.rows=4",
    "eval.samples=2", "task.grader=tiny_rewards:even", "trackers=[]",
]  # fmt: skip


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


# --- single images ---------------------------------------------------------------------------------------------------


def test_every_form_of_an_image_is_the_same_image(tmp_path: Path) -> None:
    shown, data = picture(0), encoded(picture(0))
    file = tmp_path / "a.png"
    file.write_bytes(data)
    forms = [
        str(file),
        file,
        data,
        bytearray(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(file)},
        shown,
    ]
    for form in forms:
        assert images.opened(form, "row 0").tobytes() == shown.tobytes()
    assert images.opened(shown.convert("L"), "row 0").mode == "RGB"
    marks = [images.fingerprint(form, "row 0") for form in forms]
    assert marks[0] == marks[1] == marks[5]
    assert marks[2] == marks[3] == marks[4]
    assert images.fingerprint(picture(1), "row 0") != marks[6]


def test_a_photograph_is_turned_upright() -> None:
    lying, exif = picture(0, 8, 12), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    lying.save(buffer, "PNG", exif=exif)
    assert images.opened(buffer.getvalue(), "row 0").size == (8, 12)


def test_images_go_where_they_are_marked_or_in_front() -> None:
    assert images.pieces("a <image> b<image>", 2, "row 0") == ["a ", " b", ""]
    assert images.pieces("a", 2, "row 0") == ["", "", "a"]
    for text, count in (("a <image>", 2), ("<image><image>", 1), ("<image>", 0)):
        with pytest.raises(
            UsageError, match=r"row 7: the prompt marks \d places with <image>, but the row has \d image"
        ):
            images.pieces(text, count, "row 7")


def test_columns_hold_one_image_or_a_list() -> None:
    assert images.images_of({"prompt": "a", "image": None, "images": None}, "row 0") == []
    assert images.images_of({"image": "a.png"}, "row 0") == ["a.png"]
    assert images.images_of({"images": ["a.png", b"x"]}, "row 0") == ["a.png", b"x"]
    with pytest.raises(UsageError, match="row 1: both image and images are filled"):
        images.images_of({"image": "a", "images": []}, "row 1")
    with pytest.raises(UsageError, match="row 1: column images holds a str; it must be a list"):
        images.images_of({"images": "a.png"}, "row 1")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_data_urls_keep_common_formats_and_turn_others_into_png(kind: str) -> None:
    data = encoded(picture(0), kind)
    head, _, body = images.data_url(data, "row 0").partition(",")
    kept = kind != "BMP"
    assert head == f"data:image/{kind.lower() if kept else 'png'};base64"
    assert (base64.b64decode(body) == data) == kept
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == picture(0).size
    assert images.data_url(picture(0), "row 0").startswith("data:image/png;base64,")


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"Pillow is not installed: run pip install 'policydist\[vision\]'"):
        images.opened(b"x", "row 0")
    monkeypatch.undo()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "PIL" else find(name, *rest))
    with pytest.raises(MissingExtraError, match="Pillow"):
        load_policy(model)


# --- files and runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("vision") / "model"
    for part in build("qwen"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve rows: one image, two, or none; paths are relative to the file."""
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        picture(number, 16 + 8 * (number % 3), 16).save(tmp_path / "pictures" / f"{number}.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "w2 <image> w3", "image": "pictures/0.png"},
        {"prompt": "w4", "images": ["pictures/1.png", "pictures/2.png"]},
        {"prompt": "w5 w6", "image": None},
        {"prompt": "w7 <image>", "image": "pictures/3.png"},
    ]
    write(tmp_path / "rows.jsonl", rows * 3)
    return tmp_path / "rows.jsonl"


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps({"answer": "w3", **row}) + "\n" for row in rows))


def test_paths_are_relative_to_their_file_and_parquet_and_the_hub_bring_bytes(data: Path, tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = load_task(f"jsonl:{data}").train
    held = [image for row in rows for image in images.images_of(row, "row")]
    assert {Path(image).parent for image in held} == {data.parent / "pictures"}
    form = {"bytes": encoded(picture(0)), "path": "0.png"}
    table = {"prompt": ["w2", "w3"], "answer": ["a", "b"], "image": [form, form], "note": [{"k": 1}, {"k": 2}]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    shown = datasets.Features(
        {"prompt": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image(),
         "images": datasets.List(datasets.Image())}
    )  # fmt: skip
    (tmp_path / "hub").mkdir()
    one = {"prompt": ["w2", "w3"], "answer": ["a", "b"], "image": [form, None], "images": [None, [form]]}
    datasets.Dataset.from_dict(one, features=shown).to_parquet(tmp_path / "hub" / "train.parquet")
    options = {"cache_dir": str(tmp_path / "cache")}
    for task in (f"parquet:{tmp_path / 'rows.parquet'}", f"hub:{tmp_path / 'hub'}"):
        loaded = load_task(task, options=options if task.startswith("hub") else {})
        for row in (*loaded.train, *loaded.test):
            (image,) = images.images_of(row, "row")
            assert image == form["bytes"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"image": "pictures/9.png"},
        r"rows.jsonl:13: no image file .*pictures/9.png \(paths are relative to .*\)",
    ),
    "corrupt": ({"image": "broken.png"}, r"row \d+: image file .*broken.png cannot be read \(.*\); replace it"),
    "cut": ({"image": "cut.png"}, r"row \d+: image file .*cut.png cannot be read \(.*\); replace it"),
    "type": ({"image": 3}, "rows.jsonl:13: an image is a int; it must be a path, the bytes"),
    "empty": ({"images": [""]}, "rows.jsonl:13: an image is nothing; it must be a path"),
    "marks": (
        {"image": "pictures/0.png", "prompt": "<image><image>"},
        r"row \d+: the prompt marks 2 places with <image>, but",
    ),
    "long": (
        {"images": ["pictures/0.png"] * 40, "prompt": "w2"},
        r"row \d+ has \d+ tokens with its images, more than the 156 that fit; .*images smaller",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_end_a_run_before_it_begins(
    case: str, data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    extra, words = BAD[case]
    (data.parent / "broken.png").write_bytes(b"\x89PNG broken")
    (data.parent / "cut.png").write_bytes(encoded(picture(0, 64, 64))[:2000])
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "w2", "answer": "w3", **extra}) + "\n")
    out = data.parent / "run"
    sets = [part for word in WORDS for part in ("--set", word)]
    assert main(["train", "grpo", "--task", f"jsonl:{data}", "--model", str(model), "--out", str(out), *sets]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, errors[-1]), errors
    assert not out.exists()


def processorless(path: Path) -> None:
    (path / "processor_config.json").unlink()


def garbled(path: Path) -> None:
    (path / "processor_config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (processorless, "holds a vision-language model but no processor .*: save one there"),
        (garbled, "cannot load a processor from"),
    ],
)
def test_a_model_without_its_processor_is_refused(
    spoil: Callable[[Path], None], words: str, model: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    spoil(copy)
    with pytest.raises(UsageError, match=words):
        load_policy(copy)


def test_images_are_not_for_models_of_texts(data: Path, tiny: Any) -> None:
    with pytest.raises(
        UsageError, match=r"row 0 has an image, but the model reads text only: choose a vision-language .*image"
    ):
        train("grpo", task=f"jsonl:{data}", model=str(tiny.model), settings=WORDS, out=data.parent / "run")
    with pytest.raises(UsageError, match=r"model.freeze_vision is set, but .* has no image encoder"):
        train("grpo", task=tiny.task, model=str(tiny.model), settings=[*tiny.words, "model.freeze_vision=true"])
    assert not (data.parent / "run").exists()


def test_a_run_on_images_trains_resumes_and_is_measured(data: Path, model: Path, tmp_path: Path) -> None:
    task, out = f"jsonl:{data}", tmp_path / "run"
    settings = [*WORDS, "model.freeze_vision=true", "save_every=1", "eval_every=2", "kl_coef=0.01"]
    done = train("grpo", task=task, model=str(model), steps=2, settings=settings, out=out)
    before, after = load_file(model / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any("visual" in name for name in moved)
    held = {path.name for path in (out / "checkpoints").rglob("*") if path.is_file()}
    assert not any("pixel" in name or name.endswith((".png", ".pkl")) for name in held)
    kept = numbers(read_metrics(out))
    again = resume(out / "checkpoints" / "step-00000001")
    assert numbers(read_metrics(out)) == kept
    assert torch.equal(load_file(out / "model" / "model.safetensors")[min(moved)], after[min(moved)])
    assert again.policy.reader.processed <= done.policy.reader.processed + 1  # type: ignore[attr-defined]
    from policydist.language.measure import evaluate

    found = evaluate(out)
    assert found["length"] == pytest.approx(again.final["eval/length"])


def numbers(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "memory"))} for row in rows]


@pytest.mark.parametrize("form", ["lora", "doge"])
def test_adapters_and_doge_train_on_images(form: str, data: Path, model: Path, tmp_path: Path) -> None:
    rows = [{"context": "w2 <image> w4", "question": "w5", "image": f"pictures/{n % 4}.png"} for n in range(8)]
    settings = list(WORDS)
    if form == "doge":
        write(data, rows)
        settings += ["stage1_steps=1", "stage2_steps=1", "analysis_prompt={context} w6", "solver_samples=2"]
        settings += ["solver_prompt={context} {question} {analysis}"]
    else:
        settings += ["model.lora_rank=2"]
    done = train(
        "doge" if form == "doge" else "grpo", task=f"jsonl:{data}", model=str(model), steps=2, settings=settings,
        out=tmp_path / "run",
    )  # fmt: skip
    assert len(done.metrics) >= 2
    if form == "doge":
        assert [row["doge/stage"] for row in done.metrics if "doge/stage" in row] == [1, 2]
        assert all(row.get("doge/too_long", 0) == 0 for row in done.metrics)
    else:
        assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
        assert (tmp_path / "run" / "model" / "processor_config.json").is_file()
