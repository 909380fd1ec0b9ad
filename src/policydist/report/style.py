"""How all figures look: sizes, colours that colour-blind readers can tell apart, and writing them whole.

Figures are made without pyplot, so that nothing global changes and no display is needed. 150 dots an inch and 8 inches
give 1200 pixels; 11-point text is then 23 pixels high.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policydist.runs.directory import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#8C6D00",
    "#56B4E9",
    "#444444",
)  # Okabe and Ito, yellow darkened
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, SHADE = "#222222", "#8a8a8a", "#dcecdf"
VERDICT_COLOURS = {
    "reproduced": "#1a7f37", "direction_only": "#8a5a00", "not_separated": "#8a5a00", "null": "#57606a",
    "contradicted": "#b42318", "invalid": "#7a1fa2",
}  # fmt: skip
SETTINGS: Any = {
    "font.size": 11, "axes.labelsize": 11, "axes.titlesize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10,
    "legend.fontsize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """An empty figure of full width; everything drawn inside the block has the house style.

    Names from configs appear as they are: ``$`` and ``_`` are not taken for formulae.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        yield Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")


def save(figure: Figure, path: Path, source: str = "") -> Path:
    """Write a PNG whole, inside a `drawing` block; ``source``, a digest of the data shown, goes into its metadata."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)  # it draws once, where savefig would draw twice
    canvas.print_png(buffer, metadata={"Software": "policydist", "Source": source})
    write_whole(path, buffer.getvalue())
    return path


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def line(place: int) -> dict[str, Any]:
    """Colour, dash and marker of the method at this place: two of them differ even in grey."""
    return {
        "color": colour(place),
        "linestyle": DASHES[(place + 2 * (place // len(COLOURS))) % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }
