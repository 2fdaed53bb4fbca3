"""Fits the estimate of a mask's Dice (:mod:`quality.flags`) to weights: on films, damaged copies, other pictures.

An estimate belongs to the weights that it was fitted to, and lies in their header: :func:`trainer.train` ends with it.
The true Dice is taken at 256 px, films by their own set's head. A network that learned both conventions has a fit for
each: with one for both, lungs with the heart would be lungs of an unusual shape, or the shape would say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..config import CONVENTIONS
from ..image import resize_image, resize_mask
from ..metrics import dice
from .damages import DAMAGES, DRAWN, STRENGTHS, damaged, draw
from .flags import OK, REASONS, SIDE, choose_fit, judge, observe

FEWEST, MOST, COPIES = 8, 48, 3  # films to fit by, and damaged copies of each
PICTURES = 4  # of no film, of each kind
RIDGE, FOLDS, BATCH = 3.0, 7, 8
LOGIT = (0.01, 0.995)  # Dice is held within these before its logit is taken
GOOD_FLAGGED = 0.025  # share of good masks that may be flagged, of films that a fit has not seen
Fit = Callable[[pd.DataFrame], dict[str, Any]]  # to rows of :func:`observed`


@dataclass(frozen=True)
class Item:
    """A picture with the truth of its lungs."""

    name: str
    source: str
    damage: str
    strength: int
    image: np.ndarray  # uint8 (H, W)
    truth: np.ndarray  # uint8 (H, W) in {0, 1}


def fit_quality(films: Iterable[Item], segmenter) -> dict[str, Any]:
    """An estimate for a segmenter's masks, as it is kept under ``quality`` in the header of its weights.

    Args:
        films: that the weights were not fitted to, undamaged; of more than ``MOST`` the first are taken.
        segmenter: the trained network, a :class:`infer.LungSegmenter`.

    Returns:
        ``bias`` and ``features`` as :func:`quality.flags.judge` takes them; how many ``films`` and ``masks`` it was
        fitted on; and of those films, judged by fits to the others, ``spearman`` (rank correlation with the true Dice)
        and ``mean_error``, and ``mean_error_untouched`` without the damaged copies. Or ``why_not``, where there is no
        estimate. Of a network that learned several conventions all that of each, under ``conventions``.
    """
    films = list(islice(films, MOST))
    table = observed([*with_copies(films, COPIES), *drawn(PICTURES)], segmenter)
    return by_convention(table, measured_fit)


def by_convention(table: pd.DataFrame, fit: Fit) -> dict[str, Any]:
    """A fit to the rows of each convention, or to all where there is one.

    Rows without one, of pictures that are no films and of sets that ``config.CONVENTIONS`` lacks, count in each.
    """
    conventions = table["source"].map(CONVENTIONS)
    names = conventions.dropna().unique()
    if len(names) < 2:
        return fit(table)
    return {"conventions": {name: fit(table[conventions.isna() | (conventions == name)]) for name in names}}


def measured_fit(table: pd.DataFrame) -> dict[str, Any]:
    """:func:`fit_quality` to rows of :func:`observed` of one convention."""
    real = table["source"] != "none"
    untouched = table[real & (table["damage"] == "none")]
    if len(untouched) < FEWEST:
        return {"why_not": f"{len(untouched)} validation films are too few to fit an estimate to, which takes {FEWEST}"}
    if untouched["found"].sum() < FEWEST:
        return {"why_not": "the network found lungs in too few validation films to fit an estimate"}
    unseen = out_of_fold(table, levelled)
    unseen = unseen[unseen["source"] != "none"]
    error = (unseen["estimate"] - unseen["dice"]).abs()
    if error.mean() >= (unseen["dice"] - unseen["dice"].median()).abs().mean():
        why = "on validation films that it was not fitted to, an estimate was no better than one number for all"
        return {"why_not": why}
    spearman = unseen["dice"].corr(unseen["estimate"], method="spearman")
    return {
        **levelled(table),
        "films": len(untouched),
        "masks": len(table),
        "spearman": round(float(spearman), 4),
        "mean_error": round(float(error.mean()), 4),
        "mean_error_untouched": round(float(error[unseen["damage"] == "none"].mean()), 4),
    }


def with_copies(films: Sequence[Item], copies: int) -> list[Item]:
    """Each film as it is, and damaged in so many ways, kinds and strengths drawn at a fixed seed."""
    rng = np.random.default_rng(0)
    found = []
    for film in films:
        found.append(replace(film, damage="none", strength=0))
        for kind in rng.permutation(list(DAMAGES))[:copies]:
            strength = int(rng.choice(STRENGTHS))
            image, truth = damaged(film.image, film.truth, kind, strength, seed=film.name)
            found.append(Item(film.name, film.source, kind, strength, image, truth))
    return found


def drawn(n: int) -> list[Item]:
    """Pictures of no chest, ``n`` of each kind of :data:`quality.damages.DRAWN`."""
    return [
        no_film(f"{kind} {seed}", kind, draw(kind, np.random.default_rng([seed, *kind.encode()])))
        for kind in DRAWN
        for seed in range(n)
    ]


def no_film(name: str, kind: str, image: np.ndarray) -> Item:
    """A picture without lungs, ``uint8 (H, W)``, of a ``kind`` that takes the place of a damage."""
    return Item(name, "none", kind, 0, image, np.zeros(image.shape, np.uint8))


def observed(items: Sequence[Item], segmenter) -> pd.DataFrame:
    """One row per picture: name, source, damage, strength, dice, the features of :func:`quality.flags.observe`, and
    found.

    ``found`` says whether there was any lung in the mask.
    """
    rows = []
    for at in tqdm(range(0, len(items), BATCH), desc="quality", disable=None, leave=False):
        batch = items[at : at + BATCH]
        images = [resize_image(item.image, segmenter.size) for item in batch]
        probs = segmenter.probabilities(images, [item.source for item in batch])
        rows += [observed_one(item, prob, segmenter) for item, prob in zip(batch, probs)]
    return pd.DataFrame(rows)


def observed_one(item: Item, prob: np.ndarray, segmenter) -> dict[str, Any]:
    """A row of :func:`observed` from what the network said, ``float32 (size, size)``."""
    mask = segmenter.finish(prob, (SIDE, SIDE))
    found = observe(prob, mask, segmenter.threshold)
    score = dice(mask, resize_mask(item.truth, SIDE))
    # To find no lung where there is none is right, but gives no mask to use.
    return {
        "name": item.name,
        "source": item.source,
        "damage": item.damage,
        "strength": item.strength,
        "dice": score if item.truth.any() else 0.0,
        **(found or dict.fromkeys(REASONS, np.nan)),
        "found": found is not None,
    }


def regress(table: pd.DataFrame) -> dict[str, Any]:
    """Ridge regression of the logit of Dice on the features, none of which may raise it, over rows with a mask."""
    from sklearn.linear_model import Ridge

    table = table[table["found"]]
    x = table[[*REASONS]]
    # What no mask has, such as the shape of two lungs where there is never a second, says nothing.
    usual = x[table["damage"] == "none"].median().fillna(0).to_numpy()
    scale = x.std(ddof=0).fillna(0).to_numpy() + 1e-9
    z = np.nan_to_num((x.to_numpy() - usual) / scale)
    line = Ridge(RIDGE, positive=True, tol=1e-8).fit(-z, _logit(table["dice"].to_numpy()))
    pairs = np.c_[usual, line.coef_ / scale]
    return {
        "bias": round(float(line.intercept_), 4),
        "features": {name: [round(float(number), 4) for number in pair] for name, pair in zip(REASONS, pairs)},
    }


def levelled(table: pd.DataFrame) -> dict[str, Any]:
    """:func:`regress`, its estimates raised as far as it needs to flag :data:`GOOD_FLAGGED` of the good masks at most.

    A line through masks of every quality lies too low where most of them are, between good and poor.
    """
    fit = regress(table)
    unseen = out_of_fold(table, regress)
    good = unseen.loc[(unseen["source"] != "none") & (unseen["dice"] >= OK), "estimate"]
    if good.empty:
        return fit
    raised = _logit(OK) - _logit(good.quantile(GOOD_FLAGGED))
    return fit | {"bias": round(fit["bias"] + max(0.0, float(raised)), 4)}


def judged(table: pd.DataFrame, fit: dict[str, Any]) -> pd.DataFrame:
    """The table of :func:`observed` with estimate and flag as :func:`quality.flags.judge` gives them."""
    found = [
        judge(row if row["found"] else None, choose_fit(fit, CONVENTIONS.get(row["source"])))
        for row in table.to_dict("records")
    ]
    return table.assign(estimate=[each.estimate for each in found], flag=[each.flag for each in found])


def out_of_fold(table: pd.DataFrame, fit: Fit) -> pd.DataFrame:
    """Each row judged by a fit to other films."""
    folds = {name: k % FOLDS for k, name in enumerate(sorted(set(table["name"])))}
    fold = table["name"].map(folds)
    return pd.concat([judged(table[fold == k], fit(table[fold != k])) for k in sorted(set(fold))])


def _logit(dice: Any) -> Any:
    held = np.clip(dice, *LOGIT)
    return np.log(held / (1 - held))
