"""The architecture's Pareto front: validation Dice against milliseconds a film and parameters, on the CPU.

    python -m benchmarks.pareto [--data segmentation] [--epochs 6]

Each candidate is trained alike on the published training lists of Montgomery and Shenzhen, one thread each and as many
beside each other as there are cores (for two, that was faster than one after the other).
A killed study goes on where it was. Then, alone on the machine, in turn: the time of one film through the network.
Writes ``results/pareto.csv``; ``python -m kaggle_utils plots`` draws it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from kaggle_utils.config import TrainConfig
from kaggle_utils.data import read_manifest
from kaggle_utils.files import check_table
from kaggle_utils.image import read_image, read_mask
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import confusion, overlap
from kaggle_utils.trainer import train
from kaggle_utils.tuning.study import beside

ROOT = Path(__file__).parents[1]
CANDIDATES = [
    dict(conv="plain", depth=3, patch=2, size=256) | changed
    for changed in (
        dict(base_channels=24),
        dict(base_channels=16),
        dict(base_channels=16, depth=4),
        dict(base_channels=24, size=384),
        dict(base_channels=32, patch=4, size=384),
        dict(base_channels=16, size=384),
        dict(base_channels=32),
        dict(base_channels=16, depth=4, size=384),
        dict(base_channels=32, conv="separable"),
        dict(base_channels=32, patch=4, size=512),
        dict(base_channels=32, patch=4),
        dict(base_channels=24, patch=4),
        dict(base_channels=16, size=512),
        dict(base_channels=8),
        dict(base_channels=8, depth=4, patch=1),
    )
]


def network(config: TrainConfig) -> str:
    """A candidate's name."""
    return f"{config.conv}_p{config.patch}_w{config.base_channels}_d{config.depth}_{config.size}px"


def run(data: str, out: Path, config: TrainConfig) -> None:
    """One training, or what is left of it."""
    train(data, out, config, resume=True)


def validation_dice(data: str, segmenter: LungSegmenter) -> tuple[float, float]:
    """Mean Dice of the validation films, and its standard error; at 512 px, so that input sizes can be compared."""
    frame = read_manifest(data)
    frame = frame[(frame["split"] == "val") & frame["source"].isin(segmenter.header["sources"])]
    dice = []
    for film in frame.itertuples():  # each by the head of its own set
        truth = read_mask(film.mask)
        prob = segmenter.probabilities([read_image(film.image)], [film.source])[0]
        dice.append(overlap(confusion(segmenter.finish(prob, truth.shape), truth))["dice"])
    return float(np.mean(dice)), float(np.std(dice, ddof=1) / len(dice) ** 0.5)


def milliseconds(segmenters: dict[str, LungSegmenter], repeats: int) -> dict[str, float]:
    """Median time of one film of the network's size, resized, normalised and segmented; the networks take turns."""
    rng, times = np.random.default_rng(0), {name: [] for name in segmenters}
    for _ in tqdm(range(repeats + 3), desc="time"):
        for name, segmenter in segmenters.items():
            film = rng.integers(0, 256, (segmenter.size, segmenter.size), dtype=np.uint8)
            start = time.perf_counter()
            segmenter.probabilities([film])
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(rounds[3:]) for name, rounds in times.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="segmentation", help="prepared folder")
    parser.add_argument("--epochs", type=int, default=6, help="of each training")
    parser.add_argument("--out", default="runs/pareto", help="folder of the trainings")
    parser.add_argument("--results", default=str(ROOT / "results" / "pareto.csv"), help="table to write")
    parser.add_argument("--repeats", type=int, default=30, help="of the timing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings beside each other")
    args = parser.parse_args(argv)
    check_table(args.results, ["network", "conv"])
    configs = {network(c): c for c in (replace(TrainConfig(epochs=args.epochs), **changed) for changed in CANDIDATES)}
    tasks = [(args.data, Path(args.out) / name, config) for name, config in configs.items()]
    for _ in tqdm(beside(run, tasks, args.jobs), "candidates", len(tasks)):
        pass
    weights = {name: Path(args.out) / name / "best.safetensors" for name in configs}
    segmenters = {name: LungSegmenter(path) for name, path in weights.items()}
    ms = milliseconds(segmenters, args.repeats)
    rows = []
    for name, segmenter in segmenters.items():
        config, (dice, error) = configs[name], validation_dice(args.data, segmenter)
        rows.append(
            {
                "network": name,
                "conv": config.conv,
                "patch": config.patch,
                "base_channels": config.base_channels,
                "depth": config.depth,
                "size": config.size,
                "parameters": segmenter.header["parameters"],
                "ms": round(ms[name], 2),
                "val_dice": round(dice, 5),
                "standard_error": round(error, 5),
                "epochs": args.epochs,
                "seed": config.seed,
                "threads": torch.get_num_threads(),
            }
        )
    table = pd.DataFrame(rows).sort_values("ms")
    table.to_csv(args.results, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
