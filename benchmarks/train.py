"""Training speed at 256 px: this trainer, the same network plainly, MONAI's BasicUNet and the classic 31M U-Net.

    python -m benchmarks.train [--rounds 3]

Everyone trains on the same augmented synthetic radiographs, in turn, in one run; all but the contestant that says so
with ``hardware.keep_memory``, which the trainer turns on for the whole process. Writes ``results/bench_train.csv``:
radiographs per second, how many times faster the trainer is (0.95 of its bare loop would be an overhead of 5 %), and
the loader's share.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.common import RESULTS, draw_set, machine, make_parser, peer, write_table
from kaggle_utils.config import TrainConfig
from kaggle_utils.data import LungDataset, make_loader, read_manifest
from kaggle_utils.hardware import choose_device, choose_precision
from kaggle_utils.loss import make_loss
from kaggle_utils.model import UNet, count_parameters
from kaggle_utils.trainer import Trainer

BATCH = 8


def network() -> UNet:
    """The network that TrainConfig's defaults train, with one head."""
    config = TrainConfig()
    return UNet(base_channels=config.base_channels, depth=config.depth, patch=config.patch)


def bare_loop(
    model: nn.Module, *, layout: torch.memory_format = torch.contiguous_format, bf16: bool = False
) -> Callable[[dict], None]:
    """One step as every tutorial writes it: forward, loss, backward, AdamW."""
    model = model.to(memory_format=layout)
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=1e-3), make_loss("bce_dice")
    model.train()

    def step(batch: dict) -> None:
        images = batch["image"].contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        value = loss(logits, batch["mask"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def speed(step: Callable[[dict], None], loader, steps: int) -> dict[str, float]:
    """Radiographs per second over some steps, loading included, and the share of the time that loading took."""
    batches, loading, films, start = iter(loader), 0.0, 0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        loading += time.perf_counter() - asked
        step(batch)
        films += len(batch["name"])
    seconds = time.perf_counter() - start
    return {"images_per_s": films / seconds, "loader_share": loading / seconds}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns; the median counts")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        frame = read_manifest(draw_set(Path(folder)))
        dataset = LungDataset(frame[frame["split"] != "unlabelled"], 256, "full")
    loader = make_loader(dataset, BATCH, shuffle=True)
    fast = partial(bare_loop, layout=torch.channels_last, bf16=choose_precision(choose_device("cpu")) == "bf16")
    step = fast(network())
    before = [speed(step, loader, 12) for _ in range(rounds + 1)][1:]  # the first turn warms up
    trainer = Trainer(network(), make_loss("bce_dice"), loader, loader, TrainConfig(device="cpu", batch_size=BATCH))
    trainer.model.train()
    plain, classic, monai = UNet(), peer("classic U-Net"), peer("MONAI BasicUNet")
    contestants = {  # name: (the model, its step, steps per turn)
        "trainer": (trainer.model, trainer._train_step, 12),
        "its bare loop": (trainer.model, fast(network()), 12),
        "same network, float32, contiguous": (trainer.model, bare_loop(network()), 6),
        "plain 1.8M U-Net, bare loop": (plain, fast(UNet()), 8),
        "plain 1.8M U-Net, float32, contiguous": (plain, bare_loop(UNet()), 4),
        "MONAI BasicUNet, float32": (monai, bare_loop(monai), 3),
        "classic U-Net, float32": (classic, bare_loop(classic), 1),
        "its bare loop without keep_memory": (trainer.model, step, 0),  # measured before
    }
    rows = []
    for turn in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for name, (model, step, steps) in contestants.items():
            found = speed(step, loader, steps if turn else 1) if steps else before[turn - 1]
            if turn:
                rows.append({"contestant": name, "parameters": count_parameters(model), **found})
    table = pd.DataFrame(rows).groupby(["contestant", "parameters"], sort=False).median().reset_index()
    faster = table["images_per_s"].iloc[0] / table["images_per_s"]
    table.insert(3, "trainer_is_faster_by", faster)
    table = table.round({"images_per_s": 2, "trainer_is_faster_by": 2, "loader_share": 3})
    write_table(RESULTS / "bench_train.csv", table.assign(machine=machine("torch")))


if __name__ == "__main__":
    main()
