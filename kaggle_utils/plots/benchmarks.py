"""Charts of the benchmarks: how soon a training is good, and how good a fast network is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, RESULTS, SKY, log_axis, note, read_result, styled

COLOURS = (BLUE, RED, PURPLE, GREEN, BLACK, ORANGE, SKY)


@styled
def draw_time_to_dice(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/time_to_dice.png``: validation Dice against seconds of training, a curve for each contestant.

    Args:
        results: folder with ``time_to_dice.csv``.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    frame = read_result(results, "time_to_dice.csv", "benchmarks.time_to_dice")
    figure, ax = plt.subplots(figsize=(8, 4.5))
    curves = zip(COLOURS, frame.groupby("contestant", sort=False))
    height = 0.97
    for colour, (name, rows) in sorted(curves, key=lambda curve: curve[1][1]["seconds"].max()):
        width = 2.5 if name == "ours" else 1.3
        ax.plot(rows["seconds"], rows["val_dice"], color=colour, marker="o", markersize=3, linewidth=width)
        last = rows.iloc[-1]
        label = f"  {name.removesuffix(' bf16')}, {last['parameters'] / 1e6:.1f}M, {last['precision']}"
        if last["val_dice"] < 0.85:
            _label_end(ax, last, label, colour, last["val_dice"], "data")
        else:
            # These end close together: labels stand above them, the first to end the highest, and don't meet.
            _label_end(ax, last, label, colour, height, "axes fraction")
            height -= 0.055
    low, ticks = 0.9 * min(0.5, frame["val_dice"].min()), [0.2, 0.5, 0.8, 0.9, 0.95, 0.97]
    ax.axhline(0.95, color="0.6", linewidth=0.8, linestyle="--")
    ax.set(xscale="log", xlabel="seconds of training", xlim=(None, 5 * frame["seconds"].max()))
    ax.set(yscale="logit", ylabel="validation Dice", yticks=ticks, yticklabels=map(str, ticks), ylim=(low, 0.998))
    ax.spines["left"].set_bounds(low, 0.97)
    ax.minorticks_off()
    return figure


def _label_end(ax: Axes, last: pd.Series, label: str, colour: str, y: float, unit: Any) -> None:
    """Names a curve beside its end, or at another height ``y`` with a line to its end."""
    end = last["seconds"], last["val_dice"]
    line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0}
    place: Any = ("data", unit)
    ax.annotate(label, end, (end[0], y), textcoords=place, color=colour, fontsize=9, va="center", arrowprops=line)


@styled
def draw_pareto(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/pareto.png``: validation Dice against milliseconds per film; areas are networks' parameters, and
    those that no faster one matches have their names.

    Args:
        results: folder with ``pareto.csv``.

    Raises:
        FileNotFoundError: the study was not run.
    """
    frame = read_result(results, "pareto.csv", "benchmarks.pareto").sort_values("ms", ignore_index=True)
    front = frame[frame["val_dice"] > frame["val_dice"].cummax().shift(fill_value=0)]
    figure, ax = plt.subplots(figsize=(8, 4.5))
    ax.plot(front["ms"], front["val_dice"], color="0.7", linewidth=1, zorder=0)
    for colour, (size, rows) in zip(COLOURS, frame.groupby("size")):
        area = rows["parameters"] / 8e3
        ax.scatter(rows["ms"], rows["val_dice"], area, color=colour, alpha=0.6, label=f"{size} px")
    for row in front.itertuples():
        label = f"p{row.patch} w{row.base_channels} d{row.depth}"
        note(ax, label, (row.ms, row.val_dice), (3, 9), ha="center")
    log_axis(ax, [5, 7, 10, 15, 20])
    error = f"standard error {frame['standard_error'].median():.4f}"
    ax.set(xlabel="milliseconds per film, PyTorch", ylabel=f"validation Dice, {error}")
    ax.set_title("p patch, w width, d depth; area: parameters", loc="left")
    ax.legend(loc="lower right", markerscale=0.5)
    return figure
