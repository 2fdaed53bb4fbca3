"""Scales gray levels of any type and range to 8 bits: one rule for pictures and for DICOM."""

from __future__ import annotations

import numpy as np

_BINS = 64  # of the histogram in which a gap is looked for
_GAP = 0.01  # share of pixels: half of the range with fewer is a gap, which the blurred edges of a marker lie in


def gray_range(levels: np.ndarray) -> tuple[float, float]:
    """The levels of a film that become 0 and 255: its 0.1 and 99.9 percentiles, markers and saturated rims left out.

    A film's levels lie together. Where half of the range holds next to none of its pixels, one side of that gap is no
    part of the film: a burned-in marker, a saturated rim, a border. The film is the side with more variety.

    Args:
        levels: of its pixels or a sample of them, in any order.
    """
    levels = np.asarray(levels, np.float64)
    while True:
        low, high = (float(level) for level in np.percentile(levels, (0.1, 99.9)))
        if low == high:
            return low, high
        place = (levels - low) / (high - low)
        counts = np.histogram(place, _BINS, (0, 1))[0]
        inside = np.convolve(counts, np.ones(_BINS // 2), "valid")  # of each half of the range, wherever it begins
        first = inside.argmin()
        if inside[first] >= _GAP * levels.size:
            return low, high
        middle = (first + _BINS / 4) / _BINS
        levels = max(levels[place < middle], levels[place >= middle], key=_variety)


def to_8_bits(gray: np.ndarray) -> np.ndarray:
    """Gray levels ``(H, W)`` of any real type as uint8: those of 8 bits as they are, others by :func:`gray_range`."""
    if gray.dtype == np.uint8:
        return gray
    low, high = gray_range(gray[::4, ::4])
    # A table takes a tenth of the memory.
    values = np.arange(1 << 16, dtype=np.uint16) if gray.dtype == np.uint16 else gray
    scaled = stretch(values, low, high).astype(np.uint8)
    return scaled if values is gray else scaled[gray]


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as ``float32``, whole numbers from 0 (``low`` and less) to 255 (``high`` and more)."""
    scaled = values.astype(np.float32)  # changed in place: a film may have 120 megapixels
    scaled -= np.float32(low)
    scaled /= (np.float32(high) - np.float32(low)) or np.float32(1)
    scaled *= 255
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled)


def _variety(levels: np.ndarray) -> float:
    return float(np.abs(levels - levels.mean()).sum())
