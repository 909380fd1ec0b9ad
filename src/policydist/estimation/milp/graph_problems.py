"""Generators on graphs: generalised independent set, minimum vertex cover, maximum independent set.

Source: the released generators of arXiv 2406.06954 and of arXiv 1906.01629, on which they build.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from policydist.errors import UsageError
from policydist.estimation.milp.graphs import Edges, barabasi_albert, erdos_renyi, greedy_cliques
from policydist.estimation.milp.instance import MILP, Floats, Sense, matrix

Graph = Literal["barabasi_albert", "erdos_renyi"]


def gisp(
    rng: np.random.Generator, n: int = 75, p: float = 0.5, alpha: float = 0.75, weight: float = 100.0, edge: float = 1.0
) -> MILP:
    """Generalised independent set on G(n, p); see `gisp_on`. The defaults are the released single generator's."""
    return gisp_on(n, erdos_renyi(n, p, rng), rng, alpha, weight, edge)


def gisp_on(
    n: int, edges: Edges, rng: np.random.Generator, alpha: float = 0.75, weight: float = 100.0, edge: float = 1.0
) -> MILP:
    """min −w Σ x_i + c Σ_{E2} y_ij with x_i + x_j ≤ 1 on fixed edges and x_i + x_j − y_ij ≤ 1 on removable ones.

    Every edge is removable independently with probability ``alpha``. The draw comes from ``rng``, so that instances on
    one given graph differ (the released DIMACS script shares one seed, which makes them identical).

    Raises:
        UsageError: for ``alpha`` outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"gisp: alpha is {alpha}, the share of removable edges; it must lie in [0, 1]")
    removable = rng.random(len(edges)) < alpha
    m, paid = len(edges), int(removable.sum())
    row = np.arange(m)
    entries = (
        np.concatenate([row, row, row[removable]]),
        np.concatenate([edges[:, 0], edges[:, 1], n + np.arange(paid)]),
        np.concatenate([np.ones(2 * m), -np.ones(paid)]),
    )
    cost = np.concatenate([np.full(n, -weight), np.full(paid, edge)])
    names = [f"x{i}" for i in range(n)] + [f"y{i}_{j}" for i, j in edges[removable].tolist()]
    return _binary("gisp", "min", cost, entries, (-np.inf, 1.0), m, tuple(names))


def mvc(
    rng: np.random.Generator,
    n: int = 1200,
    affinity: int = 5,
    graph: Graph = "barabasi_albert",
    n_max: int | None = None,
) -> MILP:
    """Minimum weight vertex cover: min Σ w_v x_v with x_u + x_v ≥ 1 on every edge, w_v ~ U(0, 1).

    The number of nodes is uniform on ``n``..``n_max`` (``n`` if None). ``erdos_renyi`` takes p = 2·affinity/(n − 1),
    the same expected number of edges.

    Raises:
        UsageError: for an unknown graph or sizes out of range.
    """
    if n_max is not None and n_max < n:
        raise UsageError(f"mvc: n_max is {n_max}, below n = {n}")
    nodes = n if n_max is None else int(rng.integers(n, n_max + 1))
    if graph == "barabasi_albert":
        edges = barabasi_albert(nodes, affinity, rng)
    elif graph == "erdos_renyi":
        edges = erdos_renyi(nodes, 2 * affinity / max(nodes - 1, 1), rng)
    else:
        raise UsageError(f"mvc: graph is {graph!r}; give barabasi_albert or erdos_renyi")
    return _binary("mvc", "min", rng.random(nodes), _pairs(edges), (1.0, np.inf), len(edges))


def mis(rng: np.random.Generator, n: int = 500, affinity: int = 4, cliques: bool = True) -> MILP:
    """Maximum independent set on a Barabási-Albert graph: max Σ x with at most one node of every edge.

    With ``cliques``, each clique (of two nodes or more) of a greedy partition becomes one row in place of its edges.
    """
    return mis_on(n, barabasi_albert(n, affinity, rng), cliques)


def mis_on(n: int, edges: Edges, cliques: bool = True) -> MILP:
    """Maximum independent set on a given graph; see `mis`."""
    if not cliques:
        return _binary("mis", "max", np.ones(n), _pairs(edges), (-np.inf, 1.0), len(edges))
    groups = [clique for clique in greedy_cliques(n, edges) if len(clique) > 1]
    member = np.full(n, -1)
    for number, clique in enumerate(groups):
        member[clique] = number
    covered = (member[edges[:, 0]] == member[edges[:, 1]]) & (member[edges[:, 0]] >= 0)
    rest = edges[~covered]
    row = np.repeat(np.arange(len(groups)), [len(clique) for clique in groups])
    column = np.array([node for clique in groups for node in clique], dtype=np.int64)
    tail = _pairs(rest)
    entries = (
        np.concatenate([row, tail[0] + len(groups)]), np.concatenate([column, tail[1]]),
        np.ones(len(column) + 2 * len(rest)),
    )  # fmt: skip
    return _binary("mis", "max", np.ones(n), entries, (-np.inf, 1.0), len(groups) + len(rest))


def _pairs(edges: Edges) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Entries of one row an edge with coefficient 1 at both ends."""
    row = np.arange(len(edges))
    return np.concatenate([row, row]), np.concatenate([edges[:, 0], edges[:, 1]]), np.ones(2 * len(edges))


def _binary(
    name: str, sense: Sense, cost: Floats, entries: tuple[np.ndarray, np.ndarray, Floats],
    limits: tuple[float, float], m: int, names: tuple[str, ...] = (),
) -> MILP:  # fmt: skip
    """A program in binaries whose rows all have the same two sides."""
    n = len(cost)
    return MILP(
        name, sense, cost, matrix(entries, m, n), np.full(m, limits[0]), np.full(m, limits[1]),
        np.zeros(n), np.ones(n), np.full(n, "B"), names=names,
    )  # fmt: skip
