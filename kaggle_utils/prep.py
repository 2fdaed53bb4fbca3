"""Prepares raw sets: reads their films and masks, checks and resizes them, and splits them.

Where raw films and masks lie is for :mod:`sets` to find.

    OUT/{train,val,test}/{image,mask}/NAME.png   512×512
    OUT/unlabelled/image/NAME.png                films without a mask: they still serve step two
    OUT/manifest.csv, OUT/problems.csv, OUT/prep.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import cv2
import pandas as pd
from tqdm import tqdm

from .config import PREPARED_SIDES
from .files import Journal, check_ours, is_below, printable, write_bytes
from .image import read_image, resize_image, resize_mask, write_image, write_mask
from .quality import is_negative, no_radiograph
from .sets import RawFilm, combined_mask, find_films, find_own, read_clinical
from .splits import LICENCES, SAME_PATIENT, published_split
from .tables import read_csv, to_csv

SPLITS = ("train", "val", "test")
COLUMNS = ("name", "source", "split", "tb", "sex", "age", "height", "width", "inverted", "sha256", "pixels")
_NEW = ".unet-lung-new"  # folder of the films that have no split yet
_PLACES = (*SPLITS, "unlabelled", _NEW)  # of films; the newest last
_RULES = 4  # of what is written for a film; another number does every film again


class Problem(NamedTuple):
    """An item of the raw sets that can't be used, and why."""

    name: str
    source: str
    reason: str


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    size: int = 512,
    workers: int | None = None,
    split: str | Path = "published",
    seed: int = 0,
    masks: str | Path | None = None,
    source: str = "own",
    labels: Collection[int] = (),
) -> pd.DataFrame:
    """Prepares every radiograph found under a folder; a second run does only what is missing.

    Args:
        root: folder with the raw public sets, or, with ``masks``, with the radiographs of a set of your own.
        out: folder to write, see the module's docstring.
        size: px, side of the prepared films.
        workers: threads, one per core by default; decoding and resizing run outside Python's lock.
        split: ``published`` (the frozen lists; names outside them as ``random``), ``random``, or a CSV file with the
            columns name, split and patient, of which one of the last two is enough.
        seed: of the random split.
        masks: of a set of your own, see :func:`sets.find_own`.
        source: that set's name, and its head's.
        labels: grays of the lungs, where its masks are maps of more labels than lungs.

    Returns:
        The manifest, one row per prepared film. What could not be used is in ``problems.csv`` with its reason.

    Raises:
        FileNotFoundError: no film was found.
        ValueError: ``size`` is outside ``config.PREPARED_SIDES``, ``out`` is the raw films' own folder, or no film
            could be prepared; the message says why.
    """
    least, most = PREPARED_SIDES
    if not least <= size <= most:
        raise ValueError(f"prepared films have a side of {least} to {most} px, not of {size}")
    if split not in ("published", "random"):
        _read_split(split)  # says now what is wrong with it
    out = Path(out)
    if is_below(root, out):
        raise ValueError(f"{root}: raw films in the folder to write, {out}: choose another folder")
    films = find_films(root) if masks is None else find_own(root, masks, source, labels=labels)
    inside = next((path for film in films for path in film.paths if is_below(path, out)), None)
    if inside:
        raise ValueError(f"{inside}: a raw film in the folder to write, {out}: choose another folder")
    rows, problems = _prepare_all(films, out, size, workers or os.cpu_count() or 1)
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "masked", "patient"]).sort_values("name", ignore_index=True)
    first = frame.groupby("pixels")["name"].transform("first")
    twin = frame["name"] != first
    for name, of, other in zip(frame["name"][twin], frame["source"][twin], first[twin]):
        problems.append(Problem(name, of, f"the same pixels as {other}"))
    frame = frame[~twin].reset_index(drop=True)
    write_bytes(out / "problems.csv", to_csv(pd.DataFrame(problems, columns=Problem._fields)))
    if frame.empty:
        raise ValueError(
            f"{root}: none of {len(films)} films could be prepared, see {out / 'problems.csv'}; "
            f"the first: {problems[0].name}: {problems[0].reason}"
        )
    frame["split"] = assign_splits(frame, split=split, seed=seed)
    _move_to_splits(frame, out)
    manifest = frame[list(COLUMNS)].astype({"tb": "Int64"})
    write_bytes(out / "manifest.csv", to_csv(manifest))
    shutil.rmtree(out / _NEW)  # twins, and what a kill left half-written
    return manifest


def prepare_film(film: RawFilm, folder: str | Path, size: int = 512) -> dict[str, object]:
    """Reads one film and its masks, turns over a negative, combines left and right masks with OR, resizes and writes
    them.

    Args:
        film: its files.
        folder: where ``image/NAME.png`` and, if it has a mask, ``mask/NAME.png`` go.
        size: px, side of the prepared film.

    Returns:
        The film's row of the manifest, without its split.

    Raises:
        ValueError: a file is damaged, the film is too small, a mask or blank, or a mask is none of it, see
            :func:`combined_mask`.
    """
    if "image" not in film.files:
        raise ValueError("mask without image")
    path = film.files["image"]
    image = read_image(path)
    problem = no_radiograph(image)
    if problem:
        raise ValueError(f"{path}: {problem}")
    inverted = is_negative(image)
    image = 255 - image if inverted else image
    mask = combined_mask(film, image.shape)
    small = resize_image(image, size)
    if mask is not None:
        write_mask(Path(folder) / "mask" / f"{film.name}.png", resize_mask(mask, size))
    write_image(Path(folder) / "image" / f"{film.name}.png", small)
    sex, age = read_clinical(film.files["text"]) if "text" in film.files else (None, None)
    return {
        "name": film.name,
        "source": film.source,
        "tb": film.tb,
        "sex": sex,
        "age": age,
        "height": image.shape[0],
        "width": image.shape[1],
        "inverted": int(inverted),
        "masked": mask is not None,
        "patient": film.patient,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "pixels": hashlib.sha256(small.tobytes()).hexdigest()[:16],
    }


def random_split(frame: pd.DataFrame, *, seed: int = 0) -> pd.Series:
    """The walk-through's own split: 50 films put aside, of the rest 80 % train and 20 % validation.

    Films are shuffled within each group of source and TB label and the groups dealt out in proportion. A set of fewer
    than 250 films gives a fifth of them to the test. Films of one ``patient``, where that is known, stay together.
    """
    test = min(50, 0.2 * len(frame))
    n_test, n_val = round(test), round(0.2 * (len(frame) - test))
    order = frame.assign(tb=frame["tb"].fillna(-1)).sample(frac=1, random_state=seed)
    # Each film's place within its group, as a number in (0, 1): equal shares of every group fall below any threshold.
    groups = order.groupby(["source", "tb"])
    place = (groups.cumcount() + 0.5) / groups["name"].transform("size")
    patients = _patients(frame).loc[place.sort_values(kind="stable").index]
    films = patients.value_counts()[patients.unique()]  # of each patient, in the order of the first film's place
    split = pd.Series("train", films.index)
    for name, wanted in (("test", n_test), ("val", n_val)):
        rest = films[split == "train"]
        split[rest.index[rest.cumsum() - rest < wanted]] = name
    return _patients(frame).map(split)


def _patients(frame: pd.DataFrame) -> pd.Series:
    """Who each film is of; a film of which that isn't known is its own."""
    patient = frame["name"].copy()
    if "patient" in frame:
        patient = frame["patient"].fillna(patient)
    return patient.replace({name: names[0] for names in SAME_PATIENT for name in names})


def assign_splits(frame: pd.DataFrame, *, split: str | Path = "published", seed: int = 0) -> pd.Series:
    """The split of each film: train, val or test where it has a mask, else ``unlabelled``.

    Args:
        frame: with ``name``, ``source``, ``tb``, ``masked`` and, where it is known, ``patient``.
        split: ``published``, ``random`` or a CSV file, see :func:`prepare`.
        seed: of the random split.

    Raises:
        ValueError: there is no such file, or it has no column name, knows other splits, or lacks a film.
    """
    result = pd.Series(None, frame.index, object)
    if split == "published":
        result = published_split(frame).astype(object)
    elif split != "random":
        listed = _read_split(split)
        absent = frame["name"][~frame["name"].isin(listed.index)]
        if len(absent):
            raise ValueError(f"{split}: {len(absent)} radiographs are not in it, the first is {absent.iloc[0]}")
        result = frame["name"].map(listed["split"]).astype(object)
        frame = frame.assign(patient=frame["name"].map(listed["patient"]))
    # JSRT is there to test across sets: outside its published lists all of it is test.
    result[result.isna() & (frame["source"] == "jsrt")] = "test"
    masked = frame["masked"].astype(bool)
    rest = frame[masked & result.isna()]
    result[rest.index] = random_split(rest, seed=seed)
    result[~masked] = "unlabelled"
    return result


def _read_split(path: str | Path) -> pd.DataFrame:
    """A list of splits and patients, by name."""
    if not Path(path).is_file():
        raise ValueError(f"split is published, random or a CSV file, and {path} is no file")
    listed = read_csv(path)
    if "name" not in listed or not {"split", "patient"} & set(listed):
        raise ValueError(f"{path}: it has no columns name and split, or name and patient")
    listed = listed.assign(name=listed["name"].astype(str)).drop_duplicates("name").set_index("name")
    listed = listed.reindex(columns=["split", "patient"]).astype(object)
    wrong = set(listed["split"].dropna()) - set(SPLITS)
    if wrong:
        raise ValueError(f"{path}: {', '.join(map(str, wrong))} is no split: {', '.join(SPLITS)} are")
    return listed


def _prepare_all(films: list[RawFilm], out: Path, size: int, workers: int) -> tuple[list[dict], list[Problem]]:
    """Rows and problems of all films. ``films.jsonl`` grows with each one finished, so a killed run resumes there.

    Raises:
        ValueError: the folder holds something else.
    """
    check_ours(out, "prep.json")
    for kind in ("image", "mask"):
        (out / _NEW / kind).mkdir(parents=True, exist_ok=True)
    own = {(film.source, film.labels) for film in films if film.source and film.source not in LICENCES}
    settings = {"size": size, "rules": _RULES, "own": sorted(own)}
    write_bytes(out / "prep.json", json.dumps(settings).encode())
    journal = Journal(out / "films.jsonl", settings, {})
    rows, todo = _finished(films, journal, out)
    problems = []
    # OpenCV's own threads on top of ours would only get in each other's way.
    threads, pool = cv2.getNumThreads(), ThreadPoolExecutor(workers)
    cv2.setNumThreads(1)
    try:
        jobs = {pool.submit(prepare_film, film, out / _NEW, size): film for film in todo}
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="prep", unit="film", disable=None):
            film = jobs[job]
            try:
                row = job.result()
            except Exception as error:
                less = f"fewer workers than {workers}, or a smaller size than {size} px, take less"
                problems.append(Problem(film.name, film.source, _reason(error, out, less)))
            else:
                rows.append(row)
                journal.add(film.name, *film.paths, found=row)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, say, it would do all that is left
        cv2.setNumThreads(threads)
    return rows, sorted(problems)


def _finished(films: list[RawFilm], journal: Journal, out: Path) -> tuple[list[dict], list[RawFilm]]:
    """Rows of the films that an earlier run prepared and whose files are still there, in any split; and the others."""
    there = {(path.parent.name, path.stem) for path in _written(out)}
    rows, todo = [], []
    for film in films:
        row = journal.find(film.name, *film.paths)
        if row and ("image", film.name) in there and (("mask", film.name) in there or not row["masked"]):
            rows.append(row)
        else:
            todo.append(film)
    return rows, todo


def _reason(error: Exception, out: Path, less: str) -> str:
    """Why a film can't be used; raises what isn't the film's fault: a full disk, say, or an error of this program."""
    if isinstance(error, MemoryError) or isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
        return f"this machine's memory is too small for it: {less}"
    ours = isinstance(error, OSError) and error.filename and is_below(error.filename, out)
    if ours or not isinstance(error, (ValueError, OSError, ImportError)):
        raise error
    return printable(error)


def _written(out: Path) -> list[Path]:
    """All prepared films and masks, those without a split last."""
    return [path for place in _PLACES for path in sorted((out / place).glob("*/*.png"))]


def _move_to_splits(frame: pd.DataFrame, out: Path) -> None:
    """Puts every film where its split says. What the manifest doesn't name is left where it is."""
    splits = dict(zip(frame["name"], frame["split"]))
    for path in _written(out):
        split, kind = splits.get(path.stem), path.parent.name
        if split == "unlabelled" and kind == "mask":
            path.unlink()  # of an earlier run: its raw mask is gone
        elif split:
            target = out / split / kind / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
