"""Figures: each function draws on given axes, each ``draw_...`` makes one picture of the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .synthetic import AppearanceModel, Film

# Two of Okabe and Ito's colours, which the colour-blind tell apart, on gray too.
RIGHT, LEFT = "#E69F00", "#56B4E9"


def contact_sheet(films: Sequence[Film], *, columns: int = 7, outlines: bool = True, ax=None):
    """Draws films side by side, on request with the outlines of the patient's right and left lung.

    Args:
        films: of one size.
        columns: films in a row.
        outlines: draw them.
        ax: axes to draw on, the current ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: there is no film, or they differ in size.
    """
    if len({film.image.shape for film in films}) != 1:
        raise ValueError(f"a contact sheet takes films of one size, got {[film.image.shape for film in films][:5]}")
    ax = ax or plt.gca()
    size = len(films[0].image)
    rows = -(-len(films) // columns)
    sheet = np.full((rows * size, columns * size), 255, np.uint8)
    for k, film in enumerate(films):
        row, column = k // columns * size, k % columns * size
        sheet[row : row + size, column : column + size] = film.image
        for line, colour in zip(film.outline, (RIGHT, LEFT), strict=True):
            closed = np.vstack([line, line[:1]]) * size - 0.5
            if outlines:
                ax.plot(closed[:, 0] + column, closed[:, 1] + row, color=colour, linewidth=0.9)
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    ax.set_axis_off()
    return ax


def draw_synthetic(path: str | Path | None = None, *, columns: int = 7, seed: int = 5) -> Figure:
    """Makes ``images/synthetic.png``: films of the built-in model, normal and TB, plain above and outlined below.

    Args:
        path: where to save it, if at all.
        columns: films of each class.
        seed: of the draw.
    """
    model = AppearanceModel.load()
    figure, axes = plt.subplots(4, 1, figsize=(1.6 * columns, 6.6), layout="constrained")
    for k, (label, tb) in enumerate((("normal", 0), ("tuberculosis", 1))):
        films = model.sample(columns, seed + tb, tb=tb)
        contact_sheet(films, columns=columns, outlines=False, ax=axes[2 * k])
        contact_sheet(films, columns=columns, ax=axes[2 * k + 1])
        axes[2 * k].set_title(f"{label}: films of nobody, below them with their lungs", loc="left", fontsize=9)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    return figure


FIGURES = {"synthetic.png": draw_synthetic}  # what `python -m kaggle_utils plots` makes
