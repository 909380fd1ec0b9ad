"""Scenes of a few binary attributes, seen through noise, and questions about one of them whose wording gives the answer away.

The policy has a perception matrix E [K, D], a text prior b [K] and mention logits c [K]; a scene is an observation x [D] and a
question q. How a prompt is read depends on its length, its last token being the scene's number:

    scene                   the direct answer: P(1) = sigmoid(E_q x + b_q)
    SEE, scene              an analysis: three different attributes, k by softmax(c), each with a value ~ sigmoid(E_k x)
    ASK, scene              the same with the question known: q is mentioned first, its value ~ sigmoid(E_q x + b_q)
    three tokens, scene     an answer with an analysis at hand: the value it states of q, with probability `TRUST`; the direct
                            answer where it does not mention q

Analyses are written in 2 K tokens, ``2 k + value``; answers are 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policydist.language.generation import draw
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms, apply_terms
from policydist.runs import seeds

SEE, ASK = 0, 1
MENTIONS = 3
TRUST = 0.95
SURE = 50.0
"""Added to the logit of an attribute that is certain to be mentioned."""


@dataclass(frozen=True)
class Scenes:
    """``seen`` [S, D] observations, ``asked`` [S] questions, ``answers`` [S] values of the attribute asked for."""

    seen: Float[Tensor, "S D"]
    asked: Int[Tensor, " S"]
    answers: Int[Tensor, " S"]


class Perception(nn.Module):
    """E, b and c, and the logits that they give."""

    def __init__(self, scenes: Scenes, attributes: int, perception: Float[Tensor, "K D"]) -> None:
        super().__init__()
        self.scenes = scenes
        self.attributes = attributes
        self.perception = nn.Parameter(perception.clone())
        self.prior = nn.Parameter(torch.zeros(attributes))
        self.mention = nn.Parameter(torch.zeros(attributes))

    def direct(self, scenes: Scenes) -> Float[Tensor, " S"]:
        """Logit of answering 1."""
        return (self.perception[scenes.asked] * scenes.seen).sum(1) + self.prior[scenes.asked]

    def forward(
        self, ids: Int[Tensor, "N P"], mask: Bool[Tensor, "N P"], written: Int[Tensor, "N T"]
    ) -> Float[Tensor, "N T V"]:
        """Logits of the tokens at places 0 to T - 1 behind what is written before each; the rows may be of several kinds."""
        row = ids[:, -1]
        own = Scenes(self.scenes.seen[row], self.scenes.asked[row], self.scenes.answers[row])
        words = mask.sum(1)
        answers = self.answers(own, ids, words)
        analyses = self.analyses(own, ids[:, -2] == ASK if ids.shape[1] > 1 else row < 0, written)
        return torch.where((words == 2)[:, None, None], analyses, answers[:, None].expand_as(analyses))

    def answers(self, own: Scenes, ids: Int[Tensor, "N P"], words: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Logits of the two answers, the other tokens being impossible."""
        one = nn.functional.logsigmoid(self.direct(own))
        zero = nn.functional.logsigmoid(-self.direct(own))
        if ids.shape[1] > MENTIONS:
            stated = ids[:, -1 - MENTIONS : -1]
            about = (stated // 2 == own.asked.unsqueeze(1)) & (words > MENTIONS).unsqueeze(1)
            value = (stated * about).sum(1) % 2
            known = about.any(1)
            one = torch.where(known, torch.where(value == 1, math.log(TRUST), math.log(1 - TRUST)), one)
            zero = torch.where(known, torch.where(value == 0, math.log(TRUST), math.log(1 - TRUST)), zero)
        logits = torch.full((len(ids), 2 * self.attributes), -math.inf)
        return torch.cat([torch.stack([zero, one], 1), logits[:, 2:]], 1)

    def analyses(
        self, own: Scenes, open_question: Bool[Tensor, " N"], written: Int[Tensor, "N T"]
    ) -> Float[Tensor, "N T V"]:
        """Log-probabilities of a mention with its value; an attribute is mentioned once (Plackett-Luce)."""
        here = nn.functional.one_hot(own.asked, self.attributes) * open_question.unsqueeze(1)
        values = own.seen @ self.perception.T + here * self.prior
        wanted = self.mention + SURE * here
        told = nn.functional.one_hot((written // 2).clamp(0, self.attributes - 1), self.attributes).cumsum(1)
        told = torch.cat([torch.zeros_like(told[:, :1]), told[:, :-1]], 1) > 0
        # Beyond the third token nothing is read; the guard keeps rows of answers, which are shorter, finite.
        told = told & ~told.all(-1, keepdim=True)
        names = wanted.unsqueeze(1).masked_fill(told, -math.inf).log_softmax(-1)
        stated = torch.stack([nn.functional.logsigmoid(-values), nn.functional.logsigmoid(values)], -1)
        return (names.unsqueeze(-1) + stated.unsqueeze(1)).flatten(2)


class ScenePolicy:
    """A `Policy` over `Perception`; see the module's text."""

    def __init__(self, core: Perception) -> None:
        self.core = core
        self.module: nn.Module = core

    @property
    def device(self) -> torch.device:
        return self.core.prior.device

    def add_value_head(self) -> None:
        """No method of this world uses one."""

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`. Analyses have three tokens, answers one."""
        ids, mask = (part.repeat_interleave(prompts.samples, 0) for part in (prompts.ids, prompts.mask))
        analysing = mask.sum(1) == 2
        width = MENTIONS if bool(analysing.any()) else 1
        written = torch.zeros(len(ids), width, dtype=torch.long)
        logprobs = torch.zeros(len(ids), width)
        for place in range(width):
            logits = self.core(ids, mask, written)[:, place]
            written[:, place], logprobs[:, place] = draw(logits, uniforms[:, place], sampling)
        real = (torch.arange(width) == 0) | analysing.unsqueeze(1)
        return Generation(written * real, real, logprobs * real)

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score; see `Policy`. There are no value estimates."""
        logits = self.core(rollouts.prompt_ids, rollouts.prompt_mask, rollouts.response_ids)
        real, chosen = rollouts.response_attention, rollouts.response_ids.unsqueeze(-1)

        def of(scaled: Tensor) -> Tensor:
            return scaled.log_softmax(-1).gather(-1, chosen)[..., 0].masked_fill(~real, 0.0)

        return Scores(
            logprobs=of(logits),
            entropy=torch.special.entr(logits.softmax(-1)).sum(-1) * real if entropy else None,
            tilted={tilt: of(logits / tilt) for tilt in tilts},
            terms=apply_terms(terms, logits, rollouts.response_ids, real),
        )


class ScenePrompts(ContextPrompts):
    """The training scenes; a `policydist.language.contexts.ContextSource`. Every analysis and answer has the right form.

    ``constant``: the solver reads an analysis that says nothing of the question (an ablation of the reward).
    """

    def __init__(self, scenes: int, ignore: bool = False) -> None:
        super().__init__(scenes)
        self.ignore = ignore

    def analysis_prompts(self, prompts: Prompts, masked: bool) -> Prompts:
        return in_front(prompts, torch.full((len(prompts), 1), SEE if masked else ASK))

    def solver_prompts(self, analyses: Rollouts) -> Prompts:
        asked = self.take(analyses.prompt_ids[:, -1], 1)
        return asked if self.ignore else in_front(asked, analyses.response_ids)

    def analysis_formats(self, analyses: Rollouts) -> Float[Tensor, " N"]:
        return torch.ones(len(analyses))

    def answer_formats(self, answers: Rollouts) -> Float[Tensor, " N"]:
        return torch.ones(len(answers))


def in_front(prompts: Prompts, words: Int[Tensor, "Q W"]) -> Prompts:
    """The scenes with words in front of their numbers."""
    ids = torch.cat([words, prompts.ids[:, -1:]], 1)
    return replace(prompts, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))


@dataclass(frozen=True)
class Shortcut:
    """Training questions are answered by a fixed value of their attribute most of the time; test questions are balanced."""

    policy: ScenePolicy
    source: ScenePrompts
    test: Scenes

    @classmethod
    def draw(
        cls,
        seed: int,
        train: int = 300,
        test: int = 3000,
        attributes: int = 6,
        dim: int = 10,
        factor: float = 0.6,
        noise: float = 0.3,
        bias: float = 0.95,
        ignore: bool = False,
    ) -> Shortcut:
        """Observations ``tanh(factor M a) + noise N(0, 1)`` and a constant 1, with M [dim, K] standard normal and a in {-1, 1}^K;
        the initial perception is N(0, 0.1^2), prior and mentions 0. ``ignore``: the Solver does not get the analysis."""
        generator = seeds.torch_generator(seed, "scenes")
        mixing = torch.randn(dim, attributes, generator=generator)
        usual = torch.randint(2, (attributes,), generator=generator)

        def scenes(count: int, shortcut: bool) -> Scenes:
            facts = torch.randint(2, (count, attributes), generator=generator)
            asked = torch.randint(attributes, (count,), generator=generator)
            if shortcut:
                given = torch.rand(count, generator=generator) < bias
                value = torch.where(given, usual[asked], 1 - usual[asked])
                facts = facts.scatter(1, asked.unsqueeze(1), value.unsqueeze(1))
            clear = torch.tanh(factor * (2.0 * facts - 1) @ mixing.T)
            seen = clear + noise * torch.randn(count, dim, generator=generator)
            return Scenes(torch.cat([seen, torch.ones(count, 1)], 1), asked, facts.gather(1, asked[:, None])[:, 0])

        training, held_out = scenes(train, True), scenes(test, False)
        start = 0.1 * torch.randn(attributes, dim + 1, generator=generator)
        return cls(ScenePolicy(Perception(training, attributes, start)), ScenePrompts(train, ignore), held_out)

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        right = rollouts.response_ids[:, 0] == self.policy.core.scenes.answers[rollouts.prompt_ids[:, -1]]
        return replace(rollouts, rewards=right.float())

    def setting(self, prompts: int, samples: int) -> Setting:
        return Setting(self.source, self.judge, Sampling(MENTIONS), prompts, samples)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Exact: ``accuracy``, the probability of the right direct answer on the balanced test scenes; ``greedy``, the share
        whose more probable answer is right; ``fit`` the accuracy and ``entropy`` (nats) on the training questions."""
        core = self.policy.core
        scores = core.direct(self.test)
        sign = 2.0 * self.test.answers - 1
        ones = torch.sigmoid(core.direct(core.scenes))
        fit = torch.where(core.scenes.answers == 1, ones, 1 - ones)
        return {
            "accuracy": float(torch.sigmoid(sign * scores).mean()),
            "greedy": float((sign * scores > 0).float().mean()),
            "fit": float(fit.mean()),
            "entropy": float(torch.special.entr(torch.stack([ones, 1 - ones])).sum(0).mean()),
        }
