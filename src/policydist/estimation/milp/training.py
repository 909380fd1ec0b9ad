"""Imitating the expert: cross-entropy over the candidates, on one domain's samples or on several domains' together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.milp.metrics import acc_at_k, chance_at_k
from policydist.estimation.milp.policy import BranchPolicy, PolicyConfig
from policydist.estimation.milp.samples import BranchSample
from policydist.estimation.milp.state import Graphs, merge
from policydist.runs import checkpoint
from policydist.runs.seeds import numpy_generator

Samples = Sequence[BranchSample]
KS = (1, 3, 5, 10)


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser. Defaults are the paper's scripts'."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    steps: int = 312 * 1000
    """Most updates; the paper's 1000 epochs of 312 batches."""
    batch: int = 32
    lr: float = 1e-3
    epoch: int = 312
    """Updates between two validations."""
    patience: int = 10
    """Epochs without a better validation loss after which the learning rate falls to a fifth; after twice as many, stop."""
    calibrate: float = 0.1
    """Share of the training samples that set the prenorms."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.epoch, self.patience) < 1 or self.lr <= 0 or not 0 < self.calibrate <= 1:
            raise UsageError("train: steps, batch, epoch, patience and lr must be positive, calibrate in (0, 1]")


@dataclass
class Trained:
    """A trained policy and how it came about."""

    policy: BranchPolicy
    steps: int
    """Updates made."""
    train_loss: float
    """Mean cross-entropy over the last epoch, nats."""
    validation_loss: float
    """The best one, whose weights are kept; NaN without validation samples."""


def mixed(by_domain: Mapping[str, Samples]) -> list[BranchSample]:
    """The union of the domains' samples in the order of their names; batches are drawn uniformly over it, unbalanced."""
    return [one for name in sorted(by_domain) for one in by_domain[name]]


def choice_loss(
    scores: Float[Tensor, "V"], start: Int[Tensor, "B"], samples: Samples, reduction: str = "mean"
) -> Float[Tensor, "..."]:
    """Cross-entropy −log softmax(scores over the candidates)[expert's choice], in nats; other variables play no part."""
    counts = torch.tensor([len(one.candidates) for one in samples])
    column = torch.from_numpy(np.concatenate([one.candidates for one in samples]).astype(np.int64))
    logits = scores[column + start.repeat_interleave(counts)]
    target = torch.tensor([one.target for one in samples]) + counts.cumsum(0) - counts
    # Ragged log-sum-exp: every sample has its own candidates and there is no padding.
    owner = torch.arange(len(samples)).repeat_interleave(counts)
    top = torch.full((len(samples),), -torch.inf, dtype=logits.dtype).scatter_reduce(0, owner, logits.detach(), "amax")
    total = torch.zeros(len(samples), dtype=logits.dtype).index_add(0, owner, torch.exp(logits - top[owner]))
    losses = top + torch.log(total) - logits[target]
    return losses.mean() if reduction == "mean" else losses


def train_policy(
    samples: Samples,
    config: TrainConfig,
    seed: int = 0,
    validation: Samples = (),
    progress: Callable[[int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Trained:
    """Train a policy on ``samples`` (of one domain, or `mixed`). The same samples and seed give the same weights.

    Without validation samples the last weights are kept and all steps are made. With ``folder`` every epoch leaves a
    checkpoint there, and a call with the same arguments goes on from the newest one, to the same weights.

    Raises:
        UsageError: for no samples.
        PolicydistError: if the loss stops being finite.
    """
    if not samples:
        raise UsageError(
            "no sample to train on; collect more instances, or harder ones, whose trees have nodes to branch at"
        )
    rng = numpy_generator(seed, "milp", "train")
    policy = BranchPolicy(config.policy, seed)
    share = rng.permutation(len(samples))[
        : max(1, round(config.calibrate * len(samples)), min(len(samples), config.batch))
    ]
    parts = np.array_split(share, max(1, len(share) // config.batch))
    policy.calibrate([_graphs([samples[i] for i in part]) for part in parts])
    optimiser = torch.optim.Adam(policy.parameters(), lr=config.lr, fused=True)
    course = _Course()
    if folder is not None and checkpoint.complete(folder):
        course.restore(folder, policy, optimiser, rng)
    while course.step < config.steps and course.stale < 2 * config.patience:
        course.step += 1
        chosen = [samples[i] for i in rng.integers(len(samples), size=config.batch)]
        loss = _update(policy, optimiser, chosen, course.step)
        course.losses = [*course.losses, loss][-config.epoch :]
        if course.step % config.epoch and course.step != config.steps:
            continue
        row = {"loss": float(np.mean(course.losses))}
        if validation:
            row["validation_loss"] = current = float(np.mean(evaluate_samples(policy, validation)["cross_entropy"]))
            if not course.improved(current, policy) and course.stale == config.patience:
                for group in optimiser.param_groups:
                    group["lr"] *= 0.2
        if folder is not None:
            course.save(folder, policy, optimiser, rng)
        if progress:
            progress(course.step, row)
    if course.kept:
        policy.load_state_dict(course.kept)
    final = float(np.mean(course.losses))
    return Trained(policy.eval(), course.step, final, course.best if validation else float("nan"))


def _update(policy: BranchPolicy, optimiser: torch.optim.Optimizer, chosen: Samples, step: int) -> float:
    """One update on the chosen samples; its loss."""
    graphs = _graphs(chosen)
    loss = choice_loss(policy(graphs), graphs.variable_start, chosen)
    if not torch.isfinite(loss):
        raise PolicydistError(f"branching policy: loss {loss.item()} at step {step}; lower the learning rate")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


@dataclass
class _Course:
    """Where a training stands, besides weights, optimiser and random numbers: the losses of the last epoch, the best
    validation loss with its weights, and the epochs since."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: float = float("inf")
    stale: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)

    def improved(self, loss: float, policy: BranchPolicy) -> bool:
        """Take note of a validation loss; whether it is the best so far."""
        better = loss < self.best
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best, self.kept = loss, copy.deepcopy(policy.state_dict())
        return better

    def save(
        self, folder: Path, policy: BranchPolicy, optimiser: torch.optim.Optimizer, rng: np.random.Generator
    ) -> None:
        weights = {f"now.{name}": tensor for name, tensor in policy.state_dict().items()}
        weights |= {f"best.{name}": tensor for name, tensor in self.kept.items()}
        state = {"losses": self.losses, "best": self.best, "stale": self.stale, "rng": rng.bit_generator.state}
        checkpoint.save(folder, self.step, weights, optimiser.state_dict(), state, keep=1)

    def restore(
        self, folder: Path, policy: BranchPolicy, optimiser: torch.optim.Optimizer, rng: np.random.Generator
    ) -> None:
        weights, moments, state = checkpoint.load(checkpoint.newest(folder))
        policy.load_state_dict(_part(weights, "now."))
        optimiser.load_state_dict(moments)
        rng.bit_generator.state = state["rng"]
        self.step, self.losses = state["step"], state["losses"]
        self.best, self.stale, self.kept = state["best"], state["stale"], _part(weights, "best.")


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _graphs(samples: Samples) -> Graphs:
    return merge([one.state for one in samples])


@torch.no_grad()
def evaluate_samples(policy: BranchPolicy, samples: Samples, batch: int = 64) -> dict[str, np.ndarray]:
    """Per sample: ``cross_entropy`` (nats), ``acc@k`` and the ``chance@k`` of a random order, for k in 1, 3, 5, 10."""
    rows: dict[str, list[float]] = {"cross_entropy": []}
    for begin in range(0, len(samples), batch):
        part = samples[begin : begin + batch]
        graphs = _graphs(part)
        scores = policy(graphs)
        rows["cross_entropy"] += choice_loss(scores, graphs.variable_start, part, "none").tolist()
        values = scores.numpy()
        for one, start in zip(part, graphs.variable_start.tolist(), strict=True):
            logits = values[one.candidates + start]
            for k, hit in acc_at_k(logits, one.scores, KS).items():
                rows.setdefault(f"acc@{k}", []).append(hit)
            for k, level in chance_at_k(one.scores, KS).items():
                rows.setdefault(f"chance@{k}", []).append(level)
    return {name: np.array(values) for name, values in rows.items()}
