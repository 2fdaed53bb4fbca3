"""Measurements of a lung mask: areas, extents, landmarks, symmetry and tilt, one row of numbers per film.

Axes: H rows, W columns; a position is the row and the column of a pixel's centre in the mask's own pixels, from 0 on.
The right lung is the patient's right, on the image's left. With a spacing, directions and distances are those of the
patient, not of the pixels, so that pixels higher than wide don't slant them.
"""

from __future__ import annotations

from math import cos, isfinite, nan, radians, sin
from typing import NamedTuple

import cv2
import numpy as np

from ..image import check_mask

SIDES = ("right", "left")
_DUST = 0.02  # of the largest component's area: what is smaller is no part of a lung
_SEAM_ROWS = 128  # of the copy in which the seam is sought
_SEAM_ERROR = 1 / 64  # of the film's height: lungs a pixel apart are one in that copy, but not touching
# A seam cuts Montgomery's 276 lungs, each taken alone, along 0.24 of their height at least, and 1 % of them are wider
# than 0.81 of it; of the 951 pairs of Montgomery, Shenzhen and JSRT none is cut, and the narrowest measures 0.78.
_LONE_CUT, _LONE_WIDTH = 0.25, 0.8
# mm from the highest to the lowest lung pixel, at birth and from GROWN on; in between the limits grow evenly. JSRT's
# 247 adults have 187 to 342; Montgomery's 121 adults 154 to 390 and its children of 4 and 5 years 161 to 213, whichever
# way its films lay in the scanner. A newborn's lungs are some 60 to 90 mm high. 299 mm for one lung is known as a sign
# of emphysema (Burki & Krumpelman 1980).
LEAST_HEIGHT, MOST_HEIGHT = (40, 140), (150, 400)
GROWN = 16  # years
_MIDLINE_SIDE = 160  # px, the longer side of the copy in which the midline is sought


class Midline(NamedTuple):
    """The straight line about which a pair of lungs is most like its mirror image.

    Attributes:
        symmetry: Dice of the mask and its mirror image about this line, in [0, 1].
        tilt_deg: its angle to the film's columns, positive where its upper end leans to the image's right: the film, or
            the patient in it, is turned clockwise.
        midline_column: where it crosses the film's middle row, px.
    """

    symmetry: float = nan
    tilt_deg: float = nan
    midline_column: float = nan


def measure(mask: np.ndarray, spacing_mm: tuple[float, float] | None = None) -> dict[str, float]:
    """Measures both lungs of a film.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}.
        spacing_mm: distance between rows and between columns, mm in the plane of the detector; None if unknown.

    Returns:
        Of the film:

        - ``lungs``: how many were found, see :func:`split_lungs`: 0, 1 or 2.
        - ``lung_share``: the lungs' share of the film's area.
        - ``left_right_ratio``: the left lung's area over the right one's.
        - ``symmetry``, ``tilt_deg``, ``midline_column``: see :class:`Midline` and :func:`find_midline`.

        Of each lung, with ``right_`` or ``left_`` before it:

        - ``area_px``, ``area_mm2``: its pixels, and their area.
        - ``height_px``, ``height_mm``: from its highest to its lowest row, both included.
        - ``width_px``, ``width_mm``: from its first to its last column, both included.
        - ``apex_row``, ``apex_column``: its highest row; the mean column of the pixels in the upper 1 % of its height.
        - ``costophrenic_row``, ``costophrenic_column``: the pixel furthest down and outwards, at 45°.

        What is undefined is NaN: mm without a spacing; a missing lung's numbers save its area, which is 0; ratio,
        symmetry, tilt and midline without two lungs.

    Raises:
        ValueError: no mask in {0, 1}, or a spacing that is not two positive numbers.
    """
    if spacing_mm is not None and not (len(spacing_mm) == 2 and all(isfinite(s) and s > 0 for s in spacing_mm)):
        raise ValueError(
            f"spacing_mm is the distance between rows and between columns in mm, both above 0, not {spacing_mm}"
        )
    lungs = split_lungs(mask)
    each = {side: _measure_lung(lung, side, spacing_mm) for side, lung in zip(SIDES, lungs)}
    right, left = (found["area_px"] for found in each.values())
    found: dict[str, float] = {
        "lungs": (right > 0) + (left > 0),
        "lung_share": (right + left) / mask.size if mask.size else nan,
        "left_right_ratio": left / right if right and left else nan,
        **find_midline(*lungs, spacing_mm)._asdict(),
    }
    for side, lung in each.items():
        found |= {f"{side}_{name}": value for name, value in lung.items()}
    return found


def check_height(mask: np.ndarray, spacing_mm: tuple[float, float] | None, age: float | None = None) -> tuple[str, ...]:
    """Says whether lungs are so high or so low that the spacing of their film is hardly right.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}, of an upright film.
        spacing_mm: as for :func:`measure`.
        age: of the patient, years; None if unknown: then lungs as low as a small child's get another note.

    Returns:
        A note, or none; none without a spacing or a lung.
    """
    rows = np.flatnonzero(mask.any(1))
    if spacing_mm is None or not rows.size:
        return ()
    height = (rows[-1] - rows[0] + 1) * spacing_mm[0]
    grown = 1.0 if age is None else min(age / GROWN, 1.0)
    least, most = (first + (last - first) * grown for first, last in (LEAST_HEIGHT, MOST_HEIGHT))
    if least <= height <= most:
        return ()
    whose = "an adult's" if grown == 1 else f"at {age:.0f} years they"
    child = age is None and LEAST_HEIGHT[0] <= height < least
    reason = "a small child, or is the spacing wrong" if child else "is the spacing wrong, or the mask"
    return (f"lungs {height:.0f} mm high, {whose} are {least:.0f} to {most:.0f}: {reason}?",)


def split_lungs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes a mask apart into the patient's right and left lung.

    Components smaller than 2 % of the largest are dust, part of neither lung. A seam runs from the top to the bottom of
    the others where it cuts through the fewest lung pixels, between the mean columns of the two classes that Otsu's
    method makes of the lung pixels' columns. A component lies on the side of the seam where its outline lies; one on
    both sides (lungs that touch) is cut.

    The mask is a lone lung if the seam cuts through a quarter of its height or more and it is narrower than 0.8 of its
    height: the patient's right one, if the middle of its extent lies in the left half of the image. The other one is
    empty then.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}.

    Returns:
        The right and the left lung, ``uint8 (H, W)`` in {0, 1}, never overlapping; both empty if the mask is.

    Raises:
        ValueError: the mask is not 2-D or has values outside {0, 1}.

    Source: Otsu 1979 for the classes; Avidan & Shamir 2007, Seam carving, for the seam.
    """
    check_mask(mask)
    mask = np.ascontiguousarray(mask, np.uint8)
    if not mask.any():
        return mask, mask.copy()
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(line) for line in outlines]
    outlines = [line for line, area in zip(outlines, areas) if area >= _DUST * max(areas)]
    kept = _fill(outlines, mask)
    seam = _find_seam(kept)
    if seam is None:
        x, _, width, _ = cv2.boundingRect(kept)
        if 2 * x + width <= mask.shape[1]:
            return kept, np.zeros_like(kept)
        return np.zeros_like(kept), kept
    right = _right_of(outlines, kept, seam)
    return right, kept ^ right


def _right_of(outlines: list[np.ndarray], mask: np.ndarray, seam: np.ndarray) -> np.ndarray:
    """The patient's right lung: components before the seam, and of those on both sides the part before it."""
    near = len(mask) * _SEAM_ERROR
    before, touching = [], []
    for line in outlines:
        beyond = line[:, 0, 0] - seam[line[:, 0, 1]]  # px to the image's right of the seam
        if min(np.mean(beyond < -near), np.mean(beyond > near)) > 0.05:
            touching.append(line)
        elif beyond.mean() < 0:
            before.append(line)
    right = _fill(before, mask)
    if touching:
        right |= _fill(touching, mask) & (np.arange(mask.shape[1]) < seam[:, None])
    return right


def find_midline(right: np.ndarray, left: np.ndarray, spacing_mm: tuple[float, float] | None = None) -> Midline:
    """Finds the line about which two lungs are most like each other's mirror image.

    It turns with the film, as the middles between the outer walls don't; it moves less than the line between the lungs'
    centroids where a part of one lung is missing, and less than that between the apices where an apex is.

    Args:
        right, left: masks of the patient's right and left lung, ``uint8 (H, W)`` in {0, 1}.
        spacing_mm: as for :func:`measure`.

    Returns:
        The line, the best near the upright one, found on a copy of 160 px by Nelder and Mead's method; NaN if a lung is
        empty.
    """
    if not (right.any() and left.any()):
        return Midline()
    both = right | left
    x, y, width, height = cv2.boundingRect(both)
    scale = np.array(spacing_mm or (1.0, 1.0)) * (height, width)
    rows, columns = np.maximum(1, np.rint(scale * _MIDLINE_SIDE / scale.max())).astype(int)
    pair = _thumbnail(both[y : y + height, x : x + width], rows, columns)
    if not pair.any():  # specks that fell between the samples
        return Midline()
    from scipy.optimize import minimize  # here alone: importing it takes longer than all else that a mask needs

    options = {"initial_simplex": [(0, 0), (4, 0), (0, 4)], "xatol": 0.02, "fatol": 1e-5}  # degrees, px
    found = minimize(_unlike, (0, 0), args=(pair, float(pair.sum())), method="Nelder-Mead", options=options)
    tilt_deg, offset = found.x
    tilt = radians(tilt_deg)
    film_middle = (len(right) / 2 - y) * rows / height - 0.5  # the film's middle row, in the copy
    along = (film_middle - (rows - 1) / 2) * sin(tilt)  # how far it is from the copy's middle along the normal
    column = (columns - 1) / 2 + (offset - along) / cos(tilt)
    return Midline(float(1 - found.fun), float(tilt_deg), float(x + (column + 0.5) * width / columns - 0.5))


def _unlike(line: np.ndarray, pair: np.ndarray, total: float) -> float:
    """1 - Dice of a picture and its mirror image.

    Args:
        line: the mirror, degrees from upright and px from the picture's middle along its normal.
        pair: the picture, ``float32 (H, W)``.
        total: its sum.
    """
    tilt_deg, offset = line
    # The unit normal (a, b) of the mirror; a point p goes to p + 2 · (distance of the mirror - normal · p) · normal.
    a, b = cos(radians(tilt_deg)), sin(radians(tilt_deg))
    height, width = pair.shape
    far = 2 * (a * (width - 1) / 2 + b * (height - 1) / 2 + offset)
    mirror = np.array([[1 - 2 * a * a, -2 * a * b, far * a], [-2 * a * b, 1 - 2 * b * b, far * b]])
    image = cv2.warpAffine(pair, mirror, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return 1 - cv2.norm(cv2.min(pair, image), cv2.NORM_L1) / total


def _measure_lung(lung: np.ndarray, side: str, spacing_mm: tuple[float, float] | None) -> dict[str, float]:
    by_row, by_column = spacing_mm or (nan, nan)
    area = int(np.count_nonzero(lung.view(bool)))  # five times as fast as of uint8
    if not area:
        names = _measure_lung(np.ones((1, 1), np.uint8), side, spacing_mm)
        return dict.fromkeys(names, nan) | {"area_px": 0, "area_mm2": 0 * by_row}
    x, y, width, height = cv2.boundingRect(lung)
    box = lung[y : y + height, x : x + width]
    columns, rows = np.concatenate(cv2.findContours(box, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])[:, 0].T
    outwards = columns if side == "left" else -columns
    if spacing_mm:
        outwards = outwards * (by_column / by_row)
    angle = np.argmax(rows + outwards)
    top = np.nonzero(box[: max(1, round(height / 100))])[1]
    return {
        "area_px": area,
        "area_mm2": area * by_row * by_column,
        "height_px": height,
        "height_mm": height * by_row,
        "width_px": width,
        "width_mm": width * by_column,
        "apex_row": y,
        "apex_column": x + float(top.mean()),
        "costophrenic_row": y + int(rows[angle]),
        "costophrenic_column": x + int(columns[angle]),
    }


def _find_seam(mask: np.ndarray) -> np.ndarray | None:
    """Column of the seam between the lungs in each row, ``float (H,)``; None where the mask is a lone lung."""
    x, y, width, height = cv2.boundingRect(mask)
    columns = max(2, round(width * _SEAM_ROWS / height))
    small = _thumbnail(mask[y : y + height, x : x + width], _SEAM_ROWS, columns)
    right, left = _two_means(small.sum(0, dtype=float))
    first = int(right)
    band = small[:, first : int(left) + 2]
    # Between lungs that lie apart the seam keeps away from both: enlarged, it would clip them otherwise.
    aside = abs(np.arange(first, first + band.shape[1]) - (right + left) / 2) / columns
    path = _cheapest_path(band + 0.02 * cv2.blur(band, (5, 5)) + 1e-4 * aside)
    cut = band[np.arange(_SEAM_ROWS), path].mean()
    if cut >= _LONE_CUT and width < _LONE_WIDTH * height:
        return None
    at = (np.arange(len(mask)) - y + 0.5) * _SEAM_ROWS / height - 0.5
    return x + (np.interp(at, np.arange(_SEAM_ROWS), path) + first + 0.5) * width / columns - 0.5


def _two_means(weights: np.ndarray) -> tuple[float, float]:
    """Mean index of the two classes that Otsu's threshold makes of a histogram."""
    below, moment = weights.cumsum()[:-1], (weights * np.arange(len(weights))).cumsum()
    above = weights.sum() - below
    low = moment[:-1] / np.maximum(below, 1e-9)
    high = (moment[-1] - moment[:-1]) / np.maximum(above, 1e-9)
    best = np.argmax(below * above * (high - low) ** 2)
    return float(low[best]), float(high[best])


def _cheapest_path(cost: np.ndarray) -> np.ndarray:
    """Column in each row of the path from top to bottom with the least sum; it moves by one column a row at most."""
    total = np.pad(cost, ((0, 0), (1, 1)), constant_values=np.inf)
    for above, row in zip(total, total[1:]):
        row[1:-1] += np.minimum(np.minimum(above[:-2], above[2:]), above[1:-1])
    path = np.empty(len(cost), int)
    at = path[-1] = total[-1].argmin()
    for row in range(len(cost) - 2, -1, -1):
        at = path[row] = at - 1 + total[row, at - 1 : at + 2].argmin()
    return path - 1


def _fill(outlines: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """The pixels of the mask on and inside the outlines."""
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED) & mask


def _thumbnail(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Share of lung in each cell of a coarse grid, ``float32 (rows, columns)``, by 16 pixels per cell."""
    sampled = cv2.resize(mask * np.uint8(255), (4 * int(columns), 4 * int(rows)), interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(sampled, (int(columns), int(rows)), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


MEASUREMENTS = tuple(measure(np.zeros((1, 1), np.uint8)))  # the names, in order
