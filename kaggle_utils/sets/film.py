"""A radiograph as it lies in a raw set: its files, its masks in whatever form, and what is known of the patient."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import MOST_LUNG
from ..image import read_mask, resize_mask


@dataclass(frozen=True)
class RunLengths:
    """A mask as the lengths of its runs, of background and lung in turn, beginning with background.

    Args:
        counts: pixels of each run, down the columns one after the other as COCO has them, or along the rows.
        shape: (H, W) of the mask; None is the radiograph's.
        by_rows: whether the runs go along the rows, and the last one of background is left out.
        where: the file or table it is from, for messages.
    """

    counts: np.ndarray
    shape: tuple[int, int] | None
    by_rows: bool = False
    where: str = ""

    @classmethod
    def from_pairs(cls, text: str, shape: tuple[int, int] | None, where: str = "") -> RunLengths:
        """Of ``start length start length …``, counted from 1 along the rows, as CheXmask and Kaggle's contests write.

        Raises:
            ValueError: the text holds something else, or runs that overlap.
        """
        try:
            numbers = np.array(text.split(), np.int64)
        except ValueError:
            raise ValueError(f"{where}: run lengths are numbers, not {text[:40]!r}") from None
        if len(numbers) % 2:
            raise ValueError(f"{where}: an odd number of run lengths; they are pairs of start and length")
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        ends = starts + lengths
        gaps = starts - np.r_[0, ends[:-1]]
        if (gaps < 0).any() or (lengths < 0).any():
            raise ValueError(f"{where}: runs overlap, or begin before the mask")
        return cls(np.stack([gaps, lengths], 1).ravel(), shape, by_rows=True, where=where)

    @classmethod
    def from_coco(cls, segmentation: dict | list, shape: tuple[int, int], where: str = "") -> RunLengths:
        """Of a COCO annotation: polygons, run lengths in a list, or in a string, which is compressed.

        Raises:
            ValueError: it is none of these.
            ImportError: pycocotools, which reads all but lists, is missing.
        """
        counts = segmentation["counts"] if isinstance(segmentation, dict) else None
        if isinstance(counts, (list, np.ndarray)):
            return cls(np.asarray(counts, np.int64), shape, where=where)
        try:
            from pycocotools import mask as coco
        except ImportError:
            raise ImportError(
                f"{where}: COCO's polygons and compressed run lengths need pycocotools: pip install pycocotools"
            ) from None
        try:
            if counts is None:
                packed = coco.merge(coco.frPyObjects(segmentation, *shape))
            else:
                packed = {"size": list(shape), "counts": counts.encode() if isinstance(counts, str) else counts}
            pixels = coco.decode(packed).ravel("F")
        except Exception as error:  # its own kinds are many
            raise ValueError(f"{where}: no COCO segmentation ({error})") from None
        changes = np.flatnonzero(np.diff(pixels, prepend=0))
        return cls(np.diff(np.r_[0, changes, pixels.size]), shape, where=where)

    def decode(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask, ``uint8 (H, W)`` in {0, 1}.

        Args:
            shape: of the radiograph, for a mask without a size of its own.

        Raises:
            ValueError: the runs don't fill the mask, or leave it.
        """
        height, width = self.shape or shape
        rest = height * width - self.counts.sum()
        if rest < 0 or (rest and not self.by_rows):
            raise ValueError(f"{self.where}: the runs don't fill a mask of {height}×{width} px")
        counts = self.counts
        if rest:
            counts = np.r_[counts, rest]
        pixels = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
        return pixels.reshape(height, width) if self.by_rows else pixels.reshape(width, height).T.copy()


@dataclass
class RawFilm:
    """One radiograph of a raw set.

    Args:
        name: unlike any other's.
        source: the set.
        tb: 1 is tuberculosis, 0 is none, None is not known.
        files: by role: image, mask, left, right, text (clinical).
        runs: masks that lie in a table, added up.
        fit: what a mask has in common with the image: its ``size``, its ``aspect`` (it is resized), or ``any`` (the
            same field, squeezed).
        patient: who it is of, where that is known.
        labels: grays of the lungs in mask files that are maps of more labels.
    """

    name: str
    source: str
    tb: int | None = None
    files: dict[str, Path] = field(default_factory=dict)
    runs: list[RunLengths] = field(default_factory=list)
    fit: str = "size"
    patient: str | None = None
    labels: tuple[int, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """All its files."""
        return [path for _, path in sorted(self.files.items())]

    @property
    def mask_files(self) -> list[Path]:
        """Left and right masks where there are both, else the whole mask, else nothing."""
        halves = [self.files[role] for role in ("left", "right") if role in self.files]
        whole = [self.files["mask"]] if "mask" in self.files else []
        return halves if len(halves) == 2 else whole or halves


def combined_mask(film: RawFilm, shape: tuple[int, int]) -> np.ndarray | None:
    """The mask of both lungs, ``uint8 (H, W)`` in {0, 1}, or None if there is none.

    Args:
        film: its files.
        shape: (H, W) of the image, which the mask must have too, or be rescaled to where the set allows it.

    Raises:
        ValueError: a mask is damaged, empty, nearly all lung, of another size, or lacks its other half.
    """
    files = film.mask_files
    if len(files) == 1 and "mask" not in film.files:
        raise ValueError(f"{files[0]}: the other lung's mask is missing")
    masks = [(str(path), read_mask(path, labels=film.labels)) for path in files] or [
        (runs.where, runs.decode(shape)) for runs in film.runs
    ]
    if not masks:
        return None
    # OR, not a sum: 255 + 255 wraps round to 254 in 8 bits.
    both = np.zeros(shape, np.uint8)
    for where, mask in masks:
        if not mask.any():
            raise ValueError(f"{where}: the mask is empty")
        alike = mask.shape[0] * shape[1] == mask.shape[1] * shape[0]
        if film.fit == "any" or (film.fit == "aspect" and alike):
            mask = resize_mask(mask, shape)
        if mask.shape != shape:
            raise ValueError(f"{where}: size mismatch, the mask is {mask.shape} and the film {shape}")
        both |= mask
    if both.mean() > MOST_LUNG:
        raise ValueError(f"{masks[0][0]}: {both.mean():.0%} of the film is lung: no mask of lungs")
    return both
