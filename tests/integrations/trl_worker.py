"""One of two processes that train through TRL together; rank 0 writes down what all of them saw."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny_qwen as tiny
import torch
from test_trl import Watched, settings


def main(method: str, folder: Path) -> None:
    args = settings(folder, ddp_backend="gloo", per_device_train_batch_size=4, max_steps=3)
    trainer = Watched(
        tiny.model(), tiny.has_a, args, tiny.dataset(), processing_class=tiny.tokenizer(), method=method
    )  # fmt: skip
    trainer.train()
    for seen in trainer.seen:
        seen.ordered = None
    if trainer.accelerator.is_main_process:
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        torch.save({"seen": trainer.seen, "losses": losses, "weights": weights}, folder / "seen.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
