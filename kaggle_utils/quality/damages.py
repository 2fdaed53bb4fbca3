"""What happens to films on their way to the network, in ten kinds of five strengths; and pictures that are no films.

A film is ``uint8 (H, W)`` and its truth ``uint8 (H, W)`` in {0, 1}. Rotation and crop move the truth along; occlusion
does not, as the lung behind a plate is still there. Strength 0 is the film as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ..image import resize_image, resize_mask

Moved = tuple[np.ndarray, np.ndarray]  # film and truth
STRENGTHS = range(1, 6)
DRAWN = ("noise", "gradient", "clouds", "stripes", "discs")


@dataclass(frozen=True)
class Damage:
    """One kind of damage: the unit of its five strengths, these, and what does it to a film and its truth."""

    unit: str
    values: tuple[float, ...]
    apply: Callable[[np.ndarray, np.ndarray, float, np.random.Generator], Moved]


def damaged(image: np.ndarray, truth: np.ndarray, kind: str, strength: int, *, seed: str) -> Moved:
    """A film and its truth after damage of a kind; a seed draws the same noise, place and side at every strength.

    Args:
        image: the film.
        truth: its mask.
        kind: of :data:`DAMAGES`.
        strength: 0 to 5; 0 is none.
        seed: any text, such as the film's name.
    """
    if not 0 <= strength <= len(STRENGTHS):
        raise ValueError(f"strength is 0 to {len(STRENGTHS)}, not {strength}")
    if strength == 0:
        return image, truth
    digest = hashlib.sha256(f"{kind} {seed}".encode()).digest()
    rng = np.random.default_rng(list(digest[:8]))
    damage = DAMAGES[kind]
    return damage.apply(image, truth, damage.values[strength - 1], rng)


def draw(kind: str, rng: np.random.Generator, side: int = 256) -> np.ndarray:
    """A picture of a kind of :data:`DRAWN`, which is no film, ``uint8 (side, side)``."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    background = int(rng.integers(256))
    if kind == "noise":
        return rng.integers(0, 256, (side, side), np.uint8)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        return _stretched(np.cos(angle) * x + np.sin(angle) * y + rng.uniform(0, 2) * x * y)
    if kind == "clouds":
        return _stretched(cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), rng.uniform(5, 40)))
    if kind == "stripes":
        return _stretched(np.sin(rng.uniform(3, 40) * x + rng.uniform(3, 40) * y))
    canvas = np.full((side, side), background, np.uint8)
    for _ in range(rng.integers(3, 20)):
        at, size, gray = rng.integers(0, side, 2).tolist(), int(rng.integers(8, side // 3)), int(rng.integers(256))
        cv2.circle(canvas, at, size, gray, -1)
    return canvas


def _gamma(image, truth, value, rng) -> Moved:
    exponent = value if rng.random() < 0.5 else 1 / value
    return cv2.LUT(image, _gray(255 * np.linspace(0, 1, 256) ** exponent)), truth


def _contrast(image, truth, value, rng) -> Moved:
    return _gray((image - image.mean()) * value + image.mean()), truth


def _noise(image, truth, value, rng) -> Moved:
    return _gray(image + value * rng.standard_normal(image.shape, np.float32)), truth


def _blur(image, truth, value, rng) -> Moved:
    return cv2.GaussianBlur(image, (0, 0), value * image.shape[0]), truth


def _jpeg(image, truth, value, rng) -> Moved:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(value)])
    film = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    assert film is not None  # it was encoded here
    return film, truth


def _rotation(image, truth, value, rng) -> Moved:
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), value * rng.choice((-1, 1)), 1)
    turned = cv2.warpAffine(image, matrix, (width, height))
    return turned, cv2.warpAffine(truth, matrix, (width, height), flags=cv2.INTER_NEAREST)


def _crop(image, truth, value, rng) -> Moved:
    height, width = image.shape
    top, left = (round(rng.random() * value * side) for side in image.shape)
    box = np.s_[top : top + round((1 - value) * height), left : left + round((1 - value) * width)]
    return resize_image(image[box], image.shape), resize_mask(truth[box], image.shape)


def _occlusion(image, truth, value, rng) -> Moved:
    # Drawn in this order at every strength.
    aspect = rng.uniform(0.6, 1.6)
    at = rng.random(2)
    gray = rng.choice((0, 255))
    box = np.minimum(np.sqrt(value * np.array([aspect, 1 / aspect])), 1) * image.shape
    top, left = np.round(at * (image.shape - box)).astype(int)
    high, wide = np.round(box).astype(int)
    hidden = image.copy()
    hidden[top : top + high, left : left + wide] = gray
    return hidden, truth


def _inversion(image, truth, value, rng) -> Moved:
    return np.where(image >= 255 * (1 - value), 255 - image, image), truth


def _downsampling(image, truth, value, rng) -> Moved:
    return resize_image(resize_image(image, int(value)), image.shape), truth


def _gray(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _stretched(values: np.ndarray) -> np.ndarray:
    return cv2.normalize(values, np.empty_like(values), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


DAMAGES = {
    "gamma": Damage("exponent, or 1/it", (1.5, 2, 3, 4, 6), _gamma),
    "contrast": Damage("times as steep, clipped", (1.5, 2, 3, 5, 10), _contrast),
    "noise": Damage("sd, gray levels", (10, 20, 40, 60, 90), _noise),
    "blur": Damage("sd, share of side", (0.004, 0.008, 0.015, 0.025, 0.04), _blur),
    "JPEG": Damage("quality", (40, 20, 10, 5, 2), _jpeg),
    "rotation": Damage("degrees", (5, 10, 20, 30, 45), _rotation),
    "crop": Damage("share of sides lost", (0.1, 0.2, 0.3, 0.4, 0.5), _crop),
    "occlusion": Damage("share hidden", (0.02, 0.05, 0.1, 0.2, 0.3), _occlusion),
    "inversion": Damage("share of grays inverted", (0.2, 0.4, 0.6, 0.8, 1), _inversion),
    "down-sampling": Damage("px a side", (128, 64, 48, 32, 16), _downsampling),
}
