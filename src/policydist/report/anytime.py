"""The anytime curve: accuracy of answers against the tokens of thinking before them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from policydist.report import style

PREFIX = "accuracy@"


def curve(metrics: Mapping[str, float]) -> dict[int, float]:
    """Budgets and the accuracy at each, ascending; empty if none were measured."""
    found = {int(key.removeprefix(PREFIX)): value for key, value in metrics.items() if key.startswith(PREFIX)}
    return dict(sorted(found.items()))


def draw(models: Mapping[str, Mapping[str, float]], path: Path, title: str = "") -> Path:
    """A PNG of every model's curve, with its mean over budgets in the legend."""
    with style.drawing(4.2) as figure:
        axes = figure.add_subplot()
        for place, (name, metrics) in enumerate(models.items()):
            found = curve(metrics)
            label = f"{name}: {metrics['anytime']:.3f} on average"
            axes.plot(list(found), list(found.values()), lw=2, ms=5, label=label, **style.line(place))
        axes.set_xlabel("tokens of thinking before the answer")
        axes.set_ylabel("accuracy")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_title(title)
        figure.legend(loc="outside lower center")
        return style.save(figure, path)
