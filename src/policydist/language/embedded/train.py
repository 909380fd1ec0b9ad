"""Train the embedded model: ``python -m policydist.language.embedded.train [--out DIR]``.

Next-token prediction on worked solutions of the five procedural tasks, in three stages. The first two show right
solutions only, the second mostly of the tasks that take longest to learn. The last, short one shows solutions in which
steps slip (`SLIPS`), so that the model ends up knowing how and yet unsure: it solves a fifth to a half of the problems
at the first try and most of them within sixteen. Prompts carry no loss. Problems of the test side of any seed are never
seen (`rows.in_test_pool`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from policydist.language.embedded import path
from policydist.language.embedded.muon import Muon
from policydist.language.embedded.tokenizer import build_tokenizer
from policydist.language.tasks.base import Row
from policydist.language.tasks.procedural import PROCEDURAL, solution
from policydist.runs.seeds import derive, numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

LOG = "training_log.json"
TEST_ROWS = 256
SLIPS = {"arithmetic": 0.3, "countdown": 0.0, "chain": 0.12, "logic": 0.2, "multi": 0.15}
"""Chance that a step of a shown solution is wrong, in the second stage."""
SHARES = {"arithmetic": 36, "countdown": 32, "chain": 32, "logic": 28, "multi": 12}
"""Sequences of each task in one batch of the first and of the last stage."""
HARD_SHARES = {"arithmetic": 12, "countdown": 56, "chain": 8, "logic": 48, "multi": 40}
"""Sequences of each task in one batch of the second stage, for the tasks that take longest to learn."""
POOLS = {"arithmetic": 12000, "countdown": 7000, "chain": 12000, "logic": 8000, "multi": 6000}
"""Distinct problems of each task."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast and from which seed. Every ``long_every``-th batch is arithmetic of 4 to 10 operations."""

    base_steps: int = 1750
    hard_steps: int = 800
    slip_steps: int = 120
    decay_steps: int = 250
    muon_lr: float = 0.02
    adam_lr: float = 5e-3
    warmup: int = 50
    long_every: int = 12
    long_batch: int = 16
    threads: int = 1
    seed: int = 0

    @property
    def clean_steps(self) -> int:
        """Steps on right solutions."""
        return self.base_steps + self.hard_steps


def build_model(tokenizer: PreTrainedTokenizerBase, width: int = 96, layers: int = 3) -> Qwen2ForCausalLM:
    """A Qwen2, randomly initialised; some 0.3 million parameters at the embedded model's own size."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config)


class Corpus:
    """Endless batches of problems with freshly written solutions."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = numpy_generator(plan.seed, "embedded", "corpus")
        self.pools = {name: PROCEDURAL[name](plan.seed, size, 0).train for name, size in POOLS.items()}
        self.long = PROCEDURAL["arithmetic"](plan.seed, 2048, 0, difficulty=range(4, 11)).train

    def batches(self) -> Iterator[list[tuple[str, str]]]:
        """(prompt, solution) pairs for every step of the plan."""
        base, clean = self.plan.base_steps, self.plan.clean_steps
        for step in range(clean + self.plan.slip_steps):
            slip = step >= clean
            shares = HARD_SHARES if base <= step < clean else SHARES
            if (step + 1) % self.plan.long_every == 0:
                yield self._draw("arithmetic", self.long, self.plan.long_batch, slip)
            else:
                yield [pair for name, n in shares.items() for pair in self._draw(name, self.pools[name], n, slip)]

    def _draw(self, name: str, pool: Sequence[Row], count: int, slip: bool) -> list[tuple[str, str]]:
        rate = SLIPS[name] if slip else 0.0
        rows = [pool[i] for i in self.rng.integers(len(pool), size=count)]
        return [(row["prompt"], solution(name, row, self.rng, rate)) for row in rows]


def loss_of(model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Mean negative log-probability of the solutions' characters and their end token."""
    texts = tokenizer([prompt + answer + tokenizer.eos_token for prompt, answer in pairs])["input_ids"]
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), tokenizer.pad_token_id)
    labels = torch.full((len(texts), width), -100)
    for row, (text, (prompt, _)) in enumerate(zip(texts, pairs, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        labels[row, len(prompt) : len(text)] = ids[row, len(prompt) : len(text)]
    wanted = labels[:, 1:] != -100
    hidden = model.model(ids).last_hidden_state[:, :-1][wanted]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][wanted])


def pace(plan: Plan, step: int) -> float:
    """The share of the peak learning rate: linear warm-up, constant, linear decay to a tenth, and so on at a tenth."""
    if step >= plan.clean_steps:
        return 0.1
    left = min(1.0, (plan.clean_steps - step) / plan.decay_steps)
    return min(1.0, (step + 1) / plan.warmup) * (0.1 + 0.9 * left)


def build_optimisers(model: Any, plan: Plan) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside the network and for convolutions, AdamW for the rest, each with its peak learning rate."""
    named = dict(model.named_parameters())
    inner = {name: p for name, p in named.items() if p.dim() > 2 or (p.dim() == 2 and "embed" not in name)}
    rest = [p for name, p in named.items() if name not in inner]
    return [
        (Muon(inner.values()), plan.muon_lr),
        (torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0), plan.adam_lr),
    ]


def train(plan: Plan) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase, list[dict[str, float]]]:
    """Run the plan. Equal plans give equal weights on one kind of machine: the thread count is part of the plan."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(derive(plan.seed, "embedded", "weights"))
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    losses = (loss_of(model, tokenizer, pairs) for pairs in Corpus(plan).batches())
    return model, tokenizer, descend(model, losses, plan)


def descend(model: Any, losses: Iterable[torch.Tensor], plan: Plan, every: int = 100) -> list[dict[str, float]]:
    """One update for each of the ``losses``, which are computed as they are asked for; the curve, a row ``every`` steps."""
    optimisers = build_optimisers(model, plan)
    curve, recent, start = [], [], time.perf_counter()
    for step, loss in enumerate(losses):
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, peak in optimisers:
            optimiser.param_groups[0]["lr"] = peak * pace(plan, step)
            optimiser.step()
        recent.append(float(loss.detach()))
        if (step + 1) % every == 0:
            seconds = round(time.perf_counter() - start, 1)
            curve.append({"step": step + 1, "loss": round(float(np.mean(recent)), 4), "seconds": seconds})
            print(json.dumps(curve[-1]), flush=True)
            recent = []
    return curve


def save(out: Path, model: Any, reader: Any, plan: Any, curve: list[dict[str, float]], start: float) -> dict[str, Any]:
    """Write model and tokenizer or processor to ``out``; what every training log says. ``start``: processor time at the start."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    reader.save_pretrained(out)
    return {
        "plan": asdict(plan),
        "parameters": model.num_parameters(),
        "cpu_seconds": round(time.process_time() - start, 1),
        "torch": torch.__version__,
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "curve": curve,
    }


def main(out: Path, plan: Plan) -> None:
    """Train, measure pass rates on held-out problems, and write model, tokenizer, log and model card to ``out``."""
    from policydist.language.embedded.card import write_card
    from policydist.language.embedded.passrates import pass_rates
    from policydist.language.policies.loading import load_policy

    start = time.process_time()
    model, tokenizer, curve = train(plan)
    log = save(out, model, tokenizer, plan, curve, start)
    policy = load_policy(out)
    tasks = {name: build(plan.seed, 0, TEST_ROWS) for name, build in PROCEDURAL.items()}
    log |= {
        "slips": SLIPS,
        "batch": SHARES,
        "hard_batch": HARD_SHARES,
        "problems": POOLS,
        "test_rows": TEST_ROWS,
        "pass_rates": {name: pass_rates(policy, task, task.test) for name, task in tasks.items()},
    }
    (out / LOG).write_text(json.dumps(log, indent=1) + "\n")
    write_card(out, model.config, log)
    print(json.dumps(log["pass_rates"], indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the embedded model anew; a few CPU minutes.")
    parser.add_argument("--out", type=Path, default=path(), help="directory to write (default: inside the package)")
    main(parser.parse_args().out, Plan())
