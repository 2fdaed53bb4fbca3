"""Presets of joint augmentation of a radiograph and its mask, by albumentations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .artefacts import draw_artefacts

if TYPE_CHECKING:
    import albumentations as A

# What light and clinic draw, which a GPU computes for a batch too (augment.batched).
SMALL, LARGE = (0.1, 0.05, 7), (0.25, 0.1, 35)  # scale and shift, in shares, and turn, in degrees, of an affine
MOVED, FAR = {"light": 0.7, "clinic": 0.8}, 2 / 9  # the chance of an affine; of clinic's, of a large one
GAMMA, BENT = (60, 170), 0.5  # percent; the chance
NOISE, NOISY = (0.01, 0.05), 0.3  # of the gray scale, standard deviation; the chance


def augmentation(preset: str, without: str = "") -> A.Compose:
    """The joint augmentation of a film and its mask; the only function that knows albumentations.

    A horizontal flip puts the heart on the right: anatomically rare (dextrocardia), but the lungs' union is what is
    learned, and it doubles the films. Order: where the film lies, then what the detector did to it.

    Args:
        preset: ``none``; ``light`` (flip, small affine, gamma, a little noise); ``clinic`` (light, now and
            then turned by up to 35°, and what :mod:`augment.artefacts` draws); ``full`` (larger affine, exposure,
            gamma, sharpness, noise, elastic deformation, dropout that hides markers, wires and corners).
        without: an artefact that ``clinic`` leaves out; none if empty.

    Each film is normalised afterwards, which takes an even change of brightness or contrast away: gamma changes the
    gray scale's shape, which stays.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version
    import albumentations as A  # takes a second, and prediction needs none of it

    def affine(scale: float, shift: float, turn: float, p: float) -> A.Affine:
        return A.Affine(
            scale=(1 - scale, 1 + scale),
            translate_percent=(-shift, shift),
            rotate=(-turn, turn),
            keep_ratio=False,
            border_mode=cv2.BORDER_CONSTANT,
            fill=0,
            fill_mask=0,
            p=p,
        )

    class Artefacts(A.ImageOnlyTransform):
        """Draws them, which the image and its mask decide together."""

        @property
        def targets_as_params(self) -> list[str]:
            return ["image", "mask"]

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            return {"drawn": draw_artefacts(data["image"], data["mask"], self.random_generator, without)}

        def apply(self, img: np.ndarray, drawn: np.ndarray, **params: Any) -> np.ndarray:
            return drawn

    level = affine(*SMALL, MOVED["light"])
    tilted = A.OneOf([affine(*SMALL, 1 - FAR), affine(*LARGE, FAR)], p=MOVED["clinic"])
    detector = [A.RandomGamma(GAMMA, p=BENT), A.GaussNoise(std_range=NOISE, p=NOISY)]
    steps = {
        "none": [],
        "light": [A.HorizontalFlip(p=0.5), level, *detector],
        "clinic": [Artefacts(p=1), A.HorizontalFlip(p=0.5), tilted, *detector],
        "full": [
            A.HorizontalFlip(p=0.5),
            affine(0.25, 0.1, 12, 0.9),
            A.ElasticTransform(alpha=60, sigma=9, approximate=True, same_dxdy=True, p=0.15),
            A.RandomBrightnessContrast(0.3, 0.4, p=0.7),  # strong enough to clip: the rest of it is normalised away
            A.RandomGamma((50, 200), p=0.5),
            A.OneOf([A.GaussianBlur((3, 5)), A.Sharpen(alpha=(0.2, 0.6)), A.CLAHE(clip_limit=(1, 4))], p=0.3),
            A.GaussNoise(std_range=(0.01, 0.06), p=0.2),
            A.CoarseDropout((1, 4), (0.03, 0.15), (0.03, 0.15), fill="random_uniform", p=0.25),
        ],
    }
    if preset not in steps:
        raise ValueError(f"augment is one of {', '.join(steps)}, not {preset!r}")
    return A.Compose(steps[preset])
