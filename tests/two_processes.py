"""What torchrun starts twice for test_distributed.py: one training after the other, each as one process would do it
alone.

Each process writes what it saw as ``OUT/rank.json``; a start takes seconds, so all runs share one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np
import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from kaggle_utils import data, distributed
from kaggle_utils import trainer as training
from kaggle_utils.config import TrainConfig
from kaggle_utils.trainer import Trainer, make_trainer
from kaggle_utils.training import checkpoint, films

BASE = TrainConfig(
    sources=("montgomery",),
    size=32,
    batch_size=3,
    base_channels=2,
    depth=2,
    patch=1,
    epochs=3,
    lr=1e-3,
    norm="group",
    precision="fp32",
    device="cpu",
    augment="light",
)
EQUAL = {  # to one process's numbers; of 8 films in batches of 3 the last one holds 2, of 7 it holds 1
    "shares of 2 and 1": {},
    "no film for one process": {"films": 7, "norm": "instance"},
    "no average": {"films": 5, "batch_size": 2, "ema_decay": 0.0, "grad_clip": 0.01},
    "heads": {"sources": ("montgomery", "shenzhen"), "batch_size": 5, "loss": "tversky"},
}
ALIKE = {"batch norm": {"norm": "batch", "films": 7}, "bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}}


def weights(trainer: Trainer) -> str:
    """Of model and average, statistics included; equal only for equal bits."""
    state = [*trainer.model.state_dict().values(), *trainer.ema.state_dict().values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state)).hexdigest()


def run(root: Path, out: Path, **changes: object) -> dict[str, object]:
    trainer = make_trainer(root, out, replace(BASE, **changes), resume=True)
    trainer.fit()
    return {
        "weights": weights(trainer),
        "history": trainer.history,
        "validated": [n for batch in trainer.val_loader for n in batch["name"]],
    }


def run_with_a_clock_of_its_own(root: Path, rank: int) -> list[dict[str, float]]:
    """A look at the clock takes one second in one process, and three in the other."""
    trainer, real = (
        make_trainer(root, None, replace(BASE, epochs=1000, time_budget_min=20 / 60)),
        training.time.perf_counter,
    )
    ticks = iter(range(10**6))
    training.time.perf_counter = lambda: float(next(ticks) * (1 + 2 * rank))
    try:
        trainer.fit()
    finally:
        training.time.perf_counter = real
    return trainer.history


def load_for_long(root: Path, rank: int) -> str:
    """The second process's disk is slower than the others would wait while they train."""
    read = films.read_manifest
    films.read_manifest = lambda path: time.sleep(4 * rank) or read(path)
    _set_pg_timeout(timedelta(seconds=1))
    try:
        return error_of(lambda: make_trainer(root, None, BASE))
    finally:
        films.read_manifest = read
        _set_pg_timeout(distributed.LONGEST_WAIT)


def error_of(action) -> str:
    try:
        action()
    except (ValueError, FloatingPointError, RuntimeError) as error:
        return str(error)
    return ""


def diverge(root: Path, rank: int) -> None:
    """The loss is not a number in the second process alone."""
    trainer = make_trainer(root, None, BASE)
    loss = trainer.loss
    trainer.loss = lambda logits, truth: loss(logits, truth) * (np.nan if rank == 1 else 1)
    trainer.fit()


def main(root: Path, out: Path) -> None:
    rank, writes, write_bytes = int(os.environ["RANK"]), [], training.write_bytes
    reads, read_pair = [], data.read_pair
    data.read_pair = lambda image, mask: reads.append(image) or read_pair(image, mask)
    training.write_bytes = lambda path, data: writes.append(str(path)) or write_bytes(path, data)
    checkpoint.write_bytes = training.write_bytes
    with distributed.processes(torch.device("cpu")):
        seen = {name: run(root, out / name, **changes) for name, changes in (EQUAL | ALIKE).items()}
        seen["resumed"] = run(root, out / "resumed")
        seen["shards"] = run(out / "shards", out / "streamed", epochs=12, warmup=0.25)
        seen["loading"] = load_for_long(root, rank)
        seen["clock"] = run_with_a_clock_of_its_own(root, rank)
        seen["diverged"] = error_of(lambda: diverge(root, rank))
        seen["other seed"] = error_of(lambda: make_trainer(root, None, replace(BASE, seed=rank)).fit())
        seen["small batch"] = error_of(lambda: make_trainer(root, None, replace(BASE, batch_size=1)))
    seen |= {"writes": writes, "reads": reads}
    (out / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
