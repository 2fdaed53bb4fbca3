"""Studies of what to learn from, whose runs are compared by set and by artefact.

Each run trains into a folder of its own, where a killed one is resumed. Its best weights are scored on validation films
as they are, and with each artefact drawn into them: ``results/tuning/STUDY.csv`` has a row per run, seed, set and
artefact, with the columns :data:`COLUMNS`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
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
from ..quality.flags import OK
from ..trainer import Trainer, make_trainer
from .study import Plan, Run, do_missing, films_of, fingerprint

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
    films, plan = fingerprint(data), Plan()
    for seed in range(seeds):
        for run in SCORED[name]:
            folder = Path(runs) / name / f"{run.name}, seed {seed}"
            settings = replace(config, **run.settings, seed=seed)
            recorded = {"trained_by": settings.command, "data": films}
            plan[run.name, seed] = (run, folder, data, settings), recorded
    return do_missing(name, Path(out) / f"{name}.csv", plan, train_and_score, jobs, COLUMNS)


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


def artefact_scores(frame: pd.DataFrame, segmenter: LungSegmenter) -> pd.DataFrame:
    """Dice of each film as it is and with each artefact, see :func:`changed_scores`."""
    return changed_scores(frame, segmenter, {artefact: partial(_draw, artefact) for artefact in DRAWN}, "artefact")


def _draw(artefact: str, image: np.ndarray, mask: np.ndarray, seed: str) -> tuple[np.ndarray, np.ndarray]:
    """A film with one of :data:`DRAWN`, and its mask."""
    if artefact == "none":
        return image, mask
    if artefact == NOISE:
        return damaged(image, mask, "noise", 2, seed=seed)
    return draw_one(artefact, image, mask, seed=seed), mask


def changed_scores(
    frame: pd.DataFrame, segmenter: LungSegmenter, changes: Mapping[Any, Callable], column: str
) -> pd.DataFrame:
    """Dice of each film after each change, by its own set's head: name, source, the change and dice.

    Args:
        frame: rows of :func:`data.read_manifest`, each with a mask.
        segmenter: with which weights and switches.
        changes: of an image and its mask, by what they are called; each takes a seed.
        column: the name of the changes' column.
    """
    rows = []
    for start in tqdm(range(0, len(frame), BATCH), desc=column, disable=None, leave=False):
        films = list(frame.iloc[start : start + BATCH].itertuples())
        pairs = [(read_image(film.image), read_mask(film.mask)) for film in films]
        for name, change in changes.items():
            changed = [change(*pair, seed=film.name) for film, pair in zip(films, pairs)]
            probs = segmenter.probabilities([image for image, _ in changed], [film.source for film in films])
            for film, (_, mask), prob in zip(films, changed, probs):
                score = dice(segmenter.finish(prob, (SIZE, SIZE)), resize_mask(mask, SIZE))
                rows.append({"name": film.name, "source": film.source, column: name, "dice": score})
    return pd.DataFrame(rows)


def summarise_artefacts(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per set and artefact: n, mean Dice, the worst, and the share of films below 0.90."""
    by = ["source", "artefact"]
    return summarise_changes(scores, by)[[*by, *SCORES]]


def summarise_changes(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row per group of films: n, mean Dice with sd, 5th percentile and worst, and the share of films below 0.90."""
    found = scores.groupby(by, sort=False)["dice"].agg(
        n="size",
        dice="mean",
        sd="std",
        p5=lambda dice: dice.quantile(0.05),
        worst="min",
        **{"share_below_0.90": lambda dice: (dice < OK).mean()},
    )
    return found.round(4).reset_index()
