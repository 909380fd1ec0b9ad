"""Reading models: how sure they are of the true label, how often they are right, and their weights.

A model is a fitted scikit-learn classifier (pipelines included) or a torch module whose output is one logit (``(n,)``
or ``(n, 1)``, labels 0 and 1) or one logit a class (``(n, C)``, labels 0 … C−1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit, softmax
from torch import nn

from policydist.errors import UsageError

Layer = tuple[Float[np.ndarray, "out in"], Float[np.ndarray, " out"]]


def accuracy(model: Any, X: Any, y: np.ndarray) -> float:
    """Share of rows whose label the model gives."""
    if isinstance(model, nn.Module):
        _refuse_names(y)
        return float(np.mean(_module_chances(model, X).argmax(axis=1) == y))
    if not hasattr(model, "predict"):
        raise UsageError(f"{type(model).__name__} has no predict; give audit(score=...) a function (model, X, y)")
    return float(np.mean(np.asarray(model.predict(X)) == y))


def true_label_chance(model: Any, X: Any, y: np.ndarray) -> Float[np.ndarray, " n"]:
    """Probability that the model gives to each row's own label; 0 for a label it never saw.

    Without ``predict_proba`` the decision function goes through a sigmoid or softmax, and a model that has neither
    counts as sure of what it predicts: less to go by, but every classifier can be audited.
    """
    if isinstance(model, nn.Module):
        _refuse_names(y)
        return _own(_module_chances(model, X), np.arange(10**6), y)
    if hasattr(model, "predict_proba"):
        return _own(np.asarray(model.predict_proba(X)), model.classes_, y)
    if hasattr(model, "decision_function"):
        decision = np.asarray(model.decision_function(X))
        both = np.stack([expit(-decision), expit(decision)], axis=1) if decision.ndim == 1 else softmax(decision, 1)
        return _own(both, model.classes_, y)
    return (np.asarray(model.predict(X)) == y).astype(np.float64)


def _refuse_names(y: np.ndarray) -> None:
    if y.dtype.kind not in "iufb":
        raise UsageError("a torch module answers with class numbers; encode the labels as 0, 1, … in the sampler")


def _own(chances: np.ndarray, classes: Any, y: np.ndarray) -> np.ndarray:
    known = np.asarray(classes)[: chances.shape[1]]
    column = np.minimum(np.searchsorted(known, y), len(known) - 1)
    return np.where(known[column] == y, chances[np.arange(len(y)), column], 0.0)


def _module_chances(model: nn.Module, X: Any) -> np.ndarray:
    model.eval()
    first = next(model.parameters(), torch.zeros(()))
    with torch.no_grad():
        out = model(torch.as_tensor(np.asarray(X), dtype=first.dtype, device=first.device)).cpu().double()
    if out.ndim == 1 or out.shape[1] == 1:
        chance = torch.sigmoid(out.reshape(-1))
        return torch.stack([1 - chance, chance], 1).numpy()
    return torch.softmax(out, 1).numpy()


def layers(model: Any) -> list[Layer]:
    """Weights (out, in) and biases (out,) of every layer, input side first.

    Linear scikit-learn models, `MLPClassifier`, `TorchMLPClassifier`, pipelines that end in one of them (their
    earlier steps are left out), and torch modules made of `nn.Linear` and layers without weights.

    Raises:
        UsageError: for a model without such weights.
    """
    if hasattr(model, "steps"):
        return layers(model.steps[-1][1])
    if hasattr(model, "module_"):
        return layers(model.module_)
    if isinstance(model, nn.Module):
        return _module_layers(model)
    if hasattr(model, "coefs_"):
        return [(np.asarray(w).T, np.asarray(b)) for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
    if hasattr(model, "coef_"):
        weights = np.atleast_2d(np.asarray(model.coef_, dtype=np.float64))
        bias = np.asarray(getattr(model, "intercept_", 0.0), dtype=np.float64)
        return [(weights, np.broadcast_to(bias.reshape(-1), (len(weights),)).copy())]
    raise UsageError(
        f"white-box attacks need weights and {type(model).__name__} has none (no coef_, no coefs_, no torch layers); "
        "use the attacks loss, threshold, per_point or kl"
    )


def _module_layers(model: nn.Module) -> list[Layer]:
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().cpu().double().numpy()
            bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().cpu().double().numpy()
            found.append((weight, bias))
        elif any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"white-box attacks read linear layers, and the victim has a {type(module).__name__}; "
                "use the attacks loss, threshold, per_point or kl"
            )
    if not found:
        raise UsageError("white-box attacks need weights and the torch module has no linear layer")
    return found
