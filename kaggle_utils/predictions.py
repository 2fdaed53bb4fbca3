"""Folders of films: masks and tables for new ones; scores of a prepared set, whose truth is known."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from .data import read_manifest
from .dicom.formats import annotate, check_formats, write_coco, write_dicom_seg
from .files import FULL, Journal, printable, start_results, write_bytes
from .image import read_image, read_mask, resize_mask, write_image, write_mask
from .infer import CheckedFilm, LungSegmenter, Segmented, Unsegmented, draw_overlay, segment_batches
from .metrics import score
from .pictures.find import find_files, unique_names
from .prep import combined_mask, find_films
from .quality import MEASUREMENTS, measure
from .tables import to_csv

COLUMNS = (
    "name",
    "path",
    "height",
    "width",
    "lung_px",
    "lung_share",
    "quality",
    "flag",
    "reasons",
    "mask",
    "overlay",
    "notes",
    "error",
)
_FOLDERS = {
    "png": {"masks": ".png", "overlays": ".png"},
    "coco": {},
    "dicom-seg": {"dicom-seg": ".dcm"},
}  # of each format, and their files' suffix
_DISK = {*FULL, errno.EROFS, errno.EIO, errno.EACCES}  # the folder's failures, and no film's
_NAMES = {"png": "PNG", "coco": "COCO", "dicom-seg": "DICOM-SEG"}  # in notes


def predict(
    patterns: Iterable[str | Path],
    out: str | Path,
    segmenter: LungSegmenter,
    *,
    batch: int = 8,
    force: bool = False,
    formats: Sequence[str] = ("png",),
) -> pd.DataFrame:
    """Segments files; one that can't be read, or is refused, is a row with the reason, and the rest goes on.

    A film that lies on its side or upside down, is stored mirrored by its PatientOrientation, or is a negative, is put right by
    :func:`checks.check_film` before it is segmented, and the notes say so. Its mask and overlay lie as the file does; it is measured upright, so the rows and
    columns in ``measurements.csv`` are those of the turned film.

    Each film's row is in ``predictions.jsonl`` as soon as its mask is written: what is stopped goes on there when it is called again, and
    a film whose file and results are as they were isn't done twice. Other weights, switches or formats start afresh.

    Args:
        patterns: files, folders and globs.
        out: gets ``predictions.csv`` and ``measurements.csv``: for each film with a mask, its name and what
            :func:`measure.measure` finds, to 4 decimals; and the masks in each of the ``formats``.
        segmenter: with which weights and switches.
        batch: films a forward pass.
        force: segment what would be refused too (no chest film, blank, too small); the reasons become notes.
        formats: ``png``: ``masks/NAME.png`` (0/255, the film's own size) and ``overlays/NAME.png``; ``coco``:
            ``coco.parquet``, see :func:`dicom.formats.write_coco`; ``dicom-seg``: ``dicom-seg/NAME.dcm`` for films that are DICOM files,
            see :func:`dicom.formats.write_dicom_seg`, where it is certain which lung is the right one. What a film makes impossible is a note.

    Returns:
        The table of predictions: name, path, height, width, lung_px, lung_share, quality (an estimate of the mask's Dice), flag
        (ok, check or reject) and reasons of :func:`quality.estimate_quality`, mask, overlay, notes (what reading and the checks
        found and did, parted by semicolons), error. A film that was read but refused has height, width and ``refused: …`` in
        error; one that could not be read has error alone.

    Raises:
        FileNotFoundError: a pattern names nothing.
        ValueError: no such format, or results would replace what is not of an earlier run.
        ImportError: a format's package is not installed.
        OSError: ``out`` can't be written.
    """
    check_formats(formats)
    out = Path(out)
    files = find_files(patterns, out=out)
    start_results(out, "predictions.csv", COLUMNS, [folder for name in formats for folder in _FOLDERS[name]])
    names = unique_names(files)
    settings = {**segmenter.settings, "force": force, "formats": list(formats), "out": printable(out)}
    journal = Journal(out / "predictions.jsonl", settings, dict(zip(names, files)))
    done = {name: found for file, name in zip(files, names) if (found := journal.find(file, name))}
    todo = [(file, name) for file, name in zip(files, names) if name not in done]

    def write(result: Segmented | Unsegmented) -> dict[str, object]:
        journal.remove(result.name, _outputs(result.name))
        return dict(zip(("row", "measured", "annotations"), _write(result, out, formats, segmenter.version)))

    try:
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=len(files), initial=len(done), desc="predict", unit="film", disable=None) as bar,
        ):
            for results in segment_batches(todo, segmenter, pool, batch=batch, force=force):
                for result, found in zip(results, pool.map(write, results)):
                    done[result.name] = found
                    if isinstance(result, Segmented) or result.shape:  # what could not be read is tried again
                        journal.add(Path(result.path), result.name, found, _outputs(result.name, formats))
                bar.update(len(results))
    except BaseException:
        with suppress(OSError):  # of which the first one counts
            _write_tables([done[name] for name in names if name in done], out, formats)
        raise
    return _write_tables([done[name] for name in names], out, formats)


def _outputs(name: str, formats: Iterable[str] = _FOLDERS) -> list[str]:
    """The files of a film in these formats."""
    return [f"{folder}/{name}{suffix}" for form in formats for folder, suffix in _FOLDERS[form].items()]


def _write_tables(done: list[dict[str, object]], out: Path, formats: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame([found["row"] for found in done], columns=COLUMNS).astype(
        dict.fromkeys(("height", "width", "lung_px"), "Int64")
    )
    write_bytes(out / "predictions.csv", to_csv(table))
    measured = [{"name": found["row"]["name"], **found["measured"]} for found in done if found["measured"]]
    measurements = (
        pd.DataFrame(measured, columns=["name", *MEASUREMENTS]).round(4).convert_dtypes()
    )  # whole numbers as such
    write_bytes(out / "measurements.csv", to_csv(measurements))
    if "coco" in formats:
        write_coco(out / "coco.parquet", [lung for found in done for lung in found["annotations"]])
    return table


def evaluate(
    data: str | Path,
    segmenter: LungSegmenter,
    *,
    split: str = "test",
    sizes: Sequence[int] = (256, 512),
    raw: str | Path | None = None,
    batch: int = 8,
) -> pd.DataFrame:
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
                rows += [
                    {"name": film.name, "source": film.source, "protocol": p, "size": size, **scores} for p in protocols
                ]
        bar.update(len(films))
    bar.close()
    return pd.DataFrame(rows).sort_values(["size", "protocol", "source", "name"], ignore_index=True)


def _write(
    found: Segmented | Unsegmented, out: Path, formats: Sequence[str], version: str
) -> tuple[dict[str, object], dict[str, float], list[dict[str, object]]]:
    """Rows of the predictions and, empty without a mask, of the measurements and of the COCO annotations."""
    row = found.row
    if isinstance(found, Unsegmented):
        return row, {}, []
    film, notes, annotations = found.film, list(found.notes), []
    lungs = (found.right, found.left) if set(formats) - {"png"} else ()
    for form in formats:
        try:
            if form == "png":
                row |= _write_pictures(film, found.mask, out)
            elif form == "coco":
                annotations = annotate(lungs, film.name, film.path)
            else:
                notes += _write_dicom_seg(film, lungs, out, version)
        except Exception as error:  # whatever a film makes a format's packages raise, the other films go on
            if getattr(error, "errno", None) in _DISK:  # as with all that follow
                raise
            notes.append(f"no {_NAMES[form]}: {_in_a_note(error)}")
    return row | {"notes": "; ".join(notes)}, measure(found.upright, film.spacing_mm), annotations


def _write_pictures(film: CheckedFilm, lying: np.ndarray, out: Path) -> dict[str, str]:
    """Writes mask and overlay; their columns in the table."""
    paths = {"mask": out / "masks" / f"{film.name}.png", "overlay": out / "overlays" / f"{film.name}.png"}
    write_mask(paths["mask"], lying)
    write_image(paths["overlay"], draw_overlay(film.image, lying))
    return {column: printable(path) for column, path in paths.items()}


def _write_dicom_seg(
    film: CheckedFilm, lungs: tuple[np.ndarray, np.ndarray], out: Path, version: str
) -> tuple[str, ...]:
    if not film.checked.sides:
        raise ValueError("which of the lungs is the right one is not certain")
    return write_dicom_seg(out / "dicom-seg" / f"{film.name}.dcm", lungs, film.path, version=version)


def _in_a_note(error: Exception) -> str:
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__} "
    return f"{kind}{' '.join(str(error).split())[:300]}".replace(";", ",")


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
