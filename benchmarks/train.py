"""Training speed at 256 px: this trainer, the same network plainly, MONAI's BasicUNet and the classic 31M U-Net.

    python -m benchmarks.train [--rounds 3]

Everyone trains on the same augmented built-in films, in turn, in one run; all but the contestant that says so with
``hardware.keep_memory``, which the trainer turns on for the whole process. Writes ``results/bench_train.csv``: films a
second, how many times faster the trainer is (0.95 of its bare loop would be an overhead of 5 %), and the loader's
share.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from monai.networks.nets import BasicUNet
from torch import nn
from tqdm import tqdm

from kaggle_utils.config import TrainConfig
from kaggle_utils.data import LungDataset, make_loader, read_manifest
from kaggle_utils.hardware import choose_device, choose_precision
from kaggle_utils.loss import make_loss
from kaggle_utils.model import UNet, count_parameters
from kaggle_utils.prep import prepare
from kaggle_utils.synthetic import write_raw
from kaggle_utils.trainer import Trainer

ROOT = Path(__file__).parents[1]
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


def films_per_second(step: Callable[[dict], None], loader, steps: int) -> tuple[float, float]:
    """Films a second over some steps, loading included, and the share of the time that loading took."""
    batches, loading, films, start = iter(loader), 0.0, 0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        loading += time.perf_counter() - asked
        step(batch)
        films += len(batch["name"])
    seconds = time.perf_counter() - start
    return films / seconds, loading / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns; the median counts")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        write_raw(Path(folder) / "raw", n=160, seed=0)
        prepare(Path(folder) / "raw", Path(folder) / "segmentation")
        frame = read_manifest(Path(folder) / "segmentation")
        dataset = LungDataset(frame[frame["split"] != "unlabelled"], 256, "full")
    loader = make_loader(dataset, BATCH, shuffle=True)
    bf16 = choose_precision(choose_device("cpu")) == "bf16"
    before = [
        films_per_second(bare_loop(network(), layout=torch.channels_last, bf16=bf16), loader, 12)
        for _ in range(rounds + 1)
    ][1:]
    trainer = Trainer(network(), make_loss("bce_dice"), loader, loader, TrainConfig(device="cpu", batch_size=BATCH))
    trainer.model.train()
    classic, monai = UNet(base_channels=64, up="transposed"), BasicUNet(spatial_dims=2, in_channels=1, out_channels=1)
    contestants = {  # name: (one step, steps a turn, parameters)
        "trainer": (trainer._train_step, 12, count_parameters(trainer.model)),
        "its bare loop": (
            bare_loop(network(), layout=torch.channels_last, bf16=bf16),
            12,
            count_parameters(trainer.model),
        ),
        "same network, float32, contiguous": (bare_loop(network()), 6, count_parameters(trainer.model)),
        "plain 1.8M U-Net, bare loop": (
            bare_loop(UNet(), layout=torch.channels_last, bf16=bf16),
            8,
            count_parameters(UNet()),
        ),
        "plain 1.8M U-Net, float32, contiguous": (bare_loop(UNet()), 4, count_parameters(UNet())),
        "MONAI BasicUNet, float32": (bare_loop(monai), 3, count_parameters(monai)),
        "classic U-Net, float32": (bare_loop(classic), 1, count_parameters(classic)),
    }
    speeds, loads = {name: [] for name in contestants}, {name: [] for name in contestants}
    for turn in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for name, (step, steps, _) in contestants.items():
            speed, load = films_per_second(step, loader, steps if turn else 1)
            if turn:  # the first turn warms up
                speeds[name].append(speed)
                loads[name].append(load)
    contestants["its bare loop without keep_memory"] = (None, 12, count_parameters(trainer.model))
    speeds["its bare loop without keep_memory"], loads["its bare loop without keep_memory"] = map(list, zip(*before))
    ours = statistics.median(speeds["trainer"])
    table = pd.DataFrame(
        [
            {
                "contestant": name,
                "parameters": parameters,
                "images_per_s": round(statistics.median(speeds[name]), 2),
                "trainer_is_faster_by": round(ours / statistics.median(speeds[name]), 2),
                "loader_share": round(statistics.median(loads[name]), 3),
            }
            for name, (_, _, parameters) in contestants.items()
        ]
    )
    table["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores{', AVX512-BF16' if bf16 else ''}, torch {torch.__version__}"
    )
    table.to_csv(ROOT / "results/bench_train.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
