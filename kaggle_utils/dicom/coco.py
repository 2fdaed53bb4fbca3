"""Masks as COCO annotations with run-length encodings, in a Parquet file.

Categories are the patient's lungs: the right one is 1, on the image's left; the left one is 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..files import printable, write_bytes

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
    from pyarrow import parquet

    text, whole = pa.string(), pa.int64()
    schema = pa.schema(
        {
            "id": whole,
            "image_id": whole,
            "name": text,
            "path": text,
            "height": whole,
            "width": whole,
            "category_id": whole,
            "category": text,
            "segmentation": pa.struct({"size": pa.list_(whole), "counts": text}),
            "area": whole,
            "bbox": pa.list_(pa.float64()),
            "iscrowd": whole,
        }
    )
    images: dict[str, int] = {}
    rows = []
    for number, annotation in enumerate(annotations, 1):
        image = images.setdefault(annotation["name"], len(images) + 1)
        rows.append({"id": number, "image_id": image, **annotation})
    buffer = BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())
