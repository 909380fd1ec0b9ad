"""Tutorial: does a clinic's model betray who its patients are? Rendered to distribution_inference.md by render.py."""

# %% [markdown]
# # What does a model betray about its population?
#
# A clinic trains a model that predicts readmission, and wants to give the model away. Its patients' records stay in the
# house. But the model was *made from* them: can somebody who gets it tell whether the clinic treats mostly smokers? That
# is a fact about the clinic, not about any patient, and no amount of anonymising records hides it.
#
# The audit answers with an accuracy (how often can the adversary tell?) and with **n_leaked** (how many patient records
# would the adversary have to be shown to know as much?). The data are made here.

# %%
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from policydist.estimation.methods.distribution_inference import (
    Population,
    Ratios,
    audit,
    audit_shares,
    estimate_shares,
)

rng = np.random.default_rng(7)
n = 20_000
smoker = rng.random(n) < 0.4
age = rng.normal(58 - 6 * smoker, 12)
pressure = rng.normal(128 + 0.4 * (age - 55) + 5 * smoker, 14)
lung = rng.normal(96 - 9 * smoker - 0.2 * (age - 55), 8)
days = rng.poisson(3 + 0.04 * np.maximum(age - 40, 0))
risk = np.where(
    smoker,
    -0.6 + 0.015 * (age - 55) + 0.25 * (days - 4) - 0.07 * (lung - 88),
    -0.9 + 0.050 * (age - 55) + 0.10 * (days - 4) + 0.02 * (pressure - 128),
)
table = pd.DataFrame(
    {
        "age": age,
        "pressure": pressure,
        "lung": lung,
        "days": days,
        "smoker": smoker.astype(int),
        "readmitted": (rng.random(n) < 1 / (1 + np.exp(-risk))).astype(int),
    }
)
print(table.describe().loc[["mean", "std"]].round(2))

# %% [markdown]
# ## One question: half smokers, or a fifth?
#
# `Population` splits the table into a victim's half and an adversary's half, and draws training sets in which the share
# of smokers is what we say. The share of readmitted patients is held fixed in all of them: otherwise the model's
# intercept alone would give the answer away (more on that below). Smoking itself is not a feature.
#
# The audit trains 60 victims of each kind, and three adversaries with 30 models of each kind.

# %%
population = Population.from_frame(table, label="readmitted", property="smoker")
victim = make_pipeline(StandardScaler(), LogisticRegression())
SIZE = {"n_train": 400, "n_test": 1000, "n_victims": 60, "n_adversary": 30}

report = audit(
    victim,
    population.sampler(0.5),
    population.sampler(0.2),
    attacks=["loss", "threshold", "per_point", "kl", "lda"],
    shift=Ratios(0.5, 0.2),
    names=("a clinic with half smokers", "one with a fifth"),
    repetitions=3,
    **SIZE,
)
print(report.summary())

# %%
report.plot()

# %% [markdown]
# Read the table from the left. `loss` and `threshold` only see how often the model is right; `per_point` and `kl` see its
# probabilities, `lda` its weights. The column `adversary` is the accuracy on the adversary's own models, on which
# thresholds were chosen: it is optimistic, and only shown to be distrusted. `n_leaked` comes from a loose bound and is a
# lower estimate; `exact` is what the best possible test would need.
#
# ## A check on the audit itself
#
# With the same share on both sides there is nothing to find. If an audit finds something anyway, the adversary has seen
# data that it should not have.

# %%
nothing = audit(
    victim, population.sampler(0.5), population.sampler(0.5), ["threshold", "per_point", "lda"], repetitions=3, **SIZE
)
print(nothing.summary())

# %% [markdown]
# ## Every share against one half
#
# One pair of shares is one point of a curve. `audit_shares` draws it; the models of the reference are trained once.

# %%
grid = audit_shares(
    victim, population.sampler, [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9], 0.5, ["loss", "threshold", "lda"],
    repetitions=1, **SIZE,
)  # fmt: skip
columns = ["share", "attack", "accuracy", "n_leaked", "n_leaked_exact", "at_least"]
print(grid.to_frame().query("attack == 'lda'")[columns].round(2).to_string(index=False))
print("\nmedian n_leaked:", grid.medians().round(2).to_dict())

# %%
grid.plot()

# %% [markdown]
# The two sides of one half are not alike, and the order of the attacks may change along the curve: read single shares,
# not their mean.
#
# ## A trap: the class ratio
#
# Draw patients without holding the share of readmissions fixed, and the audit measures something else: smokers are
# readmitted more or less often, so the model's base rate tells on them. The same victims, drawn carelessly (with 120
# victims the intervals are wide; look at the direction):


# %%
def careless(share):
    own = np.flatnonzero(population.has_property == 1), np.flatnonzero(population.has_property == 0)
    part = {
        half: [rows[population.half_of[rows] == k] for rows in own]
        for k, half in enumerate(("victim", "adversary", "test"))
    }

    def sampler(n, half, rng):
        count = rng.binomial(n, share)
        rows = np.concatenate([rng.choice(part[half][0], count), rng.choice(part[half][1], n - count)])
        return population.X.iloc[rows], population.y[rows]

    return sampler


loose = audit(victim, careless(0.5), careless(0.4), ["threshold", "lda"], shift=Ratios(0.5, 0.4), repetitions=3, **SIZE)
fixed = audit(
    victim, population.sampler(0.5), population.sampler(0.4), ["threshold", "lda"], shift=Ratios(0.5, 0.4),
    repetitions=3, **SIZE,
)  # fmt: skip
rows = [(name, r.attack, r.accuracy, r.low, r.high) for name, found in (("careless", loose), ("class ratio fixed", fixed))
        for r in found.results]  # fmt: skip
print(pd.DataFrame(rows, columns=["draw", "attack", "accuracy", "low", "high"]).round(3).to_string(index=False))

# %% [markdown]
# ## Which model betrays less?
#
# Any scikit-learn classifier can be the victim. Black-box attacks need no weights.

# %%
rows = []
for name, model in {
    "logistic, C = 1": victim,
    "logistic, C = 0.001": make_pipeline(StandardScaler(), LogisticRegression(C=0.001)),
    "naive Bayes": GaussianNB(),
    "forest": RandomForestClassifier(20, min_samples_leaf=20),
}.items():
    found = audit(
        model, population.sampler(0.5), population.sampler(0.2), ["threshold", "per_point"], shift=Ratios(0.5, 0.2),
        repetitions=2, n_train=400, n_test=500, n_victims=30, n_adversary=20,
    )  # fmt: skip
    best = found.strongest
    rows.append((name, best.attack, best.accuracy, best.low, best.high, best.n_leaked, best.at_least))
columns = ["victim", "strongest attack", "accuracy", "low", "high", "n_leaked", "at least"]
print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))

# %% [markdown]
# ## Reading the share itself
#
# The regression attack does not choose between two shares, it estimates the share from the weights. Its n_leaked is the
# number of patients whose share of smokers would estimate it as well. The shares 0.35 and 0.65 were never seen in
# training.
#
# Estimates are pulled towards the middle of the grid, as any cautious estimate is. That flatters shares near the middle and
# hurts those at the ends: compare n_leaked over the whole range, not at one half alone.

# %%
shares = estimate_shares(
    victim, population.sampler, (0.1, 0.3, 0.5, 0.7, 0.9), (0.1, 0.35, 0.5, 0.65, 0.9),
    n_train=400, n_victims=30, n_adversary=60,
)  # fmt: skip
print(shares.to_frame().round(4).to_string(index=False))
shares.plot()

# %% [markdown]
# ## Before you report
#
# - **Say which attacks were tried.** No leak found is not no leak.
# - **State the interval and the number of victims.** 120 of 120 guessed right means "at least", not infinity.
# - **n_leaked is not a number of leaked records.** It says how many records would teach as much about the population.
# - **Give the adversary realistic data.** Here it has a table from the same source; one with worse data does worse.
# - Graphs: pass `shift=Degrees((N0, s0), (N1, s1))` with Zipf laws fitted to the two degree distributions, and a
#   sampler that returns node features and labels of graphs with either mean degree.
