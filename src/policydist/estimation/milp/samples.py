"""A sample of the expert: a node's state, its candidates and their strong-branching scores; files of samples."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policydist.errors import PolicydistError
from policydist.estimation.milp.state import ROW_FEATURES, VARIABLE_FEATURES, State
from policydist.runs.directory import write_whole


@dataclass(frozen=True)
class BranchSample:
    """One question to the expert."""

    state: State
    candidates: NDArray[np.int32]
    """Columns of the fractional variables, ``[K]``."""
    scores: NDArray[np.float64]
    """Their strong-branching scores, ``[K]``, never negative."""
    domain: str = ""
    instance: str = ""
    depth: int = 0

    @property
    def target(self) -> int:
        """Position among the candidates of the largest score, the first of equals."""
        return int(np.argmax(self.scores))


ARRAYS = ("variables", "rows", "edges", "coefficients", "candidates", "scores")


def write_samples(path: Path, samples: Sequence[BranchSample]) -> None:
    """Write the samples of one instance to an ``.npz`` file, whole or not at all."""
    arrays: dict[str, NDArray[np.generic]] = {
        "about": np.array([[one.domain, one.instance, str(one.depth)] for one in samples], dtype=str).reshape(-1, 3)
    }
    for number, one in enumerate(samples):
        state = one.state
        parts: tuple[NDArray[np.generic], ...] = (
            state.variables,
            state.rows,
            state.edges,
            state.coefficients,
            one.candidates,
            one.scores,
        )
        arrays |= {f"{number}/{name}": part for name, part in zip(ARRAYS, parts, strict=True)}
    memory = io.BytesIO()
    np.savez_compressed(memory, **arrays)  # type: ignore[arg-type]
    write_whole(path, memory.getvalue())


def read_samples(path: Path) -> list[BranchSample]:
    """Read a file of samples back.

    Raises:
        PolicydistError: if it is damaged or not a file of samples.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = file["about"]
            return [_checked([file[f"{i}/{name}"] for name in ARRAYS], about[i]) for i in range(len(about))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as problem:
        raise PolicydistError(f"{path} is not a whole file of samples ({problem}); collect it again") from None


def _checked(parts: list[NDArray[np.generic]], about: NDArray[np.str_]) -> BranchSample:
    variables, rows, edges, coefficients, candidates, scores = parts
    if variables.shape[1:] != (len(VARIABLE_FEATURES),) or rows.shape[1:] != (len(ROW_FEATURES),):
        raise ValueError("features of another version")
    if len(candidates) != len(scores) or len(candidates) == 0 or candidates.max() >= len(variables):
        raise ValueError("candidates do not fit the state")
    state = State(variables, rows, edges, coefficients)  # type: ignore[arg-type]
    return BranchSample(state, candidates, scores, str(about[0]), str(about[1]), int(about[2]))  # type: ignore[arg-type]
