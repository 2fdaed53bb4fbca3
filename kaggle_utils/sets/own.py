"""A set of your own: radiographs in one folder, their masks in another or in a table, paired by name.

images/any/nesting/p7.dcm    masks/p7.png, or p7_mask.tif, or a DICOM segmentation p7.dcm
                             masks/left/p7.png and masks/right/p7.png, or p7_left.png and p7_right.png
                             masks.csv or .parquet: run lengths of COCO, CheXmask or Kaggle's contests
                             masks.json: COCO annotations
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..pictures.find import is_film, walk, without_suffix
from ..splits import LICENCES
from .film import RawFilm, RunLengths

TABLES = (".csv", ".parquet", ".json")
_NAMES = ("name", "image_id", "image id", "imageid", "image index", "dicom_id", "file_name", "filename", "image", "id")
_RUNS = ("rle", "encodedpixels", "encoded_pixels", "rle_mask", "mask")
_SIDE = re.compile(r"(?:^|[\W_])(left|right)(?:$|[\W_])", re.I)
_MASK_WORD = r"left|right|lungs?|masks?|seg|segmentation|labels?"
_IMAGE_WORD = r"images?|img|films?|cxr|xray|x-ray|scan"
_WORDS = re.compile(rf"(?:^|[\s_.-]+)(?:{_MASK_WORD})(?=$|[\W_])", re.I)
_ALL_WORDS = re.compile(rf"(?:^|[\s_.-]+)(?:{_MASK_WORD}|{_IMAGE_WORD})(?=$|[\W_])", re.I)


def find_own(images: str | Path, masks: str | Path, source: str, *, labels: Collection[int] = ()) -> list[RawFilm]:
    """Pairs radiographs and masks.

    Args:
        images: folder of radiographs, searched below; the stem of a file is its name.
        masks: folder of masks, searched below, or a table of run lengths, see the module's docstring.
        source: what to call the set.
        labels: grays of the lungs, where masks are maps of more labels than lungs.

    Returns:
        Radiographs in the order of their names, without a mask where there is none; then masks without a radiograph.

    Raises:
        FileNotFoundError: there is no such folder or table, or no radiograph in it.
        ValueError: two radiographs of one name, or a table that says nothing of masks.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", source) or source in LICENCES:
        raise ValueError(f"{source!r}: the name of a set is of small letters, digits, - and _, and no public set's")
    images, masks = Path(images), Path(masks)
    films = {
        name: RawFilm(name, source, files={"image": path}, fit="aspect", labels=tuple(labels))
        for name, path in _images(images, masks).items()
    }
    names = _Names(films)
    lonely: dict[str, RawFilm] = {}
    if masks.suffix.lower() in TABLES and masks.is_file():
        for stem, runs in _read_table(masks).items():
            film = names.find(stem) or lonely.setdefault(stem, RawFilm(stem, source))
            film.runs += runs
            film.files["table"] = masks
    elif masks.is_dir():
        used = {film.files["image"].resolve() for film in films.values()}
        for path in _pictures(masks):
            if path.resolve() in used:
                continue
            whole, stem = _key(path, masks), without_suffix(path.name)
            film = names.find(whole) or names.find(stem) or lonely.setdefault(whole, RawFilm(whole, source))
            _add_mask(film, _side(path.relative_to(masks)) or "mask", path)
    else:
        raise FileNotFoundError(f"{masks}: no folder of masks, and no table of run lengths ({', '.join(TABLES)})")
    if not any(film.mask_files or film.runs for film in films.values()):
        raise ValueError(
            f"{masks}: no mask has the name of a radiograph in {images}: the first ones are "
            f"{', '.join(sorted(lonely)[:2]) or 'none'} and {', '.join(sorted(films)[:2])}"
        )
    return [films[name] for name in sorted(films)] + [lonely[stem] for stem in sorted(lonely)]


def _images(folder: Path, masks: Path) -> dict[str, Path]:
    """Radiographs by their names: stems, or paths where two have one stem.

    Where masks lie in the same folder, or below it, a picture named as another one's mask is no radiograph.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = _pictures(folder)
    if masks.resolve() == folder.resolve():
        stems = {without_suffix(path.name) for path in paths}
        paths = [path for path in paths if not stems & set(_candidates(without_suffix(path.name))[1:])]
    elif masks.resolve().is_relative_to(folder.resolve()):
        paths = [path for path in paths if not path.resolve().is_relative_to(masks.resolve())]
    if not paths:
        raise FileNotFoundError(f"{folder}: no radiograph in it")
    times = Counter(without_suffix(path.name) for path in paths)
    named: dict[str, Path] = {}
    for path in paths:
        stem = without_suffix(path.name)
        name = stem if times[stem] == 1 else _key(path, folder)
        if name in named:
            raise ValueError(f"{named[name]} and {path} have one name: rename one of them")
        named[name] = path
    return named


def _key(path: Path, folder: Path) -> str:
    """A name with the folders above a file, but for those that only say which lung it is, or that it is a mask."""
    folders = [part for part in path.relative_to(folder).parts[:-1] if _strip(_WORDS.sub("", part))]
    return "_".join([*folders, without_suffix(path.name)])


def _add_mask(film: RawFilm, role: str, path: Path) -> None:
    """Takes a mask. Of two, the one that is called a mask counts: the other may be a copy of the radiograph.

    Raises:
        ValueError: neither is, or both are.
    """
    there = film.files.get(role)
    if there is None or _is_called_mask(path) and not _is_called_mask(there):
        film.files[role] = path
    elif _is_called_mask(path) == _is_called_mask(there):
        raise ValueError(f"{path}: a second mask of {film.name}, beside {there}")


def _is_called_mask(path: Path) -> bool:
    return bool(_WORDS.search(without_suffix(path.name)))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in walk(folder) if is_film(path))


class _Names:
    """Radiographs by the names that their masks may have."""

    def __init__(self, films: dict[str, RawFilm]):
        self._films = films
        self._bare: dict[str, list[RawFilm]] = {}
        for name, film in films.items():
            self._bare.setdefault(_strip(_ALL_WORDS.sub("", name)), []).append(film)

    def find(self, stem: str) -> RawFilm | None:
        """A mask's radiograph: of its name, or without words such as ``_mask`` and ``left``, or ``img`` too."""
        for name in _candidates(stem):
            if name in self._films:
                return self._films[name]
        alike = self._bare.get(_strip(_ALL_WORDS.sub("", stem)), [])
        return alike[0] if len(alike) == 1 else None


def _candidates(stem: str) -> list[str]:
    bare = _strip(_WORDS.sub("", stem))
    return [stem, bare] if bare != stem else [stem]


def _strip(text: str) -> str:
    return text.strip(" _.-")


def _side(path: Path) -> str | None:
    """Which lung a mask is of, by its own name or else by the nearest folder's."""
    sides = [found[1].lower() for part in (*path.parts[:-1], path.stem) if (found := _SIDE.search(part))]
    return sides[-1] if sides else None


def _read_table(path: Path) -> dict[str, list[RunLengths]]:
    """The masks of a table, by their radiograph's name without its suffix."""
    if path.suffix.lower() == ".json":
        rows = list(_coco_rows(path))
    else:
        try:
            table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: no table ({' '.join(str(error).split())[:200]})") from None
        table.columns = [str(column).lower() for column in table.columns]
        rows = table.to_dict("records")
    masks: dict[str, list[RunLengths]] = defaultdict(list)
    first, kind = (1, "annotation") if path.suffix.lower() == ".json" else (2, "row")
    for number, row in enumerate(rows, first):
        masks[_stem(path, row)] += _runs(row, f"{path}, {kind} {number}")
    return masks


def _stem(path: Path, row: dict[str, Any]) -> str:
    column = next((name for name in _NAMES if name in row), None)
    if column is None:
        raise ValueError(f"{path}: no column says which radiograph a mask is of: call it name")
    name = Path(str(row[column])).name
    return without_suffix(name)


def _runs(row: dict[str, Any], where: str) -> list[RunLengths]:
    """The masks in a row of a table."""
    segmentation = row.get("segmentation")
    if isinstance(segmentation, str) and segmentation.startswith("{"):
        segmentation = json.loads(segmentation)
    if isinstance(segmentation, (dict, list)):
        return [RunLengths.from_coco(segmentation, _shape(row, where, segmentation), where)]
    if "counts" in row:
        return [RunLengths.from_coco({"counts": row["counts"]}, _shape(row, where), where)]
    columns = [name for name in ("left lung", "right lung") if name in row] or [n for n in _RUNS if n in row][:1]
    if not columns:
        raise ValueError(f"{where}: no column of run lengths: segmentation, counts, Left Lung and Right Lung, or rle")
    texts = [row[column] for column in columns if isinstance(row[column], str) and row[column].strip()]
    shape = _shape(row, where) if "height" in row else None
    return [RunLengths.from_pairs(text, shape, where) for text in texts]


def _shape(row: dict[str, Any], where: str, segmentation: Any = None) -> tuple[int, int]:
    if isinstance(segmentation, dict) and "size" in segmentation:
        height, width = segmentation["size"]
    else:
        height, width = row.get("height"), row.get("width")
    try:
        return int(height), int(width)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: no height and width of the mask: add them as columns") from None


def _coco_rows(path: Path) -> Iterator[dict[str, Any]]:
    """A row for each annotation of lungs; of all where no category is called so."""
    try:
        coco = json.loads(path.read_bytes())
        images = {image["id"]: image for image in coco["images"]}
        lungs = {c["id"] for c in coco.get("categories", []) if "lung" in str(c["name"]).lower()}
        for annotation in coco["annotations"]:
            if not lungs or annotation["category_id"] in lungs:
                image = images[annotation["image_id"]]
                yield {
                    "name": image["file_name"],
                    "height": image["height"],
                    "width": image["width"],
                    "segmentation": annotation["segmentation"],
                }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no COCO annotations ({type(error).__name__}: {error})") from None
