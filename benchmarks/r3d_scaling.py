"""Time and memory of R3D against the number of units, quantiles, bootstrap draws and observations.

    python benchmarks/r3d_scaling.py                       # the sweeps, a table on standard output
    python benchmarks/r3d_scaling.py --application         # the size of the paper's data
    python benchmarks/r3d_scaling.py --figure scaling.png

The paper reports, for 5 million observations, 20 quantiles and 100 draws, less than one second with its Fortran
kernel (arXiv 2504.03992, App. A-4.4). The R package itself is not run here.
"""

from __future__ import annotations

import argparse
import resource
import time
import tracemalloc

import numpy as np

from policydist.estimation.methods.r3d import R3D
from policydist.estimation.rd.quantiles import quantile_matrix
from policydist.estimation.rd.simulation import simulate

BASE = {"units": 356, "quantiles": 20, "draws": 5000}
SWEEPS = {
    "units": (100, 356, 1000, 3000, 10_000, 30_000),
    "quantiles": (9, 20, 50, 99, 200),
    "draws": (100, 1000, 5000, 20_000),
}
REPEATS = 3


def measure(kind: str, units: int, quantiles: int, draws: int) -> dict[str, float]:
    """Best of three: seconds for bandwidth and fit, and for the bootstrap; peak megabytes of both together."""
    grid = np.linspace(0.05, 0.95, quantiles)
    design = simulate("dgp1", units, 50, seed=0)
    matrix = quantile_matrix(list(design.samples), grid)
    model = R3D(kind=kind, quantiles=grid, n_draws=draws)  # type: ignore[arg-type]
    fits, boots = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.fit(design.x, matrix)
        middle = time.perf_counter()
        model.bootstrap()
        fits.append(middle - start)
        boots.append(time.perf_counter() - middle)
    tracemalloc.start()
    model.fit(design.x, matrix).bootstrap()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {"fit_s": min(fits), "bootstrap_s": min(boots), "peak_mb": peak}


def sweep() -> list[dict[str, float | str]]:
    """One row a point: everything at its base value but the swept one."""
    rows: list[dict[str, float | str]] = []
    print(f"{'kind':<9}{'units':>8}{'quantiles':>11}{'draws':>8}{'fit s':>10}{'bootstrap s':>13}{'peak MB':>10}")
    for kind in ("frechet", "simple"):
        for name, values in SWEEPS.items():
            for value in values:
                size = BASE | {name: value}
                row = measure(kind, **size)
                rows.append({"kind": kind, "swept": name, **size, **row})
                print(
                    f"{kind:<9}{size['units']:>8}{size['quantiles']:>11}{size['draws']:>8}"
                    f"{row['fit_s']:>10.4f}{row['bootstrap_s']:>13.4f}{row['peak_mb']:>10.1f}"
                )
    return rows


def application() -> None:
    """The size of the paper's application, quantiles included."""
    grid = np.linspace(0.05, 0.95, 20)
    design = simulate("dgp1", 356, 14_045, seed=0)
    samples = list(design.samples)
    start = time.perf_counter()
    matrix = quantile_matrix(samples, grid)
    quantiles = time.perf_counter() - start
    start = time.perf_counter()
    model = R3D(quantiles=grid, n_draws=5000).fit(design.x, matrix)
    model.bootstrap()
    rest = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{design.samples.size:,} observations, 356 units, 20 quantiles, 5,000 draws: quantiles {quantiles:.3f} s, "
        f"bandwidth + fit + bootstrap {rest:.3f} s, process peak {peak:.0f} MB"
    )


def figure(rows: list[dict[str, float | str]], path: str) -> None:
    """Time against each swept size, on logarithmic axes."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(SWEEPS), figsize=(10, 3.2), layout="constrained", sharey=True)
    for ax, name in zip(axes, SWEEPS, strict=True):
        for kind in ("frechet", "simple"):
            chosen = [row for row in rows if row["swept"] == name and row["kind"] == kind]
            total = [float(row["fit_s"]) + float(row["bootstrap_s"]) for row in chosen]
            ax.loglog([float(row[name]) for row in chosen], total, marker="o", ms=3, label=kind)
        ax.set_xlabel(name)
    axes[0].set_ylabel("seconds (bandwidth, fit, bootstrap)")
    axes[0].legend(frameon=False)
    fig.savefig(path, dpi=130)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--application", action="store_true", help="only the size of the paper's application")
    parser.add_argument("--figure", metavar="PATH", help="also draw the sweeps")
    arguments = parser.parse_args()
    if arguments.application:
        application()
        return
    rows = sweep()
    if arguments.figure:
        figure(rows, arguments.figure)


if __name__ == "__main__":
    main()
