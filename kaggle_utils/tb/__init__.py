"""Step two: presumptive tuberculosis on a chest X-ray. A research demonstration, no medical device.

- ``data``: films to four views of the film and its lungs
- ``net``: the classifier, the segmenter's encoder pooled inside a region, and where it looked
- ``train``: training it, and what it says of films
- ``calibrate``: temperature, operating point, scores
- ``screening``: all of it behind the segmenter, for films in a folder
"""

from .calibrate import calibrated, reliability, score_tb
from .data import VARIANTS, make_cuts, tb_frame, view
from .screening import CLEAR, NO_FIELDS, PRESUMPTIVE, TBScreener, draw_heat, screen, why_not
from .train import TBConfig, compare_variants

__all__ = [
    "VARIANTS",
    "CLEAR",
    "NO_FIELDS",
    "PRESUMPTIVE",
    "TBConfig",
    "TBScreener",
    "calibrated",
    "compare_variants",
    "draw_heat",
    "make_cuts",
    "reliability",
    "score_tb",
    "screen",
    "tb_frame",
    "view",
    "why_not",
]
