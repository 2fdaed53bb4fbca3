"""Reads what a picture file declares before anything decodes it: format, size, number of pictures, which way up, end.

A file of a few hundred bytes can declare an image that fills any memory; here it is refused while it is still small.
A truncated one is recognised by its own structure: decoders fill up what is missing as if nothing had happened. What
lies behind the end (a phone's trailer, padding) is ignored.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from mmap import mmap
from typing import Any, Literal

# A 14×17 inch film scanned at 50 µm has 61 million, the largest film of the public sets 20. From file to mask such a
# film takes up to 1.5 GB, see results/memory.json.
MAX_PIXELS = 64_000_000
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four channels of 16 bits, uncompressed
HEAD = 512  # bytes that kind_of, is_dicom and looks_like_image want to see
_GROUPS = (b"\x02\x00", b"\x08\x00")  # with one of these a DICOM file without a preamble begins
# Start-of-frame markers: JPEG's 0xC0-0xCF without DHT, JPG and DAC; and JPEG-LS's.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
# What has a length, and EOI: neither what stands in a scan, of JPEG or of JPEG-LS, nor restarts, SOI and fill bytes.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_MOST_PARTS = 1_000_000  # chunks, blocks or segments; a film of 64 megapixels as a GIF has some 200,000
_MOST_PAGES = 100  # of a TIFF that are looked at
_TAGS = {  # of a TIFF's page
    254: "kind",
    255: "old kind",
    256: "width",
    257: "length",
    258: "bits",
    274: "orientation",
    277: "samples",
    322: "tile width",
    323: "tile length",
}
_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # bytes of a tag's value, by its type
_Order = Literal["little", "big"]
_LEAST_TILE = 1 << 20  # pixels that a TIFF's tile may have in any film
# That OpenCV makes of a colour type; 4 of all others, and where a colour is transparent.
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3}
_KINDS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8",
    "WebP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM.{12}[\x0c(48@l|]\0{3}",
    "JP2": rb"\0{3}\x0cjP  \r\n\x87\n",
    "J2K": rb"\xff\x4f\xff\x51",
    "gzip": rb"\x1f\x8b",
    "NIfTI": rb".{344}n\+1\0|.{4}n\+2\0",
}
# HEIC and AVIF, PGM and its like, OpenEXR, NRRD
_NOT_READ = re.compile(rb".{4}ftyp(?:hei[cx]|mif1|avif)|P[1-6]\s+[#\d]|v/1\x01|NRRD000", re.DOTALL)


@dataclass(frozen=True)
class Header:
    """What a picture file declares.

    Attributes:
        rows: of pixels as they are stored; rows and columns are not swapped by an orientation tag.
        columns: the same.
        orientation: EXIF's, 1 to 8: which way up the stored pixels are.
        pictures: how many films are in the file; a TIFF's reduced copies are not counted.
        page: which of a TIFF's pages the film is.
        pixel: bytes of a pixel while it is decoded.
        samples, bits: of a JPEG's or JPEG 2000's pixel, and of a sample.
    """

    rows: int
    columns: int
    orientation: int = 1
    pictures: int = 1
    page: int = 0
    pixel: int = 4
    samples: int = 1
    bits: int = 8


def kind_of(head: bytes) -> str | None:
    """The format of a file by its first ``HEAD`` bytes: DICOM, PNG, JPEG, TIFF, BMP, GIF, WebP, JP2, J2K, NIfTI,
    gzip."""
    if is_dicom(head):
        return "DICOM"
    return next((kind for kind, magic in _KINDS.items() if re.match(magic, head, re.DOTALL)), None)


def is_dicom(head: bytes) -> bool:
    """Says whether a file's first ``HEAD`` bytes are DICOM's: "DICM" after the preamble, or a plausible first element.

    Without a preamble a file begins with an element of group 0002 or 0008, in little endian; its VR is spelt out
    (explicit) or its length is short (implicit).
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in _GROUPS or head[3]:
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"SH", b"LO")
    return explicit or 0 < int.from_bytes(head[4:8], "little") <= 64


def looks_like_image(head: bytes) -> bool:
    """Says whether a file's first ``HEAD`` bytes are those of a picture or a NIfTI volume, of whatever format."""
    return kind_of(head) not in (None, "gzip", "DICOM") or bool(_NOT_READ.match(head))


def check_size(rows: int, columns: int, pixel: int = 1) -> None:
    """Raises ValueError unless an image has pixels, at most ``MAX_PIXELS``, and no more than 8 bytes for each."""
    said = f"it declares {columns} x {rows} pixels"
    if rows < 1 or columns < 1:
        raise ValueError(said)
    if rows * columns > MAX_PIXELS:
        raise ValueError(f"{said}, more than {MAX_PIXELS / 1e6:.0f} million: too large for a film")
    if rows * columns * pixel > 8 * MAX_PIXELS:
        most = f"{8 * MAX_PIXELS / 1e6:.0f} million in all"
        raise ValueError(f"{said} of {pixel} bytes, more than {most}: too large for a film")


def read_picture_header(data: bytes | mmap) -> Header:
    """What a file of PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000 or NIfTI declares.

    Raises:
        ValueError: another format, or the file ends too early.
    """
    kind = kind_of(data[:HEAD])
    if kind == "DICOM":
        raise ValueError("a DICOM file, where a picture is expected")
    if kind not in _READERS:
        formats = "PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, NIfTI or DICOM"
        raise ValueError(f"not an image: it begins as no {formats} does")
    try:
        return _READERS[kind](data)
    except (struct.error, IndexError, KeyError, OverflowError):
        size = f"{len(data):,} bytes"
        raise ValueError(f"the file is truncated or damaged ({size}): its end or its size is missing") from None


def check_png(data: bytes) -> None:
    """Raises ValueError where a checksum of a whole PNG's pixels is wrong: decoders may go on with other pixels."""
    view = memoryview(data)
    for kind, at, length in _png_chunks(data):
        if kind in (b"IHDR", b"PLTE", b"IDAT"):
            checksum = _number(data, at + length, 4)
            if zlib.crc32(view[at - 4 : at + length]) != checksum:
                raise ValueError("the file is damaged in the middle: a checksum of its pixels is wrong")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, beginning and length of each chunk's content; a checksum follows it."""
    at, kind = 8, b""
    for _ in _parts():
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, length
        at += 12 + length
        if kind == b"IEND":
            return


def _png(data: bytes) -> Header:
    columns, rows, depth, colour = struct.unpack_from(">IIBB", data, 16)
    orientation, pictures, at = 1, 1, 0
    # OpenCV makes room for a chunk of any length before it sees that the file ends: 2 GB, and seconds.
    for kind, at, length in _png_chunks(data):
        if kind == b"eXIf":
            orientation = _exif(data[at : at + length])
        elif kind == b"tRNS":
            colour = -1
        elif kind == b"acTL":  # animated
            pictures = _number(data, at, 4)
    _number(data, at, 4)  # the last checksum
    return Header(rows, columns, orientation, pictures, pixel=_PNG_SAMPLES.get(colour, 4) * (2 if depth > 8 else 1))


def _jpeg(data: bytes) -> Header:
    at, orientation = 2, 1
    frame: tuple[int, int, int, int] | None = None  # bits, rows, columns, samples; the first counts
    for _ in _parts():
        found = _MARKER.search(data, at)  # behind a scan, too, which has no length
        if not found:
            raise IndexError
        marker, at = found[1][0], found.end()
        if marker == 0xD9:  # the end
            break
        length = _number(data, at, 2)
        if marker in _SOF:
            frame = frame or struct.unpack_from(">BHHB", data, at + 2)
        elif marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _exif(data[at + 8 : at + length])
        at += length
    if frame is None:
        raise IndexError
    bits, rows, columns, samples = frame
    return Header(rows, columns, orientation, pixel=1 if samples == 1 else 3, samples=samples, bits=bits)


def _tiff(data: bytes) -> Header:
    pages = _pages(data)
    # Neither reduced copies nor transparency masks.
    whole = [n for n, page in enumerate(pages) if not page.get("kind", 0) & 0b101 and page.get("old kind") != 2]
    film = whole[0] if whole else 0
    page = pages[film]
    rows, columns = page["length"], page["width"]
    tile_columns, tile_rows = page.get("tile width", 1), page.get("tile length", 1)
    if tile_columns * tile_rows > max(_LEAST_TILE, 4 * columns * rows):  # tiles are decoded whole
        raise ValueError(f"its tiles of {tile_columns} x {tile_rows} pixels are larger than the film")
    pixel = page.get("samples", 1) * -(-page.get("bits", 1) // 8)
    return Header(rows, columns, page.get("orientation", 1), max(len(whole), 1), film, pixel)


def _pages(data: bytes) -> list[dict[str, int]]:
    """The tags of each page of a TIFF, or of EXIF, which is one."""
    order: _Order = "little" if data[:2] == b"II" else "big"
    big = data[2:4] in (b"\x2b\x00", b"\x00\x2b")  # BigTIFF: 8-byte offsets and counts
    word, short = (8, 8) if big else (4, 2)
    pages: dict[int, dict[str, int]] = {}
    start = _number(data, word, word, order)
    while start and start not in pages and len(pages) < _MOST_PAGES:
        tags = pages[start] = {}
        count, first, entry = _number(data, start, short, order), start + short, 4 + 2 * word
        for at in range(first, first + min(count, 4096) * entry, entry):
            name, size, place = (
                _TAGS.get(_number(data, at, 2, order)),
                _SIZES.get(_number(data, at + 2, 2, order)),
                at + 4 + word,
            )
            if name and size:
                if _number(data, at + 4, word, order) * size > word:  # the value is where the entry points to
                    place = _number(data, place, word, order)
                tags.setdefault(name, _number(data, place, size, order))  # the first counts, as for libtiff
        link = first + count * entry
        start = int.from_bytes(data[link : link + word], order)  # some writers leave out the last one
    return list(pages.values())


def _exif(block: bytes) -> int:
    """The orientation that a block of EXIF names; a damaged one says nothing about the pixels."""
    try:
        orientation = _pages(block.removeprefix(b"Exif\0\0"))[0]["orientation"]
    except (struct.error, IndexError, KeyError, OverflowError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _bmp(data: bytes) -> Header:
    old = _number(data, 14, 4, "little") == 12  # OS/2's header has 16-bit sizes
    columns, rows = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return Header(abs(rows), abs(columns))  # a negative height means top-down


def _gif(data: bytes) -> Header:
    columns, rows, flags = struct.unpack_from("<HHB", data, 6)
    at, pictures, parts = 13 + _gif_colours(flags), 0, _parts()
    for _ in parts:
        if at >= len(data) and pictures:
            break
        if data[at] == 0x2C:
            pictures += 1
            at = _gif_blocks(data, at + 11 + _gif_colours(data[at + 9]), parts)
        elif data[at] == 0x21:
            at = _gif_blocks(data, at + 2, parts)
        else:  # 0x3B, its end, or what is no GIF any more
            break
    if not pictures:
        raise IndexError
    return Header(rows, columns, pictures=pictures)


def _gif_colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks(data: bytes, at: int, parts: Iterator[int]) -> int:
    for _ in parts:
        if not data[at]:
            break
        at += 1 + data[at]
    return at + 1


def _webp(data: bytes) -> Header:
    end = 8 + _number(data, 4, 4, "little")
    if end > len(data):
        raise IndexError
    at, orientation, pictures = 12, 1, 0
    sizes: list[tuple[int, int]] = []  # the first counts
    for _ in _parts():
        if at + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"VP8X":
            columns, rows = _number(data, at + 12, 3, "little"), _number(data, at + 15, 3, "little")
            sizes.append((1 + rows, 1 + columns))
        elif kind == b"VP8L":
            bits = _number(data, at + 9, 4, "little")
            sizes.append((1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)))
        elif kind == b"VP8 ":
            columns, rows = struct.unpack_from("<HH", data, at + 14)
            sizes.append((rows & 0x3FFF, columns & 0x3FFF))
        elif kind == b"EXIF":
            orientation = _exif(data[at + 8 : at + 8 + length])
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            pictures += 1
        at += 8 + length + length % 2
    rows, columns = sizes[0]
    return Header(rows, columns, orientation, pictures)


def _jp2(data: bytes) -> Header:
    at = 0
    for _ in _parts():
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 16 if length == 1 else 8
        if kind == b"jp2c":
            break
        if length == 1:
            length = _number(data, at + 8, 8)
        if length < head:
            raise IndexError
        at += length
    return _j2k(data, at + head)


def _j2k(data: bytes, at: int = 0) -> Header:
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    channels, depth = struct.unpack_from(">HB", data, at + 40)
    if channels > 4:
        raise ValueError(f"it declares {channels} channels: no film")
    at += 2
    for _ in _parts():
        if (marker := data[at : at + 2]) == b"\xff\xd9":
            break
        if marker == b"\xff\x90":  # a tile's part, which says how long it is, or 0: up to the end
            length = _number(data, at + 6, 4)
            at = at + length if length else data.find(b"\xff\xd9", at)
            if at < 0:
                raise IndexError
        else:
            at += 2 + _number(data, at + 2, 2)
    bits = (depth & 0x7F) + 1
    # OpenJPEG has whole numbers of 32 bits.
    return Header(bottom - top, right - left, pixel=4 * channels, samples=channels, bits=bits)


def _nifti(data: bytes) -> Header:
    order = "<" if data[0] else ">"
    form, at = ("8q", 16) if data[4:8] == b"n+2\0" else ("8h", 40)
    number, *sizes = struct.unpack_from(order + form, data, at)
    axes = [size for size in sizes[: max(number, 0)] if size != 1]
    columns, rows, *others = axes + [1] * (2 - len(axes))
    (bits,) = struct.unpack_from(order + "H", data, 14 if data[4:8] == b"n+2\0" else 72)
    return Header(rows, columns, pictures=prod(others), pixel=max(1, bits // 8))


def _number(data: bytes, at: int, size: int, order: _Order = "big") -> int:
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], order)


def _parts() -> Iterator[int]:
    """As many steps as a file's parts may take.

    Raises:
        ValueError: it has more.
    """
    yield from range(_MOST_PARTS)
    raise ValueError(f"it has more than {_MOST_PARTS:,} parts: damaged, or no film")


_READERS: dict[str | None, Callable[[Any], Header]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "TIFF": _tiff,
    "BMP": _bmp,
    "GIF": _gif,
    "WebP": _webp,
    "JP2": _jp2,
    "J2K": _j2k,
    "NIfTI": _nifti,
}
