"""What happens between a film's file and its mask besides the network: read, checked, cleaned, judged, drawn. Without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .checks import NO_CHEST, Checked, check_film, check_lungs
from .files import printable
from .image import read_film, resize_prob
from .measure import check_height
from .quality import Quality, estimate_quality, why_no_estimate

# Blue and orange of Okabe & Ito's palette, told apart by colour-blind eyes; BGR, as OpenCV draws.
TRUTH_COLOUR, PRED_COLOUR = (178, 114, 0), (0, 159, 230)


@dataclass(frozen=True)
class ReadFilm:
    """A film read from a file, as it lies there, and what the checks made of it; or the reason why there is none to segment."""

    name: str
    path: str | Path
    image: np.ndarray | None = None
    checked: Checked | None = None
    error: str = ""
    spacing_mm: tuple[float, float] | None = None  # between the checked film's rows and columns, where the file carries them
    notes: tuple[str, ...] = ()  # without semicolons
    age: float | None = None  # of the patient, years, where the file says it


@dataclass(frozen=True)
class Segmented:
    """A film with its mask, or the reason why there is none.

    Attributes:
        film: as read and checked.
        mask: ``uint8 (H, W)`` in {0, 1}, of the film turned upright (``film.checked.image``); None where there is none.
        quality: of the mask; None where the network comes without an estimate, which the notes say.
        notes: what reading and the checks found and did, without semicolons.
        error: why there is no mask.
    """

    film: ReadFilm
    mask: np.ndarray | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def row(self) -> dict[str, object]:
        """What ``predictions.csv`` says of it, without the paths of what was written."""
        row = {"name": self.film.name, "path": printable(self.film.path), "notes": "; ".join(self.notes), "error": printable(self.error)}
        if self.film.image is not None:
            row |= dict(zip(("height", "width"), self.film.image.shape))
        if self.mask is None:
            return row
        row |= {"lung_px": int(self.mask.sum()), "lung_share": round(float(self.mask.mean()), 4)}
        if self.quality is None:
            return row | {"flag": "", "reasons": ""}
        return row | {"quality": round(self.quality.estimate, 3), "flag": self.quality.flag,
                      "reasons": "; ".join(self.quality.reasons)}


def read_checked(path: str | Path, name: str, *, force: bool = False, data: bytes | None = None) -> ReadFilm:
    """A film of any file, checked before it is segmented; never raises for what is in the file.

    Args:
        path: the file.
        name: by which the film goes in tables.
        force: what would be refused is read all the same, with the reasons as notes.
        data: the file's bytes where they are here already; then ``path`` may be any address.
    """
    try:
        film = read_film(path, data=data)
    except (ValueError, OSError, ImportError) as error:  # a folder may hold DICOM besides what needs no extra
        return ReadFilm(name, path, error=str(error))
    checked = check_film(film.image, film.colour, film.lie)
    refused = f"{path}: refused: {'; '.join(checked.problems)}" if checked.problems and not force else ""
    spacing = film.spacing_mm and film.spacing_mm[::-1 if checked.turned % 180 else 1]
    # No colours: many films wait in memory.
    return ReadFilm(name, path, film.image, checked, refused, spacing, film.notes + checked.problems * force + checked.notes, film.age)


def segment(film: ReadFilm, prob: np.ndarray | None, segmenter, *, force: bool = False) -> Segmented:
    """A film's mask from its probabilities, checked and judged; never raises for what is in the film.

    Args:
        film: of :func:`read_checked`.
        prob: what ``segmenter.probabilities`` said of ``film.checked.image``; None where the film has an error.
        segmenter: which did; its ``finish``, ``threshold`` and ``quality`` are those of :class:`segmenter.LungSegmenter`.
        force: keep the mask of what is hardly like a chest film and has no lungs of a usual shape.
    """
    if film.error or prob is None:
        return Segmented(film, notes=film.notes, error=film.error)
    mask = segmenter.finish(prob, film.checked.image.shape)
    lungs = check_lungs(mask)
    if film.checked.doubtful and lungs and not force:
        return Segmented(film, notes=film.notes + lungs, error=f"{film.path}: refused: {NO_CHEST}")
    notes = film.notes + lungs + check_height(mask, film.spacing_mm, film.age)
    quality = estimate_quality(prob, mask, segmenter.quality, segmenter.threshold)
    return Segmented(film, mask, quality, notes if quality else (*notes, why_no_estimate(segmenter.quality)))


def finish_mask(prob: np.ndarray, shape: tuple[int, int], *, threshold: float = 0.5, clean: bool = True) -> np.ndarray:
    """Probabilities ``(size, size)`` to a mask of any ``shape``: resized, thresholded, cleaned."""
    mask = (resize_prob(prob, shape) > threshold).astype(np.uint8)
    return clean_mask(mask) if clean else mask


def clean_mask(mask: np.ndarray, components: int = 2) -> np.ndarray:
    """Keeps the largest connected components and fills their holes.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}.
        components: how many to keep; there are two lungs.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    keep = np.zeros(count, np.uint8)
    keep[1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:components]] = 1
    outlines, _ = cv2.findContours(keep[labels], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)


def draw_overlay(image: np.ndarray, pred: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """The film with the outline of the prediction (orange) and, if there is one, of the truth (blue).

    Args:
        image: ``uint8 (H, W)``.
        pred: ``uint8 (H, W)`` in {0, 1}.
        truth: the same.

    Returns:
        ``uint8 (H, W, 3)``, BGR.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    width = max(1, round(min(image.shape) / 256))  # px: as thick on a 20-megapixel film as on a small one
    for mask, colour in ((truth, TRUTH_COLOUR), (pred, PRED_COLOUR)):
        if mask is not None:
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    return canvas
