"""Figures. Each function draws on given axes, each ``draw_...`` makes one picture.

- ``figures``: the README's pictures, by file name
- ``films``: films with their lungs, a training's course
- ``tuning``, ``robustness``, ``tb``: the studies' tables as figures
- ``save``: figures on disk, marked as this package's own
- ``unet``: the network, drawn from the network
"""

from .figures import FIGURES, RESULTS
from .films import draw_history, show_films, show_prepared, show_ranked

__all__ = ["FIGURES", "RESULTS", "draw_history", "show_films", "show_prepared", "show_ranked"]
