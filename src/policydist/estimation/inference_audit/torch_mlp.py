"""A multilayer perceptron in torch behind scikit-learn's classifier interface, as a victim or a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from policydist.estimation.inference_audit.threads import one_torch_thread
from policydist.runs.seeds import torch_generator


class TorchMLPClassifier(ClassifierMixin, BaseEstimator):
    """ReLU network trained by Adam on cross-entropy; the paper's Census victim is 32-16-8 for 40 epochs.

    Parameters
    ----------
    hidden_layer_sizes : neurons of the hidden layers; () is multinomial logistic regression.
    epochs : passes over the data.
    batch_size : rows a step (the last batch may be smaller).
    learning_rate, weight_decay : of Adam.
    random_state : seed of weights and batches; the fit depends on nothing else random.

    Attributes
    ----------
    classes_, n_features_in_ : as everywhere in scikit-learn.
    module_ : the trained `nn.Sequential`: one logit for two classes, one a class for more.
    loss_curve_ : mean training loss of every epoch, in nats.
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (32, 16, 8),
        *,
        epochs: int = 40,
        batch_size: int = 32,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train. Raises ValueError for NaN, infinite values, fewer than two classes, or settings out of range."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"TorchMLPClassifier needs at least two classes, y has one class: {self.classes_[0]!r}")
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError("epochs and batch_size must be at least 1, learning_rate positive")
        with one_torch_thread():
            self._train(torch.from_numpy(X), torch.from_numpy(codes.astype(np.int64)))
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probability of every class, (n, C)."""
        decision = torch.from_numpy(self.decision_function(X))
        if decision.ndim == 2:
            return torch.softmax(decision, 1).numpy()
        return torch.sigmoid(torch.stack([-decision, decision], 1)).numpy()

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Logits: (n,) of the second class for two classes, else (n, C)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        with torch.no_grad():
            out = self.module_(torch.from_numpy(np.ascontiguousarray(X))).double().numpy()
        return out[:, 0] if out.shape[1] == 1 else out

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The likeliest class."""
        decision = self.decision_function(X)
        return self.classes_[(decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(1)]

    def _train(self, X: Tensor, codes: Tensor) -> None:
        outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        generator = torch_generator(self.random_state, "torch_mlp")
        self.module_ = network([X.shape[1], *self.hidden_layer_sizes, outputs], generator)
        optimizer = torch.optim.Adam(self.module_.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        self.loss_curve_ = []
        for _ in range(self.epochs):
            total = 0.0
            for rows in torch.randperm(len(X), generator=generator).split(self.batch_size):
                loss = self._loss(self.module_(X[rows]), codes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            self.loss_curve_.append(total / len(X))

    @staticmethod
    def _loss(out: Tensor, codes: Tensor) -> Tensor:
        if out.shape[1] == 1:
            return nn.functional.binary_cross_entropy_with_logits(out[:, 0], codes.to(out.dtype))
        return nn.functional.cross_entropy(out, codes)


def network(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them, He-normal weights from ``generator`` and zero biases."""
    parts: list[nn.Module] = []
    for count, (wide, narrow) in enumerate(pairwise(sizes)):
        layer = nn.utils.skip_init(nn.Linear, wide, narrow)
        with torch.no_grad():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        parts += [*([nn.ReLU()] if count else []), layer]
    return nn.Sequential(*parts)
