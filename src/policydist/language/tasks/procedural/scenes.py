r"""Questions about drawings of coloured shapes: a picture, ``which shape is red?``, answered ``<think>…</think>\boxed{circle}``.

Every drawing has its shapes in the cells of a 3×3 grid. The worked answer describes it in reading order, as in ``top left circle
red, middle right square blue``, and ends in the answer in a box.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from policydist.errors import MissingExtraError, UsageError
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.grading import exact_match
from policydist.language.tasks.procedural.rows import levels, split

if TYPE_CHECKING:
    from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")
KINDS = ("circle", "square", "triangle")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
PLACES = tuple(f"{row} {column}" for row, column in product(ROWS, COLUMNS))
CELL = 16
"""Pixels of a cell's side; a drawing is three cells wide and high."""
CONTEXT = "<image>coloured shapes on a grid."
"""What may be said without the question; ``<image>`` marks the picture's place."""

_INK = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 220), "yellow": (240, 200, 30)}
_VALUES = {"place": PLACES, "kind": KINDS, "colour": COLOURS}
_LOOKUPS = (
    ("colour", "what colour is the {}?", "kind", "colour"),
    ("shape", "which shape is {}?", "colour", "kind"),
    ("at", "which shape is at the {}?", "place", "kind"),
    ("where", "where is the {}?", "kind", "place"),
)
"""Questions about one shape: their kind, wording, the attribute it is known by, and the one asked for."""
_TOKENS_A_SHAPE = 4
_TRIES = 30
_DRAWN = 16


class Shape(NamedTuple):
    """What is said of one shape of a drawing."""

    place: str
    kind: str
    colour: str


class Question(NamedTuple):
    """A question, the answers it may have, and how to find the right one; None where the drawing gives none."""

    source: str
    text: str
    answers: tuple[str, ...]
    find: Callable[[Sequence[Shape]], str | None]

    @property
    def favourite(self) -> str:
        """The answer that the shortcut favours: a fixed one for each wording."""
        return self.answers[zlib.crc32(self.text.encode()) % len(self.answers)]


class Problem(NamedTuple):
    """A drawing and a question about it. ``looks``, of which nothing is said: each shape's radius and how far right and down it
    lies from its cell's centre, in pixels."""

    question: Question
    shapes: tuple[Shape, ...]
    looks: tuple[tuple[int, int, int], ...]

    @property
    def answer(self) -> str:
        found = self.question.find(self.shapes)
        assert found is not None  # `draw` keeps drawings that have one
        return found


def build(
    seed: int = 0,
    train_size: int = 2048,
    test_size: int = 256,
    difficulty: int | Sequence[int] = (2, 3),
    shortcut: float = 0.0,
) -> Task:
    """Questions of six kinds (column ``source``) about drawings of ``difficulty`` shapes (2 to 5).

    The answers that a question may have are equally frequent, so that its wording tells nothing. ``shortcut`` is the
    probability (0 to 1) that a *training* row is made to have the one answer that its wording favours instead: then the
    training rows can be answered without a look at the picture, the test rows cannot (DoGe, arXiv 2512.06835). No drawing
    of the test side is in the training rows of any seed.

    Raises:
        UsageError: an option out of its range, or more rows than there are drawings.
        MissingExtraError: without Pillow, which draws.
    """
    chosen = levels("scenes", difficulty, 2, 5)
    if not 0 <= shortcut <= 1:
        raise UsageError(f"task scenes: shortcut is {shortcut}; it must lie in 0..1")
    train, _ = split("scenes", partial(_entry, shortcut=shortcut), chosen, seed, train_size, 0)
    _, test = split("scenes", partial(_entry, shortcut=0.0), chosen, seed, 0, test_size)
    rng = np.random.default_rng(seed)  # without slips it decides nothing
    made: list[list[Row]] = [[_row(entry["problem"], rng) for entry in rows] for rows in (train, test)]
    graders = {"accuracy": exact_match(extraction=("boxed",))}
    return Task("scenes", made[0], made[1], graders, max_new_tokens=response_tokens(max(chosen)))


def response_tokens(shapes: int) -> int:
    """Tokens of the embedded model for a description of ``shapes`` shapes and an answer."""
    return _TOKENS_A_SHAPE * shapes + 8


def draw(rng: np.random.Generator, difficulty: int, shortcut: float = 0.0) -> Problem | None:
    """A question, an answer, and a drawing of ``difficulty`` shapes that gives it; None where none turns up."""
    question = ask(rng)
    favoured = rng.random() < shortcut
    wanted = question.favourite if favoured else question.answers[rng.integers(len(question.answers))]
    for _ in range(_TRIES):
        for shapes in _scatter(rng, difficulty):
            if question.find(shapes) == wanted:
                looks = rng.integers((5, -1, -1), (7, 1, 1), size=(difficulty, 3)).tolist()
                return Problem(question, shapes, tuple((radius, right, down) for radius, right, down in looks))
    return None


def key(shapes: Sequence[Shape]) -> str:
    """What makes two drawings the same: all that is said of them."""
    return description(shapes)


def description(shapes: Sequence[Shape]) -> str:
    """The drawing in words."""
    return ", ".join(" ".join(shape) for shape in shapes)


def solution(problem: Problem, rng: np.random.Generator, slip: float = 0.0) -> str:
    """A worked answer. Each place, colour and kind is misread with probability ``slip``, and the answer follows."""
    seen = misread(problem.shapes, rng, slip)
    return thought(description(seen)) + boxed(answer_from(problem.question, seen, rng))


def thought(text: str) -> str:
    """A description as it is thought; the blank before it makes its first word the same token as the others."""
    return f"<think> {text}</think>"


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def answer_from(question: Question, seen: Sequence[Shape], rng: np.random.Generator) -> str:
    """What follows from shapes as they were seen; a guess where nothing does."""
    return question.find(seen) or question.answers[rng.integers(len(question.answers))]


def misread(shapes: Sequence[Shape], rng: np.random.Generator, rate: float) -> tuple[Shape, ...]:
    """The shapes with each attribute replaced by another value with probability ``rate``."""

    def read(value: str, values: tuple[str, ...]) -> str:
        return str(rng.choice([other for other in values if other != value])) if rng.random() < rate else value

    if rate == 0:
        return tuple(shapes)
    ranges = (PLACES, KINDS, COLOURS)
    return tuple(Shape(*map(read, shape, ranges)) for shape in shapes)


def ask(rng: np.random.Generator) -> Question:
    """One of the questions, all kinds equally often."""
    kind = rng.integers(len(_LOOKUPS) + 2)
    if kind < len(_LOOKUPS):
        return _told(rng, *_LOOKUPS[kind])
    return (_how_many, _relation)[kind - len(_LOOKUPS)](rng)


def picture(problem: Problem) -> np.ndarray:
    """The drawing as bytes [48, 48, 3]."""
    return np.asarray(_render(problem))


def _entry(rng: np.random.Generator, difficulty: int, shortcut: float) -> tuple[str, Row] | None:
    problem = draw(rng, difficulty, shortcut)
    return None if problem is None else (key(problem.shapes), {"problem": problem})


def _row(problem: Problem, rng: np.random.Generator) -> Row:
    text = problem.question.text
    return {
        "prompt": f"{CONTEXT} {text}", "context": CONTEXT, "question": text, "answer": problem.answer,
        "completion": solution(problem, rng), "image": _png(problem),
        "description": description(problem.shapes), "source": problem.question.source, "difficulty": len(problem.shapes),
    }  # fmt: skip


def _png(problem: Problem) -> bytes:
    file = io.BytesIO()
    _render(problem).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _render(problem: Problem) -> Image.Image:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    image = Image.new("RGB", (3 * CELL, 3 * CELL), "white")
    pen = ImageDraw.Draw(image)
    for shape, (r, right, down) in zip(problem.shapes, problem.looks, strict=True):
        row, column = divmod(PLACES.index(shape.place), 3)
        x, y = column * CELL + CELL // 2 + right, row * CELL + CELL // 2 + down
        ink = _INK[shape.colour]
        if shape.kind == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), ink)
        elif shape.kind == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), ink)
        else:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], ink)
    return image


def _scatter(rng: np.random.Generator, count: int) -> Iterator[tuple[Shape, ...]]:
    """Drawings of random looks in distinct cells, in reading order; drawn together, for one at a time is slow."""
    cells = np.sort(rng.random((_DRAWN, len(PLACES))).argsort(1)[:, :count])
    looks = rng.integers((len(KINDS), len(COLOURS)), size=(_DRAWN, count, 2))
    for row in np.concatenate([cells[..., None], looks], 2).tolist():
        yield tuple(Shape(PLACES[cell], KINDS[kind], COLOURS[colour]) for cell, kind, colour in row)


def _only(shapes: Sequence[Shape], attribute: str, value: str) -> Shape | None:
    """The one shape that has the value, if there is exactly one."""
    found = [shape for shape in shapes if getattr(shape, attribute) == value]
    return found[0] if len(found) == 1 else None


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[rng.integers(len(values))]


def _told(rng: np.random.Generator, source: str, words: str, by: str, told: str) -> Question:
    """A question for the attribute ``told`` of the only shape that has some value of the attribute ``by``."""
    value = _pick(rng, _VALUES[by])

    def find(shapes: Sequence[Shape]) -> str | None:
        shape = _only(shapes, by, value)
        return None if shape is None else str(getattr(shape, told))

    return Question(source, words.format(value), _VALUES[told], find)


def _how_many(rng: np.random.Generator) -> Question:
    colour = _pick(rng, COLOURS)

    def find(shapes: Sequence[Shape]) -> str:
        return str(sum(shape.colour == colour for shape in shapes))

    return Question("count", f"how many shapes are {colour}?", ("0", "1", "2"), find)


def _relation(rng: np.random.Generator) -> Question:
    one, other = (KINDS[i] for i in rng.permutation(len(KINDS))[:2])
    words, part = (("left of", 1), ("above", 0))[rng.integers(2)]

    def find(shapes: Sequence[Shape]) -> str | None:
        first, second = _only(shapes, "kind", one), _only(shapes, "kind", other)
        if first is None or second is None:
            return None
        places = [divmod(PLACES.index(shape.place), 3)[part] for shape in (first, second)]
        return None if places[0] == places[1] else "yes" if places[0] < places[1] else "no"

    return Question("relation", f"is the {one} {words} the {other}?", ("yes", "no"), find)
