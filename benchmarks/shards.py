"""Training from shards: as fast as from memory, and where memory is too small for the set.

    python -m benchmarks.shards speed --data segmentation  # results/shards.json, in turn, on a quiet machine
    python -m benchmarks.shards memory  # the same file: a set larger than the memory that a process may take

``speed`` trains the default network for an epoch from memory, from shards as prepared and from shards at the training's
size, in turn. ``memory`` writes shards of synthetic radiographs, each many times under other names, and trains a small
network from them in a process whose data may take no more than ``LIMIT`` bytes; the same films in memory, in another
such process, are expected to fail.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from benchmarks.common import RESULTS, ROOT, RUNS, add_json, command, machine, make_parser
from kaggle_utils.config import TrainConfig
from kaggle_utils.files import write_bytes
from kaggle_utils.image import write_image, write_mask
from kaggle_utils.scale.shards import write_shards
from kaggle_utils.synthetic import AppearanceModel
from kaggle_utils.trainer import make_trainer

FOLDER = RUNS / "shards"
SIZE, DISTINCT = 384, 60  # px a side and different films of the set that is too large
LIMIT = 3_000_000_000  # bytes, RLIMIT_DATA of the process that trains


def speed(data: Path, rounds: int) -> dict[str, object]:
    """Radiographs per second of whole epochs from memory and from shards, in turn, and their ratios."""
    config = TrainConfig(workers=0, epochs=rounds)
    roots = {"memory": data}
    for name, size in {"shards of 512 px": None, f"shards of {config.size} px": config.size}.items():
        roots[name] = FOLDER / str(size or 512)
        write_shards(data, roots[name], films=100, size=size)
    trainers = {name: make_trainer(root, None, config) for name, root in roots.items()}
    found = {name: [] for name in roots}
    for epoch in range(rounds):
        for name, trainer in trainers.items():
            films, start = 0, time.perf_counter()
            trainer.model.train()
            trainer.train_loader.dataset.epoch = epoch
            for batch in trainer.train_loader:
                trainer._train_step(batch)
                films += len(batch["name"])
            found[name].append(films / (time.perf_counter() - start))
    return {
        "images_per_s": {name: round(median(values), 2) for name, values in found.items()},
        "over_memory": {
            name: round(median(a / b for a, b in zip(values, found["memory"])), 3)
            for name, values in found.items()
            if name != "memory"
        },
        "epochs_each": rounds,
        "machine": machine("torch"),
        "load_before": round(os.getloadavg()[0], 1),
        "command": command(),
    }


def memory(films: int) -> dict[str, object]:
    """Trains an epoch on so many films of :data:`SIZE` px, from shards and from memory, in limited processes."""
    prepared, sharded = FOLDER / "large", FOLDER / "large_shards"
    draw(prepared, films)
    write_shards(prepared, sharded, films=1000)
    outcome = {name: limited(root) for name, root in (("shards", sharded), ("memory", prepared))}
    return {
        "films": films,
        "px": SIZE,
        "set_gb_in_memory": round(2 * films * SIZE**2 / 1e9, 2),
        "limit_gb": LIMIT / 1e9,
        **outcome,
        "machine": machine("torch"),
        "command": command(),
    }


def limited(data: Path) -> dict[str, object]:
    """What :func:`child` says in a process of its own, or why that failed."""
    command = [sys.executable, "-m", "benchmarks.shards", "child", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines() or ["killed"]
    return {"failed": said[-1].replace(str(ROOT), "")[:200]}


def draw(root: Path, films: int) -> None:
    """A prepared set of synthetic radiographs, each there many times by other names (hard links)."""
    shutil.rmtree(root, ignore_errors=True)
    model, rows = AppearanceModel.load(), []
    for kind in ("image", "mask"):
        for split in ("train", "val"):
            (root / split / kind).mkdir(parents=True)
    for n in range(films):
        split, name = "val" if n < 8 else "train", f"CHNCXR_{100_000 + n}_0"
        paths = {kind: root / split / kind / f"{name}.png" for kind in ("image", "mask")}
        if n < DISTINCT + 8:
            film = model.film(5, n, size=SIZE, tb=0)
            write_image(paths["image"], film.image)
            write_mask(paths["mask"], film.mask)
        else:
            first = f"CHNCXR_{100_008 + n % DISTINCT}_0.png"
            for path in paths.values():
                os.link(path.with_name(first), path)
        rows.append({"name": name, "split": split, "pixels": f"{n:016x}"})
    table = pd.DataFrame(rows).assign(source="shenzhen", tb=0, height=SIZE, width=SIZE)
    write_bytes(root / "manifest.csv", table.to_csv(index=False).encode())


def child(data: Path) -> None:
    """One epoch in limited memory; prints what it took."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    config = TrainConfig(
        sources=("shenzhen",),
        size=SIZE,
        base_channels=4,
        depth=2,
        patch=8,
        batch_size=32,
        epochs=1,
        workers=0,
        heads=False,
    )
    trainer = make_trainer(data, None, replace(config, augment="none"))
    history = trainer.fit()
    found = {
        "images_per_s": round(float(history["images_per_s"][0]), 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "finite": bool(np.isfinite(history["train_loss"][0])),
    }
    print(json.dumps(found))


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("what", choices=("speed", "memory", "child"))
    parser.add_argument("--rounds", type=int, default=3, help="epochs per contestant of speed")
    parser.add_argument("--films", type=int, default=18_000, help="of the set that is too large")
    args = parser.parse_args()
    if args.what == "child":
        child(args.data)
    else:
        result = speed(args.data, args.rounds) if args.what == "speed" else memory(args.films)
        add_json(RESULTS / "shards.json", args.what, result)


if __name__ == "__main__":
    main()
