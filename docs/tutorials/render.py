"""Run a tutorial script and write the page with its real output and figures.

    python docs/tutorials/render.py docs/tutorials/r3d.py

The script is in percent format: ``# %% [markdown]`` cells are prose (comment lines), ``# %%`` cells are code. What a
code cell prints follows it as text, and every figure that it leaves open is saved to ``<name>_files/`` and shown.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from pathlib import Path
from typing import Any


def cells(source: str) -> list[tuple[str, str]]:
    """The (kind, text) cells of a percent-format script; what stands before the first marker is left out."""
    found: list[tuple[str, list[str]]] = []
    for line in source.splitlines():
        if line.startswith("# %%"):
            found.append(("prose" if "[markdown]" in line else "code", []))
        elif found:
            found[-1][1].append(line)
    return [(kind, "\n".join(lines).strip("\n")) for kind, lines in found]


def render(script: Path) -> str:
    """Execute the code cells in order, in one namespace, and return the page."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder = script.with_name(f"{script.stem}_files")
    folder.mkdir(exist_ok=True)
    page: list[str] = []
    namespace: dict[str, Any] = {"__name__": "__tutorial__"}
    count = 0
    for kind, text in cells(script.read_text(encoding="utf-8")):
        if kind == "prose":
            page.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines()))
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exec(compile(text, str(script), "exec"), namespace)
        output = printed.getvalue() + "".join(f"{w.category.__name__}: {w.message}\n" for w in caught)
        page.append(f"```python\n{text}\n```")
        if output:
            page.append(f"```text\n{output.rstrip()}\n```")
        for number in plt.get_fignums():
            count += 1
            path = folder / f"figure_{count}.png"
            plt.figure(number).savefig(path, dpi=110, metadata={"Software": None})
            page.append(f"![figure {count}]({folder.name}/{path.name})")
        plt.close("all")
    page.append(f"*Made by `python docs/tutorials/render.py docs/tutorials/{script.name}`.*")
    return "\n\n".join(page) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        target = Path(name)
        target.with_suffix(".md").write_text(render(target), encoding="utf-8")
