"""Tutorial: what will a customer be worth? Rendered to optdist.md by render.py."""

# %% [markdown]
# # What will a customer be worth?
#
# A shop knows a few things about new customers and wants their spending over the next year. Most will spend nothing;
# among the rest there are small baskets, regulars, and a few who spend a fortune. A model of the mean alone chases those
# few; a model of *one* zero-inflated log-normal law per customer must stretch it over all kinds at once. `OptDistRegressor`
# keeps several such laws and chooses one for each customer.
#
# The data are made here, so that we know what is true: four kinds of customers, which the features tell well but not
# perfectly, and a channel column that shifts how much is spent.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from policydist.estimation.methods.optdist import (
    OptDistRegressor,
    SoftMixtureRegressor,
    TwoStageRegressor,
    ZILNRegressor,
    lift_table,
    plot_lift,
    segments,
)

rng = np.random.default_rng(5)
x, value = segments(8000, seed=11)
channel = rng.choice(["mail", "shop", "web"], size=len(value))
value = value * np.where(channel == "web", 1.5, 1.0)
customers = pd.DataFrame(x, columns=["visits", "basket", "tenure", "referrals", "age", "n1", "n2", "n3"])
customers.insert(0, "channel", channel)
train, test = slice(0, 5000), slice(5000, None)
X, y, X_test, y_test = customers[train], value[train], customers[test], value[test]
print(customers.iloc[:3, :5].round(2))
print(
    f"{np.mean(value == 0):.0%} spend nothing; median of the others {np.median(value[value > 0]):.1f}, largest {value.max():.0f}"
)
top = np.sort(value)[-len(value) // 20 :].sum() / value.sum()
print(f"the best 5 % bring {top:.0%} of the money")

# %% [markdown]
# ## Fit
#
# Text columns become embeddings by themselves. Every model gets the same rows and the same number of steps.

# %%
models = {
    "OptDist": OptDistRegressor(hidden=(32,), selector_hidden=(32,), max_steps=800, random_state=0),
    "one ZILN head": ZILNRegressor(hidden=(64,), max_steps=800, random_state=0),
    "soft mixture": SoftMixtureRegressor(hidden=(32,), selector_hidden=(32,), max_steps=800, random_state=0),
    "two stages": TwoStageRegressor(hidden=(64,), max_steps=800, random_state=0),
}
table = pd.DataFrame({name: model.fit(X, y).evaluate(X_test, y_test) for name, model in models.items()}).T
print(table[["mae", "norm_gini", "spearman", "calibration", "nll"]].round(3))

# %% [markdown]
# Never read the first column alone. The mean absolute error is least for whoever predicts too little for the few largest
# customers; `norm_gini` says whether customers are in the right order, `calibration` whether the promised total is the
# total that came, `nll` whether the whole law is right.
#
# ## Does the selector use its experts?
#
# The alignment loss is there to keep experts from collapsing into one. Look at the usage every time: no error shows it.

# %%
model = models["OptDist"]
history = pd.DataFrame(model.history_)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for i in range(model.n_experts):
    axes[0].plot(history["step"], history[f"usage_{i}"], label=f"expert {i}")
axes[0].set(xlabel="step", ylabel="share of customers", ylim=(0, 1))
axes[0].legend(frameon=False, ncols=2)
axes[1].plot(history["step"], history["effective_experts"], label="effective number of experts")
axes[1].plot(history["step"], history["agreement"], label="agreement with the best expert")
axes[1].set(xlabel="step", ylim=(0, None))
axes[1].legend(frameon=False)

# %%
law = model.predict_distribution(X_test)
who = law.to_frame([0.1, 0.5, 0.9]).assign(actual=y_test)
by_expert = who.groupby("expert").agg(
    customers=("actual", "size"), p_zero=("p_zero", "mean"), zero=("actual", lambda v: np.mean(v == 0)),
    mean=("mean", "mean"), actual=("actual", "mean"),
)  # fmt: skip
print(by_expert.round(2))

# %% [markdown]
# ## The lift chart
#
# On the left: how much more than the average the customers in each tenth bring, best tenth first. On the right: is a
# promise kept? Points on the diagonal are.

# %%
plot_lift(y_test, {name: m.predict(X_test) for name, m in models.items()})
print(lift_table(y_test, model.predict(X_test)).round(2))

# %% [markdown]
# ## More than a mean
#
# Each customer has a law: the probability of spending nothing, quantiles, the chance of more than 100.

# %%
print(who.head(5).round(2))
inside = (y_test >= law.quantile([0.05])[:, 0]) & (y_test <= law.quantile([0.95])[:, 0])
print(f"P(more than 100), five customers: {np.round(1 - law.cdf(100.0)[:5], 3)}")
print(f"share of outcomes in the 5 % to 95 % interval: {inside.mean():.3f} (more than 0.90, because zero has mass)")

# %% [markdown]
# ## New categories, bad values, keeping the model
#
# A category that was not there in training is predicted with the average embedding, and a warning says so. What cannot
# be used is refused in one line.

# %%
print(model.predict(X_test.head(2).assign(channel=["app", "web"])).round(2))
for bad in (y.copy(), -y, 0 * y):
    bad[3] = np.nan if bad[3] > 0 or bad is y else bad[3]
    try:
        ZILNRegressor(max_steps=1).fit(X, bad)
    except ValueError as problem:
        print("ValueError:", problem)

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "model.safetensors")
    again = OptDistRegressor.load(Path(folder) / "model.safetensors")
print("same predictions after loading:", np.array_equal(again.predict(X_test), model.predict(X_test)))

# %% [markdown]
# ## A table that does not fit into memory
#
# `fit_parquet` reads a file in pieces; nothing else changes.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "customers.parquet"
    X.assign(value=y).to_parquet(path, row_group_size=1000)
    streamed = ZILNRegressor(hidden=(64,), max_steps=400, random_state=0).fit_parquet(path, "value")
print(f"Norm-GINI of the streamed model: {streamed.score(X_test, y_test):.3f}")

# %% [markdown]
# ## Before you use it
#
# - **Show the plain mixture beside it.** `SoftMixtureRegressor` has the same experts and costs one word; the table above and
#   the claims on the [method's page](../methods/optdist.md) say how it does.
# - **Means can run away**: exp(μ + σ²/2) is enormous where σ is a little too large. `predict` warns; `cap=1.0` cuts predictions
#   at the largest outcome seen. Medians (`law.quantile([0.5])`) do not run away.
# - **Refunds**: negative outcomes are refused. Decide yourself whether they are zero or belong into another model.
# - **Ranking customers** needs only the order: then `score` is the number to watch, and calibration does not matter.
