"""Pictures of films with their lungs, and of a training's course: what a notebook shows.

Axes: H rows, W columns. Films are ``uint8 (H, W)``, masks ``uint8 (H, W)`` in {0, 1}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from ..image import read_image, read_mask, resize_image, resize_mask
from ..pictures.overlay import COLOUR as PRED
from .style import BLUE, RED, TRUTH, styled

WIDE = 1.7  # inches, the width of one of several films
TITLE = 20  # letters above it, before the next line
LARGE = 14  # points, of those letters; fewer where a line would be wider than its film


def show_film(
    image: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    pred: np.ndarray | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A film with the outlines of the truth (blue) and of a prediction (orange).

    Args:
        image: the film; its brightest pixel is shown white.
        truth: mask, if there is one.
        pred: mask, if there is one.
        title: above it.
        ax: to draw on, the current ones by default.

    Returns:
        The axes.
    """
    ax = ax or plt.gca()
    ax.imshow(image, cmap="gray")
    for mask, colour in ((truth, TRUTH), (pred, PRED)):
        if mask is not None and mask.any():
            ax.contour(mask, [0.5], colors=colour, linewidths=1.2)
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    return ax


@styled
def show_films(
    images: Sequence[np.ndarray],
    *,
    truths: Sequence[np.ndarray] = (),
    preds: Sequence[np.ndarray] = (),
    titles: Sequence[str] = (),
    columns: int = 6,
) -> Figure:
    """Films in rows, see :func:`show_film`; there are as many masks and titles as films, or none.

    Raises:
        ValueError: their numbers differ.
    """
    counts = {len(images), *(len(others) for others in (truths, preds, titles) if len(others))}
    if len(counts) != 1 or not len(images):
        raise ValueError(f"as many films as masks and titles, and at least one: got {sorted(counts)}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    titles = [_broken(title) for title in titles]
    points = _points(titles)
    high = WIDE + max((title.count("\n") + 1 for title in titles), default=0) * 1.3 * points / 72
    figure, axes = plt.subplots(rows, columns, figsize=(WIDE * columns, high * rows), squeeze=False)
    for ax, image, truth, pred, title in zip_longest(axes.flat, images, truths, preds, titles):
        ax.set_axis_off()
        if image is not None:
            show_film(image, ax=ax, truth=truth, pred=pred).set_title(title or "", fontsize=points)
    return figure


def _points(titles: Sequence[str]) -> float:
    """How large the letters of titles may be, for a gap to be left between those of neighbours."""
    lines = [line for title in titles for line in title.split("\n") if line]
    widest = max((TextPath((0, 0), line, size=1).get_extents().width for line in lines), default=1)
    return min(LARGE, 0.92 * WIDE * 72 / widest)


def _broken(title: str) -> str:
    """A title in lines of ``TITLE`` letters at most, broken at spaces and behind the underscores of names."""
    lines = [line for part in title.split("\n") for line in wrap(part.replace("_", "_ "), TITLE)]
    return "\n".join(line.replace("_ ", "_") for line in lines)


def show_prepared(frame: pd.DataFrame, *, size: int = 192, columns: int = 8) -> Figure:
    """A contact sheet of films of ``data.read_manifest``, outlined where they have a mask.

    Args:
        frame: rows of the manifest.
        size: px, side of each.
        columns: films in a row.
    """
    masks = [resize_mask(read_mask(path), size) if path else np.zeros((size, size), np.uint8) for path in frame["mask"]]
    return show_films(
        [resize_image(read_image(path), size) for path in frame["image"]],
        truths=masks,
        titles=list(frame["name"]),
        columns=columns,
    )


def show_ranked(scores: pd.DataFrame, frame: pd.DataFrame, segmenter) -> Figure:
    """Best, median and worst film of an evaluation: truth blue, prediction orange, name and Dice above.

    Args:
        scores: of ``predictions.evaluate``, at one size and of one protocol.
        frame: of ``data.read_manifest``, with those films.
        segmenter: the :class:`infer.LungSegmenter` that was evaluated.
    """
    ranked = scores.sort_values("dice", ascending=False).iloc[[0, len(scores) // 2, -1]]
    films = frame.set_index("name").loc[ranked["name"]]
    images = [read_image(path) for path in films["image"]]
    preds = segmenter.masks(images, list(films["source"]))
    titles = [
        f"{rank}, Dice {dice:.3f}:\n{name}"
        for rank, name, dice in zip(("best", "median", "worst"), ranked["name"], ranked["dice"])
    ]
    figure = show_films(images, truths=[read_mask(path) for path in films["mask"]], preds=preds, titles=titles)
    figure.set_size_inches(9, 3.3)
    return figure


@styled
def draw_history(history: pd.DataFrame) -> Figure:
    """A training's course: loss on the left, validation Dice on the right, epoch by epoch.

    Args:
        history: ``history.csv`` of a run.
    """
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(9, 3))
    epochs = history["epoch"] + 1
    losses.plot(epochs, history["train_loss"], color=BLUE, label="training films, augmented")
    losses.plot(epochs, history["val_loss"], color=RED, label="validation films")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    losses.legend()
    scores.plot(epochs, history["val_dice"], color=RED)
    scores.set(xlabel="epoch", ylabel="validation Dice", ylim=(0, 1))
    for ax in (losses, scores):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
