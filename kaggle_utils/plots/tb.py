"""Figures of TB screening: does segmenting first help, what the probabilities are worth, where the network looked.

They are drawn from ``tb_films.csv``, a row per test film of each classifier: trained_on, variant, standardised, name,
source, tb, logit, prob and presumptive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve

from ..tb import reliability
from .films import show_film
from .style import BLUE, GREEN, RED, RESULTS, diagonal, note, read_result, styled

VARIANTS = {
    "whole": ("whole film", BLUE),
    "box": ("lung box", GREEN),
    "lungs": ("lungs alone", RED),
    "blanked": ("blanked out", "#999999"),
    "thumbnail": ("16-px thumbnail", "#666666"),
}


def read_tb(results: str | Path, trained_on: str = "both") -> pd.DataFrame:
    """The test films of the classifiers that were trained on these sets, standardised by the training films.

    Args:
        results: folder with ``tb_films.csv``.
        trained_on: both, or one set.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    films = read_result(results, "tb_films.csv", "benchmarks.tb")
    return films[(films["trained_on"] == trained_on) & (films["standardised"] == "training")]


def draw_tb_arms(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tb_arms.png``: each variant's area under the ROC curve on each set's test films.

    Args:
        results: folder with ``tb_films.csv``.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    return _draw_areas(read_tb(results))


def draw_tb_transfer(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tb_transfer.png``: the same on all films of the set that was not trained on.

    Args and Raises: as :func:`draw_tb_arms`.
    """
    external = []
    for source, trained_on in (("montgomery", "shenzhen"), ("shenzhen", "montgomery")):
        films = read_tb(results, trained_on)
        external.append(films[films["source"] == source])
    figure = _draw_areas(pd.concat(external))
    figure.suptitle("trained on the other set", fontsize=10)
    return figure


@styled
def _draw_areas(films: pd.DataFrame) -> Figure:
    """A panel for the test films of each set, side by side."""
    sets = films.groupby("source")
    figure, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.2), sharey=True, squeeze=False)
    for ax, (source, test) in zip(axes.flat, sets):
        _draw_bars(test, ax)
        ax.set_title(f"{source.capitalize()}, {test['name'].nunique()} test films", fontsize=12)
    axes[0, 0].set_ylabel("area under the ROC curve")
    return figure


def _draw_bars(test: pd.DataFrame, ax: Axes) -> None:
    """A bar for each variant."""
    for k, (variant, (_, colour)) in enumerate(VARIANTS.items()):
        some = test[test["variant"] == variant]
        if len(some):
            area = roc_auc_score(some["tb"], some["logit"])  # tb_table.csv has four digits of it
            ax.bar(k, area, 0.65, color=colour, alpha=0.55)
            note(ax, f"{round(area, 4):.3f}", (k, area), (0, 4), ha="center", fontsize=9)
    ax.axhline(0.5, color="0.3", linewidth=0.8, linestyle="--")
    ax.set_ylim(0.4, 1.02)
    ax.set_xticks(range(len(VARIANTS)), [name.replace(" ", "\n", 1) for name, _ in VARIANTS.values()])


@styled
def draw_tb_roc(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tb_roc.png``: ROC curves of the variants, all test films together.

    Args and Raises: as :func:`draw_tb_arms`.
    """
    figure, ax = plt.subplots(figsize=(4.6, 4.4))
    for variant, test in read_tb(results).groupby("variant", sort=False):
        false_positives, sensitivity, _ = roc_curve(test["tb"], test["prob"], drop_intermediate=False)
        name, colour = VARIANTS[variant]
        label = f"{name}, {roc_auc_score(test['tb'], test['prob']):.3f}"
        ax.step(false_positives, sensitivity, where="post", color=colour, label=label)
        called = test.groupby("tb")["presumptive"].mean()
        ax.plot(called[0], called[1], "o", color=colour)
    diagonal(ax)
    ax.set(xlabel="normal films called presumptive", ylabel="films with tuberculosis called presumptive")
    ax.set_aspect("equal")
    title = "area under the curve; dot: operating point"
    ax.legend(loc="lower right", title=title, title_fontsize=9, fontsize=9)
    return figure


@styled
def draw_tb_reliability(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tb_reliability.png``: of the test films with about that probability, how many have tuberculosis.

    Args and Raises: as :func:`draw_tb_arms`.
    """
    films = read_tb(results)
    test = films[films["variant"] == "lungs"]
    bins = reliability(test["prob"].to_numpy(), test["tb"].to_numpy(), bins=5)
    figure, ax = plt.subplots(figsize=(4.2, 4))
    diagonal(ax)
    ax.plot(bins["prob"], bins["share"], "o-", color=VARIANTS["lungs"][1])
    for n, prob, share in zip(bins["n"], bins["prob"], bins["share"]):
        note(ax, f"{n} films", (prob, share), (6, -10))
    ax.set(xlabel="probability of tuberculosis, calibrated", ylabel="share that has it")
    ax.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure


@styled
def show_heat(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], heats: Sequence[np.ndarray]) -> Figure:
    """Films above, and below them the same with the heat map of what raised the probability.

    Args:
        images: each ``uint8 (H, W)``.
        masks: their lungs, outlined.
        heats: of ``tb.TBScreener.heat``, each ``float32 (H, W)`` in [0, 1].
    """
    figure, axes = plt.subplots(2, len(images), figsize=(1.9 * len(images), 4.1), squeeze=False)
    for image, mask, heat, above, below in zip(images, masks, heats, *axes, strict=True):
        show_film(image, ax=above)
        show_film(image, pred=mask, ax=below)
        below.imshow(heat, cmap="inferno", alpha=0.6 * heat, vmin=0, vmax=1)
    return figure


CHARTS = {
    "tb_arms.png": draw_tb_arms,
    "tb_transfer.png": draw_tb_transfer,
    "tb_roc.png": draw_tb_roc,
    "tb_reliability.png": draw_tb_reliability,
}
