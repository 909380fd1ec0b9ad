"""Instances: generators against brute force, MPS text and its reading, folders and what is wrong with them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from policydist.errors import MissingExtraError, PolicydistError, UsageError
from policydist.estimation.milp import folders, registry, scip
from policydist.estimation.milp.auctions import auction
from policydist.estimation.milp.graph_problems import gisp, gisp_on, mis, mis_on, mvc
from policydist.estimation.milp.graphs import barabasi_albert, erdos_renyi, greedy_cliques, read_dimacs
from policydist.estimation.milp.instance import MILP, Floats
from policydist.estimation.milp.scip import read_instance
from policydist.estimation.milp.set_problems import facility_location, set_cover

pytest.importorskip("pyscipopt")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def brute(milp: MILP) -> float:
    """The optimum of a program in few binaries, by enumeration."""
    points = (np.array(p, dtype=float) for p in itertools.product((0, 1), repeat=milp.n_variables))
    values = [milp.objective(x) for x in points if milp.feasible(x)]
    return min(values) if milp.sense == "min" else max(values)


def scipy_optimum(milp: MILP) -> float:
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.optimize import milp as solve

    sign = 1 if milp.sense == "min" else -1
    found = solve(
        sign * milp.cost, integrality=milp.whole.astype(int), bounds=Bounds(milp.lower, milp.upper),
        constraints=LinearConstraint(milp.rows, milp.row_lower, milp.row_upper),
    )  # fmt: skip
    return sign * float(found.fun)


def scip_optimum(milp: MILP) -> float:
    model = scip.build(milp, scip.SMALL)
    assert scip.solve(model) == "optimal"
    return float(model.getObjVal())


@pytest.mark.parametrize("seed", range(3))
def test_optimum_by_brute_force(seed: int) -> None:
    small = [
        gisp(rng(seed), n=7, p=0.4, alpha=0.3), mvc(rng(seed), n=9, affinity=2), mis(rng(seed), n=9, affinity=2),
        set_cover(rng(seed), rows=6, columns=9, density=0.4), auction(rng(seed), items=5, bids=9),
    ]  # fmt: skip
    for milp in small:
        assert milp.n_variables <= 15
        assert scip_optimum(milp) == pytest.approx(brute(milp), abs=1e-6), milp.name
    location = facility_location(rng(seed), 4, 3, 2.0)
    assert scip_optimum(location) == pytest.approx(scipy_optimum(location), rel=1e-6)


def test_gisp_without_removable_edges_is_independent_set() -> None:
    edges = erdos_renyi(10, 0.4, rng(1))
    fixed = gisp_on(10, edges, rng(2), alpha=0.0, weight=100)
    assert -brute(fixed) == 100 * brute(mis_on(10, edges, cliques=False)) == 100 * brute(mis_on(10, edges))


def test_gisp_with_free_removable_edges_takes_every_node() -> None:
    milp = gisp_on(6, erdos_renyi(6, 0.4, rng(3)), rng(4), alpha=1.0, weight=7, edge=0.0)
    assert brute(milp) == -7 * 6


def test_vertex_cover_is_the_complement_of_the_heaviest_independent_set() -> None:
    milp = mvc(rng(5), n=11, affinity=3)
    ends = [row.nonzero()[0] for row in milp.rows.toarray()]
    heaviest = max(
        float(milp.cost @ x)
        for x in (np.array(p) for p in itertools.product((0, 1), repeat=11))
        if all(x[list(pair)].sum() <= 1 for pair in ends)
    )
    assert brute(milp) == pytest.approx(milp.cost.sum() - heaviest)


def test_sizes_that_the_paper_states() -> None:
    milp = registry.get("mvc/easy").sample(0)
    assert (milp.n_variables, milp.n_rows) == (1200, 5975)


def test_set_cover_scheme() -> None:
    milp = set_cover(rng(0), rows=50, columns=80, density=0.1)
    assert milp.rows.nnz == 400
    assert (milp.rows.sum(axis=0) >= 2).all()
    assert (milp.rows.sum(axis=1) >= 1).all()
    assert set(milp.rows.data) == {1.0}
    assert milp.cost.min() >= 1
    assert milp.cost.max() <= 100


def test_auction_scheme() -> None:
    milp = auction(rng(0), items=20, bids=60)
    assert milp.n_variables == 60
    assert (milp.cost >= 0).all()
    per_bid = np.asarray(milp.rows.sum(axis=0))
    assert per_bid.min() >= 1
    # Dummy items (beyond the 20 real ones) tie together between 3 and 6 bids of one bidder.
    tied = np.asarray(milp.rows.sum(axis=1))[20:]
    assert len(tied) > 0
    assert set(tied) <= {3.0, 4.0, 5.0, 6.0}


def test_facilities_draw_from_their_own_stream() -> None:
    """The released script uses NumPy's global stream in place of its argument."""
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    first = facility_location(rng(3), 6, 4).to_mps()
    np.random.seed(1)  # noqa: NPY002
    assert facility_location(rng(3), 6, 4).to_mps() == first
    np.random.seed(0)  # noqa: NPY002
    for name in ("gisp/tiny", "sc/tiny", "mis/tiny", "ca/tiny", "cflp/tiny", "mvc/tiny"):
        registry.get(name).sample(0)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]  # noqa: NPY002


def test_capacity_suffices() -> None:
    milp = facility_location(rng(1), 10, 5, 1.0)
    assert np.isfinite(scipy_optimum(milp))
    assert milp.n_rows == 10 + 5 + 1 + 50


def test_instances_on_one_graph_differ(tmp_path: Path) -> None:
    """The released DIMACS script gives every instance of a graph the same removable edges."""
    path = tmp_path / "g.clq"
    path.write_text("c a graph\np edge 5 4\ne 1 2\ne 3 2\ne 4 5\ne 1 5\n")
    n, edges = read_dimacs(path)
    assert (n, edges.tolist()) == (5, [[0, 1], [0, 4], [1, 2], [3, 4]])
    names = {gisp_on(n, edges, rng(seed), alpha=0.75).names for seed in range(8)}
    assert len(names) > 1
    path.write_text("p edge 5 4\ne 1 9\n")
    with pytest.raises(PolicydistError, match="outside"):
        read_dimacs(path)
    path.write_text("p edge 5 4\nedge one\n")
    with pytest.raises(PolicydistError, match="line 2"):
        read_dimacs(path)


def test_greedy_cliques_are_cliques_and_a_partition() -> None:
    edges = barabasi_albert(40, 4, rng(0))
    pairs = set(map(tuple, edges.tolist()))
    cliques = greedy_cliques(40, edges)
    assert sorted(node for clique in cliques for node in clique) == list(range(40))
    assert all(pair in pairs for clique in cliques for pair in itertools.combinations(sorted(clique), 2))
    assert max(map(len, cliques)) > 2


def test_seeds_of_splits_are_disjoint_and_instances_repeat() -> None:
    distribution = registry.get("gisp/tiny")
    parts = [set(distribution.seeds(split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [800, 100, 100]
    assert len(set.union(*parts)) == 1000
    assert not parts[0] & set(distribution.seeds("train", root=1))
    for name in registry.TINY:
        assert registry.get(name).sample(5).to_mps() == registry.get(name).sample(5).to_mps()
        assert registry.get(name).sample(5).digest() != registry.get(name).sample(6).digest()
    # Pinned: a change of this digest is a change of every instance that users have.
    assert distribution.sample(0).digest() == PINNED


PINNED = "bbf58cb1d35ca08e3bbe901a88daa24b129e832d807716ede5d7bb1d42cc0e97"


@pytest.mark.parametrize(
    ("times", "solved", "gaps", "grade"),
    [
        ([50, 120], [True] * 2, [0, 0], "easy"),
        ([150, 900], [True] * 2, [0, 0], "medium"),
        ([3000, 900], [True] * 2, [0, 0], "hard"),
        ([3600, 900], [False, True], [0.05, 0], "very-hard"),
        ([3600, 3600], [False] * 2, [0.05, 0.4], "ext-hard"),
    ],
)
def test_hardness(times: list[float], solved: list[bool], gaps: list[float], grade: str) -> None:
    assert registry.classify_hardness(times, solved, gaps) == grade


def test_names_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="did you mean gisp/tiny"):
        registry.get("gisp/tyny")
    with pytest.raises(UsageError, match="no generator; download"):
        registry.get("ip/very-hard")
    with pytest.raises(UsageError, match="nodes"):
        registry.MILPDistribution("mine", "gisp", {"nodes": 3}).sample(0)


def general() -> MILP:
    """Every kind of row and bound."""
    inf = np.inf
    rows = sparse.csr_array(np.array([[1.0, 2, 0, 0, 0], [0, 1, 1.5, 0, 0], [1, 0, 0, -1, 0], [0.1, 0, 1, 0, 0]]))
    return MILP(
        "general", "max", np.array([1.0, -2.0, 1 / 3, 0.25, 0.0]), rows,
        np.array([-inf, 1.0, 0.5, -2.0]), np.array([10.0, inf, 0.5, 3.0]),
        np.array([-5.0, 0.0, -inf, 0.0, 2.0]), np.array([inf, 1.0, 4.0, 7.0, 2.0]),
        np.array(["I", "B", "C", "I", "C"]), offset=1.5,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".mps", ".mps.gz", ".lp"])
def test_files_read_back(tmp_path: Path, suffix: str) -> None:
    import gzip

    milp = general()
    path = tmp_path / f"general{suffix}"
    if suffix == ".mps":
        path.write_text(milp.to_mps())
    elif suffix == ".mps.gz":
        path.write_bytes(gzip.compress(milp.to_mps().encode()))
    else:
        scip.build(milp, scip.SMALL).writeProblem(str(path), verbose=False)
    back = read_instance(path)
    order = [back.names.index(f"x{j}") for j in range(5)]
    assert back.sense == milp.sense
    assert back.offset == pytest.approx(1.5)
    np.testing.assert_allclose(back.cost[order], milp.cost, rtol=1e-14)
    if suffix != ".lp":  # SCIP writes ranged rows as two
        np.testing.assert_array_equal(back.rows.toarray()[:, order], milp.rows.toarray())
        np.testing.assert_allclose(back.row_lower, milp.row_lower)
        np.testing.assert_allclose(back.row_upper, milp.row_upper)
    np.testing.assert_array_equal(back.lower[order], milp.lower)
    np.testing.assert_array_equal(back.upper[order], milp.upper)
    assert (back.kind[order] != "C").tolist() == milp.whole.tolist()


def test_corrupt_files_and_missing_ones(tmp_path: Path) -> None:
    cut = tmp_path / "cut.mps"
    cut.write_text(registry.get("gisp/tiny").sample(0).to_mps()[:9000])
    with pytest.raises(PolicydistError, match=r"cut\.mps is corrupt"):
        read_instance(cut)
    with pytest.raises(UsageError, match="no instance file"):
        read_instance(tmp_path / "absent.mps")
    quadratic = tmp_path / "q.lp"
    quadratic.write_text("Minimize\n obj: x\nSubject To\n c1: [ x ^2 ] >= 1\nEnd\n")
    with pytest.raises(PolicydistError, match="not linear"):
        read_instance(quadratic)


def test_without_scip(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    with pytest.raises(MissingExtraError, match=r"policydist\[milp\]"):
        scip.build(general(), scip.SMALL)


def test_wrong_arrays_are_refused() -> None:
    good: Floats = np.zeros(2)
    rows = sparse.csr_array(np.ones((1, 2)))
    kind = np.array(["B", "B"])
    with pytest.raises(UsageError, match=r"variable 1 has bounds \[3, 1\]"):
        MILP("bad", "min", good, rows, np.zeros(1), np.ones(1), np.array([0.0, 3]), np.ones(2), kind)
    with pytest.raises(UsageError, match="finite"):
        MILP("bad", "min", np.array([0, np.nan]), rows, np.zeros(1), np.ones(1), good, np.ones(2), kind)
    with pytest.raises(UsageError, match="do not fit"):
        MILP("bad", "min", np.zeros(3), rows, np.zeros(1), np.ones(1), good, np.ones(2), kind)


def test_generate_goes_on_and_manifest_finds_damage(tmp_path: Path) -> None:
    distribution, folder = registry.get("mis/tiny"), tmp_path / "mis"
    full = folders.generate(distribution, folder, {"train": 2, "test": 1})
    (folder / "train/000001.mps").unlink()
    kept = (folder / "train/000000.mps").stat().st_mtime_ns
    assert folders.generate(distribution, folder, {"train": 2, "test": 1}) == full
    assert (folder / "train/000000.mps").stat().st_mtime_ns == kept
    opened = folders.open_folder(folder)
    assert (opened.domain, len(opened.files["train"]), len(opened.files["test"])) == ("mis", 2, 1)
    assert opened.read("test")[0].digest() != distribution.sample(0).digest()
    with pytest.raises(UsageError, match="root seed 0"):
        folders.generate(distribution, folder, {"train": 2}, root=1)
    (folder / "train/000001.mps").write_text("changed")
    with pytest.raises(PolicydistError, match=r"000001\.mps differs from its checksum"):
        folders.open_folder(folder)
    (folder / "train/000001.mps").unlink()
    with pytest.raises(PolicydistError, match=r"000001\.mps is in the manifest and not in the folder"):
        folders.open_folder(folder)


def test_downloaded_folders(tmp_path: Path) -> None:
    folder = tmp_path / "corridor"
    (folder / "valid").mkdir(parents=True)
    (folder / "valid/a.mps").write_text(general().to_mps())
    with pytest.warns(UserWarning, match="without checking"):
        opened = folders.open_folder(folder)
    assert (opened.domain, len(opened.files["validation"])) == ("corridor", 1)
    folders.write_manifest(folder, "corridor")
    assert folders.open_folder(folder).files == opened.files
    (folder / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(PolicydistError, match="cannot be read"):
        folders.open_folder(folder)
    with pytest.raises(UsageError, match="holds no instance file"):
        folders.open_folder(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"
