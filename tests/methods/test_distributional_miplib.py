"""Distributional MIPLIB: identities of policy, expert, metrics and protocol, and a run through the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from policydist.errors import MissingExtraError, PolicydistError, UsageError
from policydist.estimation.methods import distributional_miplib as method
from policydist.estimation.milp import expert, scip
from policydist.estimation.milp.collection import collect_samples, collect_to, items, load_samples
from policydist.estimation.milp.evaluation import evaluate_one
from policydist.estimation.milp.policy import BranchPolicy, PolicyConfig
from policydist.estimation.milp.registry import MILPDistribution, get
from policydist.estimation.milp.samples import BranchSample, read_samples, write_samples
from policydist.estimation.milp.state import State, assemble, extract, merge
from policydist.estimation.milp.training import choice_loss
from policydist.runs.directory import Run

pytest.importorskip("pyscipopt")
SMALL = method.SMALL
TINY = MILPDistribution("gisp/mini", "gisp", {"n": 24, "p": 0.35, "alpha": 0.3})
TRAINING = method.TrainConfig(PolicyConfig(8), steps=12, batch=4, epoch=4)


def fake_sample(seed: int, n: int = 6, m: int = 4, domain: str = "a", instance: str = "") -> BranchSample:
    rng = np.random.default_rng(seed)
    row, variable = np.nonzero(rng.random((m, n)) < 0.6)
    state = State(
        rng.standard_normal((n, 19)).astype(np.float32), rng.standard_normal((m, 5)).astype(np.float32),
        np.stack([row, variable]).astype(np.int32), rng.standard_normal(len(row)).astype(np.float32),
    )  # fmt: skip
    candidates = rng.permutation(n)[:3].astype(np.int32)
    return BranchSample(state, candidates, rng.random(3), domain, instance or f"i{seed}")


def calibrated(seed: int = 0, width: int = 8) -> BranchPolicy:
    policy = BranchPolicy(PolicyConfig(width), seed)
    policy.calibrate([merge([fake_sample(s).state for s in range(5)])])
    return policy


@pytest.fixture(scope="module")
def samples() -> list[BranchSample]:
    config = method.CollectConfig(per_instance=4, query=0.5)
    return [one for i in range(3) for one in method.collect(TINY.sample(i), config, i, "gisp/mini").samples]


# --- policy -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_permuting_variables_and_rows_permutes_scores(seed: int) -> None:
    state, policy = fake_sample(seed).state, calibrated()
    rng = np.random.default_rng(seed)
    columns, rows = rng.permutation(len(state.variables)), rng.permutation(len(state.rows))
    edges = np.stack([np.argsort(rows)[state.edges[0]], np.argsort(columns)[state.edges[1]]]).astype(np.int32)
    order = rng.permutation(edges.shape[1])
    moved = State(state.variables[columns], state.rows[rows], edges[:, order], state.coefficients[order])
    np.testing.assert_allclose(policy.scores(moved), policy.scores(state)[columns], rtol=1e-4, atol=1e-5)


def test_an_isolated_variable_changes_nothing() -> None:
    one, policy = fake_sample(1), calibrated()
    wider = replace(one.state, variables=np.concatenate([one.state.variables, np.ones((1, 19), dtype=np.float32)]))
    np.testing.assert_allclose(policy.scores(wider)[:-1], policy.scores(one.state), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        policy.probabilities(wider, one.candidates), policy.probabilities(one.state, one.candidates), rtol=1e-5
    )


def test_states_side_by_side_do_not_mix() -> None:
    parts, policy = [fake_sample(s, n=5 + s) for s in range(4)], calibrated()
    graphs = merge([one.state for one in parts])
    together = policy(graphs).detach().numpy()
    alone = np.concatenate([policy.scores(one.state) for one in parts])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert graphs.variable_start.tolist() == [0, 5, 11, 18]


def test_loss_is_cross_entropy_over_candidates_only() -> None:
    parts = [fake_sample(s) for s in range(3)]
    graphs = merge([one.state for one in parts])
    scores = torch.randn(18, dtype=torch.float64, requires_grad=True)
    loss = choice_loss(scores, graphs.variable_start, parts)
    by_hand = torch.stack([
        torch.nn.functional.cross_entropy(scores[6 * i + torch.tensor(one.candidates).long()][None], torch.tensor([one.target]))
        for i, one in enumerate(parts)
    ])  # fmt: skip
    torch.testing.assert_close(loss, by_hand.mean())
    loss.backward()
    assert scores.grad is not None
    chosen = {6 * i + int(c) for i, one in enumerate(parts) for c in one.candidates}
    for place in range(18):
        assert (scores.grad[place] != 0) == (place in chosen)


def test_gradient_against_finite_differences() -> None:
    policy = calibrated().double()
    part = [fake_sample(3)]
    graphs = merge([one.state for one in part])
    graphs = replace(graphs, **{n: getattr(graphs, n).double() for n in ("variables", "rows", "coefficients")})
    weight = policy.to_rows.right.weight

    def value() -> torch.Tensor:
        return choice_loss(policy(graphs), graphs.variable_start, part)

    value().backward()
    assert weight.grad is not None
    for i, j in ((0, 0), (3, 5), (7, 2)):
        with torch.no_grad():
            weight[i, j] += 1e-6
            up = value()
            weight[i, j] -= 2e-6
            down = value()
            weight[i, j] += 1e-6
        assert weight.grad[i, j].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-4, abs=1e-8)


def test_half_convolution_is_the_sum_of_the_written_messages() -> None:
    """m_i = Σ_j W relu(s (W_l h_i + b + w_e e + W_r h_j)) + a, before the linear map is moved outside the sum."""
    layer = calibrated().to_variables
    h, source = torch.randn(4, 8), torch.randn(3, 8)
    at, of, edge = torch.tensor([0, 0, 2, 3]), torch.tensor([0, 1, 1, 2]), torch.randn(4, 1)
    messages = layer.message(
        torch.relu(layer.message_norm.scale * (layer.left(h)[at] + layer.edge(edge) + layer.right(source)[of]))
    )
    summed = torch.zeros(4, 8).index_add(0, at, messages) * layer.sum_norm.scale
    torch.testing.assert_close(
        layer(h, source, at, of, edge), layer.out(torch.cat([summed, h], dim=1)), rtol=1e-4, atol=1e-5
    )


def test_prenorm_standardises_what_reaches_it() -> None:
    states = [fake_sample(s).state for s in range(8)]
    policy = BranchPolicy(PolicyConfig(8))
    policy.calibrate([merge(states[:4]), merge(states[4:])])
    norm = policy.variables[0]
    assert isinstance(norm, torch.nn.Module)
    out = norm(merge(states).variables)
    torch.testing.assert_close(out.mean(0), torch.zeros(19), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(19), atol=1e-4, rtol=0)


def test_policy_is_saved_and_damage_is_named(tmp_path: Path) -> None:
    policy, state = calibrated(), fake_sample(0).state
    policy.save(tmp_path / "p")
    np.testing.assert_array_equal(BranchPolicy.load(tmp_path / "p").scores(state), policy.scores(state))
    (tmp_path / "p/policy.safetensors").write_bytes(b"short")
    with pytest.raises(PolicydistError, match="train it again"):
        BranchPolicy.load(tmp_path / "p")
    with pytest.raises(UsageError, match="holds no branching policy"):
        BranchPolicy.load(tmp_path)


# --- metrics ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_accuracy_grows_with_k_and_is_certain_at_the_end(scores: list[int], seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal(len(scores))
    hits = method.acc_at_k(logits, np.array(scores), range(1, len(scores) + 1))
    values = list(hits.values())
    assert values == sorted(values)
    assert values[-1] == 1.0
    chance = method.chance_at_k(np.array(scores), [1, len(scores)])
    assert chance[1] == pytest.approx(scores.count(max(scores)) / len(scores))
    assert chance[len(scores)] == 1.0


def test_ties_are_accepted() -> None:
    assert method.acc_at_k(np.array([1.0, 3.0, 2.0]), np.array([5.0, 5.0, 1.0]), [1])[1] == 1.0
    assert method.acc_at_k(np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0, 1.0]), [1, 2]) == {1: 0.0, 2: 1.0}


def test_integral() -> None:
    pdi = method.primal_dual_integral
    assert pdi([1, 2, 5], [10, 10, 10], [10, 10, 10]) == 0
    # Two events in closed form: 1 s at the gap of the first, 3 s at that of the second.
    assert pdi([1, 4], [10, 10], [5, 8]) == pytest.approx(1 * 0.5 + 3 * 0.2)
    whole = pdi([1, 4, 6], [10, 10, 10], [5, 8, 9])
    assert whole == pytest.approx(pdi([1, 4], [10, 10], [5, 8]) + pdi([6], [10], [9], start=4))
    assert pdi([1, 4], [10, 10], [5, 8], start=2) == pytest.approx(2 * 0.2)
    with pytest.raises(UsageError, match="order"):
        pdi([2, 1], [1, 1], [0, 0])


def test_gap_and_means() -> None:
    assert method.gap(0, 0) == 0
    assert method.gap(0, -3) == 1
    assert method.gap(-10, -15) == pytest.approx(0.5)
    assert method.gap(np.inf, 3) == 1  # no incumbent yet
    assert method.shifted_geometric_mean([0, 990], 10) == pytest.approx(np.sqrt(10 * 1000) - 10)
    assert method.fair_nodes(7, 3, 2) == 17


# --- state and expert ---------------------------------------------------------------------------------------------------


def test_two_sided_rows_are_split_and_scaled() -> None:
    columns = np.zeros((2, 19))
    columns[:, 4] = [3.0, -4.0]
    columns[:, 11], columns[:, 18] = [10.0, 0.0], [6.0, 0.0]
    rows = np.zeros((2, 14))
    rows[0, [0, 1, 4, 5, 6, 8]] = [1, 1, 0.5, 5, 1, 2.0]  # both sides, constant, norm, tight at the left, dual
    rows[1, [1, 5, 9]] = [1, 1, 12]
    edges = np.array([[0, 0, 3.0], [1, 0, 4.0], [1, 1, 1.0]])
    state = assemble(columns, edges, rows, np.array([[1.5, 5.5], [-1e20, 2.0]]), n_lps=1)
    np.testing.assert_allclose(state.variables[:, 4], [0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(state.variables[0, [11, 18]], [2.0, 1.0])
    cosine = (3 * 3 - 4 * 4) / 25
    expected = [[-cosine, -(1.5 - 0.5) / 5, 1, 0, -2 / 25], [cosine, (5.5 - 0.5) / 5, 0, 0, 2 / 25], [-0.8, 2, 0, 2, 0]]
    np.testing.assert_allclose(state.rows, expected, rtol=1e-6)
    assert state.edges.tolist() == [[0, 0, 1, 1, 2], [0, 1, 0, 1, 1]]
    np.testing.assert_allclose(state.coefficients, [-0.6, -0.8, 0.6, 0.8, 1.0], rtol=1e-6)


def test_strong_branching_scores_are_those_of_the_child_programs() -> None:
    milp = TINY.sample(1)
    seen: dict[str, Any] = {}

    def look(model: Any, candidates: list[Any]) -> None:
        if not seen:
            seen["scores"] = expert.strong_scores(model, candidates, iterations=10_000)
            seen["again"] = expert.strong_scores(model, candidates, iterations=10_000)
            seen["names"] = [variable.name.removeprefix("t_") for variable in candidates]
            seen["state"], seen["value"] = extract(model), model.getLPObjVal()
            seen["columns"] = [variable.getCol().getLPPos() for variable in candidates]

    model = scip.build(milp, replace(SMALL, presolve=False, node_limit=1))
    model.setParam("propagating/maxroundsroot", 0)
    scip.solve(model, scip.include_rule(model, look))
    upper = milp.rows.toarray(), milp.row_upper

    def child(name: str | None, low: float, high: float) -> float:
        bounds = [(low, high) if other == name else (0, 1) for other in milp.names]
        found = linprog(milp.cost, *upper, bounds=bounds, method="highs")
        return float(found.fun) if found.status == 0 else np.inf

    root = child(None, 0, 1)
    assert seen["value"] == pytest.approx(root)
    for name, score in zip(seen["names"], seen["scores"], strict=True):
        gains = [min(value - root, 1e6) for value in (child(name, 0, 0), child(name, 1, 1))]
        assert score == pytest.approx(np.prod([max(gain, 1e-6) for gain in gains]), rel=1e-5), name
    np.testing.assert_array_equal(seen["scores"], seen["again"])
    fractional = seen["state"].variables[seen["columns"], 10]
    assert (fractional > 1e-6).all(), "candidates are the fractional variables"
    assert len(seen["columns"]) == int((seen["state"].variables[:, 10] > 1e-6).sum())


def test_asking_the_expert_leaves_the_tree_as_it_is() -> None:
    def nodes(ask: bool) -> int:
        model = scip.build(TINY.sample(2), replace(SMALL, seed=3))
        model.setParam("branching/pscost/priority", 1_000_000)

        def look(model: Any, candidates: list[Any]) -> None:
            expert.strong_scores(model, candidates) if ask else None

        scip.solve(model, scip.include_rule(model, look))
        return int(model.getNTotalNodes())

    assert nodes(True) == nodes(False) > 3


def test_samples_lie_below_the_root_too_and_go_through_files(samples: list[BranchSample], tmp_path: Path) -> None:
    assert {one.depth for one in samples} > {0}
    assert all((one.scores > 0).all() and len(one.candidates) == len(one.scores) >= 2 for one in samples)
    assert max(len(one.candidates) for one in samples) < max(len(one.state.variables) for one in samples)
    write_samples(tmp_path / "s.npz", samples)
    back = read_samples(tmp_path / "s.npz")
    assert [one.instance for one in back] == [one.instance for one in samples]
    np.testing.assert_array_equal(back[1].state.edges, samples[1].state.edges)
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:500])
    with pytest.raises(PolicydistError, match="collect it again"):
        read_samples(tmp_path / "s.npz")


def test_an_error_in_the_branching_function_comes_out() -> None:
    def broken(model: Any, candidates: list[Any]) -> int:
        raise ZeroDivisionError("from the rule")

    model = scip.build(TINY.sample(0), SMALL)
    with pytest.raises(ZeroDivisionError, match="from the rule"):
        scip.solve(model, scip.include_rule(model, broken))


# --- protocol -----------------------------------------------------------------------------------------------------------


def test_mixed_with_one_domain_is_homogeneous(samples: list[BranchSample]) -> None:
    one = {"gisp/mini": samples}
    mixed = method.train_protocol(one, "mixed", TRAINING, seed=3, validation=one)["gisp/mini"]
    alone = method.train_protocol(one, "homogeneous", TRAINING, seed=3, validation=one)["gisp/mini"]
    for name, weight in mixed.policy.state_dict().items():
        assert torch.equal(weight, alone.policy.state_dict()[name]), name
    other = method.train_protocol(one, "mixed", TRAINING, seed=4)["gisp/mini"]
    assert not torch.equal(other.policy.head[0].weight, mixed.policy.head[0].weight)  # type: ignore[arg-type]


def test_every_mix_makes_the_same_updates() -> None:
    data = {d: [fake_sample(s + 9 * k, domain=d) for s in range(6)] for k, d in enumerate(("a", "b", "c"))}
    names: dict[str, set[str]] = {}
    for mix in ("mixed", "homogeneous", "leave-one-out"):
        seen: set[str] = set()
        trained = method.train_protocol(data, mix, TRAINING, progress=lambda name, *_: seen.add(name))  # type: ignore[arg-type]  # noqa: B023
        names[mix] = seen
        assert {one.steps for one in trained.values()} == {12}
    assert names == {
        "mixed": {"mixed"}, "homogeneous": {"a", "b", "c"}, "leave-one-out": {"without a", "without b", "without c"},
    }  # fmt: skip
    with pytest.raises(UsageError, match="at least two domains"):
        method.train_protocol({"a": data["a"]}, "leave-one-out", TRAINING)


def test_subsets_are_whole_instances() -> None:
    data = {"a": [fake_sample(s, instance=f"i{s // 2}") for s in range(10)]}
    chosen = method.subset(data, 2, seed=1)["a"]
    assert len(chosen) == 4
    assert len({one.instance for one in chosen}) == 2
    assert method.subset(data, 5)["a"] == data["a"]
    with pytest.raises(UsageError, match="5 instances, fewer than the 6"):
        method.subset(data, 6)


def test_a_training_cut_short_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    train, held = [fake_sample(s) for s in range(4)], [fake_sample(s) for s in range(50, 52)]
    config = method.TrainConfig(PolicyConfig(8), steps=8, batch=2, lr=0.01, epoch=2, patience=1)
    whole = method.train_policy(train, config, 3, held)

    def stop(step: int, row: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.train_policy(train, config, 3, held, stop, tmp_path)
    seen: list[int] = []
    again = method.train_policy(train, config, 3, held, lambda step, row: seen.append(step), tmp_path)
    assert seen
    assert seen[0] == 6
    assert (again.steps, again.train_loss, again.validation_loss) == (
        whole.steps, whole.train_loss, whole.validation_loss,
    )  # fmt: skip
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(again.policy.state_dict()[name], tensor), name


def test_training_imitates(samples: list[BranchSample]) -> None:
    config = method.TrainConfig(PolicyConfig(16), steps=120, batch=8, lr=5e-3)
    trained = method.train_policy(samples, config)
    rows = method.evaluate_samples(trained.policy, samples)
    before = method.evaluate_samples(BranchPolicy(PolicyConfig(16)), samples)
    assert rows["cross_entropy"].mean() < 0.6 * before["cross_entropy"].mean()
    assert rows["acc@1"].mean() > 0.5 > 2 * rows["chance@1"].mean()


def test_the_best_validation_weights_are_kept() -> None:
    train, held = [fake_sample(s) for s in range(4)], [fake_sample(s) for s in range(50, 54)]
    losses = []
    config = method.TrainConfig(PolicyConfig(8), steps=200, batch=8, epoch=10, lr=2e-2, patience=2)
    trained = method.train_policy(train, config, 0, held, lambda _, row: losses.append(row["validation_loss"]))
    assert trained.validation_loss == pytest.approx(min(losses))
    assert method.evaluate_samples(trained.policy, held)["cross_entropy"].mean() == pytest.approx(min(losses), rel=1e-4)
    assert trained.steps < 200, "stops when the validation loss no longer falls"


# --- closed loop ----------------------------------------------------------------------------------------------------------


def test_every_rule_finds_the_same_optimum() -> None:
    milp = TINY.sample(4)
    rules: dict[str, Any] = {name: name for name in method.RULES} | {"policy": calibrated()}
    rows = method.evaluate(rules, [milp], SMALL)
    assert {row.status for row in rows} == {"optimal"}
    np.testing.assert_allclose([row.objective for row in rows], rows[0].objective)
    assert len({row.nodes for row in rows}) > 1, "the rules do branch differently"
    by_name = {row.rule: row for row in rows}
    assert by_name["relpscost"].fair_nodes > by_name["relpscost"].nodes, "its side effects are counted"
    assert by_name["policy"].fair_nodes == by_name["policy"].nodes
    again = evaluate_one(milp, calibrated(), SMALL)
    assert (again.nodes, again.lps) == (by_name["policy"].nodes, by_name["policy"].lps)


def test_solves_at_the_limit_are_counted_not_dropped() -> None:
    rows = [evaluate_one(TINY.sample(4), "random", replace(SMALL, node_limit=limit)) for limit in (3, None)]
    assert [row.solved for row in rows] == [False, True]
    assert 0 < rows[0].gap <= 1
    table = method.summarise(rows)["random"]
    assert table["unsolved"] == 1
    assert table["instances"] == 2
    assert table["nodes"] == pytest.approx(method.shifted_geometric_mean([row.nodes for row in rows]))


def bad_instances() -> tuple[method.MILP, method.MILP]:
    """One infeasible, one unbounded."""
    from scipy import sparse

    def make(name: str, rows: list[list[float]], high: list[float], upper: float) -> method.MILP:
        return method.MILP(
            name, "min", np.array([-1.0, -1.0]), sparse.csr_array(np.array(rows)), np.full(len(high), -np.inf),
            np.array(high), np.zeros(2), np.full(2, upper), np.array(["I", "I"]),
        )  # fmt: skip

    return make("infeasible", [[1, 1], [-1, -1]], [1, -2], 1.0), make("unbounded", [[1, -1]], [2.0], np.inf)


def test_infeasible_and_unbounded_instances() -> None:
    infeasible, unbounded = bad_instances()
    assert method.collect(infeasible, method.CollectConfig()).samples == []
    rows = method.evaluate({"relpscost": "relpscost"}, [infeasible, unbounded, TINY.sample(0)], SMALL)
    assert rows[0].status == "infeasible"
    assert rows[1].status in ("unbounded", "inforunbd")
    assert method.summarise(rows)["relpscost"]["unusable"] == 2
    with pytest.raises(UsageError, match="every instance is infeasible or unbounded"):
        method.summarise(rows[:2])


# --- collection and the run ---------------------------------------------------------------------------------------------------


def test_collection_goes_on_and_warns_of_infeasible_files(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    (folder / "train").mkdir(parents=True)
    (folder / "train/a.mps").write_text(TINY.sample(0).to_mps())
    (folder / "train/b.mps").write_text(bad_instances()[0].to_mps())
    method.write_manifest(folder, "mini")
    wanted = items(method.open_folder(folder), "train", 2)
    config = method.CollectConfig(per_instance=2, query=0.9)
    with pytest.warns(UserWarning, match=r"b\.mps is infeasible: it gives no samples"):
        assert collect_to(tmp_path / "s", wanted, config) == {"mini": 2}
    done = (tmp_path / "s" / wanted[0].file).stat().st_mtime_ns
    assert collect_to(tmp_path / "s", wanted, config) == {"mini": 2}
    assert (tmp_path / "s" / wanted[0].file).stat().st_mtime_ns == done
    assert len(load_samples(tmp_path / "s")["train"]["mini"]) == 2
    with pytest.raises(UsageError, match="other settings"):
        collect_to(tmp_path / "s", wanted, replace(config, query=0.8))
    with pytest.warns(UserWarning, match="fewer than the 5"):
        items(method.open_folder(folder), "train", 5)


def test_samples_repeat() -> None:
    wanted = items(TINY, "train", 1)
    first, second = (collect_samples(wanted, method.CollectConfig(2, 0.9), 7)["train"]["gisp/mini"] for _ in range(2))
    np.testing.assert_array_equal(first[1].scores, second[1].scores)
    np.testing.assert_array_equal(first[1].state.variables, second[1].state.variables)


def test_a_run_writes_policy_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    method.generate(TINY, folder, {"train": 2, "validation": 1, "test": 1})
    config = method.Config(
        instances=2, validation=1, test=1, steps=6, epoch=3, batch=4, width=8, closed_loop=1, rules=("random",)
    )
    run, rows = Run.create(tmp_path / "run", config), []
    final = method.train(config, folder, run, lambda done, total, numbers: rows.append((done, total, dict(numbers))))
    assert rows[-1][:2] == (10, 10)
    assert "validation_loss" in rows[-1][2]
    assert final["gisp/random/nodes"] > 0
    assert 0 <= final["gisp/acc@1"] <= 1
    solves = json.loads((run.path / "solves.json").read_text())
    assert [row["rule"] for row in solves["gisp"]] == ["policy", "random"]
    assert BranchPolicy.load(run.path / "model").config.width == 8
    assert "imitation" in (run.path / "summary.txt").read_text()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean relpscost"):
        method.Config(rules=("relpcost",))
    with pytest.raises(UsageError, match="at least 1"):
        method.Config(instances=0)
    with pytest.raises(UsageError, match="no sample to train on"):
        method.train_policy([], TRAINING)
    assert get("gisp/tiny").domain == "gisp"
    monkeypatch.setitem(__import__("sys").modules, "pyscipopt", None)
    with pytest.raises(MissingExtraError, match="milp"):
        method.collect(TINY.sample(0), method.CollectConfig())
