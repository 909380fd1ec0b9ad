"""TRL's GRPOTrainer and ours on the same model, tokenizer, prompts, group size, steps and optimiser, in alternating processes.

    python benchmarks/vs_trl.py [--rounds 3] [--steps 8] [--case skewed|equal|both]

``equal``: every response has 32 tokens. ``skewed``: at most 128, with one chance of an end token after every token, so that
short ones and a tail of 100 and more stand in one batch; training moves that chance, so the mean length is printed.
Each round runs one process of each engine, one after the other; medians over
rounds of completions a second (steps after the first two), peak memory and the final reward are printed, and their ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS, SAMPLES, WARM = 32, 8, 2
LENGTHS = {"equal": 32, "skewed": 128}
RATE = 1e-4  # a larger one soon makes the end token rare, and the lengths are then no longer skewed
END_LOGIT = {"equal": -20.0, "skewed": 1.7}


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
    with torch.no_grad():
        # One coordinate of every embedding is large, so that after the last norm it is the same in all states: a bias.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        state = model.config.hidden_size**0.5
        model.lm_head.weight[1, 0] = END_LOGIT[case] / state
    model.save_pretrained(folder)


def rows() -> list[dict[str, str]]:
    """Sums of two numbers; the reward is about digits, which any policy can learn to write."""
    return [{"prompt": f"{7 * i % 97}+{11 * i % 89}=", "answer": "0"} for i in range(PROMPTS * 64)]


def digits(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Share of digits among the characters written: no reason to write more or less, so that lengths keep their profile."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def run_ours(model: Path, case: str, steps: int, folder: Path) -> list[dict[str, float]]:
    """Metric rows of our trainer."""
    from policydist.language.experiment import train

    data = folder / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows()))
    sys.path.insert(0, str(Path(__file__).parent))
    outcome = train(
        "grpo", task=f"jsonl:{data}", model=str(model), steps=steps, out=folder / "run",
        settings=[
            "task.grader=vs_trl:digits", f"rollout.prompts={PROMPTS}", f"rollout.samples={SAMPLES}",
            f"rollout.max_new_tokens={LENGTHS[case]}", f"train.lr={RATE}", "train.save_every=0", "trackers=[]",
        ],
    )  # fmt: skip
    return outcome.metrics


def run_trl(model: Path, case: str, steps: int, folder: Path) -> list[dict[str, float]]:
    """One row a step, timed by a callback, from TRL's trainer with matching settings."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    found: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: object, **named: object) -> None:
            found.append({"time": time.perf_counter()})

        def on_log(self, args: object, state: object, control: object, logs: dict[str, float], **named: object) -> None:
            if "reward" in logs:
                found[-1] |= {"reward": logs["reward"], "length": logs["completions/mean_length"]}

    config = GRPOConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=LENGTHS[case], learning_rate=RATE, lr_scheduler_type="constant", beta=0.0,
        loss_type="dapo", temperature=1.0, bf16=False, use_cpu=True, report_to=[], logging_steps=1, save_strategy="no",
        gradient_checkpointing=False, disable_tqdm=True, adam_beta2=0.999, weight_decay=0.0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model), reward_funcs=digits, args=config,
        train_dataset=Dataset.from_list(rows()),
        processing_class=PreTrainedTokenizerFast.from_pretrained(model), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return found


def worker(engine: str, model: Path, case: str, steps: int) -> None:
    """One run in this process; prints its numbers as the last line."""
    with tempfile.TemporaryDirectory() as folder:
        if engine == "ours":
            found = run_ours(model, case, steps, Path(folder))
            times = [sum(v for k, v in row.items() if k.startswith("seconds/")) for row in found]
            found = [row | {"length": row["response_length"]} for row in found]
        else:
            found = run_trl(model, case, steps, Path(folder))
            times = [later["time"] - former["time"] for former, later in itertools.pairwise(found)]
    print(
        json.dumps(
            {
                "rate": PROMPTS * SAMPLES / statistics.median(times[WARM:]),
                "reward": found[-1]["reward"],
                "length": statistics.mean(row["length"] for row in found[WARM:]),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def measure(case: str, rounds: int, steps: int) -> None:
    """Alternate the engines, print medians and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), case)
        results: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
        for _ in range(rounds):
            for engine, kept in results.items():
                words = [sys.executable, __file__, "--worker", engine, "--model", folder, "--case", case]
                done = subprocess.run([*words, "--steps", str(steps)], check=True, stdout=subprocess.PIPE, text=True)
                kept.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {e: {k: statistics.median(r[k] for r in kept) for k in kept[0]} for e, kept in results.items()}
    print(
        f"{case}: {PROMPTS} prompts x {SAMPLES} samples, up to {LENGTHS[case]} tokens, {rounds} rounds of {steps} steps"
    )
    for engine, row in medians.items():
        print(
            f"  {engine:5s} {row['rate']:8.1f} completions/s   peak {row['peak_mb']:6.0f} MB   "
            f"reward {row['reward']:.3f}   mean length {row['length']:.1f}"
        )
    ratios = {k: medians["ours"][k] / medians["trl"][k] for k in ("rate", "peak_mb")}
    print(f"  ours / trl: speed {ratios['rate']:.2f}, memory {ratios['peak_mb']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("equal", "skewed", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--worker", choices=("ours", "trl"))
    parser.add_argument("--model", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker, asked.model, asked.case, asked.steps)
        return
    for case in ("equal", "skewed") if asked.case == "both" else (asked.case,):
        measure(case, asked.rounds, asked.steps)


if __name__ == "__main__":
    main()
