"""A set of your own: radiographs in one folder, their masks in another or in a table, paired by name.

images/any/nesting/p7.dcm    masks/p7.png, or p7_mask.tif, or a DICOM segmentation p7.dcm
                             masks/left/p7.png and masks/right/p7.png, or p7_left.png and p7_right.png
                             masks.csv or .parquet: run lengths of COCO, CheXmask or Kaggle's contests
                             masks.json: COCO annotations
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
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
_WORDS = re.compile(r"(?:^|[\W_]+)(?:left|right|lungs?|masks?|seg|segmentation|labels?)(?=$|[\W_])", re.I)


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
    films = {name: RawFilm(name, source, files={"image": path}, fit="aspect") for name, path in _images(Path(images))}
    lonely: dict[str, RawFilm] = {}

    def film(stem: str) -> RawFilm:
        name = next((name for name in _candidates(stem) if name in films), None)
        return films[name] if name else lonely.setdefault(stem, RawFilm(stem, source))

    masks = Path(masks)
    if masks.suffix.lower() in TABLES and masks.is_file():
        for stem, runs in _read_table(masks).items():
            found = film(stem)
            found.runs.extend(runs)
            found.files["table"] = masks
    elif masks.is_dir():
        for path in _pictures(masks):
            role = _side(path.relative_to(masks)) or "mask"
            found = film(without_suffix(path.name))
            if role in found.files:
                raise ValueError(f"{path}: a second mask of {found.name}, beside {found.files[role]}")
            found.files[role] = path
    else:
        raise FileNotFoundError(f"{masks}: no folder of masks, and no table of run lengths ({', '.join(TABLES)})")
    both = [films[name] for name in sorted(films)] + [lonely[stem] for stem in sorted(lonely)]
    if not any(one.mask_files or one.runs for one in films.values()):
        raise ValueError(
            f"{masks}: no mask has the name of a radiograph in {images}: the first ones are "
            f"{', '.join(sorted(lonely)[:2]) or 'none'} and {', '.join(sorted(films)[:2])}"
        )
    for one in both:
        one.labels = tuple(labels)
    return both


def _images(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    there: dict[str, Path] = {}
    for path in _pictures(folder):
        name = without_suffix(path.name)
        if name in there:
            raise ValueError(f"{there[name]} and {path} have one name: rename one of them")
        there[name] = path
    if not there:
        raise FileNotFoundError(f"{folder}: no radiograph in it")
    yield from there.items()


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in walk(folder) if is_film(path))


def _candidates(stem: str) -> Iterator[str]:
    """What a mask's radiograph may be called: as it, or without words such as ``_mask`` and ``left``."""
    yield stem
    yield re.sub(r"^[\W_]+|[\W_]+$", "", _WORDS.sub("", stem))


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
    for number, row in enumerate(rows, 2):
        masks[_stem(path, row)] += _runs(row, f"{path}, row {number}")
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
    return [RunLengths.from_pairs(text, _shape(row, where), where) for text in texts]


def _shape(row: dict[str, Any], where: str, segmentation: Any = None) -> tuple[int, int]:
    if isinstance(segmentation, dict) and "size" in segmentation:
        height, width = segmentation["size"]
    else:
        height, width = row.get("height"), row.get("width")
    try:
        return int(height), int(width)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: no height and width of the mask") from None


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
