"""Figures: each function draws on given axes, each ``draw_...`` makes one picture of the README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..quality import SIDES, measure, split_lungs
from ..synthetic import AppearanceModel, SyntheticFilm
from .robustness import draw_robustness
from .save import check_replaceable, saved  # noqa: F401 (this module is the face of the first)
from .tb import FIGURES as TB_FIGURES
from .tuning import FIGURES as TUNING_FIGURES
from .unet import draw_unet

RESULTS = Path(__file__).parents[2] / "results"
# Okabe and Ito's colours, which the colour-blind tell apart; the last two on gray too.
OKABE_ITO = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#000000", "#E69F00", "#56B4E9")
RIGHT, LEFT = OKABE_ITO[-2:]
HALO = [withStroke(linewidth=3, foreground="black")]  # a line on a film is seen on white too


def contact_sheet(
    films: Sequence[SyntheticFilm], *, columns: int = 7, outlines: bool = True, ax: Axes | None = None
) -> Axes:
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
    rows = math.ceil(len(films) / columns)
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
    """Makes ``images/synthetic.png``: synthetic radiographs, normal and TB, plain above and outlined below.

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
        axes[2 * k].set_title(f"{label}: synthetic radiographs, below them with their lungs", loc="left", fontsize=9)
    return saved(figure, path)


def measured_film(image: np.ndarray, mask: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Draws a film with what :func:`measure` finds in its mask, in px; numbers that are no lengths are the title.

    Args:
        image: ``uint8 (H, W)``.
        mask: ``uint8 (H, W)`` in {0, 1}, with both lungs.
        ax: axes to draw on, the current ones by default.

    Returns:
        The axes.
    """
    ax = ax or plt.gca()
    found = measure(mask)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    for side, lung, colour in zip(SIDES, split_lungs(mask), (RIGHT, LEFT), strict=True):
        ax.contour(lung, levels=[0.5], colors=[colour], linewidths=1.2)
        rows, columns = np.nonzero(lung)
        top, bottom, first, last = rows.min(), rows.max(), columns.min(), columns.max()
        below = bottom + 14
        beside = first - 14 if side == "right" else last + 14
        _draw_length((beside, top), (beside, bottom), f"height {found[f'{side}_height_px']}", colour, ax)
        _draw_length((first, below), (last, below), f"width {found[f'{side}_width_px']}", colour, ax)
        for place, marker in (("apex", "^"), ("costophrenic", "v")):
            at = found[f"{side}_{place}_column"], found[f"{side}_{place}_row"]
            ax.plot(*at, marker, color="white", markeredgecolor="black", markersize=8)
    height, slope = len(image), np.tan(np.radians(found["tilt_deg"]))
    midline = [found["midline_column"] + slope * height / 2 * end for end in (1, -1)]
    ax.plot(midline, [0, height], color="white", linewidth=1.2, path_effects=HALO)
    ax.set_title(
        f"left/right area {found['left_right_ratio']:.2f}, symmetry {found['symmetry']:.2f}, "
        f"tilt {found['tilt_deg']:+.1f}°, lung share {found['lung_share']:.2f}",
        fontsize=9,
    )
    ax.set(xlim=(0, image.shape[1] - 1), ylim=(height - 1, 0))
    ax.set_axis_off()
    return ax


def draw_measurements(path: str | Path | None = None, *, seeds: Sequence[int] = (14, 9), size: int = 512) -> Figure:
    """Makes ``images/measurements.png``: synthetic radiographs, normal and TB, with their masks' measurements.

    Args:
        path: where to save it, if at all.
        seeds: of the normal film and of the one with tuberculosis.
        size: px a side.
    """
    model = AppearanceModel.load()
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.5), layout="constrained")
    for tb, (seed, ax) in enumerate(zip(seeds, axes, strict=True)):
        film = model.sample(1, seed, size=size, tb=tb)[0]
        measured_film(film.image, film.mask, ax=ax)
    figure.supxlabel("synthetic radiographs; triangles: apex, costophrenic angle; white line: midline", fontsize=9)
    return saved(figure, path)


def draw_time_to_dice(path: str | Path | None = None, *, table: str | Path = RESULTS / "time_to_dice.csv") -> Figure:
    """Makes ``images/time_to_dice.png``: validation Dice against seconds of training, a curve for each contestant.

    Args:
        path: where to save it, if at all.
        table: what ``python -m benchmarks.time_to_dice`` wrote.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    if not Path(table).exists():
        raise FileNotFoundError(f"{table} is not there: python -m benchmarks.time_to_dice writes it")
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    frame = pd.read_csv(table)
    low, ticks = 0.9 * min(0.5, frame["val_dice"].min()), [0.2, 0.5, 0.8, 0.9, 0.95, 0.97]
    curves = dict(zip(OKABE_ITO, frame.groupby("contestant", sort=False)))
    height = 0.97
    for colour, (name, rows) in sorted(curves.items(), key=lambda curve: curve[1][1]["seconds"].max()):
        width = 2.5 if name == "ours" else 1.3
        ax.plot(rows["seconds"], rows["val_dice"], color=colour, marker="o", markersize=3, linewidth=width)
        last = rows.iloc[-1]
        label = f"  {name.removesuffix(' bf16')}, {last['parameters'] / 1e6:.1f}M, {last['precision']}"
        if last["val_dice"] > 0.85:
            # Such curves end close together: labels stand above them, the first to end the highest, and don't meet.
            _label_end(ax, last, label, colour, height=height)
            height -= 0.055
        else:
            _label_end(ax, last, label, colour)
    ax.axhline(0.95, color="0.6", linewidth=0.8, linestyle="--")
    ax.set(
        xscale="log",
        yscale="logit",
        yticks=ticks,
        yticklabels=map(str, ticks),
        xlabel="seconds of training",
        ylabel="validation Dice",
        xlim=(None, 5 * frame["seconds"].max()),
        ylim=(low, 0.998),
    )
    ax.spines["left"].set_bounds(low, 0.97)
    ax.minorticks_off()
    return saved(figure, path)


def _label_end(ax: Axes, last: pd.Series, label: str, colour: str, *, height: float | None = None) -> None:
    """Names a curve at its end, or above it at a height of the axes, with a line to its end."""
    line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0}
    ax.annotate(
        label,
        (last["seconds"], last["val_dice"]),
        (last["seconds"], last["val_dice"] if height is None else height),
        textcoords="data" if height is None else ("data", "axes fraction"),
        color=colour,
        fontsize=9,
        va="center",
        arrowprops=line,
    )


def draw_pareto(path: str | Path | None = None, *, table: str | Path = RESULTS / "pareto.csv") -> Figure:
    """Makes ``images/pareto.png``: validation Dice against milliseconds per film; areas are networks' parameters.

    Args:
        path: where to save it, if at all.
        table: what ``python -m benchmarks.pareto`` wrote.

    Raises:
        FileNotFoundError: the study was not run.
    """
    if not Path(table).exists():
        raise FileNotFoundError(f"{table} is not there: python -m benchmarks.pareto writes it")
    frame = pd.read_csv(table).sort_values("ms", ignore_index=True)
    front = frame[frame["val_dice"] > frame["val_dice"].cummax().shift(fill_value=0)]
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    ax.plot(front["ms"], front["val_dice"], color="0.7", linewidth=1, zorder=0)
    colours = dict(zip(sorted(frame["size"].unique()), OKABE_ITO))
    for size, rows in frame.groupby("size"):
        ax.scatter(
            rows["ms"], rows["val_dice"], rows["parameters"] / 8e3, color=colours[size], alpha=0.6, label=f"{size} px"
        )
    for k, row in frame.iterrows():
        label = f"p{row['patch']} w{row['base_channels']} d{row['depth']}"
        if row["conv"] == "separable":
            label += " separable"
        place = (0, 9 if k % 2 else -13)  # above and below in turn
        ax.annotate(label, (row["ms"], row["val_dice"]), place, textcoords="offset points", fontsize=7, ha="center")
    error = frame["standard_error"].median()
    ticks = [5, 7, 10, 15, 20]
    ax.set(xscale="log", xlabel="milliseconds per film, PyTorch", ylabel="validation Dice")
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_title(
        f"p patch, w width, d depth; area: parameters; standard error of a Dice {error:.4f}, of a difference less",
        fontsize=9,
        loc="left",
    )
    ax.legend(frameon=False, loc="lower right", markerscale=0.5)
    return saved(figure, path)


def _draw_length(start: tuple[float, float], end: tuple[float, float], text: str, colour: str, ax: Axes) -> None:
    """An arrow with two heads between x, y and x, y, its text upon it."""
    ax.annotate(
        "",
        start,
        end,
        arrowprops={"arrowstyle": "<->", "color": colour, "shrinkA": 0, "shrinkB": 0, "path_effects": HALO},
    )
    ax.text(
        (start[0] + end[0]) / 2,
        (start[1] + end[1]) / 2,
        text,
        color=colour,
        rotation=90 if start[0] == end[0] else 0,
        ha="center",
        va="center",
        fontsize=9,
        bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
    )


FIGURES = {  # what `python -m kaggle_utils plots` makes
    "measurements.png": draw_measurements,
    "pareto.png": draw_pareto,
    "robustness.png": draw_robustness,
    "synthetic.png": draw_synthetic,
    "time_to_dice.png": draw_time_to_dice,
    "unet.png": draw_unet,
    **TB_FIGURES,
    **TUNING_FIGURES,
}
