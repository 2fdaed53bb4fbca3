"""Studies of what to learn from, whose runs are compared by set and by artefact.

Each run trains into a folder of its own, where a killed one is resumed. Its best weights are scored on validation films
as they are, and with each artefact drawn into them: ``results/tuning/STUDY.csv`` has a row per run, seed, set and
artefact, with the columns :data:`COLUMNS`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..augment import augmentation
from ..augment.artefacts import ARTEFACTS, draw_one
from ..config import TrainConfig
from ..data import read_manifest
from ..image import read_image, read_mask, resize_mask
from ..infer import LungSegmenter
from ..metrics import dice
from ..quality.damages import damaged
from ..quality.estimate import OK
from ..trainer import Trainer, make_trainer
from .study import Run, beside, films_of, fingerprint, read_table, write_rows

NOISE = "noise of 20 gray levels"  # of the table of robustness; the artefact is of up to 25
DRAWN = ("none", *ARTEFACTS, NOISE)
SIZE, BATCH = 256, 8  # px at which masks are compared, films
SCORES = ("n", "dice", "worst", "share_below_0.90")
COLUMNS = ("study", "run", "seed", "source", "artefact", *SCORES, "seconds", "trained_by", "data", "commit")
THREE_SETS = TrainConfig(
    sources=("montgomery", "shenzhen", "kermany"),
    shares=(1.0, 1.0, 1.0),
    epoch_films=600,
    epochs=12,  # 7,200 films
    size=256,
    augment="clinic",
    workers=0,
)


def leave_out(trainer: Trainer, artefact: str) -> None:
    """Trains by ``clinic`` without an artefact."""
    films_of(trainer.train_loader).augment = augmentation("clinic", without=artefact)


SCORED = {
    "artefacts": [
        Run("light", {"augment": "light"}),
        Run("clinic"),
        *[Run(f"clinic without {name}", {}, partial(leave_out, artefact=name)) for name in ARTEFACTS],
    ],
    "sets": [
        Run("even, a head each"),
        Run("even, one head", {"heads": False}),
        Run("by size, a head each", {"shares": ()}),
        Run("by size, one head", {"shares": (), "heads": False}),
        Run("even, a head each, 24 channels", {"base_channels": 24}),  # a million parameters
    ],
}


def run_scored(
    name: str,
    data: str | Path,
    *,
    seeds: int = 1,
    config: TrainConfig = THREE_SETS,
    jobs: int | None = None,
    out: str | Path = "results/tuning",
    runs: str | Path = "runs/tuning",
) -> pd.DataFrame:
    """Does those runs of a study that are still to be done.

    Args:
        name: of :data:`SCORED`.
        data: prepared set.
        seeds: each run is repeated with seeds 0, 1, 2 ...
        config: what the runs differ from.
        jobs: see :func:`tuning.studies.run_study`.
        out: folder of the tables.
        runs: folder of the runs' folders.

    Returns:
        The study's table.

    Raises:
        ValueError: the table is of another version, other settings or other films.
    """
    path, plan = Path(out) / f"{name}.csv", {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for run in SCORED[name]:
            folder = Path(runs) / name / f"{run.name}, seed {seed}"
            plan[run.name, seed] = run, folder, data, replace(config, **run.settings, seed=seed)
    ended = _check_same(path, {key: settings.command for key, (*_, settings) in plan.items()}, fingerprint(data))
    tasks = [task for key, task in plan.items() if key not in ended]
    done = beside(train_and_score, tasks, jobs or os.cpu_count() or 1)
    for rows in tqdm(done, name, len(plan), initial=len(plan) - len(tasks), unit="run", disable=None):
        write_rows(path, [{"study": name, **row} for row in rows], append=True, columns=COLUMNS)
    return read_table(path, COLUMNS)


def train_and_score(run: Run, folder: Path, data: str | Path, config: TrainConfig) -> list[dict[str, Any]]:
    """The rows of a run, which is trained into its folder, or resumed there."""
    frame = read_manifest(data)
    frame = frame[(frame["split"] == "val") & frame["source"].isin(config.sources)]
    with contextlib.redirect_stderr(io.StringIO()):  # one bar is enough, the study's
        trainer = make_trainer(data, folder, config, resume=True)
        if run.change:
            run.change(trainer)
        trainer.fit()
        segmenter = LungSegmenter(folder / "best.safetensors", device=config.device)
        found = summarise_artefacts(artefact_scores(frame, segmenter))
    about = {"run": run.name, "seed": config.seed, "seconds": trainer.seconds, "trained_by": config.command}
    about |= {"data": fingerprint(data), "commit": trainer.commit}
    return [{**about, **row} for row in found.to_dict("records")]


def artefact_scores(frame: pd.DataFrame, segmenter: LungSegmenter, drawn: Sequence[str] = DRAWN) -> pd.DataFrame:
    """Dice of each film as it is and with each artefact, by its own set's head: name, source, artefact, dice.

    Args:
        frame: rows of :func:`data.read_manifest`, each with a mask.
        segmenter: with which weights and switches.
        drawn: of :data:`DRAWN`.
    """
    rows = []
    for start in tqdm(range(0, len(frame), BATCH), desc="artefacts", disable=None, leave=False):
        films = list(frame.iloc[start : start + BATCH].itertuples())
        pairs = [(read_image(film.image), read_mask(film.mask)) for film in films]
        truths = [resize_mask(mask, SIZE) for _, mask in pairs]
        for artefact in drawn:
            images = [_draw(artefact, *pair, seed=film.name) for film, pair in zip(films, pairs)]
            probs = segmenter.probabilities(images, [film.source for film in films])
            rows += [
                {
                    "name": film.name,
                    "source": film.source,
                    "artefact": artefact,
                    "dice": dice(segmenter.finish(prob, truth.shape), truth),
                }
                for film, prob, truth in zip(films, probs, truths)
            ]
    return pd.DataFrame(rows)


def _draw(artefact: str, image: np.ndarray, mask: np.ndarray, seed: str) -> np.ndarray:
    """A film with one of :data:`DRAWN`."""
    if artefact == "none":
        return image
    if artefact == NOISE:
        return damaged(image, mask, "noise", 2, seed=seed)[0]
    return draw_one(artefact, image, mask, seed=seed)


def summarise_artefacts(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per set and artefact: n, mean Dice, the worst, and the share of films below 0.90."""
    by = scores.assign(poor=scores["dice"] < OK).groupby(["source", "artefact"], sort=False)
    found = by.agg(n=("dice", "size"), dice=("dice", "mean"), worst=("dice", "min"), poor=("poor", "mean"))
    return found.round(4).reset_index().rename(columns={"poor": "share_below_0.90"})


def _check_same(path: Path, plan: dict[tuple[str, int], str], data: str) -> set[tuple[str, int]]:
    """The runs that the table has; ValueError if one was trained by another command or on other films."""
    runs = read_table(path, COLUMNS).drop_duplicates(["run", "seed"]).set_index(["run", "seed"])
    for key, command in plan.items():
        if key in runs.index and tuple(runs.loc[key, ["trained_by", "data"]]) != (command, data):
            was = " on films ".join(runs.loc[key, ["trained_by", "data"]])
            raise ValueError(
                f"{path}: run {key[0]!r} was {was}, is {command} on films {data}; name another --out or move the table "
                "away"
            )
    return set(runs.index)
