"""The branching policy: a graph network over variables and rows, softmax over the candidates (arXiv 1906.01629, 4.2).

Axis letters: V variables, R rows, E coefficients, D width, B states, K candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.milp.state import ROW_FEATURES, VARIABLE_FEATURES, Graphs, State, merge
from policydist.runs.directory import write_whole
from policydist.runs.seeds import derive

FORMAT = "branch-policy/1"


@dataclass(frozen=True)
class PolicyConfig:
    """Shape of the network."""

    width: int = 64
    """Size of every hidden layer; the paper's 64, the claims' 32."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UsageError(f"width is {self.width}; it must be at least 1")


class PreNorm(nn.Module):
    """(x + shift) · scale with constants measured on data once and then frozen; the identity before.

    A constant feature keeps scale 1.
    """

    def __init__(self, size: int, shift: bool = True) -> None:
        super().__init__()
        self.moves = shift
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.shift: Tensor
        self.scale: Tensor
        self.open = False
        self.moments: list[Tensor] = []

    def forward(self, x: Float[Tensor, "n S"]) -> Float[Tensor, "n S"]:
        self.observe(x)
        return (x + self.shift) * self.scale

    def observe(self, x: Tensor) -> None:
        """While open, take count, sum and sum of squares of what passes."""
        if self.open:
            flat = x.detach().double().reshape(-1, len(self.scale))
            count = torch.full((1,), float(len(flat)), dtype=torch.float64)
            self.moments.append(torch.stack([count.expand(len(self.scale)), flat.sum(0), flat.square().sum(0)]))

    def close(self) -> None:
        """Set the constants from what passed through since ``open`` was set."""
        count, total, square = torch.stack(self.moments).sum(0)
        mean = total / count
        variance = (square / count - mean**2).clamp_min(0)
        self.scale.copy_(torch.where(variance > 1e-10, variance.clamp_min(1e-10).rsqrt(), 1.0))
        if self.moves:
            self.shift.copy_(-mean)
        self.open, self.moments = False, []


class HalfConvolution(nn.Module):
    """Messages from one side of the graph to the other.

    m_i = Σ_j Dense(ReLU(s · (W_l h_i + b + w_e e_ij + W_r h_j))) over the neighbours j of i, scaled by a prenorm, joined
    to h_i, Dense, ReLU, Dense, ReLU. The last Dense of a message is linear, so it is applied to the sum (its bias times
    the number of neighbours), which is the same number for less work.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Linear(width, width)
        self.edge = nn.Linear(1, width, bias=False)
        self.right = nn.Linear(width, width, bias=False)
        self.message_norm = PreNorm(1, shift=False)
        self.message = nn.Linear(width, width)
        self.sum_norm = PreNorm(1, shift=False)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(
        self, to: Float[Tensor, "n D"], source: Float[Tensor, "k D"], at: Int[Tensor, "E"], of: Int[Tensor, "E"],
        edge: Float[Tensor, "E 1"],
    ) -> Float[Tensor, "n D"]:  # fmt: skip
        joint = torch.addcmul(self.left(to).index_select(0, at), edge, self.edge.weight.T)
        joint = joint + self.right(source).index_select(0, of)
        self.message_norm.observe(joint)
        # ReLU(s x) = s ReLU(x) for s > 0: scaling the sums instead of all messages is the same number for less work.
        total = torch.zeros_like(to).index_add(0, at, torch.relu(joint)) * self.message_norm.scale
        neighbours = torch.zeros(len(to), 1, dtype=to.dtype).index_add(0, at, torch.ones(len(at), 1, dtype=to.dtype))
        summed = total @ self.message.weight.T + neighbours * self.message.bias
        summed = self.sum_norm(summed.reshape(-1, 1)).view_as(summed)
        return self.out(torch.cat([summed, to], dim=1))


def _dense(size: int, width: int) -> nn.Sequential:
    return nn.Sequential(PreNorm(size), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


class BranchPolicy(nn.Module):
    """Scores of variables; a branching policy is their softmax over the candidates of a node.

    Initialised orthogonally from ``seed``. `calibrate` must see data before training.
    """

    def __init__(self, config: PolicyConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config or PolicyConfig()
        width = self.config.width
        self.variables = _dense(len(VARIABLE_FEATURES), width)
        self.rows = _dense(len(ROW_FEATURES), width)
        self.edges = PreNorm(1)
        self.to_rows = HalfConvolution(width)
        self.to_variables = HalfConvolution(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1, bias=False))
        generator = torch.Generator().manual_seed(derive(seed, "milp", "policy") % 2**63)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, graphs: Graphs) -> Float[Tensor, "V"]:
        """The score of every variable, candidate or not."""
        h_variable, h_row = self.variables(graphs.variables), self.rows(graphs.rows)
        edge = self.edges(graphs.coefficients.unsqueeze(1))
        h_row = self.to_rows(h_row, h_variable, graphs.edge_row, graphs.edge_variable, edge)
        h_variable = self.to_variables(h_variable, h_row, graphs.edge_variable, graphs.edge_row, edge)
        scores: Tensor = self.head(h_variable).squeeze(1)
        return scores

    def _norms(self) -> Iterator[PreNorm]:
        """The prenorms in the order in which data reach them."""
        first = (self.variables[0], self.rows[0], self.edges)
        convolutions = (self.to_rows, self.to_variables)
        for norm in (*first, *(n for c in convolutions for n in (c.message_norm, c.sum_norm))):
            assert isinstance(norm, PreNorm)
            yield norm

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Graphs]) -> None:
        """Measure and freeze the prenorms, one after another, each with those before it already set.

        Raises:
            UsageError: for no batch.
        """
        if not batches:
            raise UsageError("calibration needs at least one sample")
        for norm in self._norms():
            norm.open = True
            for graphs in batches:
                self(graphs)
            norm.close()

    @torch.no_grad()
    def scores(self, state: State) -> NDArray[np.float32]:
        """The score of every variable of one state, ``[V]``."""
        return np.asarray(self(merge([state])).numpy())

    def probabilities(self, state: State, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """The policy itself: the distribution over the candidates, ``[K]``."""
        return np.asarray(torch.softmax(torch.from_numpy(self.scores(state)[candidates]), dim=0).numpy())

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json``, each whole."""
        write_whole(folder / "policy.safetensors", save({k: v.contiguous() for k, v in self.state_dict().items()}))
        about = {"format": FORMAT, **asdict(self.config), "variables": VARIABLE_FEATURES, "rows": ROW_FEATURES}
        write_whole(folder / "policy.json", json.dumps(about, indent=2))

    @classmethod
    def load(cls, folder: Path) -> BranchPolicy:
        """Read a saved policy.

        Raises:
            UsageError: if the folder holds none.
            PolicydistError: if it is damaged or of another format.
        """
        if not (folder / "policy.json").is_file():
            raise UsageError(f"{folder} holds no branching policy (no policy.json); give a folder that training wrote")
        try:
            about: dict[str, Any] = json.loads((folder / "policy.json").read_text())
            if about["format"] != FORMAT or about["variables"] != list(VARIABLE_FEATURES):
                raise ValueError("another format")
            policy = cls(PolicyConfig(width=about["width"]))
            policy.load_state_dict(load_file(folder / "policy.safetensors"))
        except Exception as problem:
            raise PolicydistError(f"{folder}: the policy cannot be read ({problem}); train it again") from None
        return policy.eval()
