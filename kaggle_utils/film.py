"""What happens between a film's file and its mask besides the network: read, checked, cleaned, judged, drawn. Without PyTorch."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from .quality import NO_CHEST, Checked, check_film, check_lungs
from .files import printable
from .image import MOST_BYTES, film_bytes, read_film, resize_prob
from .quality import check_height
from .quality import Quality, estimate_quality, why_no_estimate

# Blue and orange of Okabe & Ito's palette, told apart by colour-blind eyes; BGR, as OpenCV draws.
TRUTH_COLOUR, PRED_COLOUR = (178, 114, 0), (0, 159, 230)
_LARGE = 200_000_000  # bytes of a batch, after which memory is given back; eight films of 1024 px have 80 million


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


def read_ahead(todo: Iterable[tuple[Path, str]], pool: Executor, batch: int, *, force: bool = False) -> Iterator[list[ReadFilm]]:
    """Batches of checked films, in order; while one is worked on the next one is read.

    As many are in memory as have room in :data:`image.MOST_BYTES` together; a batch ends early where the next film has none.

    Args:
        todo: of each film the file and the name, as for :func:`read_checked`.
        pool: whose threads read.
        batch: films of a batch at most.
        force: as for :func:`read_checked`.
    """
    todo, sizes, reading, films, held = iter(todo), deque(), deque(), [], 0
    while True:
        sizes.extend((item, pool.submit(film_bytes, item[0])) for item in islice(todo, 2 * batch - len(sizes)))
        while sizes and len(reading) + len(films) < 2 * batch and (not held or held + sizes[0][1].result() <= MOST_BYTES):
            item, size = sizes.popleft()
            held += size.result()
            reading.append((pool.submit(read_checked, *item, force=force), size.result()))
        if films and (len(films) == batch or not reading):
            size, batch_of_films = sum(size for _, size in films), [film for film, _ in films]
            films = []
            yield batch_of_films
            batch_of_films.clear()  # whoever took them is done
            held -= size
            if size > _LARGE:
                _give_back_memory()
        elif reading:
            job, size = reading.popleft()
            films.append((job.result(), size))
        else:
            return


def _give_back_memory() -> None:
    """Gives what was freed back to the kernel, where the C library keeps it (:func:`hardware.keep_memory`) and can."""
    with suppress(AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        ctypes.CDLL(None).malloc_trim(0)


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
