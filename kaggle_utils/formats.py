"""Masks as others expect them: COCO annotations in a Parquet file, and DICOM segmentation objects that refer to their film.

Lungs are the patient's: the right one is category and segment 1, on the image's left; the left one is 2. Both come from
:func:`measure.split_lungs`, so what is dust there is in neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .image import HEAD, is_dicom, write_bytes

if TYPE_CHECKING:
    from pydicom import Dataset

# What predict can write, and which packages it needs for it, by the names under which pip and Python know them.
FORMATS: dict[str, dict[str, str]] = {
    "png": {},
    "coco": {"pycocotools": "pycocotools", "pyarrow": "pyarrow"},
    "dicom-seg": {"highdicom": "highdicom", "pydicom": "pydicom"},
}
LUNGS = ("right lung", "left lung")
_SNOMED = ("3341006", "44029006")  # of the lungs, in this order; SNOMED CT, as DICOM PS3.16 prefers
# Type 2 of the patient and the study: they may be empty, and are left out of many a film that was made anonymous.
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")


def check_formats(formats: Sequence[str]) -> None:
    """Raises ValueError at a name that ``FORMATS`` lacks, and ImportError where a format's package is not installed."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"no format {', '.join(map(repr, unknown)) or 'named'}: choose from {', '.join(FORMATS)}")
    for name in formats:
        missing = [package for package, module in FORMATS[name].items() if find_spec(module) is None]
        if missing:
            raise ImportError(f"format {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def annotate(lungs: tuple[np.ndarray, np.ndarray], name: str, path: str | Path) -> list[dict[str, object]]:
    """COCO annotations of a film, one for each lung that is there.

    Args:
        lungs: right and left, ``uint8 (H, W)`` in {0, 1}.
        name: of the film, unlike any other's.
        path: its file.

    Returns:
        For each lung: name, path, height, width, category_id, category, segmentation (``size`` and ``counts``, a compressed
        run-length encoding), area in px, bbox (x, y, width, height in px), iscrowd.
    """
    from pycocotools import mask as coco
    rows = []
    for category, (label, lung) in enumerate(zip(LUNGS, lungs), 1):
        if not lung.any():
            continue
        rle = coco.encode(np.asfortranarray(lung, np.uint8))
        height, width = lung.shape
        rows.append({
            "name": name, "path": str(path), "height": height, "width": width, "category_id": category, "category": label,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
            "area": int(coco.area(rle)), "bbox": coco.toBbox(rle).tolist(), "iscrowd": 0})
    return rows


def write_coco(path: str | Path, annotations: Iterable[dict[str, object]]) -> None:
    """Writes annotations of :func:`annotate` as Parquet, with ``id`` and ``image_id`` counted from 1 in their order.

    ``pyarrow.parquet.read_table(path).to_pylist()`` are a COCO data set's annotations; ``pycocotools.mask.decode`` makes
    a mask of a row's ``segmentation``. A film without lungs has no row.

    Raises:
        OSError: the file can't be written.
    """
    import pyarrow as pa
    from pyarrow import parquet
    text, whole = pa.string(), pa.int64()
    schema = pa.schema({
        "id": whole, "image_id": whole, "name": text, "path": text, "height": whole, "width": whole, "category_id": whole, "category": text,
        "segmentation": pa.struct({"size": pa.list_(whole), "counts": text}), "area": whole, "bbox": pa.list_(pa.float64()), "iscrowd": whole})
    images: dict[object, int] = {}
    rows = [{"id": n, "image_id": images.setdefault(row["name"], len(images) + 1), **row} for n, row in enumerate(annotations, 1)]
    buffer = BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def write_dicom_seg(path: str | Path, lungs: tuple[np.ndarray, np.ndarray], source: str | Path, *, version: str) -> None:
    """Writes a DICOM segmentation object of a film that is a DICOM file: a segment a lung, pixel on pixel.

    It carries the film's patient and study, in a series of its own, and refers to the film's instance. A radiograph is a
    projection: it has no place and no plane in the patient, so there is no frame of reference and no spacing either, and a
    viewer lays the segments on the film that they refer to. A lung that is missing is a segment without pixels.

    Args:
        path: file to write.
        lungs: right and left, ``uint8 (H, W)`` in {0, 1}, of the film's rows and columns.
        source: the film's file.
        version: of the weights, as the object's AlgorithmVersion.

    Raises:
        ValueError: the film is no DICOM file, or lacks what such an object has to refer to.
        OSError: a file can't be read or written.

    Source: DICOM PS3.3 A.51, Segmentation IOD; C.7.4.1 is needed only where no source image is referred to.
    """
    import highdicom as hd
    from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    film = _read_tags(source)
    algorithm = hd.AlgorithmIdentificationSequence("unet-lung", family=codes.cid7162.ArtificialIntelligence, version=version)
    segments = [SegmentDescription(number, label, codes.cid7150.AnatomicalStructure, Code(code, "SCT", label.capitalize()),
                                   SegmentAlgorithmTypeValues.AUTOMATIC, algorithm)
                for number, (label, code) in enumerate(zip(LUNGS, _SNOMED), 1)]
    # Frames without a pixel stay: both segments are told of, and an object needs a frame.
    segmentation = Segmentation(
        [film], np.stack(lungs, -1)[None], SegmentationTypeValues.BINARY, segments, hd.UID(), 300, hd.UID(), 1, "unet-lung", "unet-lung",
        version, "none", omit_empty_frames=False, content_label="LUNGS", content_description="Lungs of a chest radiograph")
    segmentation.SeriesDescription = "Lungs"
    segmentation.PatientOrientation = film.get("PatientOrientation")  # required, if empty, where there is no place in the patient
    buffer = BytesIO()
    segmentation.save_as(buffer)
    write_bytes(path, buffer.getvalue())


def _read_tags(source: str | Path) -> Dataset:
    """A film's tags without its pixels, with those that a segmentation object copies."""
    from pydicom import dcmread
    with Path(source).open("rb") as file:
        if not is_dicom(file.read(HEAD)):
            raise ValueError("the film is no DICOM file")
    film = dcmread(source, stop_before_pixels=True, force=True)
    missing = [name for name in _REQUIRED if not film.get(name)]
    if missing:
        raise ValueError(f"the film has no {' and no '.join(missing)}")
    for name in _MAY_BE_EMPTY:
        if name not in film:
            setattr(film, name, None)
    # Some films name a frame of reference, but no place in it: none can be handed on.
    film.pop("FrameOfReferenceUID", None)
    return film
