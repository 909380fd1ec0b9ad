"""HTML pages from the templates beside this file. Everything that comes from configs, records or models is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from policydist.report import words
from policydist.report.comparison import FORMATS, TITLES, Comparison, measures, notes, rows_of, summary
from policydist.runs.config import write_yaml

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> Environment:
    """The template engine: escapes everything, and an unknown name in a template is an error, not an empty string."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("policydist.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {
        "number": words.number, "interval": words.interval, "threshold": words.threshold, "seconds": words.seconds,
        "cited": words.cited, "words": lambda text: str(text).replace("_", " "),
    }  # fmt: skip
    made.globals["plural"] = words.plural
    return made


def render(template: str, **context: Any) -> str:
    """One page. ``up`` is the relative address of the report's first page, or None for a page that stands alone."""
    return environment().get_template(template).render(**{"up": None, **context})


def comparison_page(data: Comparison, name: str, image: str, up: str | None = None) -> str:
    """The page of one comparison: table, curves, single runs, config."""
    lines = summary(data)
    finals = [(run.method, run.seed, measures(run.metrics)) for run in data.runs]
    columns = [key for key in finals[0][2] if any(end.get(key) is not None for _, _, end in finals)]
    runs = [
        {"method": method, "seed": seed, **{TITLES.get(k, k): FORMATS.get(k, words.share)(end.get(k)) for k in columns}}
        for method, seed, end in finals
    ]
    return render(
        "comparison.html.j2", title=f"Comparison of {', '.join(data.methods)}", name=name, data=data,
        image=image, up=up, rows=rows_of(data, lines), runs=runs, notes=notes(data, lines),
        config=yaml_text(data.config),
    )  # fmt: skip


def yaml_text(config: Mapping[str, Any]) -> str:
    """Settings as YAML, in the order they are stored."""
    return write_yaml(config)
