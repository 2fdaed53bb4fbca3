"""Masks for new films: read, checked, segmented, judged and measured; and scores of a prepared set, whose truth is known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from .checks import NO_CHEST, Checked, check_film, check_lungs
from .data import read_manifest
from .formats import annotate, check_formats, write_coco, write_dicom_seg
from .image import IMAGE_SUFFIXES, is_image_file, read_film, read_image, read_mask, resize_mask, write_bytes, write_image, write_mask
from .measure import MEASUREMENTS, measure, split_lungs
from .metrics import score
from .prep import combined_mask, find_films
from .quality import Quality, estimate_quality
from .segmenter import DEFAULT_WEIGHTS, LungSegmenter, clean_mask  # noqa: F401 (this module is the face of that one)

COLUMNS = ("name", "path", "height", "width", "lung_px", "lung_share", "quality", "flag", "reasons", "mask", "overlay", "notes", "error")
_FOLDERS = {"png": ("masks", "overlays"), "coco": (), "dicom-seg": ("dicom-seg",)}  # of each format
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


@dataclass(frozen=True)
class Segmented:
    """A film with its mask, or the reason why there is none.

    Attributes:
        film: as read and checked.
        mask: ``uint8 (H, W)`` in {0, 1}, of the film turned upright (``film.checked.image``); None where there is none.
        quality: of the mask.
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
        row = {"name": self.film.name, "path": str(self.film.path), "notes": "; ".join(self.notes), "error": self.error}
        if self.film.image is not None:
            row |= dict(zip(("height", "width"), self.film.image.shape))
        if self.mask is None:
            return row
        return row | {"lung_px": int(self.mask.sum()), "lung_share": round(float(self.mask.mean()), 4),
                      "quality": round(self.quality.estimate, 3), "flag": self.quality.flag, "reasons": "; ".join(self.quality.reasons)}


def find_files(patterns: Iterable[str | Path], *, skip: str | Path | None = None) -> list[Path]:
    """The image files that files, folders (searched below, not in hidden ones) and globs name, sorted, each once.

    In folders, DICOM files are told by their content, whatever their suffix; a DICOMDIR is no film.

    Args:
        patterns: files, folders and globs.
        skip: a folder not to search, such as the one that an earlier call wrote its own pictures to.

    Raises:
        FileNotFoundError: a pattern names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts)
                           and is_image_file(p))
        else:
            files = [path] if path.exists() else sorted(p for p in map(Path, glob(str(pattern), recursive=True)) if p.is_file())
        files = [p for p in files if skip is None or Path(skip).absolute() not in p.absolute().parents]
        if not files:
            raise FileNotFoundError(f"{pattern}: no such file, or no image ({', '.join(IMAGE_SUFFIXES)} or DICOM) in it")
        found.update(dict.fromkeys(files))
    return list(found)


def unique_names(files: list[Path]) -> list[str]:
    """Stems; films that share one are named by their whole path below the folder common to all."""
    twice = pd.Series([path.stem.lower() for path in files]).duplicated(keep=False)
    common = os.path.commonpath([path.absolute().parent for path in files]) if twice.any() else ""
    names = [re.sub(r"[/\\.]", "_", os.path.relpath(path, common)) if two else path.stem for path, two in zip(files, twice)]
    nth = pd.Series(names).str.lower().groupby(pd.Series(names).str.lower()).cumcount()  # a/b.png and a_b.png still meet
    return [f"{name}_{n + 1}" if n else name for name, n in zip(names, nth)]


def predict(patterns: Iterable[str | Path], out: str | Path, segmenter: LungSegmenter, *, batch: int = 8, force: bool = False,
            formats: Sequence[str] = ("png",)) -> pd.DataFrame:
    """Segments files; one that can't be read, or is refused, is a row with the reason, and the rest goes on.

    A film that lies on its side or upside down, or is a negative, is put right by :func:`checks.check_film` before it is
    segmented, and the notes say so. Its mask and overlay lie as the file does; it is measured upright, so the rows and
    columns in ``measurements.csv`` are those of the turned film.

    Args:
        patterns: files, folders and globs.
        out: gets ``predictions.csv`` and ``measurements.csv``: for each film with a mask, its name and what
            :func:`measure.measure` finds, to 4 decimals; and the masks in each of the ``formats``.
        segmenter: with which weights and switches.
        batch: films a forward pass.
        force: segment what would be refused too (no chest film, blank, too small); the reasons become notes.
        formats: ``png``: ``masks/NAME.png`` (0/255, the film's own size) and ``overlays/NAME.png``; ``coco``:
            ``coco.parquet``, see :func:`formats.write_coco`; ``dicom-seg``: ``dicom-seg/NAME.dcm`` for films that are DICOM files,
            see :func:`formats.write_dicom_seg`; where there can be none, the notes say why.

    Returns:
        The table of predictions: name, path, height, width, lung_px, lung_share, quality (an estimate of the mask's Dice), flag
        (ok, check or reject) and reasons of :func:`quality.estimate_quality`, mask, overlay, notes (what reading and the checks
        found and did, parted by semicolons), error. A film that was read but refused has height, width and ``refused: …`` in
        error; one that could not be read has error alone.

    Raises:
        FileNotFoundError: a pattern names nothing.
        ValueError: no such format.
        ImportError: a format's package is not installed.
        OSError: ``out`` can't be written.
    """
    check_formats(formats)
    out = Path(out)
    for folder in ("", *(folder for name in formats for folder in _FOLDERS[name])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    files = find_files(patterns, skip=out)
    names = unique_names(files)
    rows, measured, annotations = [], [], []
    bar = tqdm(total=len(files), desc="predict", unit="film", disable=None)
    with ThreadPoolExecutor() as pool:
        for films in _batches(_read_ahead(files, names, pool, 2 * batch, force), batch):
            good = [film for film in films if not film.error]
            probs = segmenter.probabilities([film.checked.image for film in good]) if good else ()
            known = dict(zip((film.name for film in good), probs))

            def finish(film: ReadFilm) -> tuple[dict, dict, list]:
                return _write(segment(film, known.get(film.name), segmenter, force=force), out, formats, segmenter.version)

            for row, found, lungs in pool.map(finish, films):
                rows.append(row)
                annotations += lungs
                if found:
                    measured.append({"name": row["name"], **found})
            bar.update(len(films))
    bar.close()
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("height", "width", "lung_px"), "Int64"))
    write_bytes(out / "predictions.csv", table.to_csv(index=False).encode())
    measurements = pd.DataFrame(measured, columns=["name", *MEASUREMENTS]).round(4).convert_dtypes()  # whole numbers as such
    write_bytes(out / "measurements.csv", measurements.to_csv(index=False).encode())
    if "coco" in formats:
        write_coco(out / "coco.parquet", annotations)
    return table


def read_checked(path: str | Path, name: str, *, force: bool = False, data: bytes | None = None) -> ReadFilm:
    """A film of any file, checked before it is segmented; never raises for what is in the file.

    Args:
        path: the file.
        name: by which the film goes in tables.
        force: what would be refused is read all the same, with the reasons as notes.
        data: the file's bytes where they are here already; then ``path`` may be any address.
    """
    try:
        film = read_film(path, fix_polarity=False, data=data)
    except (ValueError, OSError, ImportError) as error:  # a folder may hold DICOM besides what needs no extra
        return ReadFilm(name, path, error=str(error))
    checked = check_film(film.image, film.colour)
    refused = f"{path}: refused: {'; '.join(checked.problems)}" if checked.problems and not force else ""
    spacing = film.spacing_mm and film.spacing_mm[::-1 if checked.turned % 180 else 1]
    # No colours: many films wait in memory.
    return ReadFilm(name, path, film.image, checked, refused, spacing, film.notes + checked.problems * force + checked.notes)


def segment(film: ReadFilm, prob: np.ndarray | None, segmenter: LungSegmenter, *, force: bool = False) -> Segmented:
    """A film's mask from its probabilities, checked and judged; never raises for what is in the film.

    Args:
        film: of :func:`read_checked`.
        prob: what ``segmenter.probabilities`` said of ``film.checked.image``; None where the film has an error.
        segmenter: which did.
        force: keep the mask of what is hardly like a chest film and has no lungs of a usual shape.
    """
    if film.error or prob is None:
        return Segmented(film, notes=film.notes, error=film.error)
    mask = segmenter.finish(prob, film.checked.image.shape)
    lungs = check_lungs(mask)
    if film.checked.doubtful and lungs and not force:
        return Segmented(film, notes=film.notes + lungs, error=f"{film.path}: refused: {NO_CHEST}")
    return Segmented(film, mask, estimate_quality(prob, mask, segmenter.threshold), film.notes + lungs)


def evaluate(data: str | Path, segmenter: LungSegmenter, *, split: str = "test", sizes: Sequence[int] = (256, 512),
             raw: str | Path | None = None, batch: int = 8) -> pd.DataFrame:
    """Scores a prepared set, film by film.

    A source that the weights were not trained on is foreign: then all its films count, besides those of the split.
    Films of a source that the network has a head for are segmented by its rules, others by the segmenter's head.

    Args:
        data: the prepared set.
        segmenter: with which weights and switches.
        split: train, val or test.
        sizes: px at which prediction and truth are compared; the published tables use 256.
        raw: folder with the raw sets, to compare at each film's own size too (size 0 in the table), and to take the
            truth of the other sizes from there.
        batch: films a forward pass.

    Returns:
        One row a film, protocol and size: name, source, protocol (``test``, or ``all`` where the source is foreign),
        size and the scores of :func:`metrics.score` in px of that size.

    Raises:
        FileNotFoundError: no prepared set, or no raw film.
        ValueError: the split has no film with a mask.
    """
    frame = read_manifest(data)
    frame = frame[frame["split"] != "unlabelled"]
    foreign = ~frame["source"].isin(segmenter.header["sources"])
    frame = frame[(frame["split"] == split) | foreign]
    own = {film.name: film for film in find_films(raw)} if raw else {}
    if frame.empty:
        raise ValueError(f"{data}: no film with a mask in its {split} split")
    rows = []
    bar = tqdm(total=len(frame), desc="evaluate", unit="film", disable=None)
    for films in _batches(frame.itertuples(), batch):
        heads = [film.source if film.source in segmenter.heads else segmenter.head for film in films]
        probs = segmenter.probabilities([read_image(film.image) for film in films], heads)
        for film, prob in zip(films, probs):
            truth = read_mask(film.mask)
            truth_at = {}
            if film.name in own and own[film.name].mask_files:
                truth = truth_at[0] = combined_mask(own[film.name], (film.height, film.width))
            truth_at |= {size: resize_mask(truth, size) for size in sizes}
            protocols = [split] * (film.split == split) + ["all"] * (film.source not in segmenter.header["sources"])
            for size, truth in truth_at.items():
                scores = score(segmenter.finish(prob, truth.shape), truth)
                rows += [{"name": film.name, "source": film.source, "protocol": p, "size": size, **scores} for p in protocols]
        bar.update(len(films))
    bar.close()
    return pd.DataFrame(rows).sort_values(["size", "protocol", "source", "name"], ignore_index=True)


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


def _read_ahead(files: list[Path], names: list[str], pool: ThreadPoolExecutor, ahead: int, force: bool) -> Iterator[ReadFilm]:
    """Films in order, the next ones being decoded while the network works; never more than ``ahead`` in memory."""
    jobs = [pool.submit(read_checked, *item, force=force) for item in zip(files[:ahead], names)]
    for n in range(len(files)):
        film = jobs.pop(0).result()
        if n + ahead < len(files):
            jobs.append(pool.submit(read_checked, files[n + ahead], names[n + ahead], force=force))
        yield film


def _write(found: Segmented, out: Path, formats: Sequence[str],
           version: str) -> tuple[dict[str, object], dict[str, float], list[dict[str, object]]]:
    """Rows of the predictions and, empty without a mask, of the measurements and of the COCO annotations."""
    film, mask, row = found.film, found.mask, found.row
    if mask is None:
        return row, {}, []
    if "png" in formats:
        lying = film.checked.undo(mask)
        row |= {"mask": str(out / "masks" / f"{film.name}.png"), "overlay": str(out / "overlays" / f"{film.name}.png")}
        write_mask(row["mask"], lying)
        write_image(row["overlay"], draw_overlay(film.image, lying))
    lungs = tuple(map(film.checked.undo, split_lungs(mask))) if set(formats) - {"png"} else ()  # right and left only while upright
    if "dicom-seg" in formats:
        try:
            write_dicom_seg(out / "dicom-seg" / f"{film.name}.dcm", lungs, film.path, version=version)
        except ValueError as error:
            row["notes"] = "; ".join((*found.notes, f"no DICOM-SEG: {error}"))
    return row, measure(mask, film.spacing_mm), annotate(lungs, film.name, film.path) if "coco" in formats else []


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
