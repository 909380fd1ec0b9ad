"""Time and peak memory of OptDist trained from a Parquet file in pieces, beside scikit-learn's two stages in memory.

python benchmarks/optdist_streaming.py [--rows 1000000] [--steps 1200]

Every part runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from policydist.estimation.methods.optdist import OptDistRegressor, norm_gini, segments

CATEGORIES = 500


def write(path: Path, rows: int) -> None:
    """The made-up segments, eight numbers and two categorical columns, in row groups of 100,000."""
    from pyarrow import Table, parquet

    with parquet.ParquetWriter(path, Table.from_pandas(table(1, 0)).schema) as file:
        for number, start in enumerate(range(0, rows, 100_000)):
            file.write_table(Table.from_pandas(table(min(100_000, rows - start), number), preserve_index=False))


def table(rows: int, seed: int) -> pd.DataFrame:
    x, y = segments(rows, seed=seed)
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(8)])
    shop = [f"shop-{i}" for i in rng.integers(0, CATEGORIES, rows)]
    return frame.assign(shop=shop, channel=rng.choice(["web", "mail", "store"], rows), value=y)


def streamed(path: Path, steps: int) -> float:
    model = OptDistRegressor(batch_size=2048, max_steps=steps, random_state=0).fit_parquet(path, "value")
    test = table(50_000, 10_000)
    return model.score(test.drop(columns="value"), test["value"])


def two_stages(path: Path, steps: int) -> float:
    """Gradient-boosted classifier and regressor of ln y, the usual pair, on the whole table in memory."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    frame, test = pd.read_parquet(path), table(50_000, 10_000)
    x, y = (f.drop(columns="value").astype({"shop": "category", "channel": "category"}) for f in (frame, test))
    for column in ("shop", "channel"):
        y[column] = y[column].cat.set_categories(x[column].cat.categories)
    options = {"categorical_features": ["channel"], "random_state": 0}  # 500 shops are more than its 255 bins
    x, y = x.drop(columns="shop"), y.drop(columns="shop")
    paid = (frame["value"] > 0).to_numpy()
    classifier = HistGradientBoostingClassifier(**options).fit(x, paid)
    logs = np.log(frame["value"][paid])
    regressor = HistGradientBoostingRegressor(**options).fit(x[paid], logs)
    spread = np.var(logs - regressor.predict(x[paid]))
    mean = classifier.predict_proba(y)[:, 1] * np.exp(regressor.predict(y) + spread / 2)
    return norm_gini(test["value"], mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--part", choices=["streamed", "two_stages"])
    parser.add_argument("--file", type=Path)
    asked = parser.parse_args()
    if asked.part:
        wall, cpu = time.perf_counter(), time.process_time()
        score = {"streamed": streamed, "two_stages": two_stages}[asked.part](asked.file, asked.steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{asked.part:<12} wall {wall:6.0f} s  cpu {cpu:6.0f} s  peak {peak:.2f} GiB  Norm-GINI {score:.3f}",
            flush=True,
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "customers.parquet"
        write(path, asked.rows)
        print(f"{asked.rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB of Parquet", flush=True)
        for part in ("streamed", "two_stages"):
            words = ["--part", part, "--file", str(path), "--steps", str(asked.steps)]
            subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
