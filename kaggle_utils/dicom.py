"""DICOM radiographs to 8-bit gray: pydicom parses, its decoders decompress, and the tags say how gray a value is shown.

The order is the standard's: Modality LUT, VOI LUT, then MONOCHROME1 inverted (PS3.4 N.2). All three work on a table of the
values that the pixels can have, at most 65,536, not on the pixels. Compressed pixels are decoded by a process of its own
(``python -m kaggle_utils.dicom``), since a damaged file makes some decoders abort, and others take any time and memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .gray import gray_range
from .header import check_size

if TYPE_CHECKING:
    from pydicom import Dataset

INSTALL = "pip install pydicom python-gdcm"
DECODE_SECONDS = 120  # a 20-megapixel film takes 1-3 s; a machine may be busy
DECODE_BYTES = 6 << 30  # address space of the process that decodes: openjpeg has 4 bytes a pixel, in several copies
NOT_FILMS = ("CT", "MR", "PT", "NM", "US")
_DEFLATED = "1.2.840.10008.1.2.1.99"
# The patient's: calibrated; the detector's, magnified by a few per cent; the film scanner's.
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel")
_STRIP = 512  # rows: NumPy turns an index into 8 bytes a pixel


@dataclass(frozen=True)
class Film:
    """A radiograph as it was read."""

    image: np.ndarray  # uint8 (H, W), lungs dark
    spacing_mm: tuple[float, float] | None = None  # mm between rows and between columns
    notes: tuple[str, ...] = ()  # what was done to it and what its file says that matters, without semicolons
    colour: np.ndarray | None = None  # (H, W, 3) or (H, W, 4) of any depth, as the file has it, where it is in colour


class NotAFilm(ValueError):
    """The file is as it should be, but not a film that is read here."""


def read_dicom(data: bytes) -> Film:
    """Reads a radiograph (CR, DX, a secondary capture) from the bytes of a DICOM file.

    8-bit values that no LUT changes stay as they are; all others are scaled by :func:`gray.gray_range` of what is shown. A
    shutter's or collimator's outside and padding have no part in it.

    Args:
        data: the whole file, with or without preamble.

    Raises:
        ValueError: no film (a report, a CT slice, several frames, a video), damaged, or too large; the message says which.
        ImportError: pydicom is not installed.
    """
    import_pydicom()
    try:
        ds = _parse(data)
        _check(ds)
        pixels = _decode_apart(data) if ds.file_meta.TransferSyntaxUID.is_encapsulated else _decode(ds)
        notes: list[str] = []
        gray = _luminance(pixels) if pixels.ndim == 3 else _show(pixels, ds, notes)
        spacing = _spacing(ds, notes)
        notes += _remarks(ds)
        return Film(gray, spacing, tuple(note.replace(";", ",") for note in notes), pixels if pixels.ndim == 3 else None)
    except NotAFilm:
        raise
    except Exception as error:  # pydicom meets a damaged element with exceptions of a dozen kinds
        raise ValueError(f"damaged DICOM: {_in_one_line(error)}") from None


def import_pydicom() -> ModuleType:
    """pydicom, silent about what it tolerates.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import pydicom
    except ImportError:
        raise ImportError(f"DICOM files need pydicom: {INSTALL}") from None
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def _parse(data: bytes) -> Dataset:
    from pydicom import dcmread, uid
    from pydicom.filereader import read_dataset
    meta = read_dataset(BytesIO(data[132 if data[128:132] == b"DICM" else 0:]), False, True, stop_when=lambda tag, *_: tag.group != 2)
    if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:  # pydicom would inflate it without a limit
        raise NotAFilm("a deflated DICOM data set is not read: convert it (dcmconv +te)")
    ds = dcmread(BytesIO(data), force=True)
    if not len(ds):  # as pydicom leaves it where an element ends beyond the file's end
        raise ValueError("it is truncated, or no data set follows its head")
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = (uid.ImplicitVRLittleEndian if implicit else
                                          uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian)
    return ds


def _check(ds: Dataset) -> None:
    """Refuses what is no film, with a reason."""
    kind = getattr(ds.get("SOPClassUID"), "name", "") or "of no known class"
    syntax = ds.file_meta.TransferSyntaxUID
    if "PixelData" not in ds:
        raise NotAFilm(f"DICOM without an image in it ({kind})")
    if ds.get("Modality") in NOT_FILMS:
        raise NotAFilm(f"DICOM of modality {ds.Modality}, a radiograph has CR or DX")
    missing = [name for name in _REQUIRED if not isinstance(ds.get(name), int)]
    if missing:
        raise ValueError(f"no valid {' and no '.join(missing)}")
    check_size(ds.Rows, ds.Columns)
    if int(ds.get("NumberOfFrames") or 1) != 1:
        raise NotAFilm(f"DICOM of {ds.NumberOfFrames} frames ({kind}), a film has one")
    if not syntax.is_transfer_syntax or "MPEG" in syntax.name or "HEVC" in syntax.name:
        raise NotAFilm(f"DICOM of transfer syntax {syntax.name}: not that of a film")
    photometric = str(ds.get("PhotometricInterpretation", "")).strip()
    gray = photometric in ("MONOCHROME1", "MONOCHROME2") and ds.SamplesPerPixel == 1
    colour = photometric.startswith(("RGB", "YBR_")) and ds.SamplesPerPixel == 3 and ds.BitsAllocated == 8
    if not gray and not colour:
        raise NotAFilm(f"DICOM of {ds.SamplesPerPixel} samples a pixel, {photometric or 'of no photometric interpretation'}: "
                         "MONOCHROME1, MONOCHROME2 and 8-bit RGB are read")
    if ds.BitsAllocated not in (8, 16) or not 1 <= ds.BitsStored <= ds.BitsAllocated or ds.PixelRepresentation not in (0, 1):
        raise NotAFilm(f"DICOM of {ds.BitsStored} bits in {ds.BitsAllocated} ({kind}): up to 16 in 8 or 16 are read")


def _decode(ds: Dataset) -> np.ndarray:
    """The stored values, (H, W) or (H, W, 3)."""
    from pydicom import uid
    from pydicom.encaps import generate_frames
    from pydicom.pixels import get_decoder, pixel_array
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        decoder = get_decoder(syntax)
        if not decoder.is_available:
            raise NotAFilm(f"DICOM with {syntax.name} needs a decoder: {INSTALL}")
        if syntax == uid.JPEGExtended12Bit and ds.BitsStored > 8 and "pylibjpeg" not in decoder.available_plugins:
            raise NotAFilm("DICOM with JPEG Extended of 12 bits: a decoder under the GPL reads it, pip install pylibjpeg pylibjpeg-libjpeg")
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        # JPEG, JPEG-LS and JPEG 2000 all end so; decoders fill up a truncated image without a word.
        if "JPEG" in syntax.name and b"\xff\xd9" not in frame[-16:]:
            raise ValueError("it is truncated: its image has no end mark")
    # Bits that are not stored are dealt with in _stored, which knows of HighBit.
    return pixel_array(ds, correct_unused_bits=False)


def _decode_apart(data: bytes) -> np.ndarray:
    """As :func:`_decode`, in a process of its own, whose death is a ValueError."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # With many cores the stacks of unused threads would be a good part of the address space.
    env = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run([sys.executable, "-m", "kaggle_utils.dicom"], input=data, capture_output=True, env=env,
                              timeout=DECODE_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"its image was not decoded in {DECODE_SECONDS} s") from None
    if done.returncode in (1, 2) and done.stdout:
        raise (ValueError, NotAFilm)[done.returncode - 1](done.stdout.decode(errors="replace"))
    if done.returncode:
        raise ValueError(f"its decoder died (status {done.returncode})")
    return np.load(BytesIO(done.stdout), allow_pickle=False)


def _decoder() -> int:
    """What the process runs: a DICOM file on stdin, an array (.npy), or status 1 (damaged) or 2 (no film) and the reason, on
    stdout."""
    if sys.platform != "win32":
        import resource
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = DECODE_BYTES if hard == resource.RLIM_INFINITY else min(hard, DECODE_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print
    import_pydicom()
    try:
        pixels = _decode(_parse(sys.stdin.buffer.read()))
    except Exception as error:  # of any decoder
        with answer:
            answer.write(_in_one_line(error).encode())
        return 2 if isinstance(error, NotAFilm) else 1
    file = BytesIO()  # np.save can't write to a pipe
    np.save(file, pixels, allow_pickle=False)
    with answer:
        answer.write(file.getbuffer())
    return 0


def _in_one_line(error: Exception) -> str:
    return f"{'' if isinstance(error, ValueError) else type(error).__name__} {error}".strip()[:400].replace("\n", " ")


def _luminance(pixels: np.ndarray) -> np.ndarray:
    import cv2  # not needed by the process that decodes
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _show(pixels: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    """Stored values to uint8, by a table with an entry for each."""
    stored, bits = _stored(pixels, ds), ds.BitsStored
    half = 1 << (bits - 1)
    # Signed values index the table from its end, as NumPy counts.
    levels = np.r_[:half, -half:0] if ds.PixelRepresentation else np.arange(2 * half)
    shown = _through_luts(levels, ds, notes)
    real = ~_padding(levels, ds)
    sample = _inside(stored, ds, notes)[::4, ::4]
    seen = shown[sample[real[sample]]]
    if not seen.size:
        raise NotAFilm("DICOM whose pixels are all padding")
    if bits == 8 and np.array_equal(shown, np.arange(256)):
        table = shown
    else:
        low, high = gray_range(seen)
        table = np.clip((shown - low) * (255 / ((high - low) or 1)), 0, 255).round()
    if ds.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
        notes.append("MONOCHROME1 inverted")
    table = (table * real).astype(np.uint8)
    gray = np.empty(stored.shape, np.uint8)
    for top in range(0, len(stored), _STRIP):
        gray[top:top + _STRIP] = table[stored[top:top + _STRIP]]
    return gray


def _stored(pixels: np.ndarray, ds: Dataset) -> np.ndarray:
    """The BitsStored bits below HighBit, with their sign; what else is in the word, such as an overlay, is dropped."""
    width, bits = pixels.dtype.itemsize * 8, ds.BitsStored
    words = np.ascontiguousarray(pixels).astype(f"u{width // 8}")
    raw = "JPEG" not in ds.file_meta.TransferSyntaxUID.name  # a codestream has no unused bits
    high = ds.get("HighBit") if raw else bits - 1
    high = high if isinstance(high, int) and bits - 1 <= high < width else bits - 1
    words <<= width - 1 - high
    return words.view(f"{'iu'[ds.PixelRepresentation == 0]}{width // 8}") >> (width - bits)


def _through_luts(levels: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut
    rescaled = _apply(apply_modality_lut, levels, ds, "Modality LUT", notes)
    shown = _apply(apply_voi_lut, rescaled, ds, "VOI LUT", notes)
    if shown.min() == shown.max():
        notes.append("VOI LUT ignored: it shows one gray")
        return rescaled
    if shown is not rescaled and not np.array_equal(shown, rescaled):
        notes.append("VOI LUT" if ds.get("VOILUTSequence") else "window")
    return shown


def _apply(lut: Callable[[np.ndarray, Dataset], np.ndarray], levels: np.ndarray, ds: Dataset, name: str, notes: list[str]) -> np.ndarray:
    """Levels through a LUT; one that is empty or damaged says nothing about the pixels, so it is left out, with a note."""
    try:
        out = np.asarray(lut(levels, ds))
        if out.shape == levels.shape and np.isfinite(out).all():
            return out
    except Exception:  # a dozen kinds, as when parsing
        pass
    notes.append(f"{name} ignored: empty or damaged")
    return levels


def _padding(levels: np.ndarray, ds: Dataset) -> np.ndarray:
    """Which levels stand for no measurement (PixelPaddingValue, alone or up to PixelPaddingRangeLimit)."""
    ends = [value for value in (ds.get("PixelPaddingValue"), ds.get("PixelPaddingRangeLimit")) if isinstance(value, int)]
    if "PixelPaddingValue" not in ds or not ends:
        return np.zeros(levels.shape, bool)
    return (levels >= min(ends)) & (levels <= max(ends))


def _inside(stored: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    """The part within a rectangular shutter or collimator; all of it where the tags name none, or next to nothing."""
    for name in ("Shutter", "Collimator"):
        edges = [ds.get(f"{name}{edge}Edge") for edge in ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")]
        if "RECTANGULAR" in str(ds.get(f"{name}Shape", "")) and all(isinstance(edge, int) for edge in edges):
            top, bottom, left, right = edges
            part = stored[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
            if stored.size > part.size >= stored.size / 4:
                notes.append(f"gray range from within the {name.lower()} (rows {top}-{bottom}, columns {left}-{right})")
                return part
    return stored


def _spacing(ds: Dataset, notes: list[str]) -> tuple[float, float] | None:
    """mm between rows and between columns, from the first tag that holds two lengths that a film can have."""
    for name in _SPACINGS:
        try:
            row, column = map(float, ds.get(name))
        except (TypeError, ValueError):  # missing, empty, one number, no number
            continue
        if 0 < row < 10 and 0 < column < 10:
            notes.append(f"spacing from {name}")
            return row, column
    notes.append("no spacing")
    return None


def _remarks(ds: Dataset) -> list[str]:
    """What the tags say that a reader of the mask should know."""
    remarks = []
    view, sides = str(ds.get("ViewPosition") or ""), [str(side) for side in ds.get("PatientOrientation") or []]
    if view and view not in ("PA", "AP"):
        remarks.append(f"view {view}: not frontal")
    # The mask lies on the file's pixels, so a film stored mirrored is not turned.
    if len(sides) == 2 and (sides[0][:1] == "R" or sides[1][:1] == "H"):
        remarks.append(f"stored mirrored or turned: rows run to {sides[0]} and columns to {sides[1]}")
    if ds.get("BurnedInAnnotation") == "YES":
        remarks.append("burned-in annotation")
    return remarks


if __name__ == "__main__":
    sys.exit(_decoder())
