"""What a file says it is, from its first bytes, before anything decodes it: its format and how many pixels it declares.

A file of a few hundred bytes can declare an image that fills any memory; here it is refused while it is still small.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

# Twice a 14×17 inch film scanned at 50 µm, five times the largest film of the public sets. Decoded at 16 bits, with the
# copies that decoding makes, it is about 1 GB.
MAX_PIXELS = 120_000_000
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four channels of 16 bits, uncompressed
HEAD = 512  # bytes that is_dicom and looks_like_image want to see
_GROUPS = (b"\x02\x00", b"\x08\x00")  # with one of these a DICOM file without a preamble begins
_IMAGE = re.compile(  # PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000 (file, codestream), HEIC and AVIF, PGM and its like, OpenEXR, NRRD, NIfTI-2
    rb"\x89PNG\r\n|\xff\xd8\xff|II[*+]\0|MM\0[*+]|GIF8|BM.{4}\0{4}.{4}[\x0c(48@l|]\0{3}|RIFF.{4}WEBP|\0{3}\x0cjP  |\xff\x4f\xff\x51"
    rb"|.{4}ftyp(?:hei[cx]|mif1|avif)|P[1-6]\s+[#\d]|v/1\x01|NRRD000|.{4}n\+2\0", re.DOTALL)
# JPEG's start-of-frame markers: 0xC0-0xCF without DHT, JPG and DAC.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_dicom(head: bytes) -> bool:
    """Says whether a file's first ``HEAD`` bytes are DICOM's: "DICM" after the preamble, or a plausible first element.

    Without a preamble a file begins with an element of group 0002 or 0008, in little endian; its VR is spelt out (explicit) or
    its length is short (implicit).
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in _GROUPS or head[3]:
        return False
    return head[4:6] in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"SH", b"LO") or 0 < int.from_bytes(head[4:8], "little") <= 64


def looks_like_image(head: bytes) -> bool:
    """Says whether a file's first ``HEAD`` bytes are those of a picture or of a NIfTI volume, be it one that is read here or not."""
    return bool(_IMAGE.match(head)) or head[344:348] == b"n+1\0"


def check_size(rows: int, columns: int) -> None:
    """Raises ValueError unless an image of this size has pixels, and no more than ``MAX_PIXELS``."""
    if rows < 1 or columns < 1:
        raise ValueError(f"it declares {columns} x {rows} pixels")
    if rows * columns > MAX_PIXELS:
        raise ValueError(f"it declares {columns} x {rows} pixels, more than {MAX_PIXELS / 1e6:.0f} million: too large for a film")


def declared_size(data: bytes) -> tuple[int, int]:
    """The (H, W) that a PNG, JPEG, TIFF, BMP or GIF declares; H and W are not swapped by an orientation tag.

    Raises:
        ValueError: another format, or a header that ends too early.
    """
    for magic, read in _READERS.items():
        if data.startswith(magic):
            try:
                return read(data)
            except (struct.error, IndexError, KeyError, OverflowError):
                raise ValueError("the file is truncated or damaged: its header declares no size") from None
    raise ValueError("not an image: it begins as no PNG, JPEG, TIFF, BMP, GIF or DICOM does")


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    at = 8
    # OpenCV makes room for a chunk of any length before it sees that the file ends: 2 GB, and seconds.
    while data[at + 4:at + 8] != b"IEND":
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return height, width


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp(data: bytes) -> tuple[int, int]:
    old = struct.unpack_from("<I", data, 14)[0] == 12  # OS/2's header has 16-bit sizes
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return abs(height), abs(width)  # a negative height means top-down


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        at = data.index(b"\xff", at) if data.find(b"\xff", at) >= 0 else len(data)
        marker = data[at + 1]
        if marker in _SOF:
            return struct.unpack_from(">HH", data, at + 5)
        # Fill bytes, stuffed zeros, restarts and TEM stand alone; other segments say how long they are.
        at += 1 if marker == 0xFF else 2 if marker in (0x00, 0x01, *range(0xD0, 0xD9)) else 2 + struct.unpack_from(">H", data, at + 2)[0]


def _tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"\x2b\x00", b"\x00\x2b")  # BigTIFF: 8-byte offsets and counts
    start, = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    count, = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    size, first = (20, start + 8) if big else (12, start + 2)
    tags = {}
    for at in range(first, first + min(count, 4096) * size, size):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 257):  # ImageWidth, ImageLength
            tags[tag], = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}[kind], data, at + (12 if big else 8))
    return tags[257], tags[256]


_READERS: dict[bytes, Callable[[bytes], tuple[int, int]]] = {
    b"\x89PNG\r\n\x1a\n": _png, b"\xff\xd8\xff": _jpeg, b"II\x2a\x00": _tiff, b"MM\x00\x2a": _tiff, b"II\x2b\x00": _tiff,
    b"MM\x00\x2b": _tiff, b"BM": _bmp, b"GIF8": _gif}
