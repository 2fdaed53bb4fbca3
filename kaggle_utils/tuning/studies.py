"""Tuning: each study asks one question by a table of runs; ``python -m kaggle_utils tune STUDY``.

A run is written to ``results/tuning/STUDY.csv`` whole, when it has ended: a study that is killed loses the runs under
way and repeats none that ended. Runs train on the training films and are compared on the validation films; JSRT, which
none of them sees, is scored at the end of each and chooses nothing. Test films are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
from torch.utils.data import DataLoader

from ..config import TrainConfig
from ..data import EpochSampler, LungDataset, read_manifest
from ..files import LOCK, locked
from ..synthetic import write_prepared
from ..trainer import Trainer
from .mistakes import MISTAKES, TenfoldDice, swap_loss
from .search import search
from .study import SETTINGS, Plan, Run, do_missing, films_of, fingerprint, train_run

# The default before there were studies; runs differ from it.
BASE = TrainConfig(size=128, epochs=8, augment="full", dice_weight=0.5)
CACHE = Path("runs/tuning")  # synthetic radiographs, and the search's storage
FILMS = (10, 25, 50, 100, 200, None)  # to learn from; None is all


def each(**settings: tuple) -> list[Run]:
    """A run for each value of each setting, all others as they are."""
    return [Run(f"{name}={value}", {name: value}) for name, values in settings.items() for value in values]


def synthetic_films(n: int = 520, size: int = 256) -> Path:
    """Draws synthetic radiographs and prepares them, if they aren't there; nine in ten have a mask.

    Args:
        n: number of films.
        size: px, side of them.

    Returns:
        The prepared set.
    """
    folder = CACHE / "built_in"
    with locked(folder / LOCK, folder, wait=True):
        return write_prepared(folder, n, seed=1, size=size)  # `make run` draws with seed 0


class FixedEpochSampler(EpochSampler):
    """An epoch of a given number of films, however many there are to draw from."""

    def __init__(self, n: int, seed: int, films: int):
        super().__init__(n, seed)
        self.films = films

    def __len__(self) -> int:
        return self.films

    def __iter__(self) -> Iterator[tuple[int, int] | None]:
        return islice(super().__iter__(), self.films)


def choose_films(trainer: Trainer, real: int | None, synthetic: int | None) -> None:
    """Trains on fewer films, on synthetic ones, or half on either, with as many steps per epoch as before.

    Args:
        trainer: with all real films; its seed draws.
        real: how many of them, each set in its share; the few are among the many. None is all.
        synthetic: the same of the synthetic radiographs, of any split, as they are validated on real ones.
    """
    config, films = trainer.config, films_of(trainer.train_loader).frame
    halves = []
    if real != 0:
        halves.append(_repeat(_sample(films, real, config.seed), len(films)))
    if synthetic != 0:
        drawn = read_manifest(synthetic_films()).query("split != 'unlabelled'")
        halves.append(_repeat(_sample(drawn, synthetic, config.seed), len(films)))
    dataset = LungDataset(pd.concat(halves), config.size, config.augment, seed=config.seed)
    sampler = FixedEpochSampler(len(dataset), config.seed, len(films))
    trainer.train_loader = DataLoader(dataset, config.batch_size, sampler=sampler)


def decay_all(trainer: Trainer) -> None:
    """Lets biases and the weights of normalisation decay as kernels do."""
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = trainer.config.weight_decay


def _sample(frame: pd.DataFrame, n: int | None, seed: int) -> pd.DataFrame:
    """So many films, each set in its share; None is all."""
    share = 1.0 if n is None else min(1.0, n / len(frame))
    return frame.groupby("source").sample(frac=share, random_state=seed)


def _repeat(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """All films, again and again until there are n."""
    times = math.ceil(n / len(frame))
    return pd.concat([frame] * times).head(max(n, len(frame)))


STUDIES: dict[str, list[Run]] = {
    "bugs": [Run(name, {}, change, report) for name, (change, report) in MISTAKES.items()],
    "augmentation": each(augment=("none", "light", "full")),
    # Augmentation is paid back in long runs, if at all.
    "longer": [Run(run.name, {**run.settings, "epochs": 32}) for run in each(augment=("none", "light", "full"))],
    "loss": [
        *each(dice_weight=(0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0), loss=("tversky", "focal")),
        Run("BCE + 10 Dice", {}, partial(swap_loss, loss=TenfoldDice)),
    ],
    "capacity": [Run("default"), *each(base_channels=(8, 32), depth=(2, 4), patch=(4,), size=(64, 192))],
    "optimisation": [
        Run("default"),
        *each(
            lr=(5e-4, 1e-3, 4e-3, 8e-3), batch_size=(4, 16), epochs=(4, 16), ema_decay=(0.0,), weight_decay=(0.0, 1e-1)
        ),
    ],
    # What should decay, and how far the rate should rise with twice the batch.
    "rules": [
        Run("default"),
        Run("all decays", {}, decay_all),
        *[Run(f"batch_size=16, lr={lr}", {"batch_size": 16, "lr": lr}) for lr in (2e-3, 2.8e-3, 4e-3)],
    ],
    "data": [
        Run(f"{n or 'all'} {kind}", {}, partial(choose_films, real=real, synthetic=synthetic))
        for n in FILMS
        for kind, real, synthetic in (("real", n, 0), ("synthetic", 0, n), ("real, synthetic added", n, None))
    ],
    # Some of the other studies' runs at a size nearer to the shipped network's: does their ranking hold?
    "check": [
        Run(run.name, {**run.settings, "size": 256})
        for run in [Run("default"), *each(augment=("none", "light"), dice_weight=(0.0,))]
    ],
}


def run_study(
    name: str,
    data: str | Path,
    *,
    seeds: int = 3,
    config: TrainConfig = BASE,
    jobs: int | None = None,
    trials: int = 60,
    storage: str | None = None,
    out: str | Path = "results/tuning",
) -> pd.DataFrame:
    """Does those runs of a study that are still to be done.

    Args:
        name: of :data:`STUDIES`, or ``search``.
        data: prepared set.
        seeds: each run is repeated with seeds 0, 1, 2 ... A search repeats nothing.
        config: what the runs differ from.
        jobs: trainings beside each other on one thread each, see :func:`tuning.study.beside`: two of them pass over a
            third more films than one on two threads. 1 is one after the other on all threads.
        trials: of the search, see :func:`tuning.search.search`.
        storage: of the search; ``runs/tuning/search.db`` if not given.
        out: folder of the tables.

    Returns:
        The study's table, see :mod:`tuning.study`.

    Raises:
        ValueError: no such study, or its table is of another version, other settings or other films.
    """
    if name not in (*STUDIES, "search"):
        raise ValueError(f"study is one of {', '.join((*STUDIES, 'search'))}, not {name!r}")
    config = replace(config, workers=0)
    path = Path(out) / f"{name}.csv"
    if name == "search":
        CACHE.mkdir(parents=True, exist_ok=True)
        storage = storage or f"sqlite:///{CACHE / 'search.db'}?timeout=60"
        return search(data, config, path, storage=storage, trials=trials, jobs=jobs)
    films, plan = fingerprint(data), Plan()
    for seed in range(seeds):
        for run in STUDIES[name]:
            settings = replace(config, **run.settings, seed=seed)
            recorded = {setting: getattr(settings, setting) for setting in SETTINGS}
            plan[run.name, seed] = (run, data, settings), {**recorded, "data": films}
    return do_missing(name, path, plan, train_run, jobs)


def summarise_runs(table: pd.DataFrame) -> pd.DataFrame:
    """A row per run, the best first: seeds, how many diverged, and means over the seeds after the last epoch."""
    last = table.drop_duplicates(["run", "seed"], keep="last")
    runs = last.assign(diverged=last["status"] == "diverged").groupby("run", sort=False)
    means = runs[["val_dice", "reported", "dice_256", "jsrt_256", "parameters", "seconds"]].mean()
    means.insert(1, "sd", runs["val_dice"].std())
    counts = runs["diverged"].agg(seeds="size", diverged="sum")
    return counts.join(means).sort_values("val_dice", ascending=False).reset_index()
