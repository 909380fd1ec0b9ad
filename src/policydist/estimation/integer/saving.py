"""A fitted `IntegerRegressor` as two files: ``model.safetensors`` (weights) and ``model.json`` (everything else)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from sklearn.utils.validation import check_is_fitted

from policydist.errors import UsageError
from policydist.estimation.integer.heads import HEADS
from policydist.estimation.integer.regressor import IntegerRegressor, layers
from policydist.runs.directory import write_whole


def save_model(model: IntegerRegressor, folder: Path) -> None:
    """Write the fitted model; ``random_state`` is kept if it is a whole number.

    Raises:
        NotFittedError: as scikit-learn's estimators do.
    """
    check_is_fitted(model, "network_")
    parameters = model.get_params()
    if not isinstance(parameters["random_state"], int):
        parameters["random_state"] = None
    about = {
        "parameters": {**parameters, "hidden": list(model.hidden)},
        "head": dataclasses.asdict(model.head_),
        "centre": model.centre_.tolist(),
        "spread": model.spread_.tolist(),
        "features": [str(name) for name in getattr(model, "feature_names_in_", ())],
    }
    write_whole(folder / "model.safetensors", save(model.network_.state_dict()))
    write_whole(folder / "model.json", json.dumps(about, indent=2))


def load_model(folder: Path) -> IntegerRegressor:
    """The model that `save_model` wrote: it predicts the same; ``loss_curve_`` is not kept.

    Raises:
        UsageError: if a file is absent or damaged.
    """
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load((folder / "model.safetensors").read_bytes())
        parameters = about["parameters"]
        model = IntegerRegressor(**{**parameters, "hidden": tuple(parameters["hidden"])})
        model.head_ = HEADS[model.head](**about["head"])
        model.centre_, model.spread_ = np.asarray(about["centre"]), np.asarray(about["spread"])
        model.n_features_in_ = len(model.centre_)
        if about["features"]:
            model.feature_names_in_ = np.asarray(about["features"], dtype=object)
        model.network_ = layers([model.n_features_in_, *model.hidden, model.head_.n_outputs]).double().eval()
        model.network_.load_state_dict(weights)
    except OSError as problem:
        raise UsageError(f"{problem.filename}: {problem.strerror}; give the folder that save_model wrote") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as problem:
        raise UsageError(f"{folder} holds no readable model ({' '.join(str(problem).split())})") from None
    return model
