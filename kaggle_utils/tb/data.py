"""Films to what the tuberculosis classifier sees: five variants of a film, and the zones in which it is described.

Axes: H rows, W columns, 6 zones: the upper, middle and lower third of the right lung, then of the left.
Films are ``uint8 (H, W)``, lungs are masks in {0, 1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ..data import read_manifest
from ..image import resize_image, resize_mask, resize_prob
from ..quality import split_lungs
from ..splits import SAME_PATIENT, published_split

VARIANTS = ("whole", "box", "lungs", "blanked", "thumbnail")  # what is seen of a film, see view() and thumbnail()
BOXED = ("box", "lungs")  # those that are shown the box around the lungs
SIZE = 320  # px, side of the square that is shown
FILM = 512  # px, side of the square that a film is squeezed to before its lungs are cut out, as the prepared set's are
MARGIN = 0.05  # of the lungs' longer side, around them: pleura and costophrenic angles lie on the mask's edge
THIRDS = 3  # of a lung, from its apex down


def tb_frame(data: str | Path, sources: Sequence[str] = ("montgomery", "shenzhen")) -> pd.DataFrame:
    """The films of a prepared set with a label for tuberculosis, those without a lung mask too.

    Returns:
        Rows of ``data.read_manifest`` with ``part``: train, val or test by the published lists of this task; films that
        these don't know (synthetic ones) keep the set's own split, and train where they have no mask.

    Raises:
        ValueError: no such film.
    """
    frame = read_manifest(data)
    frame = frame[frame["source"].isin(sources) & frame["tb"].isin((0, 1))].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"{data}: no film of {', '.join(sources)} with a label for tuberculosis")
    own = frame["split"].replace("unlabelled", "train")
    return frame.assign(tb=frame["tb"].astype(int), part=published_split(frame, task="tb").fillna(own))


def lung_box(lungs: np.ndarray, margin: float = MARGIN) -> tuple[slice, slice]:
    """The box of both lungs with a margin, inside the frame: its rows and columns.

    Args:
        lungs: ``uint8 (H, W)`` in {0, 1}.
        margin: share of the box's longer side that is added on each side.

    Raises:
        ValueError: there is no lung.
    """
    if not lungs.any():
        raise ValueError("no lung to cut out")
    left, top, width, height = cv2.boundingRect(lungs)
    extra = round(margin * max(height, width))
    rows, columns = lungs.shape
    return (
        slice(max(top - extra, 0), min(top + height + extra, rows)),
        slice(max(left - extra, 0), min(left + width + extra, columns)),
    )


def lung_zones(lungs: np.ndarray, margin: float = 0.02) -> np.ndarray:
    """The thirds of each lung's field: of its convex hull, a little wider, which holds what disease hides.

    Segmenters leave out what is white, and a consolidated lobe is: by the mask alone the sickest lungs would be cut
    away.

    Args:
        lungs: ``uint8 (H, W)`` in {0, 1}.
        margin: of the film's width, by which the hulls grow.

    Returns:
        ``uint8 (6, H, W)`` in {0, 1}; empty for a lung that isn't there.
    """
    side = 2 * round(margin * lungs.shape[1]) + 1
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    zones = np.zeros((2 * THIRDS, *lungs.shape), np.uint8)
    for n, lung in enumerate(split_lungs(lungs)):
        outlines, _ = cv2.findContours(lung, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        if not outlines:
            continue
        hull = cv2.convexHull(np.concatenate(outlines))
        field = cv2.dilate(cv2.fillConvexPoly(np.zeros_like(lungs), hull, 1), around)
        rows = np.flatnonzero(field.any(1))
        edges = np.linspace(rows[0], rows[-1] + 1, THIRDS + 1).round().astype(int)
        for third, (top, bottom) in enumerate(pairwise(edges)):
            zones[THIRDS * n + third, top:bottom] = field[top:bottom]
    return zones


def lung_fields(lungs: np.ndarray, margin: float = 0.02) -> np.ndarray:
    """All zones of :func:`lung_zones` together, ``uint8 (H, W)`` in {0, 1}."""
    return lung_zones(lungs, margin).max(0)


def letter_box(image: np.ndarray, box: tuple[slice, slice], size: int) -> np.ndarray:
    """A part of a film in a square without being squeezed: its longer side fills it, black bars fill the rest.

    Args:
        image: ``uint8 (H, W)``.
        box: of :func:`lung_box`.
        size: px, side of the square.
    """
    part = image[box]
    square = np.zeros((size, size), np.uint8)
    place = _fitted(part, size)
    square[place] = resize_image(part, square[place].shape)
    return square


def from_letter_box(square: np.ndarray, box: tuple[slice, slice], shape: tuple[int, int]) -> np.ndarray:
    """What :func:`letter_box` did, undone: ``float32 (size, size)`` back into the box, 0 elsewhere in ``shape``."""
    whole = np.zeros(shape, np.float32)
    whole[box] = resize_prob(square[_fitted(whole[box], len(square))], whole[box].shape)
    return whole


def _fitted(part: np.ndarray, size: int) -> tuple[slice, slice]:
    """Where a part of a film lies in its square of ``size`` px: rows and columns."""
    height, width = (max(1, round(side * size / max(part.shape))) for side in part.shape)
    top, left = (size - height) // 2, (size - width) // 2
    return slice(top, top + height), slice(left, left + width)


def view(film: np.ndarray, lungs: np.ndarray, variant: str, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """What a variant shows of a film, normalised by the gray levels of its zones, and the zones.

    ``whole``: the film, its zones the thirds of its halves. ``box``: the box around the lungs, normalised by the lungs'
    own levels, so that neither collimation nor the arms of the patient set the scale. ``lungs``: the same with all but
    the lung fields at their mean. ``blanked``: the film with its lung fields at the mean of the rest: what is learned
    from that is no disease of the lungs, though their outline, which disease changes too, is still seen.

    Args:
        film: ``uint8 (H, W)``, of any size.
        lungs: ``uint8 (H, W)`` in {0, 1}, of any size; the whole film needs none.
        variant: of :data:`VARIANTS`, but ``thumbnail``.
        size: px.

    Returns:
        The image ``float32 (size, size)``, with a mean of 0 and a deviation of 0.5 over its zones as a network of
        ImageNet is used to, and the zones ``uint8 (6, size, size)`` in {0, 1}.

    Raises:
        ValueError: there is no lung, or no such variant.
    """
    if variant not in VARIANTS or variant == "thumbnail":
        raise ValueError(f"a view is one of {', '.join(VARIANTS[:-1])}, not {variant!r}")
    film = resize_image(film, FILM)
    fields = np.zeros((1, FILM, FILM), np.uint8) if variant == "whole" else lung_zones(resize_mask(lungs, FILM))
    if variant in BOXED:
        box = lung_box(fields.max(0))
        film = letter_box(film, box, size)
        zones = np.stack([(letter_box(zone * np.uint8(255), box, size) >= 128).astype(np.uint8) for zone in fields])
    else:
        rest = _grid(FILM) * (1 - fields.max(0))
        film, zones = resize_image(film, size), np.stack([resize_mask(zone, size) for zone in rest])
    seen = zones.max(0)
    levels = film[seen > 0].astype(np.float32)
    image = np.clip((film - levels.mean()) / max(levels.std(), np.float32(1e-3)), -4, 4) / 2
    return image * seen if variant in ("lungs", "blanked") else image, zones


def _grid(size: int) -> np.ndarray:
    """A square in thirds of halves, as lungs lie in it: ``uint8 (6, size, size)`` in {0, 1}."""
    rows, columns = np.mgrid[:size, :size]
    place = THIRDS * (columns * 2 // size) + rows * THIRDS // size
    return (place == np.arange(2 * THIRDS)[:, None, None]).astype(np.uint8)


def thumbnail(film: np.ndarray, side: int = 16) -> np.ndarray:
    """The control: a film of which nobody sees more than a smudge, with a mean of 0 and a deviation of 1.

    Returns:
        ``float32 (side²,)``.
    """
    small = resize_image(film, side).astype(np.float32).ravel()
    return (small - small.mean()) / max(small.std(), np.float32(1e-3))


def balance(frame: pd.DataFrame) -> np.ndarray:
    """A weight for each film by which both classes of every set weigh alike: which set a film is of says nothing then.

    Args:
        frame: with ``source`` and ``tb``.

    Returns:
        ``float32 (N,)`` with a mean of 1 over every set that has both classes.
    """
    sets = frame.groupby("source")["tb"].transform
    both = frame.groupby(["source", "tb"])["tb"].transform("size")
    return (sets("size") / (sets("nunique") * both)).to_numpy(np.float32)


def folds(frame: pd.DataFrame, n: int, seed: int = 0) -> np.ndarray:
    """The fold of each film, stratified by set and label, the films of one patient together.

    Args:
        frame: with ``name``, ``source`` and ``tb``.
        n: how many.
        seed: of the draw.

    Returns:
        ``int (N,)`` in [0, n).
    """
    order = np.random.default_rng(seed).permutation(len(frame))
    place = frame.iloc[order].groupby(["source", "tb"]).cumcount()
    fold = np.empty(len(frame), int)
    fold[order] = place % n
    names = frame["name"].to_numpy()
    for first, *others in SAME_PATIENT:
        if first in names:
            fold[np.isin(names, others)] = fold[names == first][0]
    return fold
