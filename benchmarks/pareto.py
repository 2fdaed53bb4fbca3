"""The architecture's Pareto front: validation Dice against milliseconds per film and parameters, on the CPU.

    python -m benchmarks.pareto [--data segmentation] [--epochs 6]

Each candidate is trained alike on the published training lists of Montgomery and Shenzhen, one thread each and as many
beside each other as there are cores (for two, that was faster than one after the other).
A killed study resumes. Then, alone on the machine, in turn: the time of one film through the network.
Writes ``results/pareto.csv``; ``python -m kaggle_utils plots`` draws it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, make_parser, median, seconds, validation_dice, write_table
from kaggle_utils.config import TrainConfig
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.trainer import train
from kaggle_utils.tuning.study import beside

WARM_UP, REPEATS = 3, 30  # times that each network is timed
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


def milliseconds(segmenters: dict[str, LungSegmenter]) -> dict[str, float]:
    """Median time of one film of the network's size, resized, normalised and segmented; the networks take turns."""
    rng, times = np.random.default_rng(0), {name: [] for name in segmenters}
    for _ in tqdm(range(WARM_UP + REPEATS), desc="time"):
        for name, segmenter in segmenters.items():
            film = rng.integers(0, 256, (segmenter.size, segmenter.size), dtype=np.uint8)
            times[name].append(1e3 * seconds(partial(segmenter.probabilities, [film])))
    return {name: median(rounds[WARM_UP:], 2) for name, rounds in times.items()}


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("--epochs", type=int, default=6, help="per training")
    parser.add_argument("--out", type=Path, default="runs/pareto", help="folder of the trainings")
    args = parser.parse_args()
    configs = {network(c): c for c in (replace(TrainConfig(epochs=args.epochs), **changed) for changed in CANDIDATES)}
    tasks = [(args.data, args.out / name, config) for name, config in configs.items()]
    for _ in tqdm(beside(partial(train, resume=True), tasks), "candidates", len(tasks)):
        pass
    segmenters = {name: LungSegmenter(args.out / name / "best.safetensors") for name in configs}
    ms = milliseconds(segmenters)
    rows = []
    for name, segmenter in segmenters.items():
        config = configs[name]
        dice = validation_dice(args.data, segmenter, 512)  # at one size, so that those of the input can be compared
        row = {
            "network": name,
            **{field: getattr(config, field) for field in ("conv", "patch", "base_channels", "depth", "size")},
            "parameters": segmenter.header["parameters"],
            "ms": ms[name],
            "val_dice": round(dice.mean(), 5),
            "standard_error": round(dice.sem(), 5),
            "epochs": args.epochs,
            "seed": config.seed,
            "threads": torch.get_num_threads(),
        }
        rows.append(row)
    write_table(RESULTS / "pareto.csv", pd.DataFrame(rows).sort_values("ms"))


if __name__ == "__main__":
    main()
