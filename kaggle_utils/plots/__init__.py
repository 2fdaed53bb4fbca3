"""Figures. Each ``draw_...`` makes one picture of README or docs, most of them from a table of the results folder.

- ``figures``: the pictures by file name
- ``benchmarks``, ``robustness``, ``tb``, ``tuning``: charts of what was measured
- ``films``: radiographs with their lungs, a training's course
- ``unet``: the network, drawn from the network
- ``style``: colours, style, and how a figure is saved
- ``table``: a table as a notebook shows it
"""

from .figures import CHARTS, PICTURES
from .films import draw_history, show_films, show_prepared, show_ranked
from .style import RESULTS, check_replaceable, save
from .table import show_table

__all__ = [
    "CHARTS",
    "PICTURES",
    "RESULTS",
    "check_replaceable",
    "draw_history",
    "save",
    "show_films",
    "show_prepared",
    "show_ranked",
    "show_table",
]
