"""The state of a branch-and-bound node as a bipartite graph of variables and rows (arXiv 1906.01629, section 4.1).

PySCIPOpt's bipartite call gives the same contents in another order and unscaled; here they are scaled, two-sided rows are
split into ≤ rows with the sign turned for the left side, and the constant in place of the right-hand side is mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

VARIABLE_FEATURES = (
    "continuous", "binary", "integer", "implicit", "objective", "has_lower", "has_upper", "at_lower", "at_upper",
    "value", "fractionality", "reduced_cost", "basis_lower", "basis_basic", "basis_upper", "basis_zero",
    "incumbent", "mean_incumbent", "age",
)  # fmt: skip
ROW_FEATURES = ("objective_cosine", "bias", "tight", "age", "dual")
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class State:
    """One node: features of its V variables and R one-sided rows, and the E coefficients between them."""

    variables: Singles
    """``[V, 19]``, columns as in ``VARIABLE_FEATURES``."""
    rows: Singles
    """``[R, 5]``, columns as in ``ROW_FEATURES``."""
    edges: NDArray[np.int32]
    """``[2, E]``: row, variable."""
    coefficients: Singles
    """``[E]``: coefficient over the norm of its row."""


def extract(model: Any) -> State:
    """The state of the node that SCIP is at, from inside a callback with a solved LP."""
    raw_columns, raw_edges, raw_rows, _ = model.getBipartiteGraphRepresentation()
    # Before the first incumbent its two values are None, which float conversion makes NaN.
    columns = np.nan_to_num(np.array(raw_columns, dtype=float).reshape(len(raw_columns), 19))
    edges = np.array(raw_edges, dtype=float).reshape(-1, 3)
    rows = np.array(raw_rows, dtype=float).reshape(len(raw_rows), 14)
    sides = np.array([(row.getLhs(), row.getRhs()) for row in model.getLPRowsData()]).reshape(-1, 2)
    return assemble(columns, edges, rows, sides, model.getNLPs())


def assemble(
    columns: NDArray[np.float64],
    edges: NDArray[np.float64],
    rows: NDArray[np.float64],
    sides: NDArray[np.float64],
    n_lps: int,
) -> State:
    """Scale SCIP's arrays: columns ``[V, 19]``, edges ``[E, 3]``, rows ``[R, 14]``, both sides of the rows ``[R, 2]``.

    Objective and reduced cost over ‖c‖, ages over (LPs + 5), coefficients and sides over the norm of their row, duals over
    both; the constant of a row moves to its sides.
    """
    cost = columns[:, 4]
    scale = float(np.linalg.norm(cost)) or 1.0
    features = columns.copy()
    features[:, [4, 11]] /= scale
    features[:, 18] /= n_lps + 5
    variable, row = edges[:, 0].astype(np.int32), edges[:, 1].astype(np.int32)
    norm = np.maximum(rows[:, 5], 1e-12)
    cosine = np.bincount(row, edges[:, 2] * cost[variable], minlength=len(rows)) / (norm * scale)
    bias = (sides - rows[:, [4]]) / norm[:, None]
    dual = rows[:, 8] / (norm * scale)
    age = rows[:, 9] / (n_lps + 5)
    parts, ends, values = [], [], []
    offset = 0
    for side, sign in ((0, -1.0), (1, 1.0)):
        kept = rows[:, side] > 0
        number = np.cumsum(kept) - 1 + offset
        # A dual belongs to the side at which it is binding: positive at the left one of a minimisation.
        parts.append(np.stack([sign * cosine, sign * bias[:, side], rows[:, 6 + side], age, sign * dual], axis=1)[kept])
        used = kept[row]
        ends.append(np.stack([number[row[used]].astype(np.int32), variable[used]]))
        values.append(sign * edges[used, 2] / norm[row[used]])
        offset += int(kept.sum())
    return State(
        features.astype(np.float32), np.concatenate(parts).astype(np.float32),
        np.concatenate(ends, axis=1), np.concatenate(values).astype(np.float32),
    )  # fmt: skip


@dataclass(frozen=True)
class Graphs:
    """Several states as one graph without edges between them."""

    variables: Float[Tensor, "V 19"]
    rows: Float[Tensor, "R 5"]
    edge_row: Int[Tensor, "E"]
    edge_variable: Int[Tensor, "E"]
    coefficients: Float[Tensor, "E"]
    variable_start: Int[Tensor, "B"]
    """Where each state's variables begin."""


def merge(states: Sequence[State]) -> Graphs:
    """The states side by side."""
    variables = np.cumsum([0, *(len(state.variables) for state in states)])
    rows = np.cumsum([0, *(len(state.rows) for state in states)])
    shift = zip(states, rows[:-1].tolist(), variables[:-1].tolist(), strict=True)
    edges = np.concatenate([state.edges + np.array([[r], [v]]) for state, r, v in shift], axis=1)
    return Graphs(
        torch.from_numpy(np.concatenate([state.variables for state in states])),
        torch.from_numpy(np.concatenate([state.rows for state in states])),
        torch.from_numpy(edges[0].astype(np.int64)),
        torch.from_numpy(edges[1].astype(np.int64)),
        torch.from_numpy(np.concatenate([state.coefficients for state in states])),
        torch.from_numpy(variables[:-1].astype(np.int64)),
    )
