"""What real films have and clean sets lack, drawn into a radiograph: gas below the diaphragm, devices, text, blinds.

Each function takes an image ``uint8 (H, W)``, the lungs' mask ``uint8 (H, W)`` in {0, 1} and a generator of random
numbers, and returns another image. The mask stays true: nothing is drawn that would move a lung's edge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

import cv2
import numpy as np

Draw = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
# Ranges of what a GPU computes for a batch too (augment.batched).
GRAIN, COARSE = (3, 25), 0.4  # gray levels, standard deviation; the chance of coarse grain
SOFTNESS = (0.0015, 0.010)  # of the width, standard deviation
STEEPNESS, LEVEL = (1.3, 4), 25  # of a window's slope; gray levels up or down
_LETTERS = list("ABDEHILNOPRSTUXZ0123456789:/ ")


def gas(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three bubbles as dark as lung below a diaphragm, mostly the left one: stomach and colon."""
    height, width = mask.shape
    left = rng.random() < 0.8  # the patient's, on the image's right
    half = np.zeros_like(mask)
    half[:, width // 2 :] = mask[:, width // 2 :] if left else 0
    half[:, : width // 2] = 0 if left else mask[:, : width // 2]
    columns = np.flatnonzero(half.any(axis=0))
    if len(columns) < 8:
        return image
    bottom = height - 1 - np.argmax(half[::-1], axis=0)  # of the lung, by column
    outer = columns[len(columns) * 2 // 5 :] if left else columns[: len(columns) * 3 // 5]  # the heart lies further in
    bubbles = np.zeros(mask.shape, np.float32)
    for _ in range(rng.integers(1, 4)):
        bubbles = np.maximum(bubbles, _bubble(mask.shape, bottom, int(rng.choice(outer)), rng))
    wall = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(1, height // 128) + 1,) * 2))
    bubbles[wall > 0] = 0
    bubbles = cv2.GaussianBlur(bubbles, (0, 0), rng.uniform(0.003, 0.010) * height) * (mask == 0)
    gray = image.astype(np.float32)
    around = cv2.GaussianBlur(gray, (0, 0), 0.03 * height)
    target = float(np.median(image[mask > 0])) * rng.uniform(0.6, 1.1)
    return _to_gray(gray + bubbles * rng.uniform(0.4, 1.0) * np.minimum(0, target - around))


def _bubble(shape: tuple[int, ...], bottom: np.ndarray, column: int, rng: np.random.Generator) -> np.ndarray:
    """One bubble below the lung's bottom, ``float32 (H, W)`` in [0, 1]: round, with a level of fluid, or with folds."""
    height, width = shape
    rx, ry = rng.uniform(0.03, 0.13) * width, rng.uniform(0.02, 0.10) * height
    middle = int(bottom[column] + rng.uniform(0.004, 0.03) * height + ry * rng.uniform(0.5, 1.0))
    bubble = np.zeros((height, width), np.float32)
    axes = (max(2, int(rx)), max(2, int(ry)))
    cv2.ellipse(bubble, (column, middle), axes, rng.uniform(-25, 25), 0, 360, 1.0, cv2.FILLED)
    if rng.random() < 0.5:
        bubble[int(middle + rng.uniform(0, 0.6) * ry) :] = 0
    if rng.random() < 0.4:
        for _ in range(rng.integers(1, 4)):
            start = (int(column + rng.uniform(-1, 1) * rx), int(middle - ry))
            end = (int(start[0] + rng.uniform(-0.3, 0.3) * rx), int(middle + rng.uniform(-0.2, 1) * ry))
            cv2.line(bubble, start, end, 0.3, max(1, width // 170))
    return bubble


def devices(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright tubes and wires, electrodes, and now and then a pacemaker."""
    height, width = image.shape
    drawn = np.zeros(image.shape, np.float32)
    for _ in range(rng.integers(1, 4)):
        line = _curve(rng) * [width, height]
        layer = np.zeros_like(drawn)
        thick = max(1, int(rng.uniform(0.003, 0.012) * width))
        cv2.polylines(layer, [np.round(line * 8).astype(np.int32)], False, 1.0, thick, cv2.LINE_AA, shift=3)
        drawn += layer * rng.uniform(25, 110)
    for _ in range(rng.integers(0, 4)):
        place = (int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.1, 0.9) * height))
        layer = np.zeros_like(drawn)
        cv2.circle(layer, place, max(2, int(rng.uniform(0.008, 0.025) * width)), 1.0, cv2.FILLED, cv2.LINE_AA)
        drawn += layer * rng.uniform(40, 140)
    if rng.random() < 0.15:
        place = (int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.1, 0.6) * height))
        axes = (int(rng.uniform(0.03, 0.07) * width), int(rng.uniform(0.03, 0.06) * height))
        layer = np.zeros_like(drawn)
        cv2.ellipse(layer, place, axes, rng.uniform(0, 180), 0, 360, 1.0, cv2.FILLED)
        drawn += cv2.GaussianBlur(layer, (0, 0), 1) * rng.uniform(80, 160)
    return _to_gray(image + drawn)


def _curve(rng: np.random.Generator) -> np.ndarray:
    """Sixty points of a Bézier curve from top to bottom, or across, in shares of width and height."""
    t = np.linspace(0, 1, 60)
    controls = np.stack([rng.uniform(0.1, 0.9, 4), np.sort(rng.uniform(-0.1, 1.1, 4))], 1)
    if rng.random() < 0.3:
        controls = controls[:, ::-1]
    return np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1) @ controls


def text(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Burned-in letters and numbers near the upper and the lower edge."""
    height, width = image.shape
    drawn = image.copy()
    for _ in range(rng.integers(1, 4)):
        words = "".join(rng.choice(_LETTERS, rng.integers(1, 12)))
        row = rng.choice([rng.uniform(0.03, 0.2), rng.uniform(0.8, 0.98)])
        place = (int(rng.uniform(0, 0.85) * width), int(row * height))
        scale, thick = rng.uniform(0.25, 0.9) * width / 256, max(1, int(rng.uniform(1, 3) * width / 256))
        level = int(rng.choice([255, 255, 230, 0]))
        cv2.putText(drawn, words, place, cv2.FONT_HERSHEY_SIMPLEX, scale, level, thick, cv2.LINE_AA)
    return drawn


def collimation(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Borders of one gray, mostly black, that reach up to the lungs."""
    height, width = image.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return image
    room = np.array([rows[0], height - 1 - rows[-1], columns[0], width - 1 - columns[-1]])
    top, bottom, left, right = (room * rng.uniform(0, 0.9, 4) * (rng.random(4) < 0.6)).astype(int)
    drawn = np.full_like(image, int(rng.choice([0, 0, int(rng.integers(0, 60)), 255])))
    drawn[top : height - bottom, left : width - right] = image[top : height - bottom, left : width - right]
    return drawn


def noise(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to 25 gray levels (standard deviation) of noise, fine or coarse."""
    grain = rng.normal(0, rng.uniform(*GRAIN), image.shape).astype(np.float32)
    if rng.random() < COARSE:
        grain = cv2.GaussianBlur(grain, (0, 0), 1) * 2.5
    return _to_gray(image + grain)


def blur(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft film: up to a hundredth of its width."""
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(*SOFTNESS) * image.shape[1])


def window(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gray window too narrow for the film: steeper about the mean by up to four, black and white cut off."""
    steepness, middle = np.exp(rng.uniform(*np.log(STEEPNESS))), image.mean()
    return _to_gray((image - middle) * steepness + middle + rng.uniform(-LEVEL, LEVEL))


ARTEFACTS: dict[str, tuple[Draw, float]] = {  # and the chance of each
    "gas": (gas, 0.35),
    "devices": (devices, 0.25),
    "text": (text, 0.25),
    "collimation": (collimation, 0.2),
    "noise": (noise, 0.35),
    "blur": (blur, 0.15),
    "window": (window, 0.15),
}


def draw_artefacts(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, without: str = "", among: Collection[str] = ()
) -> np.ndarray:
    """Each artefact but one by its chance, one after the other; of all, or ``among`` some."""
    for name, (draw, chance) in ARTEFACTS.items():
        if name != without and name in (among or ARTEFACTS) and rng.random() < chance:
            image = draw(image, mask, rng)
    return image


def draw_one(name: str, image: np.ndarray, mask: np.ndarray, *, seed: str) -> np.ndarray:
    """One artefact of :data:`ARTEFACTS`, the same each time for a seed: any text, such as the film's name."""
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    draw, _ = ARTEFACTS[name]
    return draw(image, mask, np.random.default_rng(list(digest[:8])))


def _to_gray(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)
