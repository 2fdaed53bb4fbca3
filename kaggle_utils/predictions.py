"""Segments folders of radiographs into masks and tables; scores the masks of a prepared set, whose truth is known."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from .data import read_manifest
from .dicom.coco import annotate, write_coco
from .dicom.seg import write_dicom_seg
from .files import FULL, Journal, printable, start_results, write_bytes
from .image import read_image, read_mask, resize_mask, write_image, write_mask
from .infer import CheckedFilm, LungSegmenter, Result, Segmented, Unsegmented, segment_batches
from .metrics import score
from .pictures.find import SHEET, find_files, unique_names
from .pictures.overlay import draw_overlay
from .pictures.sheet import Tile, draw_sheet
from .quality import MEASUREMENTS, measure
from .sets import RawFilm, combined_mask, find_films
from .tables import read_csv, to_csv

log = logging.getLogger(__name__)
PREDICTION_COLUMNS = (
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
ON_SHEET = 24  # masks
_DISK = {*FULL, errno.EROFS, errno.EIO, errno.EACCES}  # the folder's failures, not a film's


class Format(NamedTuple):
    """How masks are written.

    Attributes:
        label: in notes.
        files: a film's, as their folder and suffix.
        packages: that it needs.
    """

    label: str
    files: dict[str, str]
    packages: tuple[str, ...]


FORMATS = {
    "png": Format("PNG", {"masks": ".png", "overlays": ".png"}, ()),
    "coco": Format("COCO", {}, ("pycocotools", "pyarrow")),
    "dicom-seg": Format("DICOM-SEG", {"dicom-seg": ".dcm"}, ("highdicom", "pydicom")),
}


def check_formats(formats: Sequence[str]) -> None:
    """Raises ValueError at a name that ``FORMATS`` lacks, and ImportError where a format's package is not installed."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"no format {', '.join(map(repr, unknown)) or 'named'}: choose from {', '.join(FORMATS)}")
    for name in formats:
        missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
        if missing:
            raise ImportError(f"format {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def predict(
    patterns: Iterable[str | Path],
    out: str | Path,
    segmenter: LungSegmenter,
    *,
    batch: int = 8,
    force: bool = False,
    formats: Sequence[str] = ("png",),
) -> pd.DataFrame:
    """Segments files; one that can't be read, or is refused, is a row with the reason, and the rest is done.

    A film that lies on its side or upside down, is stored mirrored by its PatientOrientation, or is a negative, is put
    right by :func:`quality.check_film` before it is segmented, and the notes say so. Its mask and overlay lie as the
    file does; it is measured upright, so the rows and columns in ``measurements.csv`` are those of the turned film.

    Each film's row is in ``predictions.jsonl`` as soon as its mask is written: a run that was stopped resumes there
    when you call it again, and a film whose file and results are as they were isn't done twice. Other weights,
    switches or formats start afresh.

    Args:
        patterns: files, folders and globs.
        out: gets ``predictions.csv`` and ``measurements.csv``: for each film with a mask, its name and what
            :func:`quality.measure` finds, to 4 decimals; the masks in each of the ``formats``; and, of pictures,
            ``contact.png``, a sheet of the 24 most doubtful ones.
        segmenter: with which weights and switches.
        batch: films at once.
        force: segment what would be refused too (no chest film, blank, too small); the reasons become notes.
        formats: ``png``: ``masks/NAME.png`` (0/255, the film's own size) and ``overlays/NAME.png``; ``coco``:
            ``coco.parquet``, see :func:`dicom.coco.write_coco`; ``dicom-seg``: ``dicom-seg/NAME.dcm`` for films that
            are DICOM files, see :func:`dicom.seg.write_dicom_seg`, where it is certain which lung is the right one.
            What a film makes impossible is a note.

    Returns:
        The table of predictions: name, path, height, width, lung_px, lung_share, quality (an estimate of the mask's
        Dice), flag (ok, check or reject) and reasons of :func:`quality.estimate_quality`, mask, overlay, notes (what
        reading and the checks found and did, separated by semicolons), error. A film that was read but refused has
        height, width and ``refused: …`` in error; one that could not be read has error alone.

    Raises:
        FileNotFoundError: a pattern names nothing.
        ValueError: no such format, or results would replace what is not of an earlier run.
        ImportError: a format's package is not installed.
        OSError: ``out`` can't be written.
    """
    check_formats(formats)
    out = Path(out)
    write = partial(_write, out=out, formats=formats, version=segmenter.version)
    table = segment_into(
        out / "predictions.csv",
        patterns,
        segmenter,
        columns=PREDICTION_COLUMNS,
        outputs=_outputs(formats),
        removed=_outputs(FORMATS),
        others=(SHEET,),
        settings={"force": force, "formats": list(formats)},
        finish=lambda results, pool: pool.map(write, results),
        write_tables=lambda found: _write_tables(found, out, formats),
        batch=batch,
        force=force,
    )
    _write_sheet(table[table["overlay"].notna()], out)
    return table


def segment_into(
    table: Path,
    patterns: Iterable[str | Path],
    segmenter: LungSegmenter,
    *,
    columns: Sequence[str],
    outputs: Sequence[str],
    removed: Sequence[str],
    settings: dict[str, Any],
    finish: Callable[[list[Result], Executor], Iterable[dict[str, Any]]],
    write_tables: Callable[[list[dict[str, Any]]], pd.DataFrame],
    others: Sequence[str] = (),
    batch: int = 8,
    force: bool = False,
) -> pd.DataFrame:
    """Segments files into a folder with a table; a run that was stopped resumes there. See :func:`predict`.

    Args:
        table: CSV file in the folder; the journal, which is beside it, has its name.
        patterns: files, folders and globs.
        segmenter: with which weights and switches.
        columns: of the table.
        outputs: files that are written for a film, such as ``masks/{}.png``, from the folder.
        removed: those of an earlier run that go before a film is done again.
        settings: what decides the results besides the segmenter's own settings, JSON-able.
        finish: makes of a batch, with a pool's help, what is kept in the journal of each film, in order.
        write_tables: makes the tables of all that was kept, in the order of the files; what it returns is returned.
        others: further files that the caller writes to the folder.
        batch: films at once.
        force: see :func:`infer.segment_films`.
    """
    out = table.parent
    files = find_files(patterns, out=out)
    folders = sorted({output.partition("/")[0] for output in outputs})
    start_results(out, table.name, columns, folders, others=others)
    names = unique_names(files)
    earlier = set(read_csv(table)["name"]) - set(names)
    if earlier:
        left = f"{len(earlier)} radiographs of an earlier run, whose masks stay"
        log.warning("%s is written anew, without the rows of %s: choose another --out to keep both", table, left)
    settings = {**segmenter.settings, **settings, "out": printable(out)}
    journal = Journal(table.with_suffix(".jsonl"), settings, dict(zip(names, files)))
    found = {name: journal.find(name, file) for file, name in zip(files, names)}
    todo = [(file, name) for file, name in zip(files, names) if found[name] is None]
    bar = tqdm(total=len(files), initial=len(files) - len(todo), desc=table.stem, unit="film", disable=None)
    try:
        with ThreadPoolExecutor() as pool, bar:
            for results in segment_batches(todo, segmenter, pool, batch=batch, force=force):
                for result in results:
                    journal.remove(result.name, [output.format(result.name) for output in removed])
                for result, kept in zip(results, finish(results, pool)):
                    found[result.name] = kept
                    if isinstance(result, Segmented) or result.shape:  # what could not be read is tried again
                        there = [output.format(result.name) for output in outputs]
                        journal.add(result.name, Path(result.path), found=kept, outputs=there)
                bar.update(len(results))
    except BaseException:
        with suppress(OSError):  # of which the first one counts
            write_tables([kept for kept in found.values() if kept is not None])
        raise
    return write_tables([kept for kept in found.values() if kept is not None])


def evaluate(
    data: str | Path,
    segmenter: LungSegmenter,
    *,
    split: str = "test",
    sizes: Sequence[int] = (256, 512),
    raw: str | Path | None = None,
    whole: Sequence[str] | None = None,
    batch: int = 8,
) -> pd.DataFrame:
    """Scores a prepared set, film by film.

    A source that the weights were not trained on is external: then all its films count, besides those of the split.
    Films of a source that the network has a head for are segmented by its rules, others by the segmenter's head.

    Args:
        data: the prepared set.
        segmenter: with which weights and switches.
        split: train, val or test.
        sizes: px at which prediction and truth are compared; the published tables use 256.
        raw: folder with the raw sets, to compare at each film's own size too (size 0 in the table), and to take the
            truth of the other sizes from there.
        whole: the sources of which all films count where they are external; any if None.
        batch: films at once.

    Returns:
        One row per film, protocol and size: name, source, protocol (``test``, or ``all`` where the source is
        external), size and the scores of :func:`metrics.score` in px of that size.

    Raises:
        FileNotFoundError: no prepared set, or no raw film.
        ValueError: the split has no film with a mask.
    """
    frame = read_manifest(data)
    external = set(frame["source"] if whole is None else whole) - set(segmenter.header["sources"])
    counts = (frame["split"] == split) | frame["source"].isin(external)
    frame = frame[counts & (frame["split"] != "unlabelled")]
    raw_films = {film.name: film for film in find_films(raw)} if raw else {}
    if frame.empty:
        raise ValueError(f"{data}: no film with a mask in its {split} split")
    todo = list(frame.itertuples())
    rows = []
    with tqdm(total=len(todo), desc="evaluate", unit="film", disable=None) as bar:
        for start in range(0, len(todo), batch):
            films = todo[start : start + batch]
            probs = segmenter.probabilities([read_image(film.image) for film in films], [film.source for film in films])
            for film, prob in zip(films, probs):
                for size, truth in _truths(film, sizes, raw_films.get(film.name)).items():
                    row = {"name": film.name, "source": film.source, "protocol": split, "size": size}
                    row |= score(segmenter.finish(prob, truth.shape), truth)
                    if film.split == split:
                        rows.append(row)
                    if film.source in external:
                        rows.append(row | {"protocol": "all"})
            bar.update(len(films))
    return pd.DataFrame(rows).sort_values(["size", "protocol", "source", "name"], ignore_index=True)


def _truths(film: Any, sizes: Sequence[int], raw: RawFilm | None) -> dict[int, np.ndarray]:
    """The true masks of a film of the manifest, by size; 0 is the raw film's own, where there is one."""
    own = combined_mask(raw, (film.height, film.width)) if raw else None
    if own is None:
        truth, truths = read_mask(film.mask), {}
    else:
        truth, truths = own, {0: own}
    for size in sizes:
        truths[size] = resize_mask(truth, size)
    return truths


def _outputs(formats: Iterable[str]) -> list[str]:
    """The files that a film gets in these formats, its name left open."""
    return [f"{folder}/{{}}{suffix}" for form in formats for folder, suffix in FORMATS[form].files.items()]


def _write(result: Result, out: Path, formats: Sequence[str], version: str) -> dict[str, Any]:
    """Writes a film's files; its ``row`` of predictions, and what was ``measured`` and its ``annotations``, if any."""
    row = result.row
    if isinstance(result, Unsegmented):
        return {"row": row, "measured": {}, "annotations": []}
    film, notes, annotations = result.film, list(result.notes), []
    for form in formats:
        try:
            if form == "png":
                row |= _write_pictures(film, result.mask, out)
            elif form == "coco":
                annotations = annotate(result.lungs, film.name, film.path)
            else:
                notes += _write_dicom_seg(result, out, version)
        except Exception as error:  # whatever a film makes a format's packages raise, the other films go on
            if getattr(error, "errno", None) in _DISK:  # as with all that follow
                raise
            notes.append(f"no {FORMATS[form].label}: {_in_a_note(error)}")
    row["notes"] = "; ".join(notes)
    return {"row": row, "measured": measure(result.upright, film.spacing_mm), "annotations": annotations}


def _write_pictures(film: CheckedFilm, lying: np.ndarray, out: Path) -> dict[str, str]:
    """Writes mask and overlay; their columns in the table."""
    mask, overlay = out / "masks" / f"{film.name}.png", out / "overlays" / f"{film.name}.png"
    write_mask(mask, lying)
    write_image(overlay, draw_overlay(film.image, lying))
    return {"mask": printable(mask), "overlay": printable(overlay)}


def _write_sheet(table: pd.DataFrame, out: Path) -> None:
    """Writes a contact sheet of the most doubtful masks of those that have an overlay, or removes an earlier one."""
    if table.empty:
        (out / SHEET).unlink(missing_ok=True)
        return
    shown = table.sort_values("quality", kind="stable").head(ON_SHEET)
    tiles = []
    for film in shown.itertuples():
        doubted = film.flag in ("check", "reject")
        judged = f"{film.flag}: " * doubted + f"estimated Dice {film.quality:.2f}" if film.flag else ""
        tiles.append(Tile(out / "overlays" / f"{film.name}.png", (film.name, judged), doubted))
    write_image(out / SHEET, draw_sheet(f"{len(shown)} of {len(table)} masks, the most doubtful first", tiles))


def _write_dicom_seg(result: Segmented, out: Path, version: str) -> tuple[str, ...]:
    if not result.film.checked.sides:
        raise ValueError("which of the lungs is the right one is not certain")
    path = out / "dicom-seg" / f"{result.name}.dcm"
    return write_dicom_seg(path, result.lungs, result.path, version=version)


def _in_a_note(error: Exception) -> str:
    text = " ".join(str(error).split())[:300].replace(";", ",")
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__} {text}"


def _write_tables(done: list[dict[str, Any]], out: Path, formats: Sequence[str]) -> pd.DataFrame:
    whole = dict.fromkeys(("height", "width", "lung_px"), "Int64")
    table = pd.DataFrame([found["row"] for found in done], columns=PREDICTION_COLUMNS).astype(whole)
    write_bytes(out / "predictions.csv", to_csv(table))
    measured = [{"name": found["row"]["name"], **found["measured"]} for found in done if found["measured"]]
    measurements = pd.DataFrame(measured, columns=["name", *MEASUREMENTS]).round(4)
    write_bytes(out / "measurements.csv", to_csv(measurements.convert_dtypes()))  # whole numbers as such
    if "coco" in formats:
        write_coco(out / "coco.parquet", [lung for found in done for lung in found["annotations"]])
    return table
