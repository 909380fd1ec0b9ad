"""Numbers of a branching experiment: accuracy against the expert, fair nodes, gap and its integral, geometric means."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import comb, isfinite

import numpy as np
from numpy.typing import NDArray

from policydist.errors import UsageError

Floats = NDArray[np.floating]


def acc_at_k(logits: Floats, scores: Floats, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[int, float]:
    """Whether one of the k candidates with the largest logits has the largest expert score; ties count.

    Args:
        logits: the policy's, one a candidate, ``[K]``.
        scores: the expert's, ``[K]``.

    Raises:
        UsageError: if there is no candidate, or the lengths differ.
    """
    if not len(logits) == len(scores) > 0:
        raise UsageError("accuracy needs a logit and an expert score for every candidate, and at least one candidate")
    order = np.argsort(-np.asarray(logits), kind="stable")
    best = np.asarray(scores)[order] >= np.max(scores)
    return {k: float(best[:k].any()) for k in ks}


def chance_at_k(scores: Floats, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[int, float]:
    """The expectation of `acc_at_k` for a uniformly random order: 1 − C(K − b, k) / C(K, k) with b best candidates."""
    n, best = len(scores), int(np.sum(np.asarray(scores) >= np.max(scores)))
    return {k: 1.0 - comb(n - best, min(k, n)) / comb(n, min(k, n)) for k in ks}


def fair_nodes(nodes: int, domain_reductions: int, cutoffs: int) -> int:
    """Nodes + 2 · (domain reductions + cutoffs) of the branching rule.

    Strong branching inside a rule prunes without opening a node; each such find counts as the two children it saved.
    """
    return nodes + 2 * (domain_reductions + cutoffs)


def gap(primal: float, dual: float) -> float:
    """|p − d| / |p|; 0 if both are 0 or equal, 1 if only p is 0 or there is no primal or dual bound yet.

    The paper's script divides by the infinite bound of a missing incumbent and lands close to 1 as well.
    """
    if not (isfinite(primal) and isfinite(dual)):
        return 1.0
    if primal == dual:
        return 0.0
    return 1.0 if primal == 0 else abs(primal - dual) / abs(primal)


def primal_dual_integral(
    times: Sequence[float], primal: Sequence[float], dual: Sequence[float], start: float = 0.0
) -> float:
    """Σ_k (t_k − t_{k−1}) · gap_k with the gap at the right end of each step, over t_k > ``start``; t_{−1} is ``start``.

    The paper's SCIP script starts at 2 s, its Gurobi script at 0.

    Raises:
        UsageError: if the three differ in length or times fall.
    """
    if not len(times) == len(primal) == len(dual):
        raise UsageError("the integral needs a primal and a dual bound at every time")
    if any(later < earlier for earlier, later in itertools.pairwise(times)):
        raise UsageError("the integral needs times in order")
    total, last = 0.0, start
    for time, p, d in zip(times, primal, dual, strict=True):
        if time > start:
            total += (time - last) * gap(p, d)
            last = time
    return total


def shifted_geometric_mean(values: Sequence[float] | Floats, shift: float = 10.0) -> float:
    """exp(mean log(v + s)) − s: shift 10 for nodes and LPs, 1 for seconds. Values must exceed −s.

    Raises:
        UsageError: for no value, or one at or below −s.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or array.min() <= -shift:
        raise UsageError(f"a shifted geometric mean needs values, all above -{shift:g}")
    return float(np.exp(np.mean(np.log(array + shift))) - shift)
