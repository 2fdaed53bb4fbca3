"""Step two: presumptive tuberculosis on a chest X-ray. A research demonstration, no medical device.

- ``data``: five variants of a film, and the thirds of its lungs
- ``lite0``: the network that learned from ImageNet
- ``net``: the classifier, what the network makes of each third and a line through it, and where it looked
- ``fit``: fitting the line
- ``calibrate``: temperature, operating point, scores
- ``screening``: all of it behind the segmenter, for films in a folder
"""

from .calibrate import calibrated, reliability, score_tb
from .data import VARIANTS, tb_frame, thumbnail, view
from .fit import describe_films, fit_line, out_of_fold
from .screening import CLEAR, NO_FIELDS, PRESUMPTIVE, TBScreener, draw_heat, screen, why_not

__all__ = [
    "CLEAR",
    "NO_FIELDS",
    "PRESUMPTIVE",
    "VARIANTS",
    "TBScreener",
    "calibrated",
    "describe_films",
    "draw_heat",
    "fit_line",
    "out_of_fold",
    "reliability",
    "score_tb",
    "screen",
    "tb_frame",
    "thumbnail",
    "view",
    "why_not",
]
