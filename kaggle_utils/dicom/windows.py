"""Stored values of a DICOM radiograph to 8-bit gray, as its tags say; one that doesn't fit is left out, with a note.

The order is the standard's: Modality LUT, VOI LUT, then MONOCHROME1 inverted (PS3.4 N.2). All three work on a table of
the values that the pixels can have, at most 65,536, not on the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pictures.gray import gray_range

if TYPE_CHECKING:
    from pydicom import Dataset

# Of the pixels that are gray, neither black nor white, without a LUT: one that leaves fewer was made for other pixels.
LEAST_GRAY = 1 / 4
LEAST_FILM = 1 / 20  # of the pixels: padding leaves more of a film
MOST_LUTS = 8  # of a kind that are tried
_JUDGED = 100_000  # pixels by which a LUT is judged
_MOST_TABLE = 2 * (2 << 16)  # bytes: twice what 65,536 entries need
EDGES = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
_STRIP = 512  # rows: NumPy turns an index into 8 bytes per pixel

Lut = tuple[str, Callable[[np.ndarray], np.ndarray]]  # its name in notes, and what it does with levels


def show(pixels: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    """Stored values to gray levels.

    Args:
        pixels: ``(H, W)`` of 8 or 16 bits, as decoded.
        ds: the tags.
        notes: gets what was done and what was left out.

    Returns:
        ``uint8 (H, W)``. 8-bit values that no LUT changes stay as they are; of all others
        :func:`pictures.gray.gray_range` becomes 0 and 255. What is outside a shutter or collimator, and padding, has no
        part in it.
    """
    bits = min(ds.BitsStored, pixels.dtype.itemsize * 8)
    stored = _stored(pixels, ds, bits)
    half = 1 << (bits - 1)
    # Signed values index the table from its end, as NumPy counts.
    levels = np.r_[:half, -half:0] if ds.PixelRepresentation else np.arange(2 * half)
    sample = _inside(stored, ds, notes)[::4, ::4]
    padding = _padding(levels, sample, ds, notes)
    seen = sample[~padding[sample]]
    shown = _through_luts(levels, seen, ds, notes)
    if bits == 8 and np.array_equal(shown, np.arange(256)):
        table = shown
    else:
        low, high = gray_range(shown[seen])
        table = np.clip((shown - low) * (255 / ((high - low) or 1)), 0, 255).round()
    if ds.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
        notes.append("MONOCHROME1 inverted")
    table = (table * ~padding).astype(np.uint8)
    gray = np.empty(stored.shape, np.uint8)
    for top in range(0, len(stored), _STRIP):
        gray[top : top + _STRIP] = table[stored[top : top + _STRIP]]
    return gray


def _stored(pixels: np.ndarray, ds: Dataset, bits: int) -> np.ndarray:
    """The ``bits`` below HighBit, with their sign; what else is in the word, such as an overlay, is dropped."""
    size = pixels.dtype.itemsize
    words = np.ascontiguousarray(pixels).astype(f"u{size}")
    words <<= 8 * size - 1 - _high_bit(ds, bits, 8 * size)
    if ds.PixelRepresentation:
        words = words.view(f"i{size}")
    return words >> (8 * size - bits)


def _high_bit(ds: Dataset, bits: int, width: int) -> int:
    """HighBit where words of ``width`` bits have one that fits; a codestream has no unused bits."""
    if "JPEG" in ds.file_meta.TransferSyntaxUID.name:
        return bits - 1
    high = next(iter(listed(ds, "HighBit")), None)
    return high if isinstance(high, int) and bits - 1 <= high < width else bits - 1


def _through_luts(levels: np.ndarray, seen: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    """What is shown for each level.

    Args:
        levels: the values that a pixel can have.
        seen: of the film's pixels, indices into ``levels``.
    """
    seen = seen[:: max(1, seen.size // _JUDGED)]
    least = LEAST_GRAY * _gray_share(levels[seen])

    def first_that_fits(values: np.ndarray, luts: Iterable[Lut]) -> tuple[np.ndarray, str]:
        for name, lut in luts:
            try:
                with np.errstate(all="ignore"):
                    shown = lut(values)
                if np.isfinite(shown).all() and np.ptp(shown[seen]) > 0 and _gray_share(shown[seen]) >= least:
                    return shown, name
                notes.append(f"{name} ignored: it would hide the film")
            except Exception:  # a dozen kinds, as of a damaged element
                notes.append(f"{name} ignored: empty or damaged")
        return values, ""

    rescaled, _ = first_that_fits(levels, _modality_luts(ds))
    shown, name = first_that_fits(rescaled, _voi_luts(ds))
    if np.allclose(shown, rescaled):
        return rescaled
    notes.append(name)
    return shown


def _gray_share(shown: np.ndarray) -> float:
    """Share of the pixels that come out neither black nor white when they are stretched to 8 bits."""
    low, high = gray_range(shown)
    edge = (high - low) / 256
    return float(np.mean((shown > low + edge) & (shown < high - edge)))


def _modality_luts(ds: Dataset) -> Iterator[Lut]:
    for item in listed(ds, "ModalityLUTSequence")[:1]:
        yield "Modality LUT", partial(_lut, item=item, ds=ds)
    for slope, intercept in zip(listed(ds, "RescaleSlope")[:1], listed(ds, "RescaleIntercept")[:1]):
        yield f"rescaling by {slope}", partial(_rescale, slope=slope, intercept=intercept)


def _voi_luts(ds: Dataset) -> Iterator[Lut]:
    items = [("VOI LUT", partial(_lut, item=item, ds=ds)) for item in listed(ds, "VOILUTSequence")]
    windows = [
        ("window", partial(_window, center=center, width=width, ds=ds))
        for center, width in zip(listed(ds, "WindowCenter"), listed(ds, "WindowWidth"))
    ]
    for luts in (items, windows):
        for n, (kind, lut) in enumerate(luts[:MOST_LUTS], 1):
            yield f"{kind} {n}" if n > 1 else kind, lut


def _rescale(values: np.ndarray, slope: Any, intercept: Any) -> np.ndarray:
    return values * float(slope) + float(intercept)


def listed(ds: Dataset, name: str) -> list:
    """An element's values: none, one or many; None stands for one that can't be read."""
    try:
        value = ds.get(name)
    except Exception:  # pydicom meets a damaged element with exceptions of a dozen kinds
        return [None]
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MutableSequence) else [value]


def joined(ds: Dataset, name: str, between: str = "") -> str:
    """An element's values as one text."""
    return between.join(map(str, listed(ds, name)))


def _lut(values: np.ndarray, item: Dataset, ds: Dataset) -> np.ndarray:
    """Values through the table of a LUT sequence's item, of entries of 8 bits, one or two per word, or of up to 16."""
    entries, first, bits = item.LUTDescriptor
    if len(item.get_item("LUTData").value) > _MOST_TABLE:  # before millions of numbers are made of them
        raise ValueError("more entries than 16 bits can name")
    data = item.LUTData
    if isinstance(data, bytes):
        words = np.frombuffer(data, "<u2" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">u2")
    else:
        words = np.atleast_1d(data)
    table = words.astype("<u2")
    entries = entries % (1 << 16) or 1 << 16
    if bits <= 8 and len(table) < entries:
        table = table.view(np.uint8)
    table = table[:entries]
    if first >= 1 << 15 and values.min() < 0:  # the first value is one of the pixels', which have a sign
        first -= 1 << 16
    return table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(int)]


def _window(values: np.ndarray, center: Any, width: Any, ds: Dataset) -> np.ndarray:
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    alone = Dataset()  # without what the window's own range doesn't depend on
    alone.PhotometricInterpretation, alone.BitsStored, alone.PixelRepresentation = "MONOCHROME2", ds.BitsStored, 0
    alone.WindowCenter, alone.WindowWidth = float(center), float(width)
    alone.VOILUTFunction = (listed(ds, "VOILUTFunction") or ["LINEAR"])[0]
    return apply_windowing(values, alone)


def _padding(levels: np.ndarray, sample: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    """Which levels stand for no measurement: PixelPaddingValue, alone or up to PixelPaddingRangeLimit.

    Args:
        levels: the values that a pixel can have.
        sample: of the film's pixels, indices into ``levels``.
    """
    none = np.zeros(levels.shape, bool)
    values = listed(ds, "PixelPaddingValue")
    ends = [value for value in values + listed(ds, "PixelPaddingRangeLimit") if isinstance(value, int)]
    if not values or not ends:
        return none
    low = levels.min()
    # A value that is written with a sign where the pixels have none, or the reverse, is the level of the same bits.
    ends = [(end - low) % len(levels) + low if min(end, low) < 0 else end for end in ends]
    padding = (levels >= min(ends)) & (levels <= max(ends))
    film = sample[~padding[sample]]
    if film.size >= LEAST_FILM * sample.size:
        return padding
    notes.append("padding ignored: it would hide the film")
    return none


def _inside(stored: np.ndarray, ds: Dataset, notes: list[str]) -> np.ndarray:
    """The part within a rectangular shutter or collimator; all of it where the tags name none, or next to nothing."""
    for name in ("Shutter", "Collimator"):
        edges = [value for edge in EDGES for value in listed(ds, f"{name}{edge}Edge")]
        numbers = len(edges) == 4 and all(isinstance(edge, int) for edge in edges)
        if numbers and "RECTANGULAR" in listed(ds, f"{name}Shape"):
            top, bottom, left, right = edges
            part = stored[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if stored.size > part.size >= stored.size / 4:
                notes.append(f"gray range from within the {name.lower()} (rows {top}-{bottom}, columns {left}-{right})")
                return part
    return stored
