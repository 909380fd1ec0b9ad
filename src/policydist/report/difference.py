"""The figure of an update: how much of each layer changed, and how much of it rank and overlap account for."""

from __future__ import annotations

from pathlib import Path

from policydist.report import style
from policydist.runs.difference import Difference

MOST_LABELS = 40


def write(found: Difference, path: Path, title: str) -> Path:
    """Density by layer as a PNG, with the density of all weights as a line."""
    layers = found.sparsity.per_layer
    exact = 1 - found.sparsity.exact
    places = range(len(layers))
    with style.drawing(3.6) as figure:
        axes = figure.add_subplot()
        axes.bar(
            places, list(layers.values()), color=style.colour(0), width=0.8, label="mean over the layer's matrices"
        )
        axes.axhline(exact, color=style.colour(1), linestyle="--", label=f"all weights: {exact:.3f}")
        every = max(1, -(-len(layers) // MOST_LABELS))
        axes.set_xticks(list(places)[::every], [short(name) for name in layers][::every], rotation=90, fontsize=8)
        axes.set_ylim(0, max([exact, *layers.values()]) * 1.25 or 1)
        axes.set_ylabel("share of entries changed")
        axes.set_title(title)
        axes.legend(loc="upper right")
        return style.save(figure, path)


def short(name: str) -> str:
    """A layer's name without the words that all share."""
    return name.replace("model.", "").replace("layers.", "layer ")
