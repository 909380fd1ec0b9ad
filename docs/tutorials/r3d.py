"""Tutorial: what does a grant do to the whole distribution of test scores? Rendered to r3d.md by render.py."""

# %% [markdown]
# # What does a grant do to the whole distribution?
#
# Schools whose poverty index is 60 or more receive a grant. The cutoff is the same for all pupils of a school, but the
# question is about pupils: does the grant lift everybody, or only those at the bottom? A regression discontinuity on
# school means cannot tell. `R3D` can: its outcome is the *distribution* of scores in each school, and its estimate is
# the jump of the **average quantile function** at the cutoff, with a band that holds for all quantiles together.
#
# The data are made here, so that the truth is known. Schools differ a lot from each other (standard deviation 50); the
# grant adds 5 points and shrinks the spread inside a school from 60 to 40. The true effect at quantile q is therefore
# 5 − 20 Φ⁻¹(q): about +31 points for the weakest tenth and −21 for the strongest.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import norm

from policydist.estimation.methods.r3d import R3D
from policydist.estimation.rd.baselines import mean_rd, quantile_rd

rng = np.random.default_rng(7)
n_schools = 600
poverty = rng.uniform(20, 100, n_schools)
grant = poverty >= 60
pupils = rng.integers(40, 160, n_schools)
level = 520 - 0.8 * (poverty - 60) + 5 * grant + 50 * rng.normal(size=n_schools)
spread = np.where(grant, 40, 60)

school = np.repeat(np.arange(n_schools), pupils)
table = pd.DataFrame(
    {
        "school": school,
        "poverty": poverty[school],
        "score": level[school] + spread[school] * rng.normal(size=len(school)),
    }
)
print(table.head(3))
print(f"{len(table):,} pupils in {n_schools} schools")

# %% [markdown]
# ## Fit
#
# A long table with one row a pupil goes into `fit_frame`; a list of samples or a matrix of precomputed quantiles goes
# into `fit`. Nothing else has to be chosen: the bandwidth is optimal for the integrated squared error of the curve.

# %%
model = R3D(cutoff=60).fit_frame(table, unit="school", running="poverty", outcome="score")
print(model.summary())

# %% [markdown]
# The average effect is small next to its standard error, and a study of means would stop here. The homogeneity test
# looks at the shape instead: the level of a school is common to all its quantiles and cancels, so the fall of the
# effect from the bottom to the top is seen clearly.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
model.plot(ax=axes[0])
grid = model.quantiles_
axes[0].plot(grid, 5 - 20 * norm.ppf(grid), color="k", ls="--", lw=1, label="truth")
axes[0].legend(frameon=False)
model.plot("curves", ax=axes[1])

# %% [markdown]
# The shaded band covers the whole curve with 95 % confidence; the dotted one covers any *single* quantile and is
# narrower. Use the first to say "somewhere" or "everywhere", the second only for a quantile named in advance. The band
# is equally wide at all quantiles by construction.
#
# ## Tests
#
# Is there any effect? Is it the same everywhere? Is it there in the lower half? Is inequality different?

# %%
for result in (
    model.test("nullity"),
    model.test("homogeneity"),
    model.test("nullity", interval=(0.1, 0.5)),
    model.test("gini"),
):
    low, high = result.interval
    print(f"{result.hypothesis:<12} q in [{low:.1f}, {high:.1f}]  {result.detail:<48} p = {result.p_value:.4f}")

# %% [markdown]
# ## Why not quantile RD, and why not means?
#
# Quantile RD pools all pupils and compares the quantiles of the two pools. With schools this different, the pooled
# spread is √(50² + 60²) = 78 without and √(50² + 40²) = 64 with the grant: the pools differ by 14 Φ⁻¹(q) where the
# schools differ by 20 Φ⁻¹(q). No sample size mends that. RD on means is right about the mean and silent about the rest.
# One sample is noisy, so the table shows the average over forty.


# %%
def one_sample(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-40, 40, n_schools)
    treated = x >= 0
    level = 520 - 0.8 * x + 5 * treated + 50 * rng.normal(size=n_schools)
    samples = list(level[:, None] + np.where(treated, 40, 60)[:, None] * rng.normal(size=(n_schools, 60)))
    fit = R3D(bandwidth=25.0).fit(x, samples)
    pooled = quantile_rd(x, samples, fit.quantiles_, 25.0)
    mean = mean_rd(x, np.array([s.mean() for s in samples]), 25.0).estimate
    return fit.tau_, pooled, np.full(9, mean)


average = np.mean([one_sample(seed) for seed in range(40)], axis=0)
comparison = pd.DataFrame(average.T, columns=["R3D", "quantile RD", "mean RD"], index=grid)
comparison.insert(0, "truth", 5 - 20 * norm.ppf(grid))
print(comparison.round(1))
slope = comparison.loc[0.1] - comparison.loc[0.9]
print("\nbottom tenth minus top tenth:", slope.round(1).to_dict())

# %% [markdown]
# ## How much hangs on the bandwidth?

# %%
rows = []
for h in (10.0, 15.0, 25.0, 40.0):
    fit = R3D(cutoff=60, bandwidth=h).fit_frame(table, unit="school", running="poverty", outcome="score")
    band = fit.bootstrap()
    rows.append([h, *fit.n_window_, fit.tau_[0], fit.tau_[-1], band.critical, fit.test("homogeneity").p_value])
columns = ["bandwidth", "schools left", "schools right", "q = 0.1", "q = 0.9", "half width", "homogeneity p"]
print(pd.DataFrame(rows, columns=columns).round(3).to_string(index=False))

# %% [markdown]
# ## When not every school complies
#
# If some schools above the cutoff refuse the grant and some below get it anyway, pass who received it and set
# `fuzzy=True`. The jump is divided by the jump in take-up, whose own uncertainty enters the band.

# %%
received = rng.random(n_schools) < np.where(grant, 0.85, 0.10)
spread = np.where(received, 40, 60)
level = 520 - 0.8 * (poverty - 60) + 5 * received + 50 * rng.normal(size=n_schools)
samples = [level[i] + spread[i] * rng.normal(size=pupils[i]) for i in range(n_schools)]
fuzzy = R3D(cutoff=60, fuzzy=True).fit(poverty, samples, treatment=received)
print(fuzzy.summary())

# %% [markdown]
# ## Before you report
#
# - **Look at small units.** Quantiles of a school with ten pupils are noisy and the outer ones are pulled inwards;
#   `fit` warns when units are too small for the quantiles asked for. Ask for fewer quantiles, or drop tiny units.
# - **Units count equally.** A school with 150 pupils counts as much as one with 40. `unit_weight` changes that, and
#   with it the question that is answered.
# - **Survey weights inside units** go into the `weight` column of `fit_frame`.
# - **The effect may fall in q.** Only the two curves are made monotone, never their difference.
# - `model.to_frame()` returns all numbers of the table for your own plots.
