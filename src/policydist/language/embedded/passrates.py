"""Pass rates of a policy: how often one sample is right, and how often at least one of several is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policydist.language.policies.hf import TransformersPolicy
from policydist.language.tasks.base import Row, Task
from policydist.language.types import Prompts, Sampling
from policydist.runs.seeds import torch_generator


def pass_rates(
    policy: TransformersPolicy, task: Task, rows: Sequence[Row], samples: int = 16, seed: int = 0
) -> dict[str, float]:
    """``pass@1`` (mean over ``samples`` draws at temperature 1), ``pass@k`` with k = ``samples``, and ``greedy``."""
    drawn = _grades(policy, task, rows, samples, 1.0, seed)
    greedy = _grades(policy, task, rows, 1, 0.0, seed)
    return {
        "pass@1": round(float(drawn.mean()), 4),
        f"pass@{samples}": round(float((drawn.amax(1) > 0).double().mean()), 4),
        "greedy": round(float(greedy.mean()), 4),
    }


def _grades(
    policy: TransformersPolicy, task: Task, rows: Sequence[Row], samples: int, temperature: float, seed: int
) -> torch.Tensor:
    """Grades [rows, samples] under the task's first grader."""
    encoded = policy.tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    count = len(rows)
    prompts = Prompts(
        encoded["input_ids"], encoded["attention_mask"].bool(), torch.full((count,), samples), torch.arange(count)
    )
    sampling = Sampling(max_new_tokens=task.max_new_tokens, temperature=temperature)
    generator = torch_generator(seed, "passrates", task.name)
    uniforms = torch.rand(count * samples, task.max_new_tokens, generator=generator)
    ids = policy.generate(prompts, sampling, uniforms).ids
    texts = policy.tokenizer.batch_decode(ids, skip_special_tokens=True)
    grader = next(iter(task.graders.values()))
    answered = [row for row in rows for _ in range(samples)]
    return torch.tensor(list(grader(texts, answered))).view(count, samples)
