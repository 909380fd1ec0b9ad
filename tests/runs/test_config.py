"""Settings from plain data, words and YAML: types, ranges, names, round trips."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policydist.errors import UsageError
from policydist.runs.config import assign, build, digest, plain, read_yaml, write_yaml


@dataclass(frozen=True)
class Inner:
    lr: float = 1.0
    clip: float | None = 0.2
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UsageError(f"inner.lr is {self.lr}; it must be positive")
        if self.pair[0] > self.pair[1]:
            raise ValueError("pair must ascend")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    count: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


SECTIONS = {"inner": Inner}


def test_build_goes_all_the_way_down() -> None:
    data = {"name": "x", "inner": {"lr": "1e-3", "pair": [0.5, 0.6]}, "extra": {"clip": None}, "words": ["a"]}
    assert build(Outer, data) == Outer("x", Inner(1e-3, pair=(0.5, 0.6)), Inner(clip=None), words=("a",))
    assert build(Outer, {"name": "x", "extra": None}) == Outer("x")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "Outer: name must be given"),
        ({"name": "x", "cuont": 1}, "cuont is not a setting: did you mean count"),
        ({"name": "x", "inner": {"lrr": 1}}, r"inner\.lrr is not a setting: did you mean lr"),
        ({"name": "x", "inner": {"kind": "c"}}, r"inner\.kind: 'c' will not do .*'a' or 'b'"),
        ({"name": "x", "inner": {"lr": 0}}, r"inner\.lr is 0.*positive"),
        ({"name": "x", "inner": {"pair": [2, 1]}}, "inner: pair must ascend"),
        ({"name": "x", "inner": {"pair": [1]}}, r"inner\.pair"),
        ({"name": "x", "inner": 3}, "inner: 3 will not do"),
        ({"name": "x", "count": 1.5}, r"count: 1\.5 will not do"),
        ({"name": "x", "count": None}, "count: None will not do"),
        ({"name": "x", "options": 3}, "options: 3 will not do"),
        ({"name": 3}, "name: 3 will not do"),
        ([1], r"Outer: expected settings as key: value, got \[1\]"),
    ],
)
def test_what_will_not_do_is_named(data: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(Outer, data)


def test_words_are_read_as_yaml_and_find_their_section() -> None:
    data: dict[str, Any] = {"name": "x"}
    words = ["lr=1e-3", "inner.clip=null", "options.deep.er=[4, 8]", "count=5", "options.text=a: b: c"]
    assign(data, words, SECTIONS, top=("count",))
    assert data == {
        "name": "x", "inner": {"lr": "1e-3", "clip": None}, "options": {"deep": {"er": [4, 8]}, "text": "a: b: c"}, "count": 5,
    }  # fmt: skip
    assert build(Outer, data).inner == Inner(1e-3, None)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("lr", "write it as key=value"),
        ("lrr=1", "no setting lrr; did you mean lr"),
        ("coumt=1", "no setting coumt; did you mean count"),
        ("name.first=1", "name holds 'x', not settings"),
    ],
)
def test_words_that_fit_nowhere(word: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        assign({"name": "x"}, [word], SECTIONS, top=("count",))


def test_a_name_of_two_sections_is_ambiguous() -> None:
    with pytest.raises(UsageError, match=r"ambiguous; write inner\.lr or other\.lr"):
        assign({}, ["lr=1"], {"inner": Inner, "other": Inner})


settings = st.builds(
    Outer,
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    inner=st.builds(
        Inner,
        lr=st.floats(1e-12, 1e6),
        clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        kind=st.sampled_from(["a", "b"]),
    ),
    count=st.integers(),
    options=st.dictionaries(st.sampled_from("abc"), st.integers() | st.booleans() | st.sampled_from(["no", "1e-3"])),
    words=st.lists(st.sampled_from(["no", "null", "1e5", "ü", ""])).map(tuple),
)


@hypothesis.settings(deadline=None, max_examples=30)
@given(settings)
def test_yaml_out_and_in_gives_the_same_config(tmp_path_factory: pytest.TempPathFactory, config: Outer) -> None:
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(write_yaml(plain(config)), encoding="utf-8")
    again = build(Outer, read_yaml(file))
    assert again == config
    assert digest(plain(again)) == digest(plain(config))


def test_digests_see_every_value_but_not_the_order() -> None:
    assert digest({"a": 1, "b": {"c": 2}}) == digest({"b": {"c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest({"a": None}) != digest({})


def test_yaml_faults_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, words in {"a: 1\nb: [\n": "line 3: not valid YAML", "[1]": "got list", "": "got NoneType"}.items():
        file.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_yaml(file)
    with pytest.raises(UsageError, match="cannot read config"):
        read_yaml(tmp_path / "absent.yaml")
    file.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read_yaml(file)
