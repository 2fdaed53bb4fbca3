"""The outline of a mask drawn into its radiograph: its colour and its width."""

from collections.abc import Mapping

import cv2
import numpy as np

# The patient's lungs, in colours of Okabe and Ito, which colour-blind readers tell apart.
RIGHT, LEFT = "#E69F00", "#56B4E9"
COLOUR = RIGHT  # a mask of both


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The film with the mask's outline in orange.

    Args:
        image: ``uint8 (H, W)``.
        mask: ``uint8 (H, W)`` in {0, 1}.

    Returns:
        ``uint8 (H, W, 3)``, BGR.
    """
    return draw_outlines(image, {COLOUR: mask})


def draw_outlines(image: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """:func:`draw_overlay` of several masks, each by its colour (``#RRGGBB``)."""
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    width = max(1, round(min(image.shape) / 256))  # px: as thick on a 20-megapixel film as on a small one
    for colour, mask in masks.items():
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        blue_green_red = tuple(bytes.fromhex(colour[1:]))[::-1]
        cv2.drawContours(canvas, outlines, -1, blue_green_red, width, cv2.LINE_AA)
    return canvas
