"""Files to arrays and back: with `header` and `dicom`, which it alone imports, the only module that knows file formats.

Inside the project an image is ``uint8 (H, W)`` and a mask is ``uint8 (H, W)`` in {0, 1}; H counts rows, W columns.
Films are seen as the radiologist hangs them: the **patient's left lung is on the image's right**.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from .header import HEAD, MAX_BYTES, MAX_PIXELS, check_size, declared_size, is_dicom

# A second belt: OpenCV reads it when it is imported. An import before this one leaves OpenCV's own limit, 2**30.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2
import numpy as np

from .dicom import Film, read_dicom
from .gray import to_8_bits

# OpenCV logs to stderr what read_image says in one line with the file's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# A whole PNG ends in its IEND chunk and a whole JPEG in its EOI marker. OpenCV returns the rows it could decode of a
# truncated file, the rest black, as if nothing had happened.
_END_MARKS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}
_TO_GRAY = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}  # by channels


def read_image(path: str | Path, *, fix_polarity: bool = True) -> np.ndarray:
    """The ``image`` of :func:`read_film`: a radiograph as ``uint8 (H, W)`` with dark lungs, with the same arguments and errors."""
    return read_film(path, fix_polarity=fix_polarity).image


def read_film(path: str | Path, *, fix_polarity: bool = True, data: bytes | None = None) -> Film:
    """Reads a radiograph as 8-bit gray with dark lungs, told by its content, not by its name.

    Files of more than 8 bits are scaled by :func:`gray.gray_range` (a 12-bit film in a 16-bit file would come out black
    otherwise); colour and palette become luminance; an alpha channel is dropped.

    Args:
        path: a PNG, JPEG, TIFF, BMP or GIF, or a DICOM file, see :func:`dicom.read_dicom`.
        fix_polarity: invert a film whose lungs are brighter than its mediastinum, see :func:`is_inverted`.
        data: the file's bytes where they are here already; then errors alone name the path, which may be any address.

    Returns:
        The image, the spacing of its pixels where the file carries one (DICOM), notes on what was done to it, and the
        colours where the file has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, damaged, no film, or larger than ``header.MAX_PIXELS``; the message names it
            and says which.
        ImportError: a DICOM file, and pydicom is not installed.
    """
    try:
        data = _read_bytes(Path(path)) if data is None else data
        _check_bytes(len(data))
        film = read_dicom(data) if is_dicom(data[:HEAD]) else _read_picture(data)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None  # one line, whatever a damaged file's texts hold
    except MemoryError:
        raise ValueError(f"{path}: this machine's memory is too small for it") from None
    if fix_polarity and is_inverted(film.image):
        film = replace(film, image=255 - film.image, notes=(*film.notes, "inverted: its lungs were bright"))
    border = constant_border(film.image)
    return replace(film, notes=(*film.notes, "constant border: {} top, {} bottom, {} left, {} right".format(*border))) if any(border) else film


def constant_border(image: np.ndarray) -> tuple[int, int, int, int]:
    """How many rows and columns of one gray level a film begins and ends with: top, bottom, left, right, in px."""
    def count(lines) -> int:
        return next((n for n, line in enumerate(lines) if line.min() != line.max()), 0)

    return count(image), count(image[::-1]), count(image.T), count(image.T[::-1])


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask, whatever its encoding: 0/1, 0/255, gray, colour, palette or 16-bit.

    The file's own maximum decides: above half of it is lung. JPEG's ringing around an edge is thereby gone too.

    Args:
        path: a mask file.

    Returns:
        ``uint8 (H, W)`` in {0, 1}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or not an image.
    """
    path = Path(path)
    try:
        return decode_mask(_read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def decode_image(data: bytes) -> np.ndarray:
    """The film ``uint8 (H, W)`` of a picture file's bytes, as it is.

    Raises:
        ValueError: the bytes are truncated or no image.
    """
    return _read_picture(data).image


def decode_pnm(data: bytes) -> np.ndarray:
    """The gray levels ``uint8 (H, W)`` of a PGM or PBM file's bytes; the size it declares is not checked, as files of shards are our own.

    Raises:
        ValueError: the bytes are truncated or no image.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise ValueError("it is truncated, or no PGM or PBM file")
    return pixels


def decode_mask(data: bytes) -> np.ndarray:
    """The mask of a file's bytes, see :func:`read_mask`."""
    gray = _to_gray(_decode(data))
    top = int(gray.max())
    return (gray > top // 2).astype(np.uint8) if top else np.zeros(gray.shape, np.uint8)


def is_inverted(image: np.ndarray) -> bool:
    """Says whether a frontal chest film is a negative, with bright lungs (MONOCHROME1, a palette read the wrong way).

    A linear template of the chest, fitted on training films, decides: it scores a film about +1 and its negative
    about -1. Between -0.25 and 0.25 the film is left as it is. Source: ``python -m benchmarks.polarity`` fits and tests it.

    Args:
        image: ``uint8 (H, W)``.
    """
    return bool(polarity_features(image) @ _polarity_template() < -0.25)


def polarity_features(image: np.ndarray) -> np.ndarray:
    """The film at 12×12, zero mean and unit deviation, as ``float32 (144,)``: its negative has the opposite sign."""
    # Area-averaging 20 megapixels would cost a fifth of the decoding; every k-th pixel says the same at 12×12.
    step = max(1, min(image.shape) // 256)
    small = cv2.resize(image[::step, ::step], (12, 12), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    return (small / (small.std() + 1e-3)).ravel()


@lru_cache(maxsize=1)
def _polarity_template() -> np.ndarray:
    return np.loadtxt(Path(__file__).with_name("assets") / "polarity.csv", delimiter=",", dtype=np.float32).ravel()


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes ``uint8 (H, W)`` or ``(H, W, 3)`` (BGR) so that the file is whole or not there at all.

    Raises:
        OSError: the folder is missing, read-only or full.
        ValueError: the array can't be encoded in the format that the suffix names.
    """
    path = Path(path)
    try:
        data = encode_image(image, path.suffix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    write_bytes(path, data)


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """A file's bytes of ``uint8 (H, W)`` or ``(H, W, 3)`` (BGR).

    Raises:
        ValueError: the array can't be encoded in the format that the suffix names.
    """
    try:
        done, data = cv2.imencode(suffix, image)
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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file by renaming a finished temporary one, so that a kill leaves the old file or the new one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes a private file; a mask on a shared disk should be as readable as any other file.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
        raise ValueError(f"a mask holds whole 0 and 1, this one is {mask.dtype} from {mask.min()} to {mask.max()}: "
                         "read it with read_mask, or threshold it")


def _read_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("not a file")  # a device or a pipe may never end
    _check_bytes(path.stat().st_size)  # before its bytes are in memory
    return path.read_bytes()


def _check_bytes(size: int) -> None:
    if not size:
        raise ValueError("the file is empty")
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, more than {MAX_BYTES:,}: too large for a film")


def _read_picture(data: bytes) -> Film:
    pixels = _decode(data)
    return Film(to_8_bits(_to_gray(pixels)), colour=pixels if pixels.ndim == 3 else None)


def _decode(data: bytes) -> np.ndarray:
    """The pixels as stored: (H, W), (H, W, 3) in BGR or (H, W, 4) in BGRA, of any real type."""
    check_size(*declared_size(data))
    mark = _END_MARKS.get(data[:4]) or _END_MARKS.get(data[:3])
    if mark and mark not in data[-4096:]:
        raise ValueError(f"the file is truncated ({len(data):,} bytes, no end mark)")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(error.err) from None
    if pixels is None:
        raise ValueError("not an image that OpenCV can read")
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _to_gray(pixels: np.ndarray) -> np.ndarray:
    """What _decode gives as gray levels, (H, W) of the same type."""
    if pixels.ndim == 3 and (pixels.shape[2] not in _TO_GRAY or pixels.dtype not in (np.uint8, np.uint16, np.float32)):
        raise ValueError(f"{pixels.shape[2]} channels of {pixels.dtype} have no gray")
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, _TO_GRAY[pixels.shape[2]])
    if not np.isfinite(gray).all():
        raise ValueError("it has pixels that are not finite numbers")
    return gray
