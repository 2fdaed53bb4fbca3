"""Films to what the tuberculosis classifier sees: four views of a film and its lungs, cut once, augmented, normalised.

Axes: N or B films, 1 channel, H rows, W columns. Arrays are ``uint8 (H, W)``, lungs are masks in {0, 1}; tensors are
``float32 (B, 1, H, W)``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from ..augment import augmentation
from ..data import read_manifest
from ..image import read_image, resize_image, resize_mask, resize_prob
from ..quality import split_lungs
from ..splits import SAME_PATIENT, published_split

VARIANTS = ("whole", "crop", "masked", "blanked")  # variants of what the network is shown, see view()
CROPPED = ("crop", "masked")  # those that are shown the box around the lungs
FILM = 512  # px, side of the square that a film is squeezed to before its lungs are cut out, as the prepared set's are
MARGIN = 0.05  # of the lungs' longer side, around them: pleura and costophrenic angles lie on the mask's edge


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


@dataclass(frozen=True)
class Cuts:
    """Films and their lungs, whole and cut out, ready for every variant.

    Attributes:
        frame: one row per film: name, source, tb and whatever else the manifest says.
        films, lungs: whole films and their lung fields, ``uint8 (N, size, size)``, see :func:`lung_fields`.
        crops, crop_lungs: the same around the lungs, letter-boxed.
    """

    frame: pd.DataFrame
    films: np.ndarray
    lungs: np.ndarray
    crops: np.ndarray
    crop_lungs: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, keep: np.ndarray | pd.Series) -> Cuts:
        """Some of the films, by a boolean array or by positions."""
        at = np.arange(len(self))[np.asarray(keep)]
        return Cuts(self.frame.iloc[at], self.films[at], self.lungs[at], self.crops[at], self.crop_lungs[at])

    def of(self, variant: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and lungs that a variant starts from, each ``uint8 (N, size, size)``."""
        if variant in CROPPED:
            return self.crops, self.crop_lungs
        return self.films, self.lungs


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


def lung_fields(lungs: np.ndarray, margin: float = 0.02) -> np.ndarray:
    """The convex hull of each lung, a little wider: what disease hides from the segmenter is inside it.

    Segmenters leave out what is white, and a consolidated lobe is: by the mask alone the sickest lungs would be cut
    away.

    Args:
        lungs: ``uint8 (H, W)`` in {0, 1}.
        margin: of the film's width, by which the hulls grow.
    """
    fields = np.zeros_like(lungs)
    for lung in split_lungs(lungs):
        points = cv2.findNonZero(lung)
        if points is not None:
            cv2.fillConvexPoly(fields, cv2.convexHull(points), 1)
    side = 2 * round(margin * lungs.shape[1]) + 1
    return cv2.dilate(fields, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


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


def cut(image: np.ndarray, lungs: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One film for all variants: whole film, its lung fields, the crop, its lung fields, each ``uint8 (size, size)``.

    Args:
        image: ``uint8 (H, W)``, of any size.
        lungs: ``uint8 (H, W)`` in {0, 1}, of any size.
        size: px.

    Raises:
        ValueError: there is no lung.
    """
    image, lungs = resize_image(image, FILM), lung_fields(resize_mask(lungs, FILM))
    box = lung_box(lungs)
    crop_lungs = (letter_box(lungs * np.uint8(255), box, size) >= 128).astype(np.uint8)
    return resize_image(image, size), resize_mask(lungs, size), letter_box(image, box, size), crop_lungs


def stack(frame: pd.DataFrame, films: Iterable[tuple[np.ndarray, ...]]) -> Cuts:
    """What :func:`cut` made of each row's film."""
    whole, lungs, crops, crop_lungs = (np.stack(arrays) for arrays in zip(*films, strict=True))
    return Cuts(frame, whole, lungs, crops, crop_lungs)


def make_cuts(frame: pd.DataFrame, segmenter, size: int) -> Cuts:
    """Cuts the films of a manifest by the lungs that a segmenter finds; films without any are left out.

    Args:
        frame: rows of :func:`tb_frame`.
        segmenter: the :class:`infer.LungSegmenter`, or a dict of them by source.
        size: px, side of the cuts.
    """
    rows: list[pd.DataFrame] = []
    done: list[tuple[np.ndarray, ...]] = []
    with ThreadPoolExecutor() as pool:
        for source, films in frame.groupby("source", sort=False):
            finder = segmenter[source] if isinstance(segmenter, dict) else segmenter
            for start in range(0, len(films), 16):
                some = films.iloc[start : start + 16]
                images = list(pool.map(read_image, some["image"]))
                masks = finder.masks(images)
                kept = [k for k, mask in enumerate(masks) if mask.any()]
                rows.append(some.iloc[kept])
                done += pool.map(partial(cut, size=size), [images[k] for k in kept], [masks[k] for k in kept])
    return stack(pd.concat(rows, ignore_index=True), done)


def save_cuts(path: str | Path, cuts: Cuts) -> None:
    """Writes cuts to an npz file: for this machine alone, since they are films."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = cuts.frame.to_csv(index=False).encode()
    np.savez_compressed(path, **vars(cuts) | {"frame": np.frombuffer(table, np.uint8)})


def load_cuts(path: str | Path) -> Cuts:
    """Reads what :func:`save_cuts` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    table = io.BytesIO(arrays.pop("frame").tobytes())
    return Cuts(pd.read_csv(table, dtype={"name": str}, keep_default_na=False), **arrays)


def view(images: torch.Tensor, lungs: torch.Tensor, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a variant shows of a film, normalised by the gray levels of what it shows, and the region it shows.

    ``whole``: the film. ``crop``: the box around the lungs, normalised by the lungs' own levels, so that neither
    collimation nor the arms of the patient set the scale. ``masked``: the same with all but the lungs at their mean.
    ``blanked``: the film with its lungs at the mean of the rest: what is learned from that is no disease of the lungs,
    though their outline, which disease changes too, is still seen.

    Args:
        images: ``(B, 1, H, W)`` of any dtype.
        lungs: the same, in {0, 1}.
        variant: of :data:`VARIANTS`.

    Returns:
        The images with zero mean and unit deviation over their region, and the region in {0, 1}, both
        ``float32 (B, 1, H, W)``.
    """
    if variant not in VARIANTS:
        raise ValueError(f"a variant is one of {', '.join(VARIANTS)}, not {variant!r}")
    images, lungs = images.float(), lungs.float()
    region = {"whole": torch.ones_like(lungs), "crop": lungs, "masked": lungs, "blanked": 1 - lungs}[variant]
    area = region.sum((-2, -1), keepdim=True).clamp_min(1)
    off = images - (images * region).sum((-2, -1), keepdim=True) / area
    off = off / ((off**2 * region).sum((-2, -1), keepdim=True) / area).sqrt().clamp_min(1e-3)
    if variant == "crop":
        return off.clamp(-4, 4), torch.ones_like(region)
    return off * region, region


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


def batches(
    cuts: Cuts, variant: str, *, batch: int, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
    """An epoch of augmented views: images, region and positions in the cuts; seed and epoch alone decide the order."""
    images, lungs = cuts.of(variant)
    augment = augmentation("tb")
    order = np.random.default_rng([seed, epoch]).permutation(len(cuts))
    augment.set_random_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
    for some in np.array_split(order, max(1, round(len(order) / batch))):
        moved = [augment(image=images[k], mask=lungs[k]) for k in some]
        seen = as_tensor(np.stack([film["image"] for film in moved]))
        inside = as_tensor(np.stack([film["mask"] for film in moved]))
        yield *view(seen, inside, variant), some


def as_tensor(films: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Films ``(B, H, W)`` as a tensor ``(B, 1, H, W)`` of the same dtype."""
    return torch.from_numpy(films[:, None]).to(device)


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
