"""One safetensors file for a fitted estimator: weights as tensors, everything else as JSON beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from policydist.errors import UsageError
from policydist.estimation.lifetime.columns import ColumnEncoder, Outcome
from policydist.runs.directory import write_whole

FORMAT = "policydist-lifetime/1"
Estimator = TypeVar("Estimator")


def write(path: Path, estimator: Any) -> None:
    """Write a fitted estimator; a ``random_state`` object is not kept."""
    parameters = estimator.get_params()
    if not isinstance(parameters["random_state"], int | np.integer | None):
        parameters["random_state"] = None
    about = {
        "estimator": type(estimator).__name__,
        "parameters": parameters,
        "encoder": dataclasses.asdict(estimator.encoder_),
        "outcome": dataclasses.asdict(estimator.outcome_),
        "columns": estimator.columns_,
        "feature_names_in": getattr(estimator, "feature_names_in_", None),
        "history": estimator.history_,
    }
    tensors = {name: tensor.contiguous() for name, tensor in estimator.network_.state_dict().items()}
    tensors["loss_curve"] = torch.from_numpy(estimator.loss_curve_)
    write_whole(path, save(tensors, {"format": FORMAT, "about": json.dumps(about, default=_plain)}))


def read(path: Path, kind: type[Estimator]) -> Estimator:
    """The estimator of class ``kind`` that :func:`write` wrote."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as problem:
        raise UsageError(f"{path} is not a safetensors file ({problem})") from None
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path} does not hold a lifetime-value estimator of this version ({FORMAT})")
    about = json.loads(metadata["about"])
    if about["estimator"] != kind.__name__:
        raise UsageError(f"{path} holds a {about['estimator']}: load it with {about['estimator']}.load")
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in about["parameters"].items()}
    estimator: Any = kind(**lists)
    encoder = about["encoder"]
    estimator.encoder_ = ColumnEncoder(
        **{**encoder, "centre": np.asarray(encoder["centre"]), "spread": np.asarray(encoder["spread"])}
    )
    estimator.outcome_ = Outcome(**about["outcome"])
    estimator.columns_, estimator.n_features_in_ = about["columns"], len(about["columns"])
    if about["feature_names_in"] is not None:
        estimator.feature_names_in_ = np.asarray(about["feature_names_in"], dtype=object)
    estimator.history_, estimator.loss_curve_ = about["history"], tensors.pop("loss_curve").numpy()
    network = estimator._network(torch.Generator()).double()
    network.load_state_dict(tensors)
    estimator.network_ = network.eval()
    return estimator


def _plain(value: Any) -> Any:
    """NumPy values as JSON knows them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be saved")
