"""Tutorial: integer actions. An integer head as the policy of a Gymnasium task. Rendered by render.py."""

# ruff: noqa: E402 (imports stand where the reader needs them)

# %% [markdown]
# # Ordering stock: an integer head as a policy
#
# A kiosk orders newspapers every morning: between 0 and 200 copies. The action is an integer and its order matters:
# 81 is almost as good as 80. A softmax over 201 actions does not know that and needs 201 outputs; a truncated `Dalap`
# head needs two, a centre and a spread, and is still a proper probability over the 201 actions, so the ordinary
# score-function gradient (REINFORCE) trains it.
#
# ## The task
#
# Demand has a weekly rhythm and is over-dispersed. A copy sold earns 1.0, a copy ordered costs 0.4, unsold copies are
# thrown away, an episode is four weeks. What the best policy earns is known here (the newsvendor quantile of demand),
# so the learning curve can be read against it.

# %%
import gymnasium as gym
import numpy as np
from scipy.stats import nbinom

LARGEST, DAYS, COST, SIZE = 200, 28, 0.4, 20.0
MEANS = np.array([60, 65, 70, 75, 100, 140, 120])


class Kiosk(gym.Env):
    """One order a day; the observation is the day of the week, one-hot."""

    observation_space = gym.spaces.Box(0.0, 1.0, (7,), dtype=np.float32)
    action_space = gym.spaces.Discrete(LARGEST + 1)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.day = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        mean = MEANS[self.day % 7]
        demand = self.np_random.poisson(self.np_random.gamma(SIZE, mean / SIZE))
        self.day += 1
        reward = min(int(action), demand) - COST * int(action)
        return self._observe(), float(reward), False, self.day == DAYS, {}

    def _observe(self) -> np.ndarray:
        return np.eye(7, dtype=np.float32)[self.day % 7]


best_order = nbinom.ppf(1 - COST, SIZE, SIZE / (SIZE + MEANS)).astype(int)
demand_draws = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(SIZE, MEANS / SIZE, (100_000, 7)))
best_return = 4 * (np.minimum(best_order, demand_draws) - COST * best_order).mean(0).sum()
print("best orders:", best_order, f"worth {best_return:.0f} an episode")

# %% [markdown]
# ## The policy and its training
#
# Sixteen kiosks run side by side. `make_head` turns two raw outputs into a law over 0 … 200; `log_prob` of the orders
# taken, weighted with the day's reward less the mean over the kiosks, is the whole algorithm. (An order does not
# change later days here, so a day's own reward is its return.)

# %%
import torch
from torch import nn

from policydist.estimation.methods.integer_dists import make_head

torch.manual_seed(0)


def train(policy, parameters, updates: int = 150, kiosks: int = 16, learning_rate: float = 2e-2) -> list[float]:
    """Mean return of the kiosks after every update."""
    envs = gym.vector.SyncVectorEnv([Kiosk for _ in range(kiosks)])
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    curve = []
    for update in range(updates):
        observation, _ = envs.reset(seed=1000 * update)
        log_probs, rewards = [], []
        for _ in range(DAYS):
            law = policy(torch.as_tensor(observation))
            action = law.sample()
            log_probs.append(law.log_prob(action))
            observation, reward, *_ = envs.step(action.numpy())
            rewards.append(torch.as_tensor(reward, dtype=torch.float32))
        reward = torch.stack(rewards)
        advantage = reward - reward.mean(1, keepdim=True)
        loss = -(torch.stack(log_probs) * advantage / advantage.std()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(reward.sum(0).mean().item())
    return curve


network = nn.Linear(7, 2)
head = make_head("dalap", lower=0, upper=LARGEST, scale=40.0)
nn.init.zeros_(network.weight)
with torch.no_grad():  # start where the uniform softmax starts: centred on 100, wide
    network.bias.copy_(torch.tensor([2.5, 1.0]))
curve = train(lambda x: head.distribution(network(x)), network.parameters())
print(f"Dalap head: first 10 updates {np.mean(curve[:10]):.0f}, last 10 {np.mean(curve[-10:]):.0f}")

softmax = nn.Linear(7, LARGEST + 1)
nn.init.zeros_(softmax.weight)
softmax_curve = train(lambda x: torch.distributions.Categorical(logits=softmax(x)), softmax.parameters())
print(f"softmax:    first 10 updates {np.mean(softmax_curve[:10]):.0f}, last 10 {np.mean(softmax_curve[-10:]):.0f}")
assert np.mean(curve[-10:]) > np.mean(curve[:10])

# %% [markdown]
# ## What was learnt

# %%
import matplotlib.pyplot as plt

law = head.distribution(network(torch.eye(7)))
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
axes[0].plot(curve, label="Dalap head, 2 outputs")
axes[0].plot(softmax_curve, label="softmax, 201 outputs")
axes[0].axhline(best_return, color="black", linestyle="--", label="best possible")
axes[0].set(xlabel="update", ylabel="return of an episode", title="Learning curve")
axes[0].legend()
days = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"]
middle = law.icdf(torch.full((7,), 0.5)).numpy()
low, high = (law.icdf(torch.full((7,), level)).numpy() for level in (0.1, 0.9))
axes[1].errorbar(range(7), middle, [middle - low, high - middle], fmt="o", label="policy: median, 80 % of orders")
axes[1].plot(range(7), best_order, "k_", markersize=14, label="best order")
axes[1].set(xticks=range(7), xticklabels=days, ylabel="copies", title="Orders by day")
axes[1].legend()
print("median orders:", middle, " best:", best_order)

# %% [markdown]
# Both learners use one run, one learning rate and one seed: the picture shows that the head trains as a policy, not how
# much better it is in general. A fair comparison would tune the learning rate of both and repeat over seeds.
