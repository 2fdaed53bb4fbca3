"""What happens between the patient and the file: position, exposure, noise, collimation, printed letters.

Separate from the statistical model on purpose: a film can be had before and after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from kaggle_utils import outline

_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX)


@dataclass(frozen=True)
class Acquisition:
    """How far films are moved and spoilt; sd unless said otherwise, lengths in parts of the film's side."""

    rotation: float = 2.0  # degrees
    zoom: float = 0.06  # of the logarithm
    shift: float = 0.02
    tight: float = 0.25  # chance of a film cropped around the lungs, as in JSRT
    wide: float = 0.12  # chance of a film taken from further away
    gamma: float = 0.18  # of the logarithm
    contrast: float = 0.10  # of the logarithm
    brightness: float = 8.0  # gray levels
    grain: tuple[float, float] = (1.0, 4.0)  # gray levels, range
    collimated: float = 0.30  # chance of black borders
    marker: float = 0.85  # chance of a printed side marker


def acquire(image: np.ndarray, outlines: np.ndarray, rng: np.random.Generator,
            settings: Acquisition = Acquisition()) -> dict[str, np.ndarray]:
    """Takes the film: moves it, exposes it, prints on it.

    Args:
        image: ``float32 (H, H)``, gray levels 0…255.
        outlines: ``(2, P, 2)`` in units of the film's side.
        rng: where the chances come from; the same state gives the same film.
        settings: how far.

    Returns:
        ``image float32 (H, H)`` and the moved ``outlines (2, P, 2)``.
    """
    image, outlines = _position(image, outlines, rng, settings)
    image = _expose(image, rng, settings)
    image = _collimate(image, outlines, rng, settings)
    image = _print_marker(image, outlines, rng, settings)
    return {"image": image, "outlines": outlines}


def _position(image, outlines, rng, settings):
    turn = np.deg2rad(settings.rotation) * rng.standard_normal()
    zoom = np.exp(settings.zoom * rng.standard_normal())
    shift = settings.shift * rng.standard_normal(2)
    kind, room = rng.random(), rng.uniform(0.02, 0.10)
    low, high = outlines.reshape(-1, 2).min(0), outlines.reshape(-1, 2).max(0)
    middle = (low + high) / 2
    if kind < settings.tight:
        zoom, shift = (1 - 2 * room) / (high - low).max(), 0.5 - middle + shift / 2
    elif kind > 1 - settings.wide:
        zoom *= 0.85
    # A crop never goes deeper than this: some films of the public sets end at the apex or the costophrenic angle.
    zoom = min(zoom, 0.985 / (high - low).max())
    a = zoom * np.exp(1j * turn)
    b = complex(*(middle + shift)) - a * complex(*middle)
    outlines = outline.move(outlines, a, b)
    low, high = outlines.reshape(-1, 2).min(0), outlines.reshape(-1, 2).max(0)
    back = np.clip(0.01 - low, 0, None) - np.clip(high - 0.99, 0, None)
    outlines, b = outlines + back, b + complex(*back)
    size = len(image)
    a_px, half = np.array([[a.real, -a.imag], [a.imag, a.real]]), np.full(2, 0.5)
    offset = np.array([b.real, b.imag]) * size + a_px @ half - half  # pixel centres lie at half units
    matrix = np.c_[a_px, offset].astype(np.float64)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), outlines


def _expose(image, rng, settings):
    size = len(image)
    gamma, contrast, brightness = rng.standard_normal(3) * (settings.gamma, settings.contrast, settings.brightness)
    sharp, slope = rng.uniform(0, 0.8), rng.normal(0, 0.08, 2)
    image = image + sharp * (image - cv2.GaussianBlur(image, (0, 0), size / 170))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    image = np.clip(image / 255, 0, 1) ** np.float32(np.exp(gamma)) * 255
    image = (image - 120) * np.float32(np.exp(contrast)) + np.float32(120 + brightness)
    image = image * (1 + slope[0] * x + slope[1] * y)
    grain = rng.standard_normal((size, size), np.float32)
    soft = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.5, 1.0))
    return (image + soft * (rng.uniform(*settings.grain) / soft.std())).astype(np.float32)


def _collimate(image, outlines, rng, settings):
    sides = rng.random(4) < (0.35, 0.5, 0.35, 0.9)  # top, right side, left side, bottom: Montgomery's is the last
    depth, slant, doit = rng.uniform(0.01, 0.25, 4), rng.normal(0, 0.008, 4), rng.random() < settings.collimated
    level, size = rng.uniform(0, 12), len(image)
    if not doit:
        return image
    low, high = outlines.reshape(-1, 2).min(0), outlines.reshape(-1, 2).max(0)
    free = (low[1], 1 - high[0], low[0], 1 - high[1])
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j].astype(np.float32)
    inward = (y, 1 - x, x, 1 - y)
    across = (x, y, y, x)
    inside = np.ones((size, size), np.float32)
    for k in np.flatnonzero(sides):
        edge = min(depth[k], free[k] - 0.01) + slant[k] * (across[k] - 0.5)
        inside = np.minimum(inside, np.clip((inward[k] - edge) * size + 0.5, 0, 1))
    return image * inside + np.float32(level) * (1 - inside)


def _print_marker(image, outlines, rng, settings):
    size = len(image)
    doit, right, boxed, more = rng.random(4) < (settings.marker, 0.6, 0.15, 0.35)
    height, at_x, at_y = rng.uniform(0.03, 0.055), rng.uniform(0.02, 0.14), rng.uniform(0.03, 0.12)
    font, level = _FONTS[rng.integers(len(_FONTS))], rng.uniform(170, 255)
    line = ("PA", "ERECT", "AP", "STANDING", "01")[rng.integers(5)]
    if not doit:
        return image
    letter = "R" if right else "L"  # the patient's right is on the image's left
    scale = height * size / 22
    for text, lower, part in ((letter, 0.0, 1.0), (line, 1.5 * height, 0.45))[: 1 + more]:
        (width, tall), _ = cv2.getTextSize(text, font, scale * part, 1)
        x = at_x * size if right else (1 - at_x) * size - width
        place = np.array([x, (at_y + lower) * size + tall]).astype(int)
        ink = np.zeros((size, size), np.uint8)
        if boxed:
            cv2.rectangle(ink, place - (2, tall + 2), place + (width + 2, 3), 255, -1)
        thick = max(1, round(scale * part * 1.6))
        cv2.putText(ink, text, tuple(map(int, place)), font, scale * part, 0 if boxed else 255, thick, cv2.LINE_AA)
        share = ink.astype(np.float32) / 255
        image = image * (1 - share) + np.float32(level) * share
    return image
