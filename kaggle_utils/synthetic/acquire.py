"""What happens between the patient and the file: position, exposure, noise, collimation, printed letters.

Separate from the statistical model on purpose: a film can be had before and after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..quality import outline

# How far radiographs are moved and spoilt; sd unless said otherwise, lengths in parts of the film's side.
ROTATION = 2.0  # degrees
ZOOM = 0.05  # of the logarithm
SHIFT = 0.02
TIGHT = 0.25  # chance of a film cropped around the lungs, as in JSRT
WIDE = 0.12  # chance of a film taken from further away
GAMMA, CONTRAST = 0.18, 0.10  # of the logarithm
BRIGHTNESS = 8.0  # gray levels
GRAIN = 0.5, 3.0  # gray levels, range
COLLIMATED = 0.25  # chance of black borders that cut into the film
SHUT = 0.35, 0.5, 0.35, 0.9  # chance of each border: top, right, left and, nearly always, as Montgomery's, bottom
FRAMED = 0.35  # chance that a film taken from further away ends in black, not in more of its surroundings
MARKER = 0.85  # chance of a printed side marker
# Letters as lines in a box of width 0.7 and height 1: OpenCV's fonts differ from one version to the next.
_LETTERS = {
    "R": "0,1 0,0 0.5,0 0.7,0.25 0.5,0.5 0,0.5; 0.35,0.5 0.7,1",
    "L": "0,0 0,1 0.65,1",
    "P": "0,1 0,0 0.5,0 0.7,0.25 0.5,0.5 0,0.5",
    "A": "0,1 0.35,0 0.7,1; 0.14,0.65 0.56,0.65",
    "E": "0.65,0 0,0 0,1 0.65,1; 0,0.48 0.5,0.48",
    "C": "0.7,0.2 0.5,0 0.2,0 0,0.25 0,0.75 0.2,1 0.5,1 0.7,0.8",
    "T": "0,0 0.7,0; 0.35,0 0.35,1",
}


@dataclass(frozen=True)
class Placed:
    """Where on the film the patient stands.

    Attributes:
        outlines: of the lungs, ``(2, P, 2)`` in units of the film's side.
        a, b: complex numbers that moved them there: point z goes to ``a * z + b``.
    """

    outlines: np.ndarray
    a: complex = 1
    b: complex = 0


def place(outlines: np.ndarray, rng: np.random.Generator) -> Placed:
    """Chooses where on the film the patient stands.

    Args:
        outlines: ``(2, P, 2)`` in units of the film's side.
        rng: where the chances come from; the same state gives the same film.

    Returns:
        The move, and the moved outlines.
    """
    rotation = np.deg2rad(ROTATION) * rng.standard_normal()
    zoom = np.exp(ZOOM * rng.standard_normal())
    shift = SHIFT * rng.standard_normal(2)
    kind, room = rng.random(), rng.uniform(0.02, 0.10)
    low, high = _bounds(outlines)
    middle = (low + high) / 2
    if kind < TIGHT:
        zoom = (1 - 2 * room) / (high - low).max()
        shift = 0.5 - middle + shift / 2
    elif kind > 1 - WIDE:
        zoom *= 0.85
    # No deeper crop than this: films of the public sets end at the apex or the costophrenic angle, not inside.
    zoom = min(zoom, 0.97 / (high - low).max())
    a = zoom * np.exp(1j * rotation)
    b = complex(*(middle + shift)) - a * complex(*middle)
    low, high = _bounds(outline.move(outlines, a, b))
    b += complex(*(np.clip(0.01 - low, 0, None) - np.clip(high - 0.99, 0, None)))
    return Placed(outline.move(outlines, a, b), a, b)


def take(image: np.ndarray, placed: Placed, rng: np.random.Generator) -> np.ndarray:
    """Exposes the film, adds grain and borders, prints on it.

    Args:
        image: ``float32 (H, H)``, gray levels 0…255, drawn around the outlines of ``placed``.
        placed: from :func:`place`.
        rng: where the chances come from.

    Returns:
        ``float32 (H, H)``.
    """
    return _print_marker(_collimate(_expose(image, rng), placed, rng), rng)


def _bounds(outlines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = outlines.reshape(-1, 2)
    return points.min(0), points.max(0)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(image)
    gamma, contrast, brightness = rng.standard_normal(3) * (GAMMA, CONTRAST, BRIGHTNESS)
    sharp, slope = rng.uniform(0, 0.8), rng.normal(0, 0.08, 2)
    image = image + sharp * (image - cv2.GaussianBlur(image, (0, 0), size / 170))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    image = np.clip(image / 255, 0, 1) ** np.float32(np.exp(gamma)) * 255
    image = (image - 120) * np.float32(np.exp(contrast)) + np.float32(120 + brightness)
    image = image * (1 + slope[0] * x + slope[1] * y)
    grain = rng.standard_normal((size, size), np.float32)
    soft = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.4, 0.8))
    return (image + soft * (rng.uniform(*GRAIN) / soft.std())).astype(np.float32)


def _collimate(image: np.ndarray, placed: Placed, rng: np.random.Generator) -> np.ndarray:
    """Black where the moved film ends and, by chance, along straight edges that keep off the lungs."""
    # All chances are taken whether they are needed or not, so that a setting changes nothing else of a film.
    shut = rng.random(4) < SHUT
    depth = rng.uniform(0.01, 0.25, 4)
    slant = rng.normal(0, 0.008, 4)
    collimated = rng.random() < COLLIMATED
    black = np.float32(rng.uniform(0, 12))
    framed = rng.random() < FRAMED
    size = len(image)
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    inside = _depth_in_film(x, y, placed, more=0 if framed else 0.08)
    low, high = _bounds(placed.outlines)
    edges = [  # how far inwards each place lies, how far along the edge, and how near the lungs come
        (y, x, low[1]),
        (1 - x, y, 1 - high[0]),
        (x, y, low[0]),
        (1 - y, x, 1 - high[1]),
    ]
    for k, (inward, along, room) in enumerate(edges):
        if collimated and shut[k]:
            reach = min(depth[k], room - 0.01)
            inside = np.minimum(inside, inward - reach - slant[k] * (along - 0.5))
    share = np.clip(inside * size + 0.5, 0, 1).astype(np.float32)
    return image * share + black * (1 - share)


def _depth_in_film(x: np.ndarray, y: np.ndarray, placed: Placed, more: float) -> np.ndarray:
    """How far each place is inside the moved film, which is wider by ``more`` on each side; less than 0 outside."""
    before = (x + 1j * y - placed.b) / placed.a
    inside = np.minimum.reduce([before.real, 1 - before.real, before.imag, 1 - before.imag])
    return (inside + more) * abs(placed.a)


def _print_marker(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A side marker and, by chance, how the film was taken below it; white, or black in a white box."""
    printed, right, boxed, more = rng.random(4) < (MARKER, 0.6, 0.15, 0.35)
    height, x, y = rng.uniform(0.03, 0.05), rng.uniform(0.02, 0.14), rng.uniform(0.03, 0.12)
    bold, level = rng.uniform(0.10, 0.2), rng.uniform(170, 255)
    below = ("PA", "ERECT", "AP")[rng.integers(3)]
    if not printed:
        return image
    lines = [("R" if right else "L", height)]
    if more:
        lines.append((below, 0.5 * height))
    width = max(len(text) * tall for text, tall in lines)
    if not right:  # the patient's right is on the image's left
        x = 1 - x - width
    side = 4 * len(image)
    ink = np.zeros((side, side), np.uint8)
    if boxed:
        bottom = y + len(lines) * height
        left_top = int(side * (x - 0.01)), int(side * (y - 0.01))
        right_bottom = int(side * (x + width)), int(side * (bottom + 0.01))
        cv2.rectangle(ink, left_top, right_bottom, 255, -1)
    for text, tall in lines:
        _write(ink, text, x, y, tall, bold, 0 if boxed else 255)
        y += 1.4 * height
    share = cv2.resize(ink, image.shape, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return image * (1 - share) + np.float32(level) * share


def _write(ink: np.ndarray, text: str, x: float, y: float, tall: float, bold: float, value: int) -> None:
    thick = max(1, round(bold * tall * len(ink)))
    for k, letter in enumerate(text):
        for line in _LETTERS[letter].split(";"):
            points = np.array([point.split(",") for point in line.split()], float)
            points = (points * tall + (x + k * tall, y)) * len(ink)
            cv2.polylines(ink, [np.round(points).astype(np.int32)], False, value, thick)
