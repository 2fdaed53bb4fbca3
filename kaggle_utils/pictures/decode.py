"""Decodes a picture file's bytes to upright pixels: what OpenCV reads, NIfTI of one slice, and JSRT's raw films."""

from __future__ import annotations

import gzip
import logging
import zlib
from io import BytesIO
from typing import Any

import cv2
import numpy as np

from . import header
from .complaints import DAMAGED, complaint_alone, damage_of_tiff, listening
from .header import HEAD, check_png, check_size, kind_of, read_picture_header

JSRT_SIDE = 2048  # px
JSRT_BYTES = 2 * JSRT_SIDE**2
_JSRT_TOP = 4095


def decode(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels of a picture file's bytes, and notes on what was done to them.

    A file with more than one film is refused; of a TIFF with reduced copies the whole film is read. An orientation tag
    is obeyed in JPEG, PNG, WebP and TIFF alike, as browsers and Pillow's ``exif_transpose`` do. A note that begins with
    ``DAMAGED`` says what the decoder of a JPEG or TIFF complained of; the others' say nothing, or refuse.

    Returns:
        ``(H, W)``, ``(H, W, 3)`` in BGR or ``(H, W, 4)`` in BGRA, of any real type.

    Raises:
        ValueError: truncated, damaged, no image, of more than one picture, or too large.
        ImportError: a NIfTI file, and nibabel is not installed.
        MemoryError: this machine has too little.
    """
    kind = kind_of(data[:HEAD])
    if kind is None and len(data) == JSRT_BYTES:
        return _jsrt(data), ()
    declared = read_picture_header(data)
    check_size(declared.rows, declared.columns, declared.pixel)
    if declared.pictures != 1:
        raise ValueError(f"{kind} of {declared.pictures} pictures, a film has one")
    if kind == "NIfTI":
        return _nifti(data), ()
    if kind == "PNG":
        check_png(data)
    damage = ""
    with listening() as heard:
        if kind == "TIFF":
            damage = damage_of_tiff(data, declared.page, declared.rows * declared.columns * declared.pixel)
        pixels = _opencv(data, declared.page)
        complained = heard()
    if kind == "JPEG" and complained:
        damage = complaint_alone(data)
    notes = []
    if damage:
        notes.append(DAMAGED + damage)
    if declared.orientation in range(2, 9):
        notes.append(f"turned or mirrored as its orientation tag says ({declared.orientation})")
        if kind != "TIFF":  # of which OpenCV obeys it
            pixels = _upright(pixels, declared.orientation)
    return pixels, tuple(notes)


def unpack(data: bytes) -> bytes:
    """What a gzip file holds; other bytes as they are. No more is unpacked than a film of 16 bits has.

    Raises:
        ValueError: truncated, damaged, or what is in it is no film.
    """
    if kind_of(data[:HEAD]) != "gzip":
        return data
    try:
        with gzip.GzipFile(fileobj=BytesIO(data)) as file:
            head = file.read(HEAD)
            most = JSRT_BYTES if kind_of(head) in (None, "gzip") else 2 * header.MAX_PIXELS
            whole = head + file.read(most + 1 - len(head))
    except (OSError, EOFError, zlib.error):
        raise ValueError("a gzip file that is truncated or damaged") from None
    if len(whole) > most:
        raise ValueError(f"not an image of a film: this gzip file holds more than {most:,} bytes")
    return whole


def _opencv(data: bytes, page: int) -> np.ndarray:
    buffer = np.frombuffer(data, np.uint8)
    try:
        if page:
            _, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
            pixels = pages[0] if pages else None
        else:
            pixels = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        raise ValueError(error.err) from None
    if pixels is None:
        raise ValueError("not an image that OpenCV can read: damaged, or of a rare kind")
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are stored, turned and mirrored as EXIF's orientation says."""
    if orientation > 4:  # rows and columns change places
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _jsrt(data: bytes) -> np.ndarray:
    """A film of JSRT as distributed: 12 bits in big-endian words without a header, whose high values are dark."""
    pixels = np.frombuffer(data, ">u2").reshape(JSRT_SIDE, JSRT_SIDE)
    if pixels.max() > _JSRT_TOP:
        raise ValueError(f"not an image: {JSRT_BYTES:,} bytes as a raw film of JSRT, but values above {_JSRT_TOP}")
    return (_JSRT_TOP - pixels).astype(np.uint16)


def _nifti(data: bytes) -> np.ndarray:
    """The slice as a radiologist hangs it, by its affine: columns run to the patient's left, rows downwards.

    Downwards is to the feet, or to the back where a converter took a picture for an axial slice. Where the header has
    no affine, the first axis runs along the rows and the second down the columns, as they are stored.
    """
    try:
        import nibabel
    except ImportError:
        raise ImportError("NIfTI files need nibabel: pip install nibabel") from None
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it mends in a header
    try:
        version = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
        image = version.from_bytes(data)
        kind = image.get_data_dtype()
        stored: Any = image.dataobj
        if (stored.slope, stored.inter) == (1, 0):
            values = np.asanyarray(stored)
        else:
            values = image.get_fdata(caching="unchanged", dtype=np.float32)
        if int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0:
            # nibabel turns the axes to the patient's right, front and head: we want left, back and feet.
            axes = nibabel.orientations.io_orientation(image.affine)
            values = np.flip(nibabel.orientations.apply_orientation(np.atleast_3d(values), axes))
    except MemoryError:
        raise
    except Exception as error:  # of a dozen kinds
        raise ValueError(f"damaged NIfTI: {error}") from None
    if kind.kind not in "biuf":
        raise ValueError(f"NIfTI of {kind}: no gray")
    return np.ascontiguousarray(np.atleast_2d(np.squeeze(values)).T)
