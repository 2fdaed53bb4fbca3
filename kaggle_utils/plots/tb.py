"""Figures of TB screening: does segmenting first help, what the probabilities are worth, where the network looked.

``films`` is a table with a row per run and film: arm, seed, name, source, tb, part, logit, as
``results/tb_films.csv`` is.
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

from ..tb import calibrated, reliability
from .films import show_film
from .save import saved

FILMS = Path(__file__).parents[2] / "results" / "tb_films.csv"
ARMS = {  # what is drawn of each: a name, and a colour of Okabe and Ito's
    "whole": ("whole film", "#0072B2"),
    "crop": ("lungs cut out", "#009E73"),
    "masked": ("lungs alone", "#D55E00"),
    "blanked": ("lungs blanked out", "#999999"),
}


def read_tb(path: str | Path = FILMS, protocol: str = "both") -> pd.DataFrame:
    """One protocol's rows of ``results/tb_films.csv``.

    Raises:
        FileNotFoundError: the benchmark was not run.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is not there: python -m benchmarks.tb protocols writes it")
    films = pd.read_csv(path, dtype={"name": str})
    return films[films["protocol"] == protocol]


def draw_tb_arms(path: str | Path | None = None, *, films: pd.DataFrame | None = None) -> Figure:
    """Makes ``images/tb_arms.png``: each variant's area under the ROC curve on each set's test films, a dot per seed.

    Args:
        path: where to save it, if at all.
        films: see the module; None is the published protocol, trained on both sets.
    """
    films = read_tb() if films is None else films
    test = films[films["part"] == "test"]
    sources = sorted(test["source"].unique())
    figure, axes = plt.subplots(
        1, len(sources), figsize=(4.2 * len(sources), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for source, ax in zip(sources, axes[0]):
        _draw_areas(ax, test[test["source"] == source], source)
    axes[0, 0].set_ylabel("area under the ROC curve")
    plt.close(figure)
    return saved(figure, path)


def _draw_areas(ax: Axes, test: pd.DataFrame, source: str) -> None:
    """A bar for each variant, a dot for each of its seeds, on the test films of one set."""
    for k, (arm, (_, colour)) in enumerate(ARMS.items()):
        runs = [roc_auc_score(run["tb"], run["logit"]) for _, run in test[test["arm"] == arm].groupby("seed")]
        if not runs:
            continue
        mean = np.mean(runs)
        ax.bar(k, mean, 0.65, color=colour, alpha=0.55)
        ax.plot(np.full(len(runs), k), runs, "o", color=colour, markersize=4)
        ax.annotate(f"{mean:.3f}", (k, max(runs)), (0, 5), textcoords="offset points", ha="center", fontsize=9)
    ax.axhline(0.5, color="0.3", linewidth=0.8, linestyle="--")
    ax.set(title=f"{source.capitalize()}, {test['name'].nunique()} test films", ylim=(0.4, 1.02))
    ax.set_xticks(range(len(ARMS)), [name.replace(" ", "\n", 1) for name, _ in ARMS.values()])


def draw_tb_transfer(path: str | Path | None = None) -> Figure:
    """Makes ``images/tb_transfer.png``: the same on all films of the set that was not trained on.

    Args:
        path: where to save it, if at all.
    """
    external = [
        films[films["source"] == source]
        for films, source in (
            (read_tb(protocol="shenzhen"), "montgomery"),
            (read_tb(protocol="montgomery"), "shenzhen"),
        )
    ]
    figure = draw_tb_arms(films=pd.concat(external))
    figure.suptitle("trained on the other set", fontsize=10)
    return saved(figure, path)


def draw_tb_roc(path: str | Path | None = None, *, films: pd.DataFrame | None = None) -> Figure:
    """Makes ``images/tb_roc.png``: ROC curves of the variants, each by its seeds' mean logits, all test films together.

    Args:
        path, films: as for :func:`draw_tb_arms`.
    """
    films = read_tb() if films is None else films
    figure, ax = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    for arm, runs in mean_logits(films).groupby("arm"):
        test = calibrated(runs)
        prob, truth = test["prob"].to_numpy(), test["tb"].to_numpy()
        false_positives, sensitivity, _ = roc_curve(truth, prob, drop_intermediate=False)
        name, colour = ARMS[arm]
        label = f"{name}, {roc_auc_score(truth, prob):.3f}"
        ax.step(false_positives, sensitivity, where="post", color=colour, label=label)
        called = test.groupby("tb")["presumptive"].mean()
        ax.plot(called[0], called[1], "o", color=colour)
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")
    ax.set(
        xlabel="normal films called presumptive", ylabel="films with tuberculosis called presumptive", aspect="equal"
    )
    ax.legend(
        frameon=False,
        loc="lower right",
        title="area under the curve; dot: operating point",
        title_fontsize=8,
        fontsize=9,
    )
    plt.close(figure)
    return saved(figure, path)


def draw_tb_reliability(
    path: str | Path | None = None, *, films: pd.DataFrame | None = None, arm: str = "masked"
) -> Figure:
    """Makes ``images/tb_reliability.png``: of the test films with about that probability, how many have tuberculosis.

    Args:
        path, films: as for :func:`draw_tb_arms`.
        arm: which variant.
    """
    films = read_tb() if films is None else films
    test = calibrated(mean_logits(films[films["arm"] == arm]))
    bins = reliability(test["prob"].to_numpy(), test["tb"].to_numpy(), bins=5)
    figure, ax = plt.subplots(figsize=(4.2, 4), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")
    ax.plot(bins["prob"], bins["share"], "o-", color=ARMS[arm][1])
    for n, prob, share in zip(*(bins[key] for key in ("n", "prob", "share"))):
        ax.annotate(f"{n} films", (prob, share), (6, -10), textcoords="offset points", fontsize=8)
    ax.set(
        xlabel="probability of tuberculosis, calibrated",
        ylabel="share that has it",
        xlim=(0, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    plt.close(figure)
    return saved(figure, path)


def show_heat(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], heats: Sequence[np.ndarray], titles: Sequence[str] = ()
) -> Figure:
    """Films above, and below them the same with what raised the probability.

    Args:
        images: each ``uint8 (H, W)``.
        masks: their lungs, outlined.
        heats: of ``tb.TBScreener.heat``, each ``float32 (H, W)`` in [0, 1].
        titles: above them.
    """
    figure, axes = plt.subplots(2, len(images), figsize=(1.9 * len(images), 4.1), squeeze=False, layout="constrained")
    for k, (image, mask, heat) in enumerate(zip(images, masks, heats, strict=True)):
        show_film(image, title=titles[k] if len(titles) else "", ax=axes[0, k])
        show_film(image, pred=mask, ax=axes[1, k])
        axes[1, k].imshow(heat, cmap="inferno", alpha=0.6 * heat, vmin=0, vmax=1)
    plt.close(figure)
    return figure


def mean_logits(films: pd.DataFrame) -> pd.DataFrame:
    """Each variant's seeds together: the mean of their logits for each film."""
    return films.groupby(["arm", "name", "source", "tb", "part"], as_index=False)["logit"].mean()


FIGURES = {
    "tb_arms.png": draw_tb_arms,
    "tb_transfer.png": draw_tb_transfer,
    "tb_roc.png": draw_tb_roc,
    "tb_reliability.png": draw_tb_reliability,
}
