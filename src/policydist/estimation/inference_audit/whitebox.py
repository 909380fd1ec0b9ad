"""White-box attacks: they read the weights of a model (arXiv 2109.06024, sections 5.2 and 6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policydist.errors import UsageError
from policydist.estimation.inference_audit.attacks import Need
from policydist.estimation.inference_audit.evidence import Evidence, Layers, joined
from policydist.estimation.inference_audit.invariant import WeightEncoder
from policydist.estimation.inference_audit.threads import one_torch_thread
from policydist.runs.seeds import derive, torch_generator


@dataclass(frozen=True)
class LDAAttack:
    """Linear discriminant on the weight vectors of linear victims, covariance pooled plus ``ridge``·I.

    The best test there is if the weights of both kinds of models are normal with one covariance.
    """

    name: ClassVar[str] = "lda"
    need: ClassVar[Need] = "layers"
    ridge: float = 1e-6

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> FittedLDA:
        if models0.layers is None or len(models0.layers) != 1:
            raise UsageError("the attack lda is for linear victims; use meta for networks")
        a, b = models0.flat_weights(), models1.flat_weights()
        centred = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)])
        covariance = centred.T @ centred / max(len(centred) - 2, 1) + self.ridge * np.eye(a.shape[1])
        direction = np.linalg.solve(covariance, b.mean(axis=0) - a.mean(axis=0))
        middle = 0.5 * (a.mean(axis=0) + b.mean(axis=0)) @ direction
        accuracy = 0.5 * (np.mean(a @ direction < middle) + np.mean(b @ direction >= middle))
        return FittedLDA(direction, float(middle), float(accuracy))


@dataclass(frozen=True)
class FittedLDA:
    """1 where weights·direction ≥ middle."""

    direction: Float[np.ndarray, " weights"]
    middle: float
    adversary_accuracy: float

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]:
        return (models.flat_weights() @ self.direction >= self.middle).astype(np.int64)


@dataclass(frozen=True)
class MetaClassifier:
    """The permutation-invariant network on weights, trained to tell the adversary's two groups of models apart.

    ``invariant=False`` is the arrangement of the released code (see `WeightEncoder`), without standardised weights.
    Adam's settings are the code's; ``epochs`` is smaller than its 1000, with the weights of the best epoch on
    ``validation`` (share of the adversary's models) kept. The paper trains on 1,600 models: fifty a side are few.
    """

    name: ClassVar[str] = "meta"
    need: ClassVar[Need] = "layers"
    invariant: bool = True
    epochs: int = 300
    batch_size: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.5
    validation: float = 0.2

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> FittedNetwork:
        labels = np.repeat([0.0, 1.0], [len(models0), len(models1)])
        return train_encoder(self, joined([models0, models1]), labels, "bce", seed)


@dataclass(frozen=True)
class RegressionAttack(MetaClassifier):
    """The same network trained to estimate the share of the property; a guess is on the nearer of the two shares.

    Between two shares only, as here, it differs from the meta-classifier by its squared loss. `estimate_shares` trains
    it over a whole grid of shares and reports its error at each.
    """

    name: ClassVar[str] = "regression"

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> FittedNetwork:
        labels = np.repeat([0.0, 1.0], [len(models0), len(models1)])
        return train_encoder(self, joined([models0, models1]), labels, "mse", seed)


@dataclass(frozen=True)
class FittedNetwork:
    """The trained encoder with its standardisation; ``middle`` parts the two predictions."""

    encoder: WeightEncoder
    scaling: Scaling
    middle: float
    adversary_accuracy: float

    def values(self, models: Evidence) -> Float[np.ndarray, " m"]:
        """The network's output for each model: a logit, or the estimated share."""
        assert models.layers is not None
        self.encoder.eval()
        with torch.no_grad():
            return self.encoder(self.scaling(models.layers)).double().numpy()

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]:
        return (self.values(models) >= self.middle).astype(np.int64)


@dataclass(frozen=True)
class Scaling:
    """Mean and spread of the weights of each layer: by input column in the first, one number a layer after it, so that
    renumbered hidden neurons are scaled alike.
    """

    parts: tuple[tuple[np.ndarray, np.ndarray, float, float], ...]

    @classmethod
    def of(cls, layers: Layers, enabled: bool) -> Scaling:
        if not enabled:
            return cls(tuple((np.zeros(1), np.ones(1), 0.0, 1.0) for _ in layers))
        parts = []
        for number, (weights, bias) in enumerate(layers):
            axis = (0, 1) if number == 0 else None
            mean, spread = np.mean(weights, axis=axis), np.std(weights, axis=axis)
            parts.append((np.atleast_1d(mean), _positive(spread), float(bias.mean()), float(_positive(bias.std())[0])))
        return cls(tuple(parts))

    def __call__(self, layers: Layers) -> list[tuple[Tensor, Tensor]]:
        return [
            (torch.from_numpy((w - mean) / spread).float(), torch.from_numpy((b - centre) / width).float())
            for (w, b), (mean, spread, centre, width) in zip(layers, self.parts, strict=True)
        ]


def _positive(spread: np.ndarray | np.floating) -> np.ndarray:
    values = np.atleast_1d(spread)
    return np.where(values > 1e-12, values, 1.0)


def train_encoder(
    config: MetaClassifier, models: Evidence, targets: Float[np.ndarray, " m"], loss: Literal["bce", "mse"], seed: int
) -> FittedNetwork:
    """Train a `WeightEncoder` on models and targets; the epoch with the least validation loss is kept."""
    assert models.layers is not None
    learn, check = _held_out(targets, config.validation, seed)
    scaling = Scaling.of(models.of(learn).layers or (), enabled=config.invariant)
    inputs, wanted = scaling(models.layers), torch.from_numpy(targets).float()
    score = nn.functional.binary_cross_entropy_with_logits if loss == "bce" else nn.functional.mse_loss
    with torch.random.fork_rng(devices=[]), one_torch_thread():
        torch.manual_seed(derive(seed, "encoder") % 2**63)
        encoder = WeightEncoder(
            [w.shape[1:] for w, _ in models.layers], invariant=config.invariant, dropout=config.dropout
        )
        _optimise(config, encoder, inputs, wanted, score, torch.from_numpy(learn), torch.from_numpy(check), seed)
    middle = 0.0 if loss == "bce" else 0.5 * float(targets.min() + targets.max())
    fitted = FittedNetwork(encoder, scaling, middle, 0.0)
    right = (fitted.values(models) >= middle) == (targets > 0.5 * (targets.min() + targets.max()))
    accuracy = float(np.mean(right[check])) if len(check) else float(np.mean(right))
    return FittedNetwork(encoder, scaling, middle, accuracy)


def _optimise(
    config: MetaClassifier,
    encoder: WeightEncoder,
    inputs: Sequence[tuple[Tensor, Tensor]],
    wanted: Tensor,
    score: object,
    learn: Tensor,
    check: Tensor,
    seed: int,
) -> None:
    assert callable(score)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch_generator(seed, "encoder", "batches")
    held = check if len(check) else learn
    best, kept = float("inf"), {name: value.clone() for name, value in encoder.state_dict().items()}
    for _ in range(config.epochs):
        encoder.train()
        for rows in learn[torch.randperm(len(learn), generator=generator)].split(config.batch_size):
            loss = score(encoder([(w[rows], b[rows]) for w, b in inputs]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        encoder.eval()
        with torch.no_grad():
            value = float(score(encoder([(w[held], b[held]) for w, b in inputs]), wanted[held]))
        if value < best:
            best, kept = value, {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(kept)


def _held_out(targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to check on, the same share of every target."""
    generator = torch_generator(seed, "encoder", "split")
    learn: list[int] = []
    check: list[int] = []
    for target in np.unique(targets):
        rows = np.flatnonzero(targets == target)
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        count = round(share * len(rows))
        check += rows[:count].tolist()
        learn += rows[count:].tolist()
    return np.array(sorted(learn)), np.array(sorted(check), dtype=np.int64)
