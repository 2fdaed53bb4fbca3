"""What the processes of a cluster do with films, between their addresses and the rows that say what was found.

Axes: B films of a batch; the network's own size is the side of its square, px.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..dicom.coco import annotate
from ..image import MAX_BYTES, film_bytes, resize_image, room
from ..infer import CheckedFilm, LungSegmenter, Segmented, Unsegmented, read_checked, segment
from ..predictions import PREDICTION_COLUMNS
from ..quality import MEASUREMENTS, SIDES, measure
from .s3 import is_address

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

READERS = 4  # films that a process reads side by side: the way to S3 is long
WAITS = (1, 5, 15)  # seconds before the next try where a store fails; its client has tried for seconds before
# The end of an error that stops the run, and is not a film's for good.
STOPS = "; the same command goes on when that is mended"
_WHOLE, _TEXT = ("height", "width", "lung_px"), ("name", "path", "flag", "reasons", "notes", "error")


@dataclass(frozen=True)
class Settings:
    """How films are segmented, as in :func:`predictions.predict`; two runs with different ones don't share a folder."""

    batch: int = 8  # films per forward pass
    force: bool = False  # segment what would be refused too
    flip: bool = False  # average with the mirrored film
    clean: bool = True  # keep two components without holes
    threshold: float = 0.5  # probability above which a pixel is lung
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


class Network:
    """The network of one actor."""

    def __init__(self, settings: Settings, name: str, weights: bytes, device: str):
        cv2.setNumThreads(1)  # there is an actor on each of the other cores
        self.settings = settings
        with TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_bytes(weights)
            self.segmenter = settings.open(file, device)

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        """Probabilities for the thumbnails, ``float32 (B, size, size)``, 0 where a film has an error."""
        good = [n for n, film in enumerate(batch["film"]) if isinstance(film, CheckedFilm)]
        prob = np.zeros(batch["image"].shape, np.float32)
        if good:
            prob[good] = self.segmenter.probabilities(list(batch["image"][good]))
        return {"number": batch["number"], "film": batch["film"], "prob": prob}


class Whole(Network):
    """Everything in one actor, from addresses to rows."""

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        found: dict[str, np.ndarray] = super().__call__(read_films(batch, self.segmenter.size, self.settings.force))
        return finish_films(found, self.segmenter, self.settings.force)


def read_films(batch: dict[str, np.ndarray], size: int, force: bool) -> dict[str, np.ndarray]:
    """Films by name and path, checked, without their pixels; and ``uint8 (B, size, size)`` thumbnails."""

    def read(path: bytes, name: str) -> tuple[CheckedFilm | Unsegmented, np.ndarray]:
        film = _read_film(os.fsdecode(path), name, force)
        if isinstance(film, Unsegmented):
            return film, blank
        small = resize_image(film.checked.image, size)
        checked = replace(film.checked, image=np.empty(film.checked.image.shape, []))  # a shape of no bytes
        return replace(film, image=np.empty(film.image.shape, []), checked=checked), small

    cv2.setNumThreads(1)
    blank = np.zeros((size, size), np.uint8)
    with ThreadPoolExecutor(READERS) as pool:
        films, images = zip(*pool.map(read, batch["path"], batch["name"]))
    column = np.empty(len(films), object)
    column[:] = films
    return {"number": batch["number"], "film": column, "image": np.stack(images)}


def _read_film(path: str, name: str, force: bool) -> CheckedFilm | Unsegmented:
    if is_address(path):
        return _read_object(path, name, force)
    if not Path(path).parent.exists():
        return Unsegmented(
            name, path, f"{path}: a node doesn't see this folder, which must be there on all of them{STOPS}"
        )
    with room(film_bytes(path)):
        return read_checked(Path(path), name, force=force)


def _read_object(path: str, name: str, force: bool) -> CheckedFilm | Unsegmented:
    waits = list(WAITS)
    while True:
        try:
            with explained(path):
                store, key = open_store(path)
                with store.open_input_file(key) as file:
                    data = file.read(MAX_BYTES + 1)
            with room(film_bytes(data)):
                return read_checked(path, name, force=force, data=data)
        except FileNotFoundError:
            return Unsegmented(name, path, f"{path}: it is no longer there")
        except OSError as error:  # the store's, and not the film's
            if not waits or isinstance(error, PermissionError):
                return Unsegmented(name, path, f"{error}{STOPS}")
            time.sleep(waits.pop(0))


def finish_films(batch: dict[str, np.ndarray], segmenter: LungSegmenter, force: bool) -> pa.Table:
    """Rows of films by their probabilities."""
    import pyarrow as pa

    rows = []
    for number, film, prob in zip(batch["number"], batch["film"], batch["prob"]):
        if isinstance(film, CheckedFilm):
            film = segment(film, prob, segmenter, force=force)
        rows.append(_row(film) | {"number": number})
    return pa.Table.from_pylist(rows, schema())


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


def open_store(address: str | Path) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or an ``s3://`` address, and the path there."""
    from pyarrow import fs

    if not is_address(address):
        return fs.LocalFileSystem(), str(Path(address).absolute())
    path = str(address).removeprefix("s3://").rstrip("/")
    return _bucket(path.partition("/")[0]), path


@lru_cache
def _bucket(name: str) -> fs.FileSystem:
    from pyarrow import fs

    return fs.FileSystem.from_uri(f"s3://{name}")[0]  # asks for the bucket's region, where no server is named


@contextmanager
def explained(address: str | Path) -> Iterator[None]:
    """What a store says in a paragraph as an OSError of one line about the address."""
    try:
        yield
    except (FileNotFoundError, ConnectionError):  # ours
        raise
    except OSError as error:
        if not is_address(address):
            raise
        said = str(error)
        if "ACCESS_DENIED" in said or "credentials" in said.lower():
            raise PermissionError(
                f"{address}: permission denied, or no credentials: every node needs them where AWS's tools find them"
            ) from None
        if "not found" in said:
            raise FileNotFoundError(f"{address}: no such bucket") from None
        raise OSError(f"{address}: the store failed, or the network is broken ({said[:300]})") from None
