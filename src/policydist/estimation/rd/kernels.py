"""Kernels on [-1, 1] and the constants of one-sided local polynomial smoothing at a boundary point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from policydist.errors import nearest

Kernel = Literal["triangular", "epanechnikov", "uniform"]
Side = Literal["plus", "minus"]
KERNELS: tuple[str, ...] = get_args(Kernel)

# A kernel on [0, 1] as polynomial coefficients c_0 + c_1 u + c_2 u^2: moments then have closed forms.
_COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "triangular": (1.0, -1.0),
    "epanechnikov": (0.75, 0.0, -0.75),
    "uniform": (0.5,),
}


def check_kernel(kernel: str) -> None:
    """Raises ValueError unless ``kernel`` names one of `KERNELS`."""
    if kernel not in _COEFFICIENTS:
        raise ValueError(f"unknown kernel {kernel!r}; {nearest(str(kernel), KERNELS)}")


def evaluate(u: Float[np.ndarray, "*any"], kernel: Kernel) -> Float[np.ndarray, "*any"]:
    """K(u): triangular max(0, 1-|u|), Epanechnikov 3/4 max(0, 1-u^2), uniform 1/2 on |u| <= 1."""
    check_kernel(kernel)
    if kernel == "triangular":
        return np.maximum(0.0, 1.0 - np.abs(u))
    if kernel == "epanechnikov":
        return 0.75 * np.maximum(0.0, 1.0 - u * u)
    return 0.5 * (np.abs(u) <= 1.0)


@dataclass(frozen=True)
class BoundaryConstants:
    """C_B = e0' G^-1 L and C_V = e0' G^-1 P G^-1 e0 of one side (G, L, P: kernel moment matrices)."""

    bias: float
    variance: float


def boundary_constants(order: int, kernel: Kernel, side: Side) -> BoundaryConstants:
    """Constants of an order-``order`` fit's leading bias and variance at a boundary (arXiv 2504.03992, App. A-4.2).

    The estimate's bias is h^(order+1) C_B m^(order+1)/(order+1)! and its variance C_V sigma^2/(n h f(0)).
    """
    check_kernel(kernel)
    powers = np.arange(2 * order + 2)
    sign = 1.0 if side == "plus" else -1.0
    coefficients = np.asarray(_COEFFICIENTS[kernel])
    first = sign**powers * _moments(coefficients, powers)
    second = sign**powers * _moments(np.convolve(coefficients, coefficients), powers)
    pair = np.add.outer(np.arange(order + 1), np.arange(order + 1))
    inverse = np.linalg.inv(first[pair])
    shifted = first[order + 1 : 2 * order + 2]
    return BoundaryConstants(float(inverse[0] @ shifted), float(inverse[0] @ second[pair] @ inverse[0]))


def _moments(coefficients: Float[np.ndarray, " c"], powers: np.ndarray) -> Float[np.ndarray, " k"]:
    """Integrals of u^j times a polynomial over [0, 1]."""
    shifts = np.arange(len(coefficients))
    return (coefficients / (powers[:, None] + shifts + 1.0)).sum(axis=1)
