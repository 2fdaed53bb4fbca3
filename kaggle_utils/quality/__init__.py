"""Can a mask be trusted? Is it a chest X-ray at all, how good is the mask likely to be, what do its lungs measure?

- ``checks``: is this a frontal chest film, which way up, do the lungs look like lungs
- ``flags``: an estimate of a mask's Dice, a flag, and reasons in words
- ``measurements``: areas, extents, landmarks, symmetry, one row of numbers per film
- ``outline``: lung outlines as points: landmarks, alignment, warps
- ``fit``, ``damages``: fits the estimate to weights, on films damaged on purpose (not imported here: they need pandas)
"""

from .checks import NO_CHEST, Checked, check_film, check_lungs, is_negative, no_radiograph
from .flags import Quality, check_fit, choose_fit, estimate_quality, save_shape, why_no_estimate
from .measurements import MEASUREMENTS, SIDES, check_height, measure, split_lungs

__all__ = [
    "MEASUREMENTS",
    "NO_CHEST",
    "SIDES",
    "Checked",
    "Quality",
    "check_film",
    "check_fit",
    "check_height",
    "check_lungs",
    "choose_fit",
    "estimate_quality",
    "is_negative",
    "measure",
    "no_radiograph",
    "save_shape",
    "split_lungs",
    "why_no_estimate",
]
