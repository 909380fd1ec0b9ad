"""The game's trainings: draws for victim and adversary, many models in parallel, what each shows of itself.

Every model has random streams of its own (its data, its training), derived from the root seed, its side and its
number, so that results depend neither on the number of processes nor on an interruption.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.inference_audit import models as reading
from policydist.estimation.inference_audit.attacks import Need
from policydist.estimation.inference_audit.evidence import Evidence, Layers, stacked
from policydist.estimation.inference_audit.populations import Half, Sampler
from policydist.runs.directory import write_whole
from policydist.runs.seeds import derive, numpy_generator

TrainFn = Any  # a function (X, y, seed) -> model, or an unfitted scikit-learn classifier
Score = Callable[[Any, Any, np.ndarray], float]
Progress = Callable[[int, int], None]
CHUNK = 25  # models a task: small enough to be lost cheaply, large enough to travel cheaply


@dataclass(frozen=True)
class Game:
    """Everything that fixes the trainings. ``samplers`` by name; ``needs`` is what the attacks look at."""

    train: TrainFn
    samplers: Mapping[str, Sampler]
    n_train: int
    n_test: int
    needs: frozenset[Need]
    score: Score | None
    seed: int


@dataclass(frozen=True)
class Pool:
    """``count`` models trained on draws of one distribution for one side, seen through the named test sets."""

    side: Half
    name: str
    count: int
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What a pool's models showed: scores (m, tests), chances a test set, layers."""

    pool: Pool
    scores: np.ndarray | None
    chances: tuple[np.ndarray, ...] | None
    layers: Layers | None

    def through(self, first: str, second: str, rows: slice = slice(None)) -> Evidence:
        """The evidence of some models through a pair of test sets."""
        if not self.pool.tests:
            return Evidence(layers=self.layers).of(rows)
        a, b = self.pool.tests.index(first), self.pool.tests.index(second)
        return Evidence(
            None if self.scores is None else self.scores[:, [a, b]],
            None if self.chances is None else (self.chances[a], self.chances[b]),
            self.layers,
        ).of(rows)


def draw(sampler: Sampler, name: str, n: int, half: Half, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """n checked rows. Raises UsageError for too few rows, NaN, infinite values, or a training set of one class."""
    try:
        X, y = sampler(n, half, rng)
    except (TypeError, ValueError) as problem:
        raise UsageError(
            f"sampler {name} failed: {problem}; it is called as sampler(n, half, rng) and returns (X, y)"
        ) from problem
    y = np.asarray(y)
    rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if rows < n or len(y) < n:
        raise UsageError(
            f"sampler {name} returned {min(rows, len(y))} rows and {n} were asked for ({half} half); "
            "ask for fewer, or give it more data"
        )
    if rows != len(y):
        raise UsageError(f"sampler {name} returned {rows} rows of X and {len(y)} labels")
    _refuse_unfinite(X, name)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise UsageError(f"sampler {name} returned labels that are NaN or infinite; drop those rows")
    if half != "test" and len(np.unique(y)) < 2:
        raise UsageError(
            f"a training set of distribution {name} has the single class {y[0]!r}; "
            "raise n_train, or fix the label shares in the sampler"
        )
    return X, y


def _refuse_unfinite(X: Any, name: str) -> None:
    numbers = X.select_dtypes("number") if hasattr(X, "select_dtypes") else X
    if hasattr(numbers, "nnz"):  # sparse
        numbers = numbers.data
    values = np.asarray(numbers)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"sampler {name} returned features that are NaN or infinite; impute or drop them first")


def fit(train: TrainFn, X: Any, y: np.ndarray, seed: int) -> Any:
    """One model: a classifier is cloned, seeded and fitted; a function is called."""
    if hasattr(train, "fit") and hasattr(train, "get_params"):
        from sklearn.base import clone

        model = clone(train)
        names = [name for name in model.get_params() if name == "random_state" or name.endswith("__random_state")]
        return model.set_params(**dict.fromkeys(names, seed % 2**31)).fit(X, y)
    return train(X, y, seed % 2**31)


def show_game(
    game: Game,
    pools: Sequence[Pool],
    n_jobs: int | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[tuple[Half, str], Seen]:
    """Train every pool and return what its models show. ``folder`` keeps finished chunks, and is read on a rerun.

    Raises:
        UsageError: bad samplers or models; a folder of another game.
        PolicydistError: a training failed.
    """
    progress = progress or (lambda done, total: None)
    tests = {
        name: draw(game.samplers[name], name, game.n_test, "test", numpy_generator(game.seed, "test", name))
        for name in {name for pool in pools for name in pool.tests}
    }
    refuse_shared_rows(game)
    tasks = [
        (pool, range(start, min(start + CHUNK, pool.count))) for pool in pools for start in range(0, pool.count, CHUNK)
    ]
    store = None if folder is None else Store(Path(folder), game, tests)
    done: dict[tuple[Half, str, int], dict[str, Any]] = {}
    total, finished = sum(pool.count for pool in pools), 0
    missing = []
    for pool, numbers in tasks:
        found = None if store is None else store.load(pool, numbers)
        if found is None:
            missing.append((pool, numbers))
        else:
            done[pool.side, pool.name, numbers.start] = found
            finished += len(numbers)
    progress(finished, total)
    notes: Counter[str] = Counter()
    for pool, numbers, chunk, said in _parallel(game, tests, missing, n_jobs):
        done[pool.side, pool.name, numbers.start] = chunk
        notes.update(said)
        if store is not None:
            store.save(pool, numbers, chunk)
        finished += len(numbers)
        progress(finished, total)
    for text, count in notes.most_common(3):
        warnings.warn(f"{count} of {total} trainings warned: {text}", stacklevel=3)
    return {(pool.side, pool.name): _assemble(pool, done) for pool in pools}


def _parallel(
    game: Game, tests: Mapping[str, tuple[Any, np.ndarray]], tasks: Sequence[tuple[Pool, range]], n_jobs: int | None
) -> Iterator[tuple[Pool, range, dict[str, Any], list[str]]]:
    if n_jobs is not None and n_jobs < 1:
        raise UsageError(f"n_jobs is {n_jobs}; it must be at least 1 (leave it out for all cores)")
    jobs = min(n_jobs or os.cpu_count() or 1, max(len(tasks), 1))
    if jobs == 1:
        yield from (_chunk(game, tests, *task) for task in tasks)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    yield from parallel(delayed(_chunk)(game, tests, *task) for task in tasks)


def _chunk(
    game: Game, tests: Mapping[str, tuple[Any, np.ndarray]], pool: Pool, numbers: range
) -> tuple[Pool, range, dict[str, Any], list[str]]:
    """Train some models of a pool, one thread each so that the number of processes changes no digit."""
    from threadpoolctl import threadpool_limits

    shown: list[dict[str, Any]] = []
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in numbers:
            rng = numpy_generator(game.seed, "data", pool.side, pool.name, number)
            X, y = draw(game.samplers[pool.name], pool.name, game.n_train, pool.side, rng)
            seed = derive(game.seed, "fit", pool.side, pool.name, number)
            try:
                model = fit(game.train, X, y, seed)
            except Exception as problem:
                raise PolicydistError(
                    f"training model {number} of distribution {pool.name} ({pool.side}) failed: "
                    f"{type(problem).__name__}: {problem}"
                ) from problem
            shown.append(_show(game, model, [tests[name] for name in pool.tests]))
    said = sorted({str(entry.message).partition("\n")[0] for entry in caught if _about_training(entry)})
    return pool, numbers, _stack(shown), said * len(numbers)


def _about_training(entry: warnings.WarningMessage) -> bool:
    return not issubclass(entry.category, DeprecationWarning | FutureWarning | ResourceWarning)


def _show(game: Game, model: Any, tests: Sequence[tuple[Any, np.ndarray]]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    score = game.score or reading.accuracy
    if "scores" in game.needs:
        shown["scores"] = np.array([float(score(model, X, y)) for X, y in tests])
        if not np.isfinite(shown["scores"]).all():
            raise PolicydistError("the score of a model is NaN or infinite; attacks compare scores")
    if "chances" in game.needs:
        shown["chances"] = [reading.true_label_chance(model, X, y).astype(np.float32) for X, y in tests]
        if not all(np.isfinite(chance).all() for chance in shown["chances"]):
            raise PolicydistError("a model gives probabilities that are NaN: its training diverged")
    if "layers" in game.needs:
        shown["layers"] = reading.layers(model)
        if not all(np.isfinite(part).all() for layer in shown["layers"] for part in layer):
            raise PolicydistError("a model has weights that are NaN or infinite: its training diverged")
    return shown


def _stack(shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chunk: dict[str, Any] = {}
    if "scores" in shown[0]:
        chunk["scores"] = np.stack([one["scores"] for one in shown])
    if "chances" in shown[0]:
        count = len(shown[0]["chances"])
        chunk["chances"] = tuple(np.stack([one["chances"][k] for one in shown]) for k in range(count))
    if "layers" in shown[0]:
        chunk["layers"] = stacked([tuple((w[None], b[None]) for w, b in one["layers"]) for one in shown])
    return chunk


def _assemble(pool: Pool, done: Mapping[tuple[Half, str, int], dict[str, Any]]) -> Seen:
    chunks = [done[pool.side, pool.name, start] for start in range(0, pool.count, CHUNK)]
    scores = np.concatenate([chunk["scores"] for chunk in chunks]) if "scores" in chunks[0] else None
    chances = None
    if "chances" in chunks[0]:
        chances = tuple(np.concatenate([c["chances"][k] for c in chunks]) for k in range(len(pool.tests)))
    layers = stacked([chunk["layers"] for chunk in chunks]) if "layers" in chunks[0] else None
    return Seen(pool, scores, chances, layers)


def refuse_shared_rows(game: Game) -> None:
    """Compare one draw of each side: rows in common mean that victim and adversary use the same data.

    Only where rows are nearly all different, so that a coincidence says something. Raises UsageError above 5 %.
    """
    for name, sampler in game.samplers.items():
        rows = []
        for half in ("victim", "adversary"):
            X, _ = draw(sampler, name, game.n_train, half, numpy_generator(game.seed, "overlap", half, name))
            if hasattr(X, "toarray"):
                return
            rows.append([hash(row.tobytes()) if row.dtype != object else hash(tuple(row)) for row in np.asarray(X)])
        ours, theirs = set(rows[0]), set(rows[1])
        if min(len(ours), len(theirs)) < 0.9 * game.n_train:
            continue
        if len(ours & theirs) > 0.05 * len(ours):
            raise UsageError(
                f"sampler {name} gives victim and adversary the same rows ({len(ours & theirs)} of {len(ours)} in one "
                "draw), which inflates every attack: draw by the half it is told (see Population)"
            )


class Store:
    """Finished chunks in a folder, so that an interrupted audit goes on where it stopped."""

    def __init__(self, folder: Path, game: Game, tests: Mapping[str, tuple[Any, np.ndarray]]) -> None:
        self.folder = folder
        about = {
            "train": _steady(game.train), "score": _steady(game.score), "n_train": game.n_train,
            "n_test": game.n_test, "needs": sorted(game.needs), "seed": game.seed,
            "tests": {name: _digest(*data) for name, data in sorted(tests.items())},
        }  # fmt: skip
        path = folder / "game.json"
        if path.is_file() and json.loads(path.read_text()) != about:
            raise UsageError(f"{folder} holds the models of another audit; give another folder, or delete it")
        write_whole(path, json.dumps(about, indent=2))

    def load(self, pool: Pool, numbers: range) -> dict[str, Any] | None:
        """A finished chunk, or None."""
        path = self._path(pool, numbers)
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as data:
            chunk: dict[str, Any] = {"scores": data["scores"]} if "scores" in data else {}
            count = sum(name.startswith("chances") for name in data.files)
            if count:
                chunk["chances"] = tuple(data[f"chances{k}"] for k in range(count))
            depth = sum(name.startswith("weights") for name in data.files)
            if depth:
                chunk["layers"] = tuple((data[f"weights{k}"], data[f"bias{k}"]) for k in range(depth))
        return chunk

    def save(self, pool: Pool, numbers: range, chunk: Mapping[str, Any]) -> None:
        """Keep a chunk."""
        arrays = {"scores": chunk["scores"]} if "scores" in chunk else {}
        arrays |= {f"chances{k}": part for k, part in enumerate(chunk.get("chances", ()))}
        for k, (weights, bias) in enumerate(chunk.get("layers", ())):
            arrays |= {f"weights{k}": weights, f"bias{k}": bias}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_whole(self._path(pool, numbers), buffer.getvalue())

    def _path(self, pool: Pool, numbers: range) -> Path:
        key = hashlib.sha256(repr((pool.name, pool.tests)).encode()).hexdigest()[:10]
        return self.folder / f"{pool.side}-{key}-{numbers.start:05d}-{len(numbers)}.npz"


def _steady(thing: Any) -> str:
    """A name that is the same in another process: settings of an estimator, the qualified name of a function."""
    name = getattr(thing, "__qualname__", None)
    return f"{thing.__module__}.{name}" if name else repr(thing)


def _digest(X: Any, y: np.ndarray) -> str:
    dense = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
    text = dense.tobytes() if dense.dtype != object else repr(dense.tolist()).encode()
    return hashlib.sha256(text + np.asarray(y).astype(str).tobytes()).hexdigest()[:16]
