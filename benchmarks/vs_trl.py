"""TRL's GRPOTrainer and ours on the same model, tokenizer, prompts, group size, steps and optimiser, in alternating processes.

    python benchmarks/vs_trl.py [--rounds 3] [--steps 8] [--case skewed|equal|both] [--threads N]

``equal``: every response has 32 tokens. ``skewed``: at most 128; after the first token a response is either of the short
kind (an end token follows every token with chance about 0.2) or of the long kind (0.001; some 15 % of them), and the reward knows
nothing of the kind and the learning rate is low, so that the lengths stay as they are. Both sides' lengths are printed.
Each round runs one process of each engine, one after the other. Printed are medians over rounds: completions a second of
wall time and of processor time (steps after the first two; from one step's end to the next), peak memory, the reward
before and after, and the ratios. On a busy machine ask for ``--threads 1``: then processor time is not spent on waiting.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS, SAMPLES, WARM = 32, 8, 2
LIMITS = {"equal": 32, "skewed": 128}
RATES = {"equal": 1e-3, "skewed": 1e-6}
"""With equal lengths the reward is seen to rise; with skewed ones the policy, and so its lengths, must stay as they are."""
LONG, HAZARD = 0.13, {"short": 0.25, "long": 0.001}
NEVER = -20.0
"""A logit that is never drawn and, its probability being next to nothing, never trained either."""

Numbers = dict[str, float]
lengths: list[int] = []
"""Characters of every completion that was graded in this process, in order: its tokens without the end token."""


def build_model(folder: Path, case: str) -> None:
    """A Qwen2 of 1.06 million random parameters and a tokenizer of one token a character."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    characters = [chr(c) for c in range(32, 127)]
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(characters)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128, hidden_size=144, intermediate_size=432, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    kinds = torch.arange(128) % 2  # even tokens are of the short kind, odd ones of the long kind
    kinds[vocabulary["="]] = 2  # every prompt ends with it
    with torch.no_grad():
        # One large coordinate a kind, the same in all its tokens' embeddings and thus, after the last norm, in their
        # states: the head's weights there are biases that depend on the kind of the last token.
        model.model.embed_tokens.weight[:, :3] = torch.nn.functional.one_hot(kinds, 3).float()
        model.lm_head.weight[:, :3] = biases(case, kinds, len(vocabulary)) / config.hidden_size**0.5
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.1
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[:3] = 0.0
    model.save_pretrained(folder)


def biases(case: str, kinds: Tensor, known: int) -> Tensor:
    """Logits [token, kind of the token before it]: kinds keep to themselves, ends have their hazards."""
    import torch

    bias = torch.full((128, 3), NEVER)
    drawn = torch.arange(3, known)
    drawn = drawn[kinds[drawn] < 2]
    if case == "equal":
        bias[drawn] = 0.0
        return bias
    odds = math.log(LONG / (1 - LONG))
    for kind, name in enumerate(HAZARD):
        own = drawn[kinds[drawn] == kind]
        bias[own, kind] = 0.0
        bias[own, 2] = kind * odds - math.log(len(own))
        bias[1, kind] = math.log(HAZARD[name] / (1 - HAZARD[name]) * len(own))
    return bias


def rows() -> list[dict[str, str]]:
    """Sums of two numbers; the reward is about digits, which any policy can learn to write."""
    return [{"prompt": f"{7 * i % 97}+{11 * i % 89}=", "answer": "0"} for i in range(PROMPTS * 64)]


def digits(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Share of digits among the characters written: the same in the mean for every length."""
    lengths.extend(len(text) for text in completions)
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


class Clock:
    """Wall and processor time and the reward at the end of every step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.rewards: list[float] = []

    def tick(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def numbers(self) -> Numbers:
        """Medians over the steps after the first `WARM`, and the lengths seen in them."""
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(self.times[WARM - 1 :])]
        wall, cpu = (statistics.median(step[i] for step in steps) for i in (0, 1))
        seen = sorted(lengths[WARM * PROMPTS * SAMPLES :])
        return {
            "rate": PROMPTS * SAMPLES / wall,
            "cpu_rate": PROMPTS * SAMPLES / cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "reward_first": self.rewards[0],
            "reward_last": self.rewards[-1],
            "mean": statistics.mean(seen),
            "median": statistics.median(seen),
            "p90": seen[int(0.9 * len(seen))],
            "under20": sum(n < 20 for n in seen) / len(seen),
            "over100": sum(n > 100 for n in seen) / len(seen),
        }


def run_ours(model: Path, case: str, steps: int, folder: Path) -> Clock:
    """Our trainer through its Python interface, run directory and all."""
    from policydist.language.experiment import train

    clock = Clock()

    def on_step(row: Numbers) -> None:
        clock.tick()
        clock.rewards.append(row["reward"])

    data = folder / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows()))
    train(
        "grpo", task=f"jsonl:{data}", model=str(model), steps=steps, out=folder / "run", on_step=on_step,
        settings=[
            "model.device=cpu", "task.grader=vs_trl:digits", f"rollout.prompts={PROMPTS}",
            f"rollout.samples={SAMPLES}", f"rollout.max_new_tokens={LIMITS[case]}", f"train.lr={RATES[case]}",
            "train.save_every=0", "trackers=[]",
        ],
    )  # fmt: skip
    return clock


def run_trl(model: Path, case: str, steps: int, folder: Path) -> Clock:
    """TRL's trainer with matching settings."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: object, **named: object) -> None:
            clock.tick()

        def on_log(self, args: object, state: object, control: object, logs: Numbers, **named: object) -> None:
            if "reward" in logs:
                clock.rewards.append(logs["reward"])

    config = GRPOConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=LIMITS[case], learning_rate=RATES[case], lr_scheduler_type="constant", beta=0.0,
        loss_type="dapo", temperature=1.0, bf16=False, use_cpu=True, report_to=[], logging_steps=1, save_strategy="no",
        gradient_checkpointing=False, disable_tqdm=True, adam_beta2=0.999, weight_decay=0.0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model), reward_funcs=digits, args=config,
        train_dataset=Dataset.from_list(rows()),
        processing_class=PreTrainedTokenizerFast.from_pretrained(model), callbacks=[Watch()],
    )  # fmt: skip
    trainer.train()
    return clock


def measure(case: str, rounds: int, steps: int, threads: int | None) -> None:
    """Alternate the engines, print medians and ratios."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    results: dict[str, list[Numbers]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), case)
        for _ in range(rounds):
            for engine, kept in results.items():
                words = [sys.executable, __file__, "--worker", engine, "--model", folder, "--case", case]
                done = subprocess.run(
                    [*words, "--steps", str(steps)], check=True, stdout=subprocess.PIPE, text=True, env=environment
                )
                kept.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {e: {k: statistics.median(r[k] for r in kept) for k in kept[0]} for e, kept in results.items()}
    print(
        f"{case}: {PROMPTS} prompts x {SAMPLES} samples, up to {LIMITS[case]} tokens, {rounds} rounds of {steps} steps"
    )
    for engine, row in medians.items():
        print(
            f"  {engine:5s} {row['rate']:7.1f} completions/s   {row['cpu_rate']:7.1f} a processor second   "
            f"peak {row['peak_mb']:5.0f} MB   reward {row['reward_first']:.3f} -> {row['reward_last']:.3f}\n"
            f"        length: mean {row['mean']:.1f}   median {row['median']:.0f}   p90 {row['p90']:.0f}   "
            f"under 20: {row['under20']:.0%}   over 100: {row['over100']:.0%}"
        )
    ours, theirs = medians["ours"], medians["trl"]
    ratios = {k: ours[k] / theirs[k] for k in ("rate", "cpu_rate", "peak_mb")}
    each = ", ".join(f"{a['rate'] / b['rate']:.2f}" for a, b in zip(results["ours"], results["trl"], strict=True))
    print(
        f"  ours / trl: speed {ratios['rate']:.2f} (rounds: {each}), per processor second {ratios['cpu_rate']:.2f}, "
        f"memory {ratios['peak_mb']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("equal", "skewed", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, help="threads of either engine (default: torch's own choice)")
    parser.add_argument("--worker", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.steps <= WARM:
        parser.error(f"--steps is {asked.steps}; it must be above {WARM}, as the first {WARM} are not counted")
    if asked.worker:
        # The grader is looked up by name, so the lengths it notes are those of the module of that name.
        sys.path.insert(0, str(Path(__file__).parent))
        import vs_trl

        run = vs_trl.run_ours if asked.worker == "ours" else vs_trl.run_trl
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(asked.model, asked.case, asked.steps, Path(folder)).numbers()))
        return
    for case in ("equal", "skewed") if asked.case == "both" else (asked.case,):
        measure(case, asked.rounds, asked.steps, asked.threads)


if __name__ == "__main__":
    main()
