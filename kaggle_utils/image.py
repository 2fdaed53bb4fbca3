"""Reads and writes radiographs and masks; with the rooms ``pictures`` and ``dicom``, all that knows file formats.

Inside the project an image is ``uint8 (H, W)`` and a mask is ``uint8 (H, W)`` in {0, 1}; H counts rows, W columns.
Films are seen as the radiologist hangs them: the **patient's left lung is on the image's right**.
"""

from __future__ import annotations

import mmap
import os
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from .pictures.header import HEAD, MAX_BYTES, MAX_PIXELS, check_size, is_dicom, kind_of, read_picture_header

# A second belt: OpenCV reads it when it is imported. An import before this one leaves OpenCV's own limit, 2**30.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2
import numpy as np

from .dicom.read import Lie as Lie  # this module is its face
from .dicom.read import Radiograph, dicom_bytes, read_dicom
from .dicom.seg import read_seg
from .files import write_bytes
from .pictures.arrays import as_array, check_array, is_array
from .pictures.complaints import DAMAGED
from .pictures.decode import JSRT_BYTES, JSRT_SIDE, decode, unpack
from .pictures.gray import to_8_bits
from .pictures.labels import to_mask

# OpenCV logs to stderr what read_image says in one line with the file's name.
cv2.utils.logging.setLogLevel(0)

# Memory by which films are read ahead: a film of MAX_PIXELS may take more, but then it is alone.
MOST_BYTES = 1_100_000_000
FINISHED_BYTES = 8  # a pixel: 8-bit film, probabilities, mask, labels and overlay, which are not all there at once
_turn, _freed, _taken = threading.Lock(), threading.Condition(), [0]  # of room()
_DICOM_HEAD = 1 << 20  # bytes, in which a film's size is looked for
_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)  # a fifth smaller than OpenCV's choice, and sooner written
_TO_GRAY = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}  # by channels


def read_image(path: str | Path) -> np.ndarray:
    """The ``image`` of :func:`read_film`, ``uint8 (H, W)``, with the same errors; a damaged radiograph is refused.

    Of threads that read at once those wait for which there is no room in ``MOST_BYTES``.
    """
    with room(film_bytes(path)):
        film = read_film(path)
    with _naming(path):
        _check_whole(film.notes)
    return film.image


def read_film(path: str | Path, *, data: bytes | None = None) -> Radiograph:
    """Reads a radiograph as 8-bit gray, identified by its content, not by its name. A negative stays one.

    Files of more than 8 bits are scaled by :func:`pictures.gray.gray_range` (a 12-bit film in a 16-bit file would come
    out black otherwise); colour and palette become luminance; an alpha channel is dropped; an orientation tag is
    obeyed.

    Args:
        path: a PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000 or NIfTI (see :func:`pictures.decode.decode`), a raw film of
            JSRT, or a DICOM file (see :func:`dicom.read.read_dicom`); each may be gzip'd.
        data: the file's bytes where they are here already; then errors alone name the path, which may be any address.

    Returns:
        The image, the spacing of its pixels where the file carries one (DICOM), notes on what was done to it, and the
        colours where the file has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, damaged, no film, or larger than ``MAX_PIXELS``; the message names it
            and says which.
        ImportError: a DICOM or NIfTI file, and what reads it is not installed.
    """
    with _naming(path):
        data = unpack(_read_bytes(path) if data is None else data)
        _check_bytes(len(data))
        film = read_dicom(data) if is_dicom(data[:HEAD]) else _radiograph(*decode(data))
    top, bottom, left, right = constant_border(film.image)
    if not any((top, bottom, left, right)):
        return film
    note = f"constant border: {top} top, {bottom} bottom, {left} left, {right} right"
    return replace(film, notes=(*film.notes, note))


def from_array(film: Any) -> Radiograph:
    """A radiograph from an array: gray ``(H, W)`` of any type and range, or RGB or RGBA ``(H, W, C)``.

    An axis of length 1 is left out.

    Args:
        film: a NumPy array, or what else :func:`pictures.arrays.is_array` takes for one.

    Raises:
        ValueError: another shape, a type that holds no gray, or not a finite number.
        OSError: a Pillow picture whose file is damaged.
    """
    array = as_array(film)
    check_array(array)
    pixels = np.squeeze(array)
    is_colour = pixels.ndim == 3
    check_size(*pixels.shape[:2])
    if is_colour:
        pixels = np.ascontiguousarray(pixels[..., 2::-1])  # BGR, as from a file
    return _radiograph(pixels)


def film_bytes(film: Any) -> int:
    """Memory that a film takes at most, in bytes, while it is read, segmented and written, by what its file declares.

    It's 0 for what :func:`read_film` refuses unread, the file's own for what it refuses by its declaration, and
    ``MOST_BYTES`` where that isn't at the file's beginning.

    Args:
        film: its file, the file's bytes, an array, or an open file, of which ``MOST_BYTES`` are expected.
    """
    if isinstance(film, bytes):
        return _film_bytes(film)
    try:
        if is_array(film):
            return as_array(film).size * FINISHED_BYTES
        if not isinstance(film, (str, Path)):
            return MOST_BYTES
        if not Path(film).is_file() or not 0 < Path(film).stat().st_size <= MAX_BYTES:
            return 0
        with open(film, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as there:
            return _film_bytes(there)
    except (ValueError, OSError):  # what is wrong with it is said when it is read
        return 0


def _film_bytes(data: bytes | mmap.mmap) -> int:
    size, kind = len(data), kind_of(data[:HEAD])
    if kind == "gzip":
        return MOST_BYTES
    if kind is None and size == JSRT_BYTES:
        return size + JSRT_SIDE**2 * (4 + FINISHED_BYTES)
    try:
        if kind == "DICOM":
            found = dicom_bytes(data[:_DICOM_HEAD], FINISHED_BYTES)
            return MOST_BYTES if found is None else size + found
        declared = read_picture_header(data)
    except (ValueError, ImportError):
        return size
    return size + declared.rows * declared.columns * (declared.pixel + FINISHED_BYTES)


@contextmanager
def room(size: int) -> Iterator[None]:
    """Waits until all that runs within such a ``with`` in this process takes no more than ``MOST_BYTES``.

    What takes more than that runs alone.

    Args:
        size: bytes that what is done takes.
    """
    size = min(size, MOST_BYTES)
    with _turn, _freed:  # in turn: a large film would wait for ever while small ones come
        _freed.wait_for(lambda: _taken[0] + size <= MOST_BYTES)
        _taken[0] += size
    try:
        yield
    finally:
        with _freed:
            _taken[0] -= size
            _freed.notify_all()


def constant_border(image: np.ndarray) -> tuple[int, int, int, int]:
    """How many rows and columns of one gray level a film begins and ends with: top, bottom, left, right, in px."""

    def count(lines) -> int:
        return next((n for n, line in enumerate(lines) if line.min() != line.max()), 0)

    return count(image), count(image[::-1]), count(image.T), count(image.T[::-1])


def read_mask(path: str | Path, *, labels: Collection[int] = ()) -> np.ndarray:
    """Reads a mask, whatever its encoding: 0/1, 0/255, a label per lung, gray, colour, palette, 16-bit.

    See :func:`pictures.labels.to_mask`.

    Args:
        path: a mask file, of any format that :func:`pictures.decode.decode` reads, or a DICOM segmentation.
        labels: grays of the lungs, in a map of more labels than :func:`pictures.labels.to_mask` can tell apart.

    Returns:
        ``uint8 (H, W)`` in {0, 1}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, damaged, not an image, or a map of more than two labels.
    """
    with _naming(path), room(film_bytes(path)):
        data = unpack(_read_bytes(path))
        if is_dicom(data[:HEAD]):
            return read_seg(data)
        pixels, notes = decode(data)
        _check_whole(notes)
        gray = _to_gray(pixels)
        return np.isin(gray, list(labels)).astype(np.uint8) if labels else to_mask(gray)


def decode_pnm(data: bytes) -> np.ndarray:
    """The gray levels ``uint8 (H, W)`` of a PGM or PBM file's bytes, as :func:`encode_image` makes them.

    Raises:
        ValueError: the bytes are truncated or no image.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=["PPM"]) as picture:
            return np.array(picture.convert("L"))
    except (OSError, ValueError, Image.DecompressionBombError):
        raise ValueError("it is truncated, or no PGM or PBM file") from None


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes ``uint8 (H, W)`` or ``(H, W, 3)`` (BGR) so that the file is whole or not there at all.

    Raises:
        OSError: the folder is missing, read-only or full.
        ValueError: the array can't be encoded in the format that the suffix names.
    """
    path = Path(path)
    with _naming(path):
        data = encode_image(image, path.suffix)
    write_bytes(path, data)


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """A file's bytes of ``uint8 (H, W)`` or ``(H, W, 3)`` (BGR).

    Raises:
        ValueError: the array can't be encoded in the format that the suffix names.
    """
    try:
        done, data = cv2.imencode(suffix, image, _PNG)
    except cv2.error:  # an unknown suffix
        done = False
    if not done:
        raise ValueError(f"{image.dtype} {image.shape} can't be written as {suffix}")
    return data.tobytes()


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Writes a mask in {0, 1} as 0/255, so that every viewer shows it.

    Raises:
        ValueError: the mask is not 2-D or has values outside {0, 1}.
    """
    check_mask(mask)
    write_image(path, mask.astype(np.uint8) * 255)


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resizes to ``(H, W)``, or to a square; area average when it shrinks, linear when it grows.

    A film is squeezed into the square, not padded: prediction undoes it, and the published sets are nearly square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resizes a mask in {0, 1}: a new pixel is lung where at least half of its area was.

    Raises:
        ValueError: the mask is not 2-D or has values outside {0, 1}.
    """
    check_mask(mask)
    return (resize_image(mask * np.uint8(255), size) >= 128).astype(np.uint8)


def resize_prob(prob: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resizes probabilities ``float32 (H, W)``; threshold afterwards.

    Resizing the thresholded mask instead costs 0.003 Dice at a film's own size when the network saw 256 px.
    """
    return resize_image(prob.astype(np.float32, copy=False), size)


def check_mask(mask: np.ndarray) -> None:
    """Raises ValueError unless the mask is 2-D with values in {0, 1} only."""
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), this one is {mask.shape}")
    if mask.dtype.kind not in "bui" or (mask.size and (mask.min() < 0 or mask.max() > 1)):
        raise ValueError(
            f"a mask holds whole 0 and 1, this one is {mask.dtype} from {mask.min()} to {mask.max()}: "
            "read it with read_mask, or threshold it"
        )


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Errors of what is in a file, in one line with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None  # whatever a damaged file's texts hold
    except MemoryError:
        less = "fewer workers, or fewer films at once, take less"
        raise ValueError(f"{path}: this machine's memory is too small for it: {less}") from None


def _read_bytes(name: str | Path) -> bytes:
    path = Path(name)
    if not str(name):
        raise FileNotFoundError("an empty name, where a file's was expected")
    if path.is_dir():
        raise ValueError(_about_folder(path))
    if not path.exists():
        is_address = re.match(r"[a-z][a-z0-9+.-]+:/", str(name), re.I)
        what = "addresses aren't read: download the file first" if is_address else "no such file"
        raise FileNotFoundError(f"{name}: {what}")
    if not path.is_file():
        raise ValueError("not a file")  # a device or a pipe may never end
    _check_bytes(path.stat().st_size)  # before its bytes are in memory
    return path.read_bytes()


def _about_folder(path: Path) -> str:
    try:
        os.listdir(path)
    except OSError:
        return "a folder that can't be searched"
    return "a folder, not a film: give `predict` the folder, or `segment_films` a list of its files"


def _check_bytes(size: int) -> None:
    if not size:
        raise ValueError("the file is empty")
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, more than {MAX_BYTES:,}: too large for a film")


def _check_whole(notes: tuple[str, ...]) -> None:
    """Raises ValueError where a note says that pixels are wrong: in a training set nobody would see the note."""
    damage = next((note for note in notes if note.startswith(DAMAGED)), None)
    if damage:
        raise ValueError(damage)


def _radiograph(pixels: np.ndarray, notes: tuple[str, ...] = ()) -> Radiograph:
    return Radiograph(to_8_bits(_to_gray(pixels)), notes=notes, colour=pixels if pixels.ndim == 3 else None)


def _to_gray(pixels: np.ndarray) -> np.ndarray:
    """Pixels as gray levels, (H, W) of the same type, or float32 for floats."""
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32, copy=False)
    gray = pixels
    if pixels.ndim == 3:
        channels = pixels.shape[2]
        if channels not in _TO_GRAY or pixels.dtype not in (np.uint8, np.uint16, np.float32):
            raise ValueError(f"{channels} channels of {pixels.dtype} have no gray")
        gray = cv2.cvtColor(pixels, _TO_GRAY[channels])
    if not np.isfinite(gray).all():
        raise ValueError("it has pixels that are not finite numbers")
    return gray
