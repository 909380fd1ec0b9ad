"""What prompts, or whole sources of prompts, have shown so far: the memory of every curriculum that adapts.

A key is a number: the row of a data set, or the place of a source in a list of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.language.credits import rewards_of
from policydist.language.types import Rollouts


class Window:
    """The last ``length`` values of each of ``keys`` keys, in order of arrival."""

    def __init__(self, keys: int, length: int) -> None:
        if length < 1:
            raise UsageError(f"a window of {length} values holds nothing; it must be at least 1")
        self.values = torch.zeros(keys, length, dtype=torch.float64)
        self.seen = torch.zeros(keys, dtype=torch.long)
        """[K] values ever appended, those that have left the window included."""

    def append(self, key: Int[Tensor, " N"], value: Float[Tensor, " N"]) -> None:
        """Add values in the order given; of one key's values in one call the later ones are newer."""
        length = self.values.shape[1]
        order = torch.argsort(key, stable=True)
        key, value = key[order], value[order].double()
        counts = torch.bincount(key, minlength=len(self.seen))
        rank = torch.arange(len(key)) - (counts.cumsum(0) - counts)[key]
        place = (self.seen[key] + rank) % length
        last = rank >= counts[key] - length
        self.values[key[last], place[last]] = value[last]
        self.seen += counts

    @property
    def held(self) -> Int[Tensor, " K"]:
        """Values in each window."""
        return self.seen.clamp(max=self.values.shape[1])

    def mean(self) -> Float[Tensor, " K"]:
        """Mean of each window; 0 where it is empty."""
        # Places not written yet hold 0.
        return self.values.sum(1) / self.held.clamp(min=1)

    def of(self, key: int) -> list[float]:
        """One window's values, oldest first."""
        length, seen = self.values.shape[1], int(self.seen[key])
        start = max(0, seen - length)
        return [float(self.values[key, place % length]) for place in range(start, seen)]

    def state_dict(self) -> dict[str, Any]:
        """The keys that have values, as plain numbers."""
        return {
            "seen": self.seen.tolist(),
            "held": {str(k): self.of(k) for k in self.seen.nonzero().flatten().tolist()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        length = self.values.shape[1]
        self.seen = _restored(state["seen"], self.seen)
        self.values.zero_()
        for key, values in state["held"].items():
            seen = int(self.seen[int(key)])
            places = torch.arange(seen - len(values), seen) % length
            self.values[int(key), places] = torch.tensor(values, dtype=torch.float64)


class Statistics:
    """Successes, failures and advantages of K keys, with the forgetting that a curriculum asks for.

    - ``evidence``: decayed counts (alpha, beta) of successes and failures. With every `observe` the counts of the keys in
      it are multiplied by ``kept`` before the new ones are added, all others by ``idle``. Idle keys are brought up to
      date when they are looked at (``idle ** steps``), so a large pool costs no more than a small one.
    - ``rates``: success rates from recent responses alone. A visit of at least ``recent`` responses replaces what was
      known; smaller visits are averaged over the last ``recent`` responses.
    - ``learnability``: mean absolute advantage of the last ``window`` responses.
    - ``seen``: responses ever observed.

    ``recent=0`` and ``window=0`` (the defaults) keep none. Everything is on the CPU, in float64.

    Raises:
        UsageError: no keys, or a decay factor outside [0, 1].
    """

    def __init__(self, keys: int, *, kept: float = 1.0, idle: float = 1.0, recent: int = 0, window: int = 0) -> None:
        if keys < 1:
            raise UsageError("there is nothing to keep statistics of: no rows, or no sources")
        for name, value in (("kept", kept), ("idle", idle)):
            if not 0 <= value <= 1:
                raise UsageError(f"decay factor {name} is {value}; it must lie in [0, 1]")
        self.kept, self.idle = kept, idle
        self.alpha = torch.zeros(keys, dtype=torch.float64)
        self.beta = torch.zeros(keys, dtype=torch.float64)
        self.current = torch.zeros(keys, dtype=torch.long)  # the observation up to which alpha and beta are decayed
        self.observations = 0
        self.seen = torch.zeros(keys, dtype=torch.long)
        self.visit = torch.zeros(keys, dtype=torch.float64)
        """[K] success rate of the last visit where that was long enough to stand alone, else -1."""
        self.recent = Window(keys, recent) if recent else None
        self.advantages = Window(keys, window) if window else None

    def __len__(self) -> int:
        return len(self.seen)

    def observe(
        self, key: Int[Tensor, " N"], success: Float[Tensor, " N"], advantage: Float[Tensor, " N"] | None = None
    ) -> None:
        """Take in one step's N responses: their keys, 1 for right and 0 for wrong, and their advantages.

        Raises:
            PolicydistError: a key that is not there.
        """
        key, success = key.detach().cpu(), success.detach().cpu().double()
        if len(key) and not 0 <= int(key.min()) <= int(key.max()) < len(self):
            raise PolicydistError(f"statistics of {len(self)} keys were given key {int(key.max())}")
        counts = torch.bincount(key, minlength=len(self))
        hits = torch.bincount(key, weights=success, minlength=len(self))
        present = counts > 0
        alpha, beta = self.evidence()
        self.observations += 1
        self.alpha[present] = self.kept * alpha[present] + hits[present]
        self.beta[present] = self.kept * beta[present] + (counts - hits)[present]
        self.current[present] = self.observations
        self.seen += counts
        if self.recent is not None:
            alone = counts >= self.recent.values.shape[1]
            self.visit[present] = torch.where(alone, hits / counts.clamp(min=1), -1.0)[present]
            self.recent.append(key, success)
        if self.advantages is not None and advantage is not None:
            self.advantages.append(key, advantage.detach().cpu().abs())

    def evidence(self) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """Counts of successes and failures of every key, decayed up to now."""
        age = self.idle ** (self.observations - self.current).double()
        return self.alpha * age, self.beta * age

    def rates(self) -> Float[Tensor, " K"]:
        """Success rates from recent responses; 0 for keys never observed (see ``seen``)."""
        if self.recent is None:
            raise PolicydistError("these statistics keep no recent responses; make them with recent=16 or more")
        return torch.where((self.seen > 0) & (self.visit >= 0), self.visit, self.recent.mean())

    def learnability(self) -> Float[Tensor, " K"]:
        """Mean absolute advantage over each key's window; 0 where there is none yet."""
        if self.advantages is None:
            raise PolicydistError("these statistics keep no advantages; make them with window=300 or so")
        return self.advantages.mean()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name).tolist() for name in self._tensors}
        parts = {"recent": self.recent, "advantages": self.advantages}
        windows = {name: window.state_dict() for name, window in parts.items() if window is not None}
        return {**state, **windows, "observations": self.observations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self._tensors:
            setattr(self, name, _restored(state[name], getattr(self, name)))
        self.observations = state["observations"]
        for name, window in (("recent", self.recent), ("advantages", self.advantages)):
            if window is not None:
                window.load_state_dict(state[name])

    _tensors = ("alpha", "beta", "current", "seen", "visit")


def main_rows(rollouts: Rollouts) -> Rollouts:
    """Without rows marked ``extras["auxiliary"]``: these are not drawn from the policy as it is."""
    auxiliary = rollouts.extras.get("auxiliary")
    return rollouts if auxiliary is None else rollouts.select(~auxiliary)


def successes(rollouts: Rollouts, component: str | None = None, above: float = 0.5) -> Float[Tensor, " N"]:
    """1 where the response is right, else 0: the reward component ``component``, or else ``accuracy`` where the task has
    it, or else the whole reward, is above ``above``. Bonuses for format must not count as success.

    Raises:
        UsageError: no such component.
    """
    if component is not None and f"reward/{component}" not in rollouts.extras:
        known = ", ".join(name.removeprefix("reward/") for name in rollouts.extras if name.startswith("reward/"))
        raise UsageError(f"no reward component {component!r}; the task has {known or 'none'}")
    scores = rollouts.extras.get(f"reward/{component or 'accuracy'}", rewards_of(rollouts))
    return (scores > above).double()


def response_advantages(rollouts: Rollouts) -> Float[Tensor, " N"]:
    """One advantage a response: the mean over the tokens that the policy chose."""
    if rollouts.advantages is None:
        raise PolicydistError("rollouts carry no advantages; the recipe's credit must set them first")
    mask = rollouts.response_mask
    return (rollouts.advantages * mask).sum(1) / mask.sum(1).clamp(min=1)


def _restored(values: list[float], like: Tensor) -> Tensor:
    if len(values) != len(like):
        raise PolicydistError(f"the checkpoint has statistics of {len(values)} keys, this run has {len(like)}")
    return torch.tensor(values, dtype=like.dtype)
