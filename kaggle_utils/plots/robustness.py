"""How Dice falls as films get worse, by kind of damage, from the table of ``benchmarks/robustness.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..quality.damages import DAMAGES
from .style import BLUE, ORANGE, RESULTS, read_result, styled

NETWORKS = {"shipped": ("shipped weights", BLUE, "o"), "before": ("before: adults alone", ORANGE, "s")}


@styled
def draw_robustness(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/robustness.png``: mean Dice over the test films of both sets against the strength of each damage.

    Args:
        results: folder with ``robustness.csv``.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    scores = pooled(read_result(results, "robustness.csv", "benchmarks.robustness"))
    untouched = scores[scores["strength"] == 0]
    figure, axes = plt.subplots(2, 5, figsize=(11, 4.8), sharey=True)
    for ax, (kind, rows) in zip(axes.flat, scores[scores["strength"] > 0].groupby("damage", sort=False)):
        _draw_damage(pd.concat([untouched, rows]), kind, ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("Dice at 256 px")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    return figure


@styled
def draw_worst_damage(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/robustness_worst.png``: the same at the highest strength of each damage, worst first.

    Args and Raises: as :func:`draw_robustness`.
    """
    scores = pooled(read_result(results, "robustness.csv", "benchmarks.robustness"))
    worst = scores[scores["strength"] == scores["strength"].max()].pivot(
        index="damage", columns="network", values="dice"
    )
    worst = worst.sort_values("shipped", ascending=False)  # the last row is drawn on top
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    ax.hlines(worst.index, worst.min(axis=1), worst.max(axis=1), color="0.8", zorder=0)
    for network, (label, colour, marker) in NETWORKS.items():
        ax.scatter(worst[network], worst.index, color=colour, marker=marker, label=label)
    untouched = scores.loc[(scores["strength"] == 0) & (scores["network"] == "shipped"), "dice"].iloc[0]
    ax.axvline(untouched, color="0.6", linewidth=1, linestyle="--")
    ax.set(xlabel="Dice at 256 px, at the highest strength; dashed: untouched", xlim=(0, 1))
    ax.legend(loc="lower left", fontsize=10)
    return figure


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice over the films of all sets together: network, damage, strength, value, dice."""
    weighted = table.assign(dice=table["dice"] * table["n"])
    total = weighted.groupby(["network", "damage", "strength"], sort=False).agg(
        {"dice": "sum", "n": "sum", "value": "first"}
    )
    return total.assign(dice=total["dice"] / total["n"]).reset_index()


def _draw_damage(rows: pd.DataFrame, kind: str, ax: Axes) -> None:
    """A curve for each network: Dice against one damage's strength, from the untouched films on."""
    for network, curve in rows.groupby("network", sort=False):
        label, colour, marker = NETWORKS[network]
        ax.plot(curve["strength"], curve["dice"], color=colour, marker=marker, markersize=4, label=label)
    values = rows.drop_duplicates("strength").sort_values("strength")["value"]
    ax.set(ylim=(0, 1.02), xticks=range(len(values)), xticklabels=["none", *(f"{value:g}" for value in values[1:])])
    ax.tick_params(labelsize=8)
    ax.grid(axis="y", color="0.9")
    ax.set_title(kind, fontsize=10)
    ax.set_xlabel(DAMAGES[kind].unit, fontsize=9)
