"""The architecture's Pareto front: validation Dice against milliseconds per film and parameters, on the CPU.

    python -m benchmarks.pareto [--data segmentation] [--epochs 6]

Each candidate is trained alike on the published training lists of Montgomery and Shenzhen, one thread each and as many
beside each other as there are cores (for two, that was faster than one after the other).
A killed study resumes. Then, alone on the machine, in turn: the time of one film through the network.
Writes ``results/pareto.csv``; ``python -m kaggle_utils plots`` draws it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, films_of, make_parser, median, seconds, write_table
from kaggle_utils.config import TrainConfig
from kaggle_utils.files import check_table
from kaggle_utils.image import read_image, read_mask
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import confusion, overlap
from kaggle_utils.trainer import train
from kaggle_utils.tuning.study import beside

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


def validation_dice(data: Path, segmenter: LungSegmenter) -> tuple[float, float]:
    """Mean Dice of the validation films, and its standard error; at 512 px, so that input sizes can be compared."""
    dice = []
    for film in films_of(data, "val", segmenter.header["sources"]).itertuples():  # each by the head of its own set
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
            times[name].append(1e3 * seconds(partial(segmenter.probabilities, [film])))
    return {name: median(rounds[3:], 2) for name, rounds in times.items()}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("--epochs", type=int, default=6, help="per training")
    parser.add_argument("--out", type=Path, default="runs/pareto", help="folder of the trainings")
    parser.add_argument("--results", type=Path, default=RESULTS / "pareto.csv", help="table to write")
    parser.add_argument("--repeats", type=int, default=30, help="of the timing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings beside each other")
    args = parser.parse_args(argv)
    check_table(args.results, ["network", "conv"])
    configs = {network(c): c for c in (replace(TrainConfig(epochs=args.epochs), **changed) for changed in CANDIDATES)}
    tasks = [(args.data, args.out / name, config) for name, config in configs.items()]
    for _ in tqdm(beside(run, tasks, args.jobs), "candidates", len(tasks)):
        pass
    segmenters = {name: LungSegmenter(args.out / name / "best.safetensors") for name in configs}
    ms = milliseconds(segmenters, args.repeats)
    rows = []
    for name, segmenter in segmenters.items():
        config, (dice, error) = configs[name], validation_dice(args.data, segmenter)
        row = {
            "network": name,
            **{field: getattr(config, field) for field in ("conv", "patch", "base_channels", "depth", "size")},
            "parameters": segmenter.header["parameters"],
            "ms": ms[name],
            "val_dice": round(dice, 5),
            "standard_error": round(error, 5),
            "epochs": args.epochs,
            "seed": config.seed,
            "threads": torch.get_num_threads(),
        }
        rows.append(row)
    write_table(args.results, pd.DataFrame(rows).sort_values("ms"))


if __name__ == "__main__":
    main()
