"""Masks as COCO annotations with run-length encodings, in a Parquet file.

Categories are the patient's lungs: the right one is 1, on the image's left; the left one is 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import printable, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

_LUNGS = ("right lung", "left lung")


def annotate(lungs: tuple[np.ndarray, np.ndarray], name: str, path: str | Path) -> list[dict[str, Any]]:
    """COCO annotations of a film, one for each lung that is there.

    Args:
        lungs: right and left, ``uint8 (H, W)`` in {0, 1}.
        name: of the film, unlike any other's.
        path: its file.

    Returns:
        For each lung: name, path, height, width, category_id, category, segmentation (``size`` and ``counts``, a
            compressed run-length encoding), area in px, bbox (x, y, width, height in px), iscrowd.
    """
    from pycocotools import mask as coco

    rows = []
    for category, (label, lung) in enumerate(zip(_LUNGS, lungs), 1):
        if not lung.any():
            continue
        rle = coco.encode(np.asfortranarray(lung, np.uint8))
        height, width = lung.shape
        rows.append(
            {
                "name": name,
                "path": printable(path),
                "height": height,
                "width": width,
                "category_id": category,
                "category": label,
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                "area": int(coco.area(rle)),
                "bbox": coco.toBbox(rle).tolist(),
                "iscrowd": 0,
            }
        )
    return rows


def write_coco(path: str | Path, annotations: Iterable[dict[str, Any]]) -> None:
    """Writes annotations of :func:`annotate` as Parquet, with ``id`` and ``image_id`` counted from 1 in their order.

    ``pyarrow.parquet.read_table(path).to_pylist()`` are a COCO data set's annotations; ``pycocotools.mask.decode``
    makes a mask of a row's ``segmentation``. A film without lungs has no row.

    Raises:
        OSError: the file can't be written.
    """
    import pyarrow as pa

    like = annotate((np.ones((1, 1)), np.zeros((1, 1))), "", "")  # a row, for the types of a table without rows
    schema = pa.Table.from_pylist([{"id": 1, "image_id": 1, **row} for row in like]).schema
    images: dict[str, int] = {}
    rows = []
    for number, annotation in enumerate(annotations, 1):
        image = images.setdefault(annotation["name"], len(images) + 1)
        rows.append({"id": number, "image_id": image, **annotation})
    write_bytes(path, to_parquet(pa.Table.from_pylist(rows, schema)))


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    from pyarrow import parquet

    buffer = BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
