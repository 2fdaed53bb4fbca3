"""How Dice falls as films get worse: a panel per kind of damage, from the table of ``benchmarks/robustness.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .save import saved
from .tuning import BLUE, ORANGE

TABLE = Path(__file__).parents[2] / "results" / "robustness.csv"
NETWORKS = {"shipped": ("shipped weights", BLUE, "o"), "plain": ("trained alike without augmentation", ORANGE, "s")}
UNITS = {
    "gamma": "exponent, or 1/it",
    "contrast": "times as steep, clipped",
    "noise": "sd, gray levels",
    "blur": "sd, share of side",
    "JPEG": "quality",
    "rotation": "degrees",
    "crop": "share of sides lost",
    "occlusion": "share hidden",
    "inversion": "share of grays inverted",
    "down-sampling": "px a side",
}


def draw_robustness(path: str | Path | None = None, *, table: str | Path = TABLE) -> Figure:
    """Makes ``images/robustness.png``: mean Dice over the test films of both sets against the strength of each damage.

    Args:
        path: where to save it, if at all.
        table: what ``python -m benchmarks.robustness`` wrote.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    if not Path(table).exists():
        raise FileNotFoundError(f"{table} is not there: python -m benchmarks.robustness writes it")
    scores = pooled(pd.read_csv(table))
    untouched = scores[scores["strength"] == 0]
    figure, axes = plt.subplots(2, 5, figsize=(11, 4.8), sharey=True, layout="constrained")
    for ax, (kind, rows) in zip(axes.flat, scores[scores["strength"] > 0].groupby("damage", sort=False)):
        damage_curves(pd.concat([untouched, rows]), kind, ax=ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("Dice at 256 px")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return saved(figure, path)


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice over the films of all sets together: network, damage, strength, value, dice."""
    by = ["network", "damage", "strength"]
    total = (
        table.assign(dice=table["dice"] * table["n"])
        .groupby(by, sort=False)
        .agg(dice=("dice", "sum"), n=("n", "sum"), value=("value", "first"))
    )
    return total.assign(dice=total["dice"] / total["n"]).reset_index()


def damage_curves(rows: pd.DataFrame, kind: str, *, ax: Axes | None = None) -> Axes:
    """A curve for each network: Dice against strength, from the untouched films on.

    Args:
        rows: of :func:`pooled`, of strength 0 and of one kind of damage.
        kind: its name, for the title and the unit.
        ax: axes to draw on, the current ones by default.

    Returns:
        The axes.
    """
    ax = ax or plt.gca()
    for network, curve in rows.groupby("network", sort=False):
        label, colour, marker = NETWORKS[network]
        ax.plot(curve["strength"], curve["dice"], color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
    values = rows.drop_duplicates("strength").sort_values("strength")["value"]
    ax.set(ylim=(0, 1.02), xticks=range(len(values)), xticklabels=["none", *(f"{value:g}" for value in values[1:])])
    ax.tick_params(labelsize=7)
    ax.grid(axis="y", color="0.9")
    ax.set_title(kind, fontsize=10)
    ax.set_xlabel(UNITS[kind], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
