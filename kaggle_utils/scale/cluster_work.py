"""What the processes of a cluster do with films, between their addresses and the rows that say what was found."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..config import THRESHOLD
from ..dicom.coco import annotate
from ..image import MAX_BYTES
from ..infer import LungSegmenter, Segmented, Unsegmented, segment_batches
from ..predictions import PREDICTION_COLUMNS
from ..quality import MEASUREMENTS, SIDES, measure
from .s3_client import connect, explained, is_address, parse, read_object

if TYPE_CHECKING:
    import pyarrow as pa

READERS = 4  # films that a process reads side by side: the way to S3 is long
PATIENCE = 8  # tries of a request to a store that fails, about half a minute
# The end of an error that stops the run, and is not a film's for good.
STOPS = "; the same command resumes when that is mended"
_WHOLE, _TEXT = ("height", "width", "lung_px"), ("name", "path", "flag", "reasons", "notes", "error")


@dataclass(frozen=True)
class Settings:
    """How films are segmented, as in :func:`predictions.predict`; two runs with different ones don't share a folder."""

    batch: int = 8  # films at once
    force: bool = False  # segment what would be refused too
    flip: bool = False  # average with the mirrored film
    clean: bool = True  # keep two components without holes
    threshold: float = THRESHOLD  # probability above which a pixel is lung
    head: str | None = None  # whose rules the masks follow; the weights' first one if None
    backend: str = "torch"  # torch, onnxruntime or openvino

    def open(self, weights: str | Path, device: str) -> LungSegmenter:
        return LungSegmenter(
            weights,
            device=device,
            flip=self.flip,
            clean=self.clean,
            threshold=self.threshold,
            backend=self.backend,
            head=self.head,
        )


DEFAULTS = Settings()


class Worker:
    """One actor: from addresses to rows."""

    def __init__(self, settings: Settings, name: str, weights: bytes, device: str):
        cv2.setNumThreads(1)  # there is an actor on each of the other cores
        self.settings = settings
        with TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_bytes(weights)
            self.segmenter = settings.open(file, device)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Rows of films by number, name and path."""
        import pyarrow as pa

        paths = [os.fsdecode(path) for path in batch["path"]]
        with ThreadPoolExecutor(READERS) as pool:
            named = zip(batch["number"], batch["name"], self._segment(paths, pool))
            rows = [_row(found) | {"number": number, "name": name} for number, name, found in named]
        return pa.Table.from_pylist(rows, schema())

    def _segment(self, paths: list[str], pool: ThreadPoolExecutor) -> Iterator[Segmented | Unsegmented]:
        films = list(pool.map(_fetch, paths))
        there = [(film, path) for film, path in zip(films, paths) if not isinstance(film, Exception)]
        batches = segment_batches(there, self.segmenter, pool, batch=self.settings.batch, force=self.settings.force)
        segmented = chain.from_iterable(batches)
        for film, path in zip(films, paths):
            yield Unsegmented(path, path, str(film)) if isinstance(film, Exception) else next(segmented)


def _fetch(path: str) -> str | bytes | Exception:
    """A film's path, or an object's bytes; or why there are none."""
    if not is_address(path):
        if Path(path).parent.exists():
            return path
        return OSError(f"{path}: a node doesn't see this folder, which must be there on all of them{STOPS}")
    try:
        with explained(path):
            with _connecting:
                client = _client(PATIENCE)
            return read_object(client, *parse(path), most=MAX_BYTES)
    except (ValueError, FileNotFoundError) as error:
        return error
    except OSError as error:  # the store's, and not the film's
        return OSError(f"{error}{STOPS}")


_client, _connecting = lru_cache(connect), threading.Lock()  # threads can use one client, but not make one at once


def _row(found: Segmented | Unsegmented) -> dict[str, Any]:
    if isinstance(found, Unsegmented):
        return found.row
    film, lungs = found.film, (found.right, found.left)
    outlines: dict[str, Any] = {f"{side}_lung": None for side in SIDES}
    for row in annotate(lungs, film.name, film.path):
        outlines[str(row["category"]).replace(" ", "_")] = row["segmentation"]
    return measure(found.upright, film.spacing_mm) | outlines | found.row


def schema() -> pa.Schema:
    """The columns of a shard; what neither counts nor tells is a float."""
    import pyarrow as pa

    types = {name: pa.float64() for name in (*PREDICTION_COLUMNS, *MEASUREMENTS) if name not in ("mask", "overlay")}
    types |= dict.fromkeys(_WHOLE, pa.int64()) | dict.fromkeys(_TEXT, pa.string())
    lung = pa.struct({"size": pa.list_(pa.int64()), "counts": pa.string()})
    return pa.schema({"number": pa.int64(), **types, **{f"{side}_lung": lung for side in SIDES}})
