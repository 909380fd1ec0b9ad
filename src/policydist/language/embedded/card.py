"""The model cards of the embedded models, written from their training logs."""

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

_VISION_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The embedded vision-language model of policydist

A vision-language model small enough to ship inside the package and to be trained by reinforcement learning on a CPU.
It is no use for anything but the task `scenes`: questions about drawings of coloured shapes on a grid.

- **Architecture**: {architecture}; a SigLIP tower of {vision_layers} layer and width {vision_width} over {patches} patches of
  {patch}x{patch} pixels, and a Qwen2 of {layers} layers and width {width}; {parameters:,} parameters in float32, context
  {context}. One token per printable ASCII character, and one for each word of the task.
- **Data**: drawings, questions and worked answers drawn by the package itself, {fewest} to {most} shapes each; no drawing on the
  test side of any seed is among them. Three forms of prompt:
  - direct: `{direct}`
  - analysis: `{analysis}`
  - Solver: `{solver}`

  It first learnt to read: to retell descriptions, and to answer as Solver without a picture. Steps, and sequences of each form
  in a batch: {stages}.
  Then {slip_steps} steps on descriptions in which each attribute is misread with probability {slip}, so that it knows how to look
  and is yet unsure: reinforcement learning has something to do.
- **Training**: `python -m policydist.language.embedded.vision`, seed {seed}, {seconds:.0f} CPU seconds, torch {torch},
  {threads} thread. Curve and settings: `training_log.json`. SHA-256 of `model.safetensors`:
  `{sha256}`.

On {rows} held-out drawings, temperature 1 (greedy: 0):

| what | share right |
| --- | --- |
{table}
"""
_VISION_ROWS = {
    "pass@1": "direct, one answer", "pass@16": "direct, any of 16 answers", "greedy": "direct, greedy",
    "own_analysis": "as Solver, after an analysis of its own", "true_analysis": "as Solver, after a true analysis",
}  # fmt: skip


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


def write_vision_card(out: Path, config: Any, log: Mapping[str, Any]) -> None:
    """Write ``README.md`` beside the vision-language model."""
    plan, vision, text = log["plan"], config.vision_config, config.text_config
    shares = {label: log["pass_rates"][name] for name, label in _VISION_ROWS.items()}
    shares |= {f"direct, greedy, kind of question `{kind}`": share for kind, share in log["by_kind"].items()}
    card = _VISION_CARD.format(
        architecture=config.architectures[0], vision_layers=vision.num_hidden_layers, vision_width=vision.hidden_size,
        patches=config.image_seq_length, patch=vision.patch_size, layers=text.num_hidden_layers, width=text.hidden_size,
        parameters=log["parameters"], context=text.max_position_embeddings, fewest=plan["fewest"], most=plan["most"],
        stages="; ".join(f"{plan[f'{stage}_steps']} of {_sequences(forms)}" for stage, forms in log["batches"].items()),
        **log["prompts"], slip_steps=plan["slip_steps"], slip=log["slip"], seed=plan["seed"],
        seconds=log["cpu_seconds"], torch=log["torch"], threads=plan["threads"], sha256=log["sha256"], rows=log["test_rows"],
        table="\n".join(f"| {label} | {share:.2f} |" for label, share in shares.items()),
    )  # fmt: skip
    (out / "README.md").write_text(card)


def _sequences(forms: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {form}" for form, count in forms.items())
