"""Scores of a mask against the truth, one film at a time.

Axes: H rows, W columns. ``pred`` and ``truth`` are ``uint8 (H, W)`` masks in {0, 1}. A mean Dice is the mean over films
of each film's Dice: it doesn't depend on how films were batched.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .image import check_mask


def confusion(pred: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Counts pixels: tp, fp, fn, tn.

    Raises:
        ValueError: the shapes differ, or a mask is not 2-D with values in {0, 1}.
    """
    check_mask(pred)
    check_mask(truth)
    if pred.shape != truth.shape:
        raise ValueError(f"pred is {pred.shape} and truth is {truth.shape}")
    pred, truth = pred.astype(bool), truth.astype(bool)
    tp = int((pred & truth).sum())
    fp, fn = int(pred.sum()) - tp, int(truth.sum()) - tp
    return {"tp": tp, "fp": fp, "fn": fn, "tn": pred.size - tp - fp - fn}


def dice(pred: np.ndarray, truth: np.ndarray) -> float:
    """Dice of one film's mask, in [0, 1]; two empty masks agree.

    Raises:
        ValueError: as :func:`confusion`.
    """
    return overlap(confusion(pred, truth))["dice"]


def overlap(counts: dict[str, int]) -> dict[str, float]:
    """Dice, IoU, pixel accuracy, sensitivity and specificity of one confusion count, each in [0, 1].

    Where nothing was there to be found and nothing was found, a score is 1 by definition.
    """
    tp, fp, fn, tn = (counts[key] for key in ("tp", "fp", "fn", "tn"))

    def share(part: int, whole: int) -> float:
        return part / whole if whole else 1.0

    return {
        "dice": share(2 * tp, 2 * tp + fp + fn),
        "iou": share(tp, tp + fp + fn),
        "accuracy": share(tp + tn, tp + fp + fn + tn),
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
    }


def surface_distances(
    pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
) -> dict[str, float]:
    """95th percentile of the Hausdorff distance, its maximum, and the average symmetric surface distance.

    The surface is the mask's outermost layer of pixels. HD95 is the larger of the two directed percentiles, ASSD the
    mean over both surfaces' distances together. Two empty masks are 0 apart; an empty and a full one as far as the
    film is wide: its diagonal.

    Args:
        pred: ``uint8 (H, W)`` in {0, 1}.
        truth: the same.
        spacing: distance between rows and between columns: mm, or 1 for distances in px.

    Returns:
        ``hd95``, ``hd`` and ``assd`` in the unit of ``spacing``.

    Source: Huttenlocher et al. 1993; Heimann et al. 2009 for ASSD; the conventions are MONAI's.
    """
    check_mask(pred)
    check_mask(truth)
    if not pred.any() or not truth.any():
        far = 0.0 if pred.any() == truth.any() else float(np.hypot(*np.multiply(pred.shape, spacing)))
        return {"hd95": far, "hd": far, "assd": far}
    from scipy.ndimage import binary_erosion, distance_transform_edt  # predict has no truth to compare with

    # Nothing outside the box of both masks changes a distance, and a raw film's box is a third of it.
    rows, columns = (np.flatnonzero((pred | truth).any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    surfaces = [mask ^ binary_erosion(mask) for mask in (np.pad(m[box].astype(bool), 1) for m in (pred, truth))]
    there, back = (distance_transform_edt(~to, sampling=spacing)[of] for of, to in (surfaces, surfaces[::-1]))
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "hd": float(max(there.max(), back.max())),
        "assd": float(np.concatenate([there, back]).mean()),
    }


def score(pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All scores of one film: :func:`overlap` and :func:`surface_distances`, in px."""
    return {**overlap(confusion(pred, truth)), **surface_distances(pred, truth)}


def summarise(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row per group of a per-film table.

    Args:
        scores: one row per film: name, the columns of :func:`score`, and the columns of ``by``.
        by: columns that make a group, such as ``["source"]``.

    Returns:
        The group, n, mean Dice with sd, median, 95 % bootstrap interval (percentiles of 5,000 resamples of the films),
        5th percentile, the worst film's Dice and name, and mean IoU, HD95, HD and ASSD.
    """
    rows = []
    for key, group in scores.groupby(by, sort=False):
        scored = group["dice"].to_numpy()
        low, high = _interval(scored)
        rows.append(
            {
                **dict(zip(by, key)),
                "n": len(scored),
                "dice": scored.mean(),
                "sd": scored.std(ddof=1) if len(scored) > 1 else 0.0,
                "low": low,
                "high": high,
                "median": np.median(scored),
                "p5": np.percentile(scored, 5),
                "worst": scored.min(),
                "worst_film": group["name"].iloc[scored.argmin()],
                **group[["iou", "hd95", "hd", "assd"]].mean().to_dict(),
            }
        )
    return pd.DataFrame(rows)


def _interval(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # half a second

    interval = bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0), batch=500
    ).confidence_interval
    return interval.low, interval.high
