"""The model card of the embedded model, written from its training log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The embedded model of policydist

A language model small enough to ship inside the package and to be trained by reinforcement learning on two CPU cores.
It is no use for anything but the five procedural tasks of `policydist.language.tasks.procedural`.

- **Architecture**: {architecture}, {layers} layers, width {width}, {heads} heads, feed-forward width {inner}, tied
  embeddings, {parameters:,} parameters in float32, context {context}. One token per printable ASCII character.
- **Data**: worked solutions of {problems:,} problems drawn by the package itself (seed {seed}); no test problem of any
  seed is among them. {clean} steps on right solutions, then {slip} steps on solutions whose steps go wrong with the
  probabilities below, so that the model knows how and is yet unsure: reinforcement learning has something to do.
- **Training**: `python -m policydist.language.embedded.train`, seed {seed}, {seconds:.0f} CPU seconds,
  torch {torch}, {threads} threads. Curve and settings: `training_log.json`. SHA-256 of `model.safetensors`:
  `{sha256}`.

Pass rates on {rows} held-out problems of each task at its default difficulty, temperature 1 (greedy: temperature 0):

| task | slip | pass@1 | pass@16 | greedy |
| --- | --- | --- | --- | --- |
{table}
"""


def write_card(out: Path, config: Any, log: Mapping[str, Any]) -> None:
    """Write ``README.md`` beside the model."""
    table = "\n".join(
        f"| {name} | {log['slips'][name]} | {rate['pass@1']:.2f} | {rate['pass@16']:.2f} | {rate['greedy']:.2f} |"
        for name, rate in log["pass_rates"].items()
    )
    text = _CARD.format(
        architecture=config.architectures[0],
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        parameters=log["parameters"],
        context=config.max_position_embeddings,
        problems=sum(log["problems"].values()),
        seed=log["plan"]["seed"],
        clean=log["plan"]["base_steps"] + log["plan"]["hard_steps"],
        slip=log["plan"]["slip_steps"],
        seconds=log["cpu_seconds"],
        torch=log["torch"],
        threads=log["plan"]["threads"],
        sha256=log["sha256"],
        rows=log["test_rows"],
        table=table,
    )
    (out / "README.md").write_text(text)
