"""How good a policy is on held-out rows: mean reward of single samples, pass@k, and accuracy after cut thinking."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.language.recipe import Context, Episodes, Judge, PromptSource
from policydist.language.segmented import Answering, anytime_metrics, think
from policydist.language.types import Policy, Prompts, Rollouts, Sampling
from policydist.language.world import World
from policydist.runs import seeds


def pass_at_k(correct: Int[Tensor, " Q"], n: int, k: int) -> Float[Tensor, " Q"]:
    """Probability that at least one of ``k`` of the ``n`` samples is correct, ``1 - C(n - c, k) / C(n, k)`` (arXiv 2107.03374)."""
    wrong = (n - correct).double()
    steps = torch.arange(k, dtype=torch.float64)
    return 1 - ((wrong.unsqueeze(1) - steps).clamp(min=0) / (n - steps)).prod(1)


@dataclass(frozen=True)
class Anytime:
    """Traces drawn by ``sampling``, cut at ``budgets``, with one answer after each cut."""

    budgets: tuple[int, ...]
    sampling: Sampling
    answering: Answering

    def measure(self, prompts: Prompts, policy: Policy, world: World) -> dict[str, float]:
        """``eval/accuracy@<budget>`` and their mean ``eval/anytime``, the area under the curve."""
        ctx = Context(policy, 0, world=world)
        traces = think(prompts, self.sampling, self.budgets, ctx)
        scores = self.answering.answer(traces, self.budgets, 1, ctx).scores
        return {f"eval/{name}": value for name, value in anytime_metrics(scores, self.budgets).items()}


@dataclass(frozen=True)
class Evaluation:
    """``samples`` responses to each of the first ``rows`` prompts of ``source``, always with the same random numbers;
    with ``anytime`` as many traces again, for accuracy at token budgets. With ``episodes`` a response is a whole episode."""

    source: PromptSource
    judge: Judge
    sampling: Sampling
    rows: int = 128
    samples: int = 4
    component: str | None = None
    threshold: float = 0.5
    anytime: Anytime | None = None
    episodes: Episodes | None = None

    def __call__(self, ctx: Context) -> dict[str, float]:
        return self.measure(ctx.policy, ctx.world)

    def measure(self, policy: Policy, world: World | None = None) -> dict[str, float]:
        """``eval/accuracy`` (mean over samples), ``eval/pass@n``, ``eval/entropy`` (sampled, nats a token), ``eval/length``;
        where rows name a ``source``, also ``eval/accuracy/<source>`` for each one among them.

        Raises:
            UsageError: where there are no rows.
        """
        world = world or World()
        count = min(self.rows, len(self.source))
        if not count:
            raise UsageError("the task has no test rows to measure on; give a test file or another task.test_size")
        prompts = self.source.take(torch.arange(count), self.samples)
        silent = Context(policy, 0, world=world)
        rollouts = self.drawn(prompts, silent)
        judged = silent.judge(self.judge, rollouts)
        scores = judged.rewards if self.component is None else judged.extras[self.component]
        assert scores is not None
        scores = scores.cpu().reshape(count, self.samples)
        right = (scores > self.threshold).sum(1)
        mask = judged.response_mask
        return {
            "eval/accuracy": float(scores.double().mean()),
            f"eval/pass@{self.samples}": float(pass_at_k(right, self.samples, self.samples).mean()),
            "eval/entropy": float(-(judged.behavior_logprobs * mask).sum() / mask.sum()),
            "eval/length": float(judged.lengths.float().mean()),
            **by_source(prompts, scores.double().mean(1)),
            **(self.anytime.measure(prompts, policy, world) if self.anytime else {}),
        }

    def drawn(self, prompts: Prompts, ctx: Context) -> Rollouts:
        """The responses that are measured."""
        if self.episodes is not None:
            return self.episodes.play(prompts, self.sampling, ctx)
        shape = int(prompts.samples.sum()), self.sampling.max_new_tokens
        uniforms = torch.rand(shape, generator=seeds.torch_generator(0, "evaluation"))
        return ctx.world.generate(ctx.policy, prompts, self.sampling, uniforms)


def by_source(prompts: Prompts, accuracy: Float[Tensor, " Q"]) -> dict[str, float]:
    """Mean accuracy of every source that the prompts' rows name."""
    found: dict[str, list[float]] = {}
    for item, value in zip(prompts.items, accuracy.tolist(), strict=False):
        if item.get("source") is not None:
            found.setdefault(str(item["source"]), []).append(value)
    return {f"eval/accuracy/{name}": sum(values) / len(values) for name, values in sorted(found.items())}
