"""Pictures of README and docs by file name: those that the package draws of itself, and those of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..infer import LungSegmenter, Segmented, segment_films
from ..pictures.overlay import LEFT, RIGHT
from ..quality import SIDES, measure, split_lungs
from ..sets import EXAMPLES
from ..synthetic import AppearanceModel
from .benchmarks import draw_pareto, draw_time_to_dice
from .robustness import draw_robustness, draw_worst_damage
from .style import arrow, styled
from .tb import CHARTS as TB_CHARTS
from .tuning import CHARTS as TUNING_CHARTS
from .tuning import draw_impossible
from .unet import draw_unet

_HALO = [withStroke(linewidth=3, foreground="black")]  # a line on a film is seen on white too
ROW = 384  # px, the height of radiographs side by side
CHILDREN = [
    "NORMAL2-IM-0672-0001",
    "person498_bacteria_2101",
    "IM-0553-0001",
    "person628_virus_1206",
    "person423_bacteria_1854",
]


@styled
def draw_masks() -> Figure:
    """Makes ``images/masks.png``: lungs that the shipped network finds, in children's and in synthetic radiographs."""
    synthetic = [film.image for tb in (0, 1) for film in AppearanceModel.load().sample(3, seed=5 + tb, size=384, tb=tb)]
    rows: dict[str, list] = {
        "children of the public test list (Kermany et al. 2018, CC BY 4.0)": [
            EXAMPLES / f"{name}.jpg" for name in CHILDREN
        ],
        "synthetic radiographs: nobody, normal and with tuberculosis": synthetic,
    }
    segmenter = LungSegmenter(device="cpu")
    figure, axes = plt.subplots(2, 1, figsize=(11.2, 4.5))
    for ax, (title, films) in zip(axes, rows.items(), strict=True):
        found = [found for found in segment_films(films, segmenter) if isinstance(found, Segmented)]
        draw_side_by_side([(one.film.image, one.lungs) for one in found], ax)
        ax.set_title(title, loc="left", fontsize=12)
    return figure


def draw_side_by_side(films: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], ax: Axes) -> None:
    """Draws radiographs in a row, each with the outlines of the patient's right and left lung, if they are given."""
    left = 0
    for image, lungs in films:
        place = (left, left + round(image.shape[1] * ROW / image.shape[0]), ROW, 0)
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=place, interpolation="antialiased")
        for lung, colour in zip(lungs, (RIGHT, LEFT)):
            ax.contour(lung, levels=[0.5], colors=[colour], linewidths=1.3, extent=place, origin="upper")
        left = place[1] + 4
    ax.set(xlim=(0, left - 4), ylim=(ROW, 0), aspect="equal")
    ax.set_axis_off()


@styled
def draw_synthetic() -> Figure:
    """Makes ``images/synthetic.png``: synthetic radiographs, normal and TB, plain above and outlined below."""
    model = AppearanceModel.load()
    figure, axes = plt.subplots(4, 1, figsize=(11.2, 6.6))
    for label, tb, plain, outlined in (("normal", 0, *axes[:2]), ("tuberculosis", 1, *axes[2:])):
        films = model.sample(7, seed=5 + tb, tb=tb)
        draw_side_by_side([(film.image, ()) for film in films], plain)
        draw_side_by_side([(film.image, (film.right, film.left)) for film in films], outlined)
        plain.set_title(f"{label}: synthetic radiographs, below them with their lungs", loc="left")
    return figure


@styled
def draw_measurements() -> Figure:
    """Makes ``images/measurements.png``: synthetic radiographs, normal and TB, with their masks' measurements."""
    model = AppearanceModel.load()
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.5))
    for tb, (seed, ax) in enumerate(zip((14, 9), axes, strict=True)):
        film = model.sample(1, seed, size=512, tb=tb)[0]
        draw_measured(film.image, film.mask, ax)
    figure.supxlabel("synthetic radiographs; triangles: apex, costophrenic angle; white line: midline", fontsize=9)
    return figure


def draw_measured(image: np.ndarray, mask: np.ndarray, ax: Axes) -> None:
    """Draws a film with what :func:`measure` finds in its mask, in px; numbers that are no lengths are the title.

    Args:
        image: ``uint8 (H, W)``.
        mask: ``uint8 (H, W)`` in {0, 1}, with both lungs.
        ax: axes to draw on.
    """
    found = measure(mask)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    for side, lung, colour in zip(SIDES, split_lungs(mask), (RIGHT, LEFT), strict=True):
        ax.contour(lung, levels=[0.5], colors=[colour], linewidths=1.2)
        rows, columns = np.nonzero(lung)
        top, bottom, first, last = rows.min(), rows.max(), columns.min(), columns.max()
        below = bottom + 14
        beside = first - 14 if side == "right" else last + 14
        _draw_length((beside, top), (beside, bottom), f"height {found[f'{side}_height_px']}", colour, ax, rotation=90)
        _draw_length((first, below), (last, below), f"width {found[f'{side}_width_px']}", colour, ax)
        for place, marker in (("apex", "^"), ("costophrenic", "v")):
            at = found[f"{side}_{place}_column"], found[f"{side}_{place}_row"]
            ax.plot(*at, marker, color="white", markeredgecolor="black", markersize=8)
    height, width = image.shape
    lean = np.tan(np.radians(found["tilt_deg"])) * height / 2
    midline = [found["midline_column"] + lean, found["midline_column"] - lean]
    ax.plot(midline, [0, height], color="white", linewidth=1.2, path_effects=_HALO)
    ax.set_title(
        f"left/right area {found['left_right_ratio']:.2f}, symmetry {found['symmetry']:.2f},\n"
        f"tilt {found['tilt_deg']:+.1f}°, lung share {found['lung_share']:.2f}"
    )
    ax.set(xlim=(0, width - 1), ylim=(height - 1, 0))
    ax.set_axis_off()


def _draw_length(start: tuple, end: tuple, text: str, colour: str, ax: Axes, rotation: int = 0) -> None:
    """An arrow with two heads between x, y and x, y, its text upon it."""
    arrow(ax, start, end, colour, "<->", path_effects=_HALO)
    box = {"facecolor": "black", "edgecolor": "none", "pad": 1.5}
    x, y = np.mean([start, end], axis=0)
    ax.text(x, y, text, color=colour, rotation=rotation, ha="center", va="center", fontsize=9, bbox=box)


PICTURES: dict[str, Callable[[], Figure]] = {
    "masks.png": draw_masks,
    "measurements.png": draw_measurements,
    "synthetic.png": draw_synthetic,
    "tuning_impossible.png": draw_impossible,
    "unet.png": draw_unet,
}
CHARTS: dict[str, Callable[..., Figure]] = {  # of the results folder
    "pareto.png": draw_pareto,
    "robustness.png": draw_robustness,
    "robustness_worst.png": draw_worst_damage,
    "time_to_dice.png": draw_time_to_dice,
    **TB_CHARTS,
    **TUNING_CHARTS,
}
