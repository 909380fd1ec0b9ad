"""Random graphs and graph files for the graph domains. A graph is (n nodes, edges ``[e, 2]`` with i < j, sorted)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policydist.errors import PolicydistError, UsageError

Edges = NDArray[np.int64]


def erdos_renyi(n: int, p: float, rng: np.random.Generator) -> Edges:
    """G(n, p): every pair is an edge with probability ``p``.

    Raises:
        UsageError: for n < 1 or p outside [0, 1].
    """
    if n < 1 or not 0 <= p <= 1:
        raise UsageError(f"graph: n = {n} must be at least 1 and p = {p} must lie in [0, 1]")
    first, second = np.triu_indices(n, 1)
    kept = rng.random(first.size) < p
    return np.stack([first[kept], second[kept]], axis=1).astype(np.int64)


def barabasi_albert(n: int, affinity: int, rng: np.random.Generator) -> Edges:
    """Preferential attachment: a star of ``affinity`` leaves, then each new node takes ``affinity`` old neighbours.

    Raises:
        UsageError: unless 1 <= affinity < n.
    """
    import networkx

    if not 1 <= affinity < n:
        raise UsageError(f"graph: affinity {affinity} must lie between 1 and n - 1 = {n - 1}")
    graph = networkx.barabasi_albert_graph(n, affinity, seed=int(rng.integers(2**63)))
    edges = np.sort(np.array(graph.edges, dtype=np.int64).reshape(-1, 2), axis=1)
    return edges[np.lexsort((edges[:, 1], edges[:, 0]))]


def read_dimacs(path: Path) -> tuple[int, Edges]:
    """Number of nodes and edges of a DIMACS ``.clq``/``.col`` file (``p edge n e`` and lines ``e i j``, nodes from 1).

    Raises:
        UsageError: if the file is absent.
        PolicydistError: naming the line that is not DIMACS.
    """
    if not path.is_file():
        raise UsageError(f"no graph file {path}")
    n, pairs = 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        try:
            if words[:1] == ["p"]:
                n = int(words[2])
            elif words[:1] == ["e"]:
                pairs.append((int(words[1]) - 1, int(words[2]) - 1))
            elif words and words[0] != "c":
                raise ValueError
        except (ValueError, IndexError):
            raise PolicydistError(f"{path}, line {number}: not a DIMACS graph line: {line[:40]!r}") from None
    edges = np.unique(np.sort(np.array(pairs, dtype=np.int64).reshape(-1, 2), axis=1), axis=0)
    if n < 1 or (edges.size and (edges.min() < 0 or edges.max() >= n)):
        raise PolicydistError(f"{path}: no problem line 'p edge n e', or an edge names a node outside 1..n")
    return n, edges[edges[:, 0] != edges[:, 1]]


def greedy_cliques(n: int, edges: Edges) -> list[list[int]]:
    """A partition of the nodes into cliques: the leftover node of largest degree takes neighbours by falling degree while
    all pairs are adjacent (ties: the smaller number), until no node is left.
    """
    adjacent: list[set[int]] = [set() for _ in range(n)]
    for i, j in edges.tolist():
        adjacent[i].add(j)
        adjacent[j].add(i)
    order = sorted(range(n), key=lambda node: (-len(adjacent[node]), node))
    left, cliques = set(range(n)), []
    for centre in order:
        if centre not in left:
            continue
        clique = [centre]
        for other in sorted(adjacent[centre] & left, key=lambda node: (-len(adjacent[node]), node)):
            if all(other in adjacent[member] for member in clique):
                clique.append(other)
        left.difference_update(clique)
        cliques.append(clique)
    return cliques
