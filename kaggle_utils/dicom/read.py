"""DICOM radiographs to 8-bit gray: pydicom parses, its decoders decompress, and the tags say how gray a value is shown.

Compressed pixels are decoded by a process of its own (``python -m kaggle_utils.dicom.read``), since a damaged file
makes some decoders abort, and others take any time and memory. :mod:`dicom.windows` makes gray levels of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ..pictures.complaints import DAMAGED, SECONDS, complaint_in, run_apart
from ..pictures.header import check_size, read_picture_header
from .tags import INSTALL, NotAFilm, has_pixels, import_pydicom, read_pixels, read_tags
from .windows import EDGES, joined, listed, show

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

# Address space of the process that decodes: of its libraries, and of each value, of which openjpeg has 4 bytes in
# several copies.
DECODE_BYTES, DECODE_BYTES_EACH = 1 << 30, 24
_DECODER_BYTES = 80_000_000  # of memory, that the process takes besides the image
_MOST_FRAGMENTS = 10_000  # pieces of a compressed image; an encoder makes one, or a few hundred
NOT_FILMS = ("CT", "MR", "PT", "NM", "US")
# The patient's, calibrated; the detector's, magnified by a few per cent; the film scanner's.
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel")
_TAGS = (  # that are read, besides the pixels
    *_REQUIRED,
    *_SPACINGS,
    "SOPClassUID",
    "Modality",
    "NumberOfFrames",
    "HighBit",
    "PlanarConfiguration",
    "PhotometricInterpretation",
    "PatientAge",
    "PatientOrientation",
    "ViewPosition",
    "BurnedInAnnotation",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    *(f"{name}{part}" for name in ("Shutter", "Collimator") for part in ("Shape", *(f"{edge}Edge" for edge in EDGES))),
)


@dataclass(frozen=True)
class Lie:
    """How a film lies in its file: mirrored and then turned, it is upright, the patient's right on the image's left.

    Attributes:
        mirrored: left and right change places.
        quarters: that it is turned by then, counter-clockwise: 0 to 3.
    """

    mirrored: bool = False
    quarters: int = 0

    def __str__(self) -> str:
        turned = ("", "on its side", "upside down", "on its side")[self.quarters]
        if not self.mirrored:
            return turned
        return f"mirrored and {turned}" if turned else "mirrored"

    def put_right(self, image: np.ndarray) -> np.ndarray:
        """A film or mask ``(H, W)`` of the file, upright: no pixel changes, they only move."""
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if self.mirrored else image, self.quarters))

    def undo(self, image: np.ndarray) -> np.ndarray:
        """An upright film or mask ``(H, W)`` as the file has it."""
        lying = np.rot90(image, -self.quarters)
        return np.ascontiguousarray(lying[:, ::-1] if self.mirrored else lying)


# By what rows run to and what columns run to: the patient's left or right, head or feet (PatientOrientation, PS3.3
# C.7.6.1.1.1).
_LIES = {
    "LF": Lie(),
    "HL": Lie(False, 1),
    "RH": Lie(False, 2),
    "FR": Lie(False, 3),
    "RF": Lie(True),
    "FL": Lie(True, 1),
    "LH": Lie(True, 2),
    "HR": Lie(True, 3),
}


@dataclass(frozen=True)
class Radiograph:
    """A radiograph as it was read."""

    image: np.ndarray  # uint8 (H, W); a negative without a tag that says so is still one
    spacing_mm: tuple[float, float] | None = None  # mm between rows and between columns
    notes: tuple[str, ...] = ()  # what was done to it and what its file says that matters, without semicolons
    colour: np.ndarray | None = None  # (H, W, 3) or (H, W, 4) of any depth, as the file has it, where it is in colour
    lie: Lie | None = None  # how the image lies, where the file says so; it is not put right here
    age: float | None = None  # of the patient, years


def read_dicom(data: bytes) -> Radiograph:
    """Reads a radiograph (CR, DX, a secondary capture) from the bytes of a DICOM file.

    8-bit values that no LUT changes stay as they are; all others are scaled by :func:`pictures.gray.gray_range` of what
    is shown. A shutter's or collimator's outside and padding have no part in it.

    Args:
        data: the whole file, with or without preamble.

    Raises:
        ValueError: no film (a report, a CT slice, several frames, a video), damaged, or too large; the message says
            which.
        ImportError: pydicom is not installed.
    """
    import_pydicom()
    try:
        ds = _parse(data)
        notes = _correct_bits(ds)
        pixels = _decode_apart(data, notes) if ds.file_meta.TransferSyntaxUID.is_encapsulated else _decode(ds)
        colour = pixels if pixels.ndim == 3 else None
        gray = show(pixels, ds, notes) if colour is None else _luminance(colour)
        spacing = _spacing(ds, notes)
        lie = _lie(ds)
        notes += _remarks(ds, lie)
        return Radiograph(gray, spacing, tuple(note.replace(";", ",") for note in notes), colour, lie, _age(ds))
    except NotAFilm:
        raise
    except MemoryError:
        raise ValueError("this machine's memory is too small for it") from None
    except Exception as error:  # pydicom meets a damaged element with exceptions of a dozen kinds
        raise ValueError(f"damaged DICOM: {_in_one_line(error)}") from None


def dicom_bytes(head: bytes, finished: int) -> int | None:
    """Memory that :func:`read_dicom` and what follows take, in bytes besides the file's own.

    None where the head doesn't tell.

    Args:
        head: the beginning of the file.
        finished: bytes per pixel that are needed once it is read.
    """
    import_pydicom()
    try:
        ds, file = read_tags(head, ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
        pixels, pixel = ds.Rows * ds.Columns, ds.SamplesPerPixel * -(-ds.BitsAllocated // 8)
        if not has_pixels(ds, file):
            return None
    except Exception:  # pydicom meets a damaged element with exceptions of a dozen kinds
        return None
    need = pixels * (4 * pixel + finished)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        need += _DECODER_BYTES + pixels * 8 * ds.SamplesPerPixel
    return need


def _parse(data: bytes) -> Dataset:
    """The elements of a film, its pixels among them, checked."""
    ds, file = read_tags(data, _TAGS)
    _check(ds, has_pixels(ds, file))
    read_pixels(ds, file)
    return ds


def _check(ds: Dataset, has_image: bool) -> None:
    """Refuses what is no film, with a reason."""
    kind = " ".join(getattr(sop_class, "name", "") for sop_class in listed(ds, "SOPClassUID")) or "of no known class"
    if not has_image:
        raise NotAFilm(f"DICOM without an image in it ({kind})")
    modality = listed(ds, "Modality")[:1]
    if modality and modality[0] in NOT_FILMS:
        raise NotAFilm(f"DICOM of modality {modality[0]}, a radiograph has CR or DX")
    missing = [name for name in _REQUIRED if not _is_one_number(listed(ds, name))]
    if missing:
        raise ValueError(f"no valid {' and no '.join(missing)}")
    check_size(ds.Rows, ds.Columns)
    frames = next(iter(listed(ds, "NumberOfFrames")), 1) or 1
    if frames != 1:
        raise NotAFilm(f"DICOM of {frames} frames ({kind}), a film has one")
    _check_syntax(ds.file_meta.TransferSyntaxUID)
    _check_samples(ds)
    bits = ds.BitsStored
    if ds.BitsAllocated not in (8, 16) or not 1 <= bits <= ds.BitsAllocated or ds.PixelRepresentation not in (0, 1):
        raise NotAFilm(f"DICOM of {bits} bits in {ds.BitsAllocated} ({kind}): up to 16 in 8 or 16 are read")


def _is_one_number(values: list) -> bool:
    return len(values) == 1 and isinstance(values[0], int)


def _check_syntax(syntax: UID) -> None:
    from pydicom.pixels import get_decoder

    if not syntax.is_transfer_syntax or "MPEG" in syntax.name or "HEVC" in syntax.name:
        raise NotAFilm(f"DICOM of transfer syntax {syntax.name}: not that of a film")
    if syntax.is_encapsulated:
        try:
            get_decoder(syntax)
        except NotImplementedError:
            raise NotAFilm(f"DICOM with {syntax.name} is not read: convert it (gdcmconv --raw)") from None


def _check_samples(ds: Dataset) -> None:
    photometric = joined(ds, "PhotometricInterpretation").strip()
    gray = photometric in ("MONOCHROME1", "MONOCHROME2") and ds.SamplesPerPixel == 1
    colour = photometric.startswith(("RGB", "YBR_")) and ds.SamplesPerPixel == 3 and ds.BitsAllocated == 8
    if not gray and not colour:
        raise NotAFilm(
            f"DICOM of {ds.SamplesPerPixel} samples per pixel, {photometric or 'of no photometric interpretation'}: "
            "MONOCHROME1, MONOCHROME2 and 8-bit RGB are read"
        )


def _decode(ds: Dataset) -> np.ndarray:
    """The stored values, (H, W) or (H, W, 3)."""
    from pydicom import uid
    from pydicom.pixels import get_decoder, pixel_array

    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        decoder = get_decoder(syntax)
        if not decoder.is_available:
            raise NotAFilm(f"DICOM with {syntax.name} needs a decoder: {INSTALL}")
        if syntax == uid.JPEGExtended12Bit and ds.BitsStored > 8 and "pylibjpeg" not in decoder.available_plugins:
            raise NotAFilm(
                "DICOM with JPEG Extended of 12 bits: a decoder under the GPL reads it, "
                "pip install pylibjpeg pylibjpeg-libjpeg"
            )
    # Bits that are not stored are dealt with in dicom.windows, which knows of HighBit.
    return pixel_array(ds, correct_unused_bits=False)


def _codestream(ds: Dataset) -> int:
    """Bits of a sample of a compressed image, by its own head; BitsStored where it has none (RLE).

    Raises:
        ValueError: it has no head, or no end: decoders fill up a truncated image without a word; or it is larger than
            the film, which decoders make room for before they see it.
    """
    from pydicom.encaps import generate_frames, parse_fragments

    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and parse_fragments(ds.PixelData)[0] > _MOST_FRAGMENTS:
        raise ValueError(f"its image lies in more than {_MOST_FRAGMENTS:,} pieces")
    if "JPEG" not in syntax.name:
        return ds.BitsStored
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    try:
        image = read_picture_header(frame)
    except ValueError:
        raise ValueError("it is truncated: its image has no head or no end mark") from None
    if image.rows * image.columns * image.samples > ds.Rows * ds.Columns * ds.SamplesPerPixel:
        said = f"{ds.Columns} x {ds.Rows} x {ds.SamplesPerPixel}"
        raise ValueError(f"its image has {image.columns} x {image.rows} x {image.samples} values, its tags say {said}")
    return image.bits


def _correct_bits(ds: Dataset) -> list[str]:
    """Sets BitsStored to the bits that a compressed image has, by which it is decoded and shown; a note says so."""
    said, bits = ds.BitsStored, _codestream(ds)
    if bits == said:
        return []
    ds.BitsStored, ds.HighBit = bits, bits - 1
    return [f"its image has {bits} bits, though BitsStored says {said}"]


def _decode_apart(data: bytes, notes: list[str]) -> np.ndarray:
    """As :func:`_decode`, in a process of its own, whose death is a ValueError.

    What its decoder complains of becomes a note.
    """
    try:  # with many cores the stacks of unused threads would be a good part of the address space
        done = run_apart("-m", "kaggle_utils.dicom.read", data=data, OMP_NUM_THREADS="1")
    except subprocess.TimeoutExpired:
        raise ValueError(f"its image was not decoded in {SECONDS} s") from None
    if done.returncode in (1, 2) and done.stdout:
        kind = NotAFilm if done.returncode == 2 else ValueError
        raise kind(done.stdout.decode(errors="replace"))
    if done.returncode:
        raise ValueError(f"its decoder died (status {done.returncode})")
    if complaint := complaint_in(done.stderr):
        notes.append(DAMAGED + complaint)
    return np.load(BytesIO(done.stdout), allow_pickle=False)


def _decoder() -> int:
    """What the process runs: from a DICOM file on stdin to an array (.npy) on stdout.

    Or to a reason on stdout, and status 1 (damaged) or 2 (no film).
    """
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print
    import_pydicom()
    try:
        ds = _parse(sys.stdin.buffer.read())
        _correct_bits(ds)
        _limit_memory(DECODE_BYTES + DECODE_BYTES_EACH * ds.Rows * ds.Columns * ds.SamplesPerPixel)
        pixels = _decode(ds)
    except Exception as error:  # of any decoder
        with answer:
            answer.write(_in_one_line(error).encode())
        return 2 if isinstance(error, NotAFilm) else 1
    file = BytesIO()  # np.save can't write to a pipe
    np.save(file, pixels, allow_pickle=False)
    with answer:
        answer.write(file.getbuffer())
    return 0


def _limit_memory(most: int) -> None:
    """Of this process, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _in_one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
    return text.strip()[:400].replace("\n", " ")


def _luminance(pixels: np.ndarray) -> np.ndarray:
    import cv2  # not needed by the process that decodes

    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _spacing(ds: Dataset, notes: list[str]) -> tuple[float, float] | None:
    """mm between rows and between columns, from the first tag that holds two lengths that a film can have."""
    wrong = []
    for name in _SPACINGS:
        values = listed(ds, name)
        try:
            row, column = map(float, values)
        except (TypeError, ValueError):  # none, one number, no number
            row = column = 0.0
        if 0 < row < 10 and 0 < column < 10:
            notes.append(f"spacing from {name}")
            return row, column
        if values:
            wrong.append(name)
    if not wrong:
        notes.append("no spacing")
    else:
        notes.append(f"no spacing: {' and '.join(wrong)} {'are' if len(wrong) > 1 else 'is'} not that of a film")
    return None


def _lie(ds: Dataset) -> Lie | None:
    """How a frontal film lies, by PatientOrientation; None where that says nothing of the kind."""
    return _LIES.get("".join(str(side)[:1].upper() for side in listed(ds, "PatientOrientation")))


def _age(ds: Dataset) -> float | None:
    """Years, of PatientAge: a number of days, weeks, months or years."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", joined(ds, "PatientAge"))
    if not found:
        return None
    return int(found[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1}[found[2]]


def _remarks(ds: Dataset, lie: Lie | None) -> list[str]:
    """What the tags say that a reader of the mask should know."""
    remarks = []
    view = joined(ds, "ViewPosition")
    sides = "\\".join(map(str, listed(ds, "PatientOrientation")[:2]))
    if view and view not in ("PA", "AP"):
        remarks.append(f"view {view}: not frontal")
    if lie not in (None, Lie()):
        remarks.append(f"stored {lie} (PatientOrientation {sides})")
    if lie is None and sides:
        remarks.append(f"PatientOrientation {sides}: not that of a frontal film")
    if "YES" in listed(ds, "BurnedInAnnotation"):
        remarks.append("burned-in annotation")
    return remarks


if __name__ == "__main__":
    sys.exit(_decoder())
