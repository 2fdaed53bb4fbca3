"""Figures of the tuning studies, each from the tables in ``results/tuning``.

Bands and bars are the range over the seeds: with three of them, an interval computed from their deviation says less.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .save import saved

TABLES = Path(__file__).parents[2] / "results" / "tuning"
RANGE = ("pi", 100)  # seaborn's error bar from the lowest to the highest
BLUE, ORANGE, GREEN, RED = sns.color_palette("colorblind")[:4]
DICE = "validation Dice"
AT_256 = {"dice_256": f"{DICE} at 256 px", "jsrt_256": "Dice at 256 px on JSRT, external"}


def read_study(name: str, tables: str | Path = TABLES) -> pd.DataFrame:
    """A study's table, a row per epoch; ``epoch`` counts from 1.

    Raises:
        FileNotFoundError: the study was not run.
    """
    path = Path(tables) / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: python -m kaggle_utils tune {name} writes it")
    table = pd.read_csv(path)
    return table.assign(epoch=table["epoch"] + 1)


def last_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """A row per run and seed, the last one."""
    return table.drop_duplicates(["run", "seed"], keep="last")


def runs_of(last: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The rows in which one setting is varied, and the default's, by that setting."""
    return last[last["run"].str.startswith(f"{setting}=") | (last["run"] == "default")].sort_values(setting)


def scores_of(table: pd.DataFrame) -> dict[str, str]:
    """The columns of scores at 256 px that hold any, and their labels: not every prepared set has JSRT."""
    return {score: label for score, label in AT_256.items() if table[score].notna().any()}


def draw_impossible(path: str | Path | None = None) -> Figure:
    """Makes ``images/tuning_impossible.png``: the highest Dice an accuracy allows, and the first version's.

    With a share p of lung and an accuracy a, a mask's errors are 1 - a of the film and it has no more than p right:
    Dice is at most 2p / (2p + 1 - a).

    Args:
        path: where to save it, if at all.
    """
    share = np.linspace(0.1, 0.45, 100)
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    # 5th and 95th percentile of read_mask(path).mean() over the 492 published training films of Montgomery and
    # Shenzhen.
    ax.axvspan(0.158, 0.347, color="0.94", label="nine in ten of the training films' lungs")
    for accuracy, dice, name, colour in ((0.70, 0.80, "without", ORANGE), (0.7832, 0.90, "with", BLUE)):
        most = 2 * share / (2 * share + 1 - accuracy)
        ax.plot(share, most, color=colour, label=f"the most that accuracy {100 * accuracy:g} % allows")
        ax.axhline(dice, color=colour, linestyle="--", label=f"reported {name} albumentations: {dice:.2f}")
    ax.set(xlabel="share of the film that is lung", ylabel="Dice", xlim=(share[0], share[-1]), ylim=(0.35, 1))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return saved(figure, path)


def draw_bugs(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_bugs.png``: for each mistake, Dice as it is and as it is reported, epoch by epoch.

    Args:
        path: where to save it, if at all.
        tables: folder of the studies.

    Raises:
        FileNotFoundError: the study was not run.
    """
    table = read_study("bugs", tables)
    right = table[table["run"] == "no mistake"].groupby("epoch")["val_dice"].mean()
    table = table.rename(columns={"val_dice": "the masks' Dice"})
    both = table.melt(["run", "epoch"], ["the masks' Dice", "reported"], "number", "Dice")
    grid = sns.relplot(
        both,
        x="epoch",
        y="Dice",
        hue="number",
        style="number",
        palette=[BLUE, ORANGE],
        errorbar=RANGE,
        kind="line",
        col="run",
        col_wrap=5,
        height=1.8,
        aspect=1.2,
        facet_kws={"sharey": False},
    )
    diverged = set(table.loc[table["status"] == "diverged", "run"])
    for run, ax in grid.axes_dict.items():
        numbers = both.loc[both["run"] == run, "Dice"]
        ax.plot(right, color="0.7", linewidth=1, zorder=0)
        ax.axhline(1, color="0.8", linewidth=0.8, linestyle=":", zorder=0)
        ax.set(ylim=(min(0, 1.1 * numbers.min()), max(1.05, 1.1 * numbers.max())))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_title(f"{run} (diverged)" if run in diverged else run, fontsize=9)
    grid.set_axis_labels("epoch", "Dice")
    grid.figure.subplots_adjust(right=0.98)
    sns.move_legend(grid, "lower right", bbox_to_anchor=(0.97, 0.12), title="gray: no mistake")
    return saved(grid.figure, path)


def draw_augmentation(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_augmentation.png``: Dice by epoch, and at the end, in-domain and external.

    Args and Raises: as :func:`draw_bugs`.
    """
    table = pd.concat([read_study("augmentation", tables), read_study("longer", tables)])
    scores = scores_of(table)
    widths = [2] + [1] * len(scores)
    figure, (curves, *ends) = plt.subplots(1, len(widths), figsize=(11, 3.6), layout="constrained", width_ratios=widths)
    colours = dict(zip(("none", "light", "full"), (ORANGE, GREEN, BLUE)))
    sns.lineplot(
        table, x="epoch", y="val_dice", hue="augment", style="epochs", palette=colours, errorbar=RANGE, ax=curves
    )
    curves.set(ylabel=DICE, ylim=(table.loc[table["epoch"] > 2, "val_dice"].min(), None))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.legend(frameon=False, fontsize=8)
    last = pd.concat([last_epochs(study) for _, study in table.groupby("study")])
    hue = {"hue": "augment", "hue_order": list(colours), "palette": colours}
    for ax, (score, label) in zip(ends, scores.items()):
        sns.stripplot(last, x="epochs", y=score, **hue, dodge=True, legend=False, ax=ax)
        ax.set(ylabel=label)
    return saved(figure, path)


def draw_loss(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_loss.png``: Dice against the weight of Dice in the loss, beside other losses.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = last_epochs(read_study("loss", tables))
    scores = scores_of(last)
    figure, axes = plt.subplots(1, len(scores), figsize=(5 * len(scores), 3.8), layout="constrained", squeeze=False)
    sweep = last[last["run"].str.startswith("dice_weight=")]
    for ax, (score, title) in zip(axes.flat, scores.items()):
        sns.lineplot(
            sweep, x="dice_weight", y=score, errorbar=RANGE, marker="o", color=BLUE, label="(1 - w) BCE + w Dice", ax=ax
        )
        others = last[~last["run"].isin(sweep["run"])].groupby("run", sort=False)[score].agg(["mean", "min", "max"])
        for colour, x, run in zip((ORANGE, GREEN, RED), (1.1, 1.2, 10 / 11), others.itertuples()):
            spread = [[run.mean - run.min], [run.max - run.mean]]
            label = run.Index.removeprefix("loss=")
            ax.errorbar(x, run.mean, spread, color=colour, marker="D", linestyle="", label=label)
        ax.set(xlabel="weight w of Dice in the loss", ylabel=title, xticks=(0, 0.25, 0.5, 0.75, 1))
        ax.legend(frameon=False, fontsize=8)
    return saved(figure, path)


def draw_capacity(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_capacity.png``: Dice against seconds of training, a line for each setting that is varied.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = last_epochs(read_study("capacity", tables))
    runs = last.groupby("run")[["dice_256", "seconds", "parameters"]].mean()
    spread = last.groupby("run")["dice_256"].agg(["min", "max"])
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for setting, colour in zip(("base_channels", "depth", "patch", "size"), (BLUE, ORANGE, GREEN, RED)):
        varied = runs_of(last, setting)["run"].unique()
        line = runs.loc[varied]
        ax.plot(line["seconds"], line["dice_256"], color=colour, linewidth=1, label=setting)
        ax.scatter(line["seconds"], line["dice_256"], line["parameters"] / 1e4, color=colour, alpha=0.5)
        ax.vlines(line["seconds"], spread.loc[varied, "min"], spread.loc[varied, "max"], color=colour, linewidth=1)
    for run in runs.itertuples():
        place = (6, -12 if run.Index == "default" else 5)
        ax.annotate(run.Index, (run.seconds, run.dice_256), place, textcoords="offset points", fontsize=8)
    ax.set(
        xscale="log",
        xlabel="seconds of training, one thread beside others; area: parameters",
        ylabel=AT_256["dice_256"],
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.legend(frameon=False, title="varied")
    return saved(figure, path)


def draw_data(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_data.png``: Dice against how many films: real, synthetic, both.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = last_epochs(read_study("data", tables))
    last["films"] = last["run"].str.extract(r"^\w+ (.*)$")
    films = last["real"] + last["synthetic"]
    every = films.where(last["films"] == "synthetic", films[last["run"] == "all real"].max())
    last["n"] = pd.to_numeric(last["run"].str.split().str[0], errors="coerce").fillna(every)
    scores = scores_of(last)
    figure, axes = plt.subplots(1, len(scores), figsize=(5 * len(scores), 3.8), layout="constrained", squeeze=False)
    for ax, (score, label) in zip(axes.flat, scores.items()):
        sns.lineplot(
            last,
            x="n",
            y=score,
            hue="films",
            style="films",
            markers=True,
            dashes=False,
            errorbar=RANGE,
            palette=[BLUE, ORANGE, GREEN],
            ax=ax,
        )
        ticks = last.loc[last["films"] == "real", "n"].unique()
        ax.set(xscale="log", xlabel="films trained on, without those added", ylabel=label)
        ax.set_xticks(ticks, [f"{n:g}" for n in ticks])
        ax.minorticks_off()
        ax.legend(frameon=False)
    return saved(figure, path)


def draw_optimisation(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_optimisation.png``: Dice against each setting of the optimiser, others at their default.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = last_epochs(read_study("optimisation", tables))
    settings = ("lr", "weight_decay", "batch_size", "epochs", "ema_decay")
    figure, axes = plt.subplots(1, len(settings), figsize=(13, 3.2), sharey=True, layout="constrained")
    for ax, setting in zip(axes, settings):
        runs = runs_of(last, setting)
        sns.pointplot(runs, x=setting, y="dice_256", errorbar=RANGE, color=BLUE, linewidth=1, markersize=4, ax=ax)
        default = runs.loc[runs["run"] == "default", setting].iloc[0]
        ax.axvline(sorted(runs[setting].unique()).index(default), color="0.85", linewidth=6, zorder=0)
        ax.tick_params("x", labelsize=7)
        ax.set(ylabel=AT_256["dice_256"])
    figure.suptitle("gray: the default", fontsize=9)
    return saved(figure, path)


def draw_search(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_search.png``: each trial's Dice against each setting that was searched.

    Args and Raises: as :func:`draw_bugs`.
    """
    last = last_epochs(read_study("search", tables))
    last["trial"] = last["run"].str.removeprefix("trial ").astype(int)
    settings = ("lr", "weight_decay", "dice_weight", "ema_decay", "batch_size", "base_channels", "augment")
    figure, axes = plt.subplots(1, len(settings), figsize=(15, 3.4), sharey=True, layout="constrained")
    finished = last["status"] == "finished"
    for ax, setting in zip(axes, settings):
        x = last[setting]
        if setting in ("ema_decay", "batch_size", "base_channels", "augment"):
            choices = pd.Categorical(x)
            x = pd.Series(choices.codes, x.index)
            ax.set_xticks(range(len(choices.categories)), choices.categories)
        else:
            ax.set_xscale("linear" if setting == "dice_weight" else "log")
        ax.scatter(x[~finished], last.loc[~finished, "val_dice"], 14, color="0.7", marker="x")
        good = last[finished]
        points = ax.scatter(x[finished], good["val_dice"], 18, good["trial"], cmap="viridis")
        ax.set(xlabel=setting)
    # What failed at once would press all others together.
    low, high = last.loc[finished, "val_dice"].quantile([0.1, 1])
    axes[0].set(ylabel=DICE, ylim=(low - 0.3 * (high - low), None))
    figure.colorbar(points, ax=axes, label="trial; crosses were stopped")
    return saved(figure, path)


def draw_check(path: str | Path | None = None, *, tables: str | Path = TABLES) -> Figure:
    """Makes ``images/tuning_check.png``: the same settings at the studies' size and at 256 px.

    Args and Raises: as :func:`draw_bugs`.
    """
    large = last_epochs(read_study("check", tables))
    others = ("augmentation", "loss", "capacity", "optimisation")
    small = pd.concat([last_epochs(read_study(name, tables)) for name in others]).drop_duplicates(["run", "seed"])
    both = pd.DataFrame(
        {name: frame.groupby("run")["dice_256"].mean() for name, frame in (("small", small), ("large", large))}
    ).dropna()
    figure, ax = plt.subplots(figsize=(5, 4.5), layout="constrained")
    ax.scatter(both["small"], both["large"], color=BLUE)
    for run in both.itertuples():
        ax.annotate(run.Index, (run.small, run.large), (6, -3), textcoords="offset points", fontsize=8)
    ranks = both.corr("spearman").iloc[0, 1]
    ax.set_xlabel(f"{AT_256['dice_256']}, trained at {small['size'].mode()[0]} px")
    ax.set_ylabel("the same, trained at 256 px")
    ax.set_title(f"rank correlation {ranks:.2f}", fontsize=9)
    ax.margins(x=0.4)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    return saved(figure, path)


FIGURES = {
    "tuning_impossible.png": draw_impossible,
    "tuning_bugs.png": draw_bugs,
    "tuning_augmentation.png": draw_augmentation,
    "tuning_loss.png": draw_loss,
    "tuning_capacity.png": draw_capacity,
    "tuning_data.png": draw_data,
    "tuning_optimisation.png": draw_optimisation,
    "tuning_search.png": draw_search,
    "tuning_check.png": draw_check,
}
