"""Lung outlines as points: landmarks, alignment, thin-plate warps and exact masks.

Points are ``(x, y)`` in units of the film's width and height, [0, 1] from its top left corner. A shape is
``(2, POINTS, 2)``: the lung on the image's left (the patient's right lung) first.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

# Landmarks from the apex down the chest wall to the costophrenic angle, along the diaphragm to the cardiophrenic
# corner, and up the mediastinum. Fixed corners keep the diaphragm on the diaphragm in every film.
PARTS = (26, 14, 24)
POINTS = sum(PARTS)
_GRID = 41  # nodes a side on which a warp is computed; between them it is interpolated
_LINES = 4  # a pixel row, along which the area inside an outline is measured
_ROUNDS = 5  # of alignment
_TIMES = 5  # points of a smooth curve for each landmark
_STIFFNESS = 5e-6  # lets a warp pass ~0.1 px off a landmark instead of folding on tracing noise


def two_largest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The two largest components of a mask of both lungs, ordered along x.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}.

    Returns:
        The lung on the image's left and the one on its right, or None where there are no two lungs.
    """
    count, labels, stats, centre = cv2.connectedComponentsWithStats(mask)
    if count < 3:
        return None
    largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:2]
    if stats[largest, cv2.CC_STAT_AREA].min() < 0.015 * mask.size:
        return None
    first, second = sorted(largest, key=lambda k: centre[k, 0])
    return (labels == first).astype(np.uint8), (labels == second).astype(np.uint8)


def landmarks(mask: np.ndarray) -> np.ndarray | None:
    """Landmarks of both lungs by arc length between three anatomical corners.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}, both lungs.

    Returns:
        ``float64 (2, POINTS, 2)``, or None where the mask hasn't two lungs with the corners in their usual order.
    """
    found = _landmarks(mask.tobytes(), mask.shape)
    return None if found is None else found.copy()


@lru_cache(maxsize=16)  # both the checks and the estimate ask for a mask's
def _landmarks(data: bytes, shape: tuple[int, int]) -> np.ndarray | None:
    lungs = two_largest(np.frombuffer(data, np.uint8).reshape(shape))
    if lungs is None:
        return None
    right, left = _trace(lungs[0], -1), _trace(lungs[1], 1)
    if right is None or left is None:
        return None
    return np.stack([right, left])


def _trace(lung: np.ndarray, side: int) -> np.ndarray | None:
    height, width = lung.shape
    soft = cv2.GaussianBlur(lung.astype(np.float32), (0, 0), height / 300)
    # Twice the size: findContours joins the centres of border pixels, half a pixel inside the true edge.
    soft = cv2.resize(soft, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    line = (max(contours, key=len)[:, 0] + 0.5) / (2 * width, 2 * height)
    turned = np.roll(line, -1, 0)
    if side * np.sum(line[:, 0] * turned[:, 1] - turned[:, 0] * line[:, 1]) < 0:
        line = line[::-1]
    line = np.roll(line, -int(np.argmin(line[:, 1])), 0)
    # The corners are extreme points in the direction in which each one sticks out, whatever the lung's tilt.
    angle = int(np.argmax(line @ (0.5 * side, 0.87)))
    corner = int(np.argmax(line @ (-0.57 * side, 0.82)))
    if not 0 < angle < corner < len(line) - 8:
        return None
    line = np.vstack([line, line[:1]])
    ends = (0, angle, corner, len(line) - 1)
    return np.vstack([_resample(line[a : b + 1], n) for a, b, n in zip(ends[:-1], ends[1:], PARTS, strict=True)])


def _resample(line: np.ndarray, count: int) -> np.ndarray:
    length = np.r_[0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))]
    at = np.linspace(0, length[-1], count, endpoint=False)
    return np.stack([np.interp(at, length, line[:, 0]), np.interp(at, length, line[:, 1])], -1)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
    """Least-squares ``target = a * source + b`` on points as complex numbers: abs(a) is scale, its angle rotation."""
    s, t = source.reshape(-1, 2) @ (1, 1j), target.reshape(-1, 2) @ (1, 1j)
    off = s - s.mean()
    a = np.vdot(off, t - t.mean()) / np.vdot(off, off).real
    return complex(a), complex(t.mean() - a * s.mean())


def move(points: np.ndarray, a: complex, b: complex) -> np.ndarray:
    """Applies ``a * p + b`` to points ``(..., 2)``."""
    z = a * (points @ (1, 1j)) + b
    return np.stack([z.real, z.imag], -1)


def align(shapes: np.ndarray) -> dict[str, np.ndarray]:
    """Procrustes alignment.

    Args:
        shapes: ``(N, 2, POINTS, 2)``.

    Returns:
        ``mean (2, POINTS, 2)`` centred with unit rms radius, ``aligned (N, 2, POINTS, 2)``, ``pose (N, 4)`` = log
        scale, rotation in radians and the x and y of the shift that take the mean to each film.

    Source: Cootes, Taylor, Cooper & Graham 1995, Active shape models, appendix A.
    """
    mean = shapes[0]
    for _ in range(_ROUNDS):
        mean = np.mean([move(s, *similarity(s, mean)) for s in shapes], 0)
        mean = mean - mean.reshape(-1, 2).mean(0)
        mean = mean / np.sqrt((mean**2).sum(-1).mean())
    aligned = np.stack([move(s, *similarity(s, mean)) for s in shapes])
    back = [similarity(mean, s) for s in shapes]
    pose = np.array([(np.log(abs(a)), np.angle(a), b.real, b.imag) for a, b in back])
    return {"mean": mean, "aligned": aligned, "pose": pose}


def warp_field(source: np.ndarray, target: np.ndarray, size: int) -> np.ndarray:
    """Thin-plate spline from source to target points, evaluated at the centre of every pixel of the source's film.

    Eight anchors far outside follow the points' affine fit, so that the film beyond the lungs keeps its form.

    Args:
        source, target: ``(2, POINTS, 2)``.
        size: px a side of the film on which the field is wanted.

    Returns:
        ``float32 (size, size, 2)``, x and y in the target's units of [0, 1].

    Source: Bookstein 1989, Principal warps: thin-plate splines and the decomposition of deformations.
    """
    source, target = source.reshape(-1, 2), target.reshape(-1, 2)
    affine = np.linalg.lstsq(np.c_[np.ones(len(source)), source], target, rcond=None)[0]
    ring = np.array([(x, y) for x in (-0.3, 0.5, 1.3) for y in (-0.3, 0.5, 1.3) if (x, y) != (0.5, 0.5)])
    source = np.vstack([source, ring])
    target = np.vstack([target, np.c_[np.ones(8), ring] @ affine])
    axis = np.linspace(0, 1, _GRID)
    nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    from scipy.interpolate import RBFInterpolator

    field = RBFInterpolator(source, target, kernel="thin_plate_spline", smoothing=_STIFFNESS)(nodes)
    return upsample(field.reshape(_GRID, _GRID, 2).astype(np.float32), size)


def upsample(nodes: np.ndarray, size: int) -> np.ndarray:
    """Interpolates nodes ``(G, G, C)`` that span [0, 1] edge to edge at pixel centres, ``(size, size, C)``."""
    weights = _weights(len(nodes), size)
    return np.stack([weights @ channel @ weights.T for channel in np.moveaxis(nodes, -1, 0)], -1)


@lru_cache(maxsize=8)
def _weights(count: int, size: int) -> np.ndarray:
    from scipy.interpolate import CubicSpline

    at = (np.arange(size) + 0.5) / size * (count - 1)
    return CubicSpline(np.arange(count), np.eye(count))(at).astype(np.float32)


def smooth(side: np.ndarray) -> np.ndarray:
    """A curve through one lung's landmarks, smooth but for the corners: ``(POINTS, 2)`` to ``(5 * POINTS, 2)``."""
    closed = np.vstack([side, side[:1]])
    starts = np.cumsum((0, *PARTS))
    return np.vstack([_natural(n) @ closed[start : start + n + 1] for start, n in zip(starts, PARTS)])


@lru_cache(maxsize=8)
def _natural(count: int) -> np.ndarray:
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.arange(count + 1), np.eye(count + 1), bc_type="natural")
    return spline(np.arange(count * _TIMES) / _TIMES)


def is_simple(side: np.ndarray) -> bool:
    """Says whether a lung's outline ``(P, 2)`` doesn't cross itself, with a little room between its corners."""
    z = side @ (1, 1j)
    step = np.roll(z, -1) - z
    # Segments i and j cross where each one's ends lie on either side of the other.
    ends = np.stack([z, np.roll(z, -1)])
    turn = np.sign(((ends[:, None, :] - z[None, :, None]) * step.conj()[None, :, None]).imag)
    parted = turn[0] * turn[1] < 0
    return not (parted & parted.T).any()


def fill(outline: np.ndarray, size: int) -> np.ndarray:
    """Rasterises an outline ``(P, 2)`` to ``uint8 (size, size)``: a pixel is 1 where half of its area is inside.

    Areas are exact along x and sampled four times per pixel along y. OpenCV's fillPoly rounds corners differently from
    one version to the next, by some ten pixels per mask.
    """
    x, line, turn = _crossings(outline, size)
    # Each crossing turns all that lies on its right from outside to inside, or back: a step in its own pixel, as far as
    # that lies on its right, and the rest in the next one. Rows have two more pixels, for steps at the edge.
    width = size + 2
    pixel = np.floor(x).astype(int)
    past = x - pixel
    at = line // _LINES * width + pixel
    steps = np.bincount(at, turn * (1 - past), size * width) + np.bincount(at + 1, turn * past, size * width)
    area = np.abs(np.cumsum(steps.reshape(size, width), axis=1))[:, :size]
    return (area > 0.5 - 1e-6).astype(np.uint8)


def _crossings(outline: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where an outline crosses the sampling lines, ``_LINES`` a pixel.

    Returns:
        Of each crossing x in px, the number of its line, and the area a pixel gains by it: less than 0 on the way up.
    """
    lines = (np.arange(_LINES * size) + 0.5) / _LINES
    x0, y0 = outline.T * size
    x1, y1 = np.roll(outline, -1, 0).T * size
    starts_above, ends_above = y0[:, None] <= lines, y1[:, None] <= lines
    edge, line = np.nonzero(starts_above != ends_above)
    along = (lines[line] - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + along * (x1 - x0)[edge]
    turn = np.where(y1[edge] > y0[edge], 1 / _LINES, -1 / _LINES)
    return np.clip(x, 0, size), line, turn
