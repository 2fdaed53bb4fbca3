"""Figures of the tuning studies, each from the tables in ``results/tuning``.

Bands and bars are the range over the seeds: with three of them, an interval computed from their deviation says less.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import BLUE, GREEN, ORANGE, PURPLE, RED, RESULTS, log_axis, note, read_result, styled

RANGE = ("pi", 100)  # seaborn's error bar from the lowest to the highest
DICE = "validation Dice"
DICE_256 = f"{DICE} at 256 px"
AT_256 = {"dice_256": DICE_256, "jsrt_256": "Dice at 256 px on JSRT, external"}


def read_study(name: str, results: str | Path = RESULTS) -> pd.DataFrame:
    """A study's table, a row per epoch; ``epoch`` counts from 1.

    Raises:
        FileNotFoundError: the study was not run.
    """
    table = read_result(results, f"tuning/{name}.csv", f"kaggle_utils tune {name}")
    return table.assign(epoch=table["epoch"] + 1)


def read_ends(results: str | Path, *names: str) -> pd.DataFrame:
    """The last epochs of studies, a row per run and seed; see :func:`read_study`."""
    table = pd.concat(read_study(name, results) for name in names)
    return table.drop_duplicates(["study", "run", "seed"], keep="last")


def runs_of(last: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The rows in which one setting is varied, and the default's, by that setting."""
    return last[last["run"].str.startswith(f"{setting}=") | (last["run"] == "default")].sort_values(setting)


def scores_of(table: pd.DataFrame) -> dict[str, str]:
    """The columns of scores at 256 px that hold any, and their labels: not every prepared set has JSRT."""
    return {score: label for score, label in AT_256.items() if table[score].notna().any()}


def score_panels(last: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, str]]]:
    """A figure with a panel for each score of :func:`scores_of`, and each panel with its column."""
    scores = scores_of(last)
    figure, axes = plt.subplots(1, len(scores), figsize=(4.7 * len(scores), 3.8), squeeze=False)
    for ax, label in zip(axes.flat, scores.values()):
        ax.set_ylabel(label)
    return figure, list(zip(axes.flat, scores))


@styled
def draw_impossible() -> Figure:
    """Makes ``images/tuning_impossible.png``: the highest Dice an accuracy allows, and the first version's.

    With a share p of lung and an accuracy a, a mask's errors are 1 - a of the film and it has no more than p right:
    Dice is at most 2p / (2p + 1 - a).
    """
    share = np.linspace(0.1, 0.45, 100)
    figure, ax = plt.subplots(figsize=(7, 3.6))
    # 5th and 95th percentile of read_mask(path).mean() over the 492 published training films of Montgomery and
    # Shenzhen.
    ax.axvspan(0.158, 0.347, color="0.94", label="nine in ten of the training films' lungs")
    for accuracy, dice, name, colour in ((0.70, 0.80, "without", ORANGE), (0.7832, 0.90, "with", BLUE)):
        most = 2 * share / (2 * share + 1 - accuracy)
        ax.plot(share, most, color=colour, label=f"the most that accuracy {100 * accuracy:g} % allows")
        ax.axhline(dice, color=colour, linestyle="--", label=f"reported {name} augmentation: {dice:.2f}")
    ax.set(xlabel="share of the film that is lung", ylabel="Dice", xlim=(share[0], share[-1]), ylim=(0.35, 1))
    ax.legend(loc="lower right")
    return figure


@styled
def draw_bugs(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_bugs.png``: for each mistake, Dice as it is at the end and as it is reported; and the
    course of the two mistakes that don't only report it wrongly.

    A report outside [0, 1] is a text, the lowest and highest of all epochs.

    Args:
        results: folder with the studies' tables in ``tuning``.

    Raises:
        FileNotFoundError: the study was not run.
    """
    table = read_study("bugs", results)
    ends = read_ends(results, "bugs").groupby("run", sort=False)[["val_dice", "reported"]].mean()
    reports = table.groupby("run", sort=False)["reported"].agg(["min", "max"]).loc[ends.index]
    figure, (rows, curves) = plt.subplots(1, 2, figsize=(9.5, 4.6), width_ratios=[3, 2])
    possible = reports["min"].ge(0) & reports["max"].le(1)
    rows.hlines(ends.index[possible], ends["val_dice"][possible], ends["reported"][possible], color="0.8", zorder=0)
    rows.scatter(ends["val_dice"], ends.index, color=BLUE, label="the masks' Dice")
    rows.scatter(
        ends["reported"][possible],
        ends.index[possible],
        color=ORANGE,
        marker="D",
        label="reported; a number outside 0 to 1 in red",
    )
    for run, (low, high) in reports[~possible].iterrows():
        rows.text(1.03, str(run), f"→ {low:.1f} to {high:.1f}", color=RED, va="center", fontsize=9)
    size = table["size"].mode()[0]
    rows.set(
        xlabel=f"Dice at {size} px after {table['epoch'].max()} epochs", xlim=(-0.03, 1.25), xticks=np.linspace(0, 1, 6)
    )
    rows.invert_yaxis()
    figure.legend(*rows.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    shown = {"no mistake": "0.6", "scrambled pairs": GREEN, "logits in Dice": ORANGE}
    some = table[table["run"].isin(shown)]
    sns.lineplot(some, x="epoch", y="val_dice", hue="run", palette=shown, errorbar=RANGE, ax=curves)
    curves.set(ylabel=f"the masks' Dice at {size} px", ylim=(0, 1))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.legend(loc="upper left", bbox_to_anchor=(0, 0.84))
    return figure


@styled
def draw_augmentation(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_augmentation.png``: Dice by epoch, and at the end, in-domain and external.

    Args and Raises: as :func:`draw_bugs`.
    """
    table = pd.concat(read_study(name, results) for name in ("augmentation", "longer"))
    scores = scores_of(table)
    figure, (curves, *ends) = plt.subplots(1, 1 + len(scores), figsize=(9.5, 3.6), width_ratios=[2] + [1] * len(scores))
    colours = {"none": ORANGE, "light": GREEN, "full": BLUE}
    augment: dict[str, Any] = {"hue": "augment", "hue_order": list(colours), "palette": colours}
    sns.lineplot(table, x="epoch", y="val_dice", **augment, style="epochs", errorbar=RANGE, ax=curves)
    size = table["size"].mode()[0]
    curves.set(ylabel=f"{DICE} at {size} px", ylim=(table.loc[table["epoch"] > 2, "val_dice"].min(), None))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    last = read_ends(results, "augmentation", "longer")
    for ax, (score, label) in zip(ends, scores.items()):
        sns.stripplot(last, x="epochs", y=score, **augment, dodge=True, jitter=False, legend=False, ax=ax)
        ax.set_ylabel(label)
    return figure


@styled
def draw_loss(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_loss.png``: Dice against the weight of Dice in the loss, beside other losses.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = read_ends(results, "loss")
    is_sweep = last["run"].str.startswith("dice_weight=")
    figure, panels = score_panels(last)
    for ax, score in panels:
        label = "(1 - w) BCE + w Dice"
        sns.lineplot(
            last[is_sweep], x="dice_weight", y=score, errorbar=RANGE, marker="o", color=BLUE, label=label, ax=ax
        )
        others = last[~is_sweep].groupby("run", sort=False)[score].agg(["mean", "min", "max"])
        for colour, x, (run, (mean, low, high)) in zip((ORANGE, GREEN, RED), (1.1, 1.2, 10 / 11), others.iterrows()):
            label = run.removeprefix("loss=")
            ax.errorbar(x, mean, [[mean - low], [high - mean]], color=colour, marker="D", linestyle="", label=label)
        ax.set(xlabel="weight w of Dice in the loss", xticks=(0, 0.25, 0.5, 0.75, 1))
        ax.legend()
    return figure


@styled
def draw_capacity(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_capacity.png``: Dice against seconds of training, a line for each setting that is varied.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = read_ends(results, "capacity")
    runs = last.groupby("run")[["dice_256", "seconds", "parameters"]].mean()
    runs[["low", "high"]] = last.groupby("run")["dice_256"].agg(["min", "max"])
    figure, ax = plt.subplots(figsize=(8, 4.5))
    for setting, colour in zip(("base_channels", "depth", "patch", "size"), (BLUE, ORANGE, GREEN, RED)):
        line = runs.loc[runs_of(last, setting)["run"].unique()]
        ax.plot(line["seconds"], line["dice_256"], color=colour, linewidth=1, label=setting)
        ax.scatter(line["seconds"], line["dice_256"], line["parameters"] / 1e4, color=colour, alpha=0.5)
        ax.vlines(line["seconds"], line["low"], line["high"], color=colour, linewidth=1)
    for run in runs.itertuples():
        note(ax, run.Index, (run.seconds, run.dice_256), (6, -12 if run.Index == "default" else 5))
    ax.set(xscale="log", xlabel="seconds of training, one thread beside others; area: parameters", ylabel=DICE_256)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.legend(title="varied")
    return figure


@styled
def draw_data(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_data.png``: Dice against how many films: real, synthetic, both.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = read_ends(results, "data")
    last[["n", "films"]] = last["run"].str.extract(r"^(\w+) (.*)$")
    films = last["real"] + last["synthetic"]
    every = films.where(last["films"] == "synthetic", films[last["run"] == "all real"].max())
    last["n"] = pd.to_numeric(last["n"], errors="coerce").fillna(every)
    kinds: dict[str, Any] = {"hue": "films", "palette": [BLUE, ORANGE, GREEN], "style": "films", "markers": True}
    figure, panels = score_panels(last)
    for ax, score in panels:
        sns.lineplot(last, x="n", y=score, **kinds, dashes=False, errorbar=RANGE, ax=ax)
        log_axis(ax, last.loc[last["films"] == "real", "n"].unique())
        ax.set_xlabel("films trained on, without those added")
        ax.legend()
    return figure


@styled
def draw_optimisation(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_optimisation.png``: Dice with each setting of the optimiser, others at their default.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = read_ends(results, "optimisation")
    settings = {"epochs": BLUE, "lr": ORANGE, "batch_size": GREEN, "weight_decay": RED, "ema_decay": PURPLE}
    default = last.loc[last["run"] == "default", "dice_256"]
    figure, ax = plt.subplots(figsize=(8, 4.6))
    ax.axvspan(default.min(), default.max(), color="0.94")
    ax.axvline(default.mean(), color="0.6", linewidth=1)
    for setting, colour in settings.items():
        runs = runs_of(last[last["run"] != "default"], setting)
        scores = runs.groupby("run", sort=False)["dice_256"].agg(["mean", "min", "max"])
        ax.hlines(scores.index, scores["min"], scores["max"], color=colour)
        ax.scatter(scores["mean"], scores.index, color=colour)
    defaults = ", ".join(f"{setting}={last[setting].mode()[0]:g}" for setting in settings)
    ax.set(xlabel=DICE_256, title=f"gray: the default, {defaults}")
    ax.invert_yaxis()
    return figure


@styled
def draw_search(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_search.png``: each trial's Dice against the settings that the search moved most.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = read_ends(results, "search")
    finished = last["status"] == "finished"
    trial = last["run"].str.removeprefix("trial ").astype(int)
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 5.6), sharey=True)
    for ax, setting in zip(axes.flat, ("lr", "batch_size", "base_channels", "augment")):
        x = last[setting]
        if setting == "lr":
            ax.set_xscale("log")
        else:
            choices = x.astype("category").cat
            x = choices.codes
            ax.set_xticks(range(len(choices.categories)), choices.categories)
        ax.scatter(x[~finished], last.loc[~finished, "val_dice"], 28, color="0.7", marker="x")
        points = ax.scatter(x[finished], last.loc[finished, "val_dice"], 36, trial[finished], cmap="viridis")
        ax.set_xlabel(setting)
    # What failed at once would press all others together.
    low, high = last.loc[finished, "val_dice"].quantile([0.1, 1])
    axes[0, 0].set(ylim=(low - 0.3 * (high - low), None))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{DICE} at {last['size'].mode()[0]} px")
    figure.colorbar(points, ax=axes, label="trial; crosses were stopped")
    return figure


@styled
def draw_check(results: str | Path = RESULTS) -> Figure:
    """Makes ``images/tuning_check.png``: the same settings at the studies' size and at 256 px.

    Args and Raises: as :func:`draw_bugs`.
    """
    small = read_ends(results, "augmentation", "loss", "capacity", "optimisation").drop_duplicates(["run", "seed"])
    means = [frame.groupby("run")["dice_256"].mean() for frame in (small, read_ends(results, "check"))]
    both = pd.concat(means, axis=1, keys=["small", "large"], join="inner").dropna()
    figure, ax = plt.subplots(figsize=(5, 4.5))
    ax.scatter(both["small"], both["large"], color=BLUE)
    for run in both.itertuples():
        note(ax, run.Index, (run.small, run.large), (6, -3))
    ax.set(xlabel=f"{DICE_256}, trained at {small['size'].mode()[0]} px", ylabel="the same, trained at 256 px")
    ax.set_title(f"rank correlation {both.corr('spearman').iloc[0, 1]:.2f}")
    ax.margins(x=0.4)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    return figure


CHARTS = {
    "tuning_bugs.png": draw_bugs,
    "tuning_augmentation.png": draw_augmentation,
    "tuning_loss.png": draw_loss,
    "tuning_capacity.png": draw_capacity,
    "tuning_data.png": draw_data,
    "tuning_optimisation.png": draw_optimisation,
    "tuning_search.png": draw_search,
    "tuning_check.png": draw_check,
}
