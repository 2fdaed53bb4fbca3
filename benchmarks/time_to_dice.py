"""Seconds of training to a validation Dice of 0.95: this trainer, MONAI's U-Nets and the classic 31M U-Net.

    python -m benchmarks.time_to_dice --data segmentation [--only NAME …]

The published Montgomery and Shenzhen lists at 256 px, one after the other, with all cores. The clock runs while a batch
is loaded, augmented and learned from; it stands still while films are decoded at the start and while anyone is
validated. All are validated every 30 steps, so that each time is known to the same number of films, by the same
function, in the precision they train in: mean over the 70 films of each film's Dice at probability 0.5.

ours      the Trainer with TrainConfig's defaults and a budget (1.25 minutes, set beforehand: room for more than the six
          passes in which benchmarks.pareto saw this network reach 0.95), to whose end it is run because the learning
          rate falls with it; the averaged weights are validated
MONAI     the 2-D tutorials' loop: CacheDataset, dictionary transforms, Adam at 1e-3, DiceCELoss, float32, and in bf16
          for the comparison to be of more than the precision; stopped at 0.95 or at the cap
classic   the same loop for a few minutes; its time is extrapolated with the films that the quickest learner needed

Writes ``results/time_to_dice.csv``, a row per validation, and ``.json``. Contestants that are not run again keep their
rows if machine, versions and films are the same.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.common import RESULTS, command, machine, make_parser, peer, read_json, write_json
from kaggle_utils.config import TrainConfig
from kaggle_utils.data import LungDataset
from kaggle_utils.model import count_parameters
from kaggle_utils.trainer import Trainer, make_trainer

TARGET, SIZE = 0.95, 256  # mean validation Dice, px
EVERY = 30  # steps between validations
OURS_MINUTES = 1.25  # over which our learning rate falls
MINUTES = 6  # after which another contestant has failed
CLASSIC_MINUTES = 2.0  # enough for its speed, which is all that is measured
BATCH = TrainConfig().batch_size
CONTESTANTS = ("ours", "MONAI UNet", "MONAI UNet bf16", "MONAI BasicUNet", "MONAI BasicUNet bf16", "classic U-Net")


@dataclass
class Contestant:
    """One who learns: ``step`` takes a batch and the seconds trained so far, ``judged`` has the validated weights."""

    model: nn.Module
    judged: nn.Module
    loader: DataLoader
    step: Callable[[dict, float], None]
    precision: str


def ours(trainer: Trainer) -> Contestant:
    """The shipped trainer by this file's clock."""

    def step(batch: dict, seconds: float) -> None:
        trainer.seconds = seconds
        trainer._train_step(batch)

    return Contestant(trainer.model, trainer.best_model, trainer.train_loader, step, trainer.precision)


def standard(model: nn.Module, films: LungDataset, precision: str) -> Contestant:
    """The loop of MONAI's tutorials on the same decoded films."""
    import monai

    data = [{"image": image[None], "mask": mask[None]} for image, mask in zip(films.images, films.masks)]
    cached = monai.data.CacheDataset(data, monai_augmentation(), progress=False)
    loader = monai.data.DataLoader(cached, batch_size=BATCH, shuffle=True)
    loss, optimizer = monai.losses.DiceCELoss(sigmoid=True), torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(batch: dict, _: float) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(batch["image"])
        value = loss(logits.float(), batch["mask"])
        value.backward()
        optimizer.step()
        value.item()

    return Contestant(model, model, loader, step, precision)


def monai_augmentation() -> Callable[[dict], dict]:
    """The ``full`` preset of ``augment.augmentation`` in MONAI's transforms, step by step, and our normalisation."""
    from monai import transforms as T

    both = ["image", "mask"]
    return T.Compose(
        [
            T.ScaleIntensityRanged("image", 0, 255, 0, 1),  # what comes before the first random transform is cached
            T.CastToTyped("mask", np.float32),
            T.RandFlipd(both, prob=0.5, spatial_axis=1),
            T.RandAffined(
                both,
                prob=0.9,
                rotate_range=math.radians(12),
                translate_range=0.1 * SIZE,
                scale_range=(0.25, 0.25),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            # Displaces by 0.8 px on average (root mean square), as the preset does.
            T.Rand2DElasticd(
                both,
                spacing=17,
                magnitude_range=(0.5, 1.2),
                prob=0.15,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            T.RandScaleIntensityd("image", factors=0.4, prob=0.7),
            T.RandShiftIntensityd("image", offsets=0.3, prob=0.7),
            T.ScaleIntensityRanged("image", 0, 1, 0, 1, clip=True),  # as a detector, and uint8, saturate
            T.RandAdjustContrastd("image", prob=0.5, gamma=(0.5, 2)),
            T.OneOf(
                [
                    T.RandGaussianSmoothd("image", prob=0.3),
                    T.RandGaussianSharpend("image", alpha=(5, 15), prob=0.3),
                    T.RandHistogramShiftd("image", prob=0.3),
                ]
            ),
            T.RandGaussianNoised("image", prob=0.2, std=0.06),
            T.RandCoarseDropoutd(
                "image",
                holes=1,
                max_holes=4,
                spatial_size=round(0.03 * SIZE),
                max_spatial_size=round(0.15 * SIZE),
                fill_value=(0, 1),
                prob=0.25,
            ),
            T.NormalizeIntensityd("image"),
        ]
    )


def race(name: str, contestant: Contestant, judge: Trainer, cap: float, *, stop: bool) -> list[dict]:
    """Trains for ``cap`` seconds, or to the target if ``stop`` says so; one row a validation."""
    rows, seconds, films, steps, dice = [], 0.0, 0, 0, 0.0
    batches, parameters = forever(contestant.loader), count_parameters(contestant.model)
    judge.precision = contestant.precision
    contestant.model.train()
    with tqdm(total=math.ceil(cap), desc=name, unit="s", disable=None) as bar:
        while seconds < cap and not (stop and dice >= TARGET):
            start = time.perf_counter()
            batch = next(batches)
            contestant.step(batch, seconds)
            seconds += time.perf_counter() - start
            films, steps = films + len(batch["image"]), steps + 1
            bar.update(min(int(seconds), bar.total) - bar.n)
            if steps % EVERY and seconds < cap:
                continue
            dice = judge.validate(contestant.judged)["val_dice"]
            bar.set_postfix(dice=f"{dice:.4f}", films=films)
            row = {
                "contestant": name,
                "parameters": parameters,
                "precision": contestant.precision,
                "seconds": round(seconds, 2),
                "films": films,
                "val_dice": round(dice, 5),
            }
            rows.append(row)
    return rows


def forever(loader: DataLoader) -> Iterator[dict]:
    """Batches of one epoch after the other."""
    for epoch in itertools.count():
        if hasattr(loader.sampler, "epoch"):
            loader.sampler.epoch = epoch
        yield from loader


def summarise(table: pd.DataFrame) -> dict[str, dict]:
    """Of each contestant: the first validation at the target, if there was one, its best Dice and its speed.

    The classic is taken to need as many films as the quickest learner.
    """
    result = {name: _summary(rows) for name, rows in table.groupby("contestant", sort=False)}
    needed = min((row["films_to_target"] for row in result.values() if row["films_to_target"]), default=None)
    classic = result.get("classic U-Net")
    if classic and needed and classic["seconds_to_target"] is None:
        films = table.loc[table["contestant"] == "classic U-Net", "films"].max()
        seconds = round(classic["trained_seconds"] / films * needed, 1)
        classic |= {"extrapolated": True, "seconds_to_target": seconds, "films_to_target": needed}
    base = result.get("ours", {}).get("seconds_to_target")
    for row in result.values():
        row["times_ours"] = round(row["seconds_to_target"] / base, 2) if base and row["seconds_to_target"] else None
    return result


def _summary(rows: pd.DataFrame) -> dict[str, object]:
    there, last = rows[rows["val_dice"] >= TARGET], rows.iloc[-1]
    return {
        "parameters": int(last["parameters"]),
        "precision": last["precision"],
        "seconds_to_target": float(there["seconds"].iloc[0]) if len(there) else None,
        "films_to_target": int(there["films"].iloc[0]) if len(there) else None,
        "extrapolated": False,
        "best_dice": float(rows["val_dice"].max()),
        "trained_seconds": float(last["seconds"]),
        "images_per_s": round(float(last["films"] / last["seconds"]), 2),
    }


def write(rows: list[dict], setup: dict) -> dict[str, dict]:
    """Puts the rows into the CSV, beside those of other contestants in the same setup, and the summary beside it."""
    table, path, summary = pd.DataFrame(rows), RESULTS / "time_to_dice.csv", RESULTS / "time_to_dice.json"
    run = set(table["contestant"])
    if read_json(summary).get("setup") == setup:
        kept = pd.read_csv(path)
        table = pd.concat([kept[~kept["contestant"].isin(run)], table])
    table = table.sort_values("contestant", key=lambda names: names.map(CONTESTANTS.index), kind="stable")
    contestants = summarise(table)
    table.to_csv(path, index=False)
    result = {
        "target": f"mean validation Dice {TARGET}",
        "clock": "seconds of training with loading and augmentation; validation excluded",
        "setup": setup,
        "command": command(),
        "kept_from_an_earlier_run": [name for name in contestants if name not in run],
        "contestants": contestants,
    }
    write_json(summary, result)
    return contestants


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        help=f"of {', '.join(CONTESTANTS)}; "
        "by default all but BasicUNet in bf16, and bf16 only where the processor computes in it",
    )
    args = parser.parse_args()
    import monai

    # The trainer decodes the films for all, judges everyone, and has the process keep its memory, whoever is first.
    trainer = make_trainer(args.data, None, TrainConfig(time_budget_min=OURS_MINUTES, size=SIZE, device="cpu"))
    films, bf16 = trainer.train_loader.dataset, trainer.precision == "bf16"
    usual = [name for name in CONTESTANTS if name != "MONAI BasicUNet bf16" and (bf16 or "bf16" not in name)]
    setup = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, monai, np)},
        "training_films": len(films),
        "validation_films": len(trainer.val_loader.dataset),
        "size_px": SIZE,
        "batch": BATCH,
        "steps_between_validations": EVERY,
    }
    rows: list[dict] = []
    wanted = sorted(set(args.only or usual), key=CONTESTANTS.index)  # ours first: the judge takes on others' precision
    for name in wanted:
        monai.utils.set_determinism(0)
        network, minutes = name.removesuffix(" bf16"), MINUTES
        if name == "ours":
            contestant, minutes = ours(trainer), OURS_MINUTES
        else:
            contestant = standard(peer(network), films, "bf16" if name.endswith("bf16") else "fp32")
        if network == "classic U-Net":
            minutes = CLASSIC_MINUTES
        rows += race(name, contestant, trainer, 60 * minutes, stop=name != "ours")
        contestants = write(rows, setup)  # after each: a stopped run keeps what it has
    print(pd.DataFrame(contestants).T.fillna("not reached").to_string())


if __name__ == "__main__":
    main()
