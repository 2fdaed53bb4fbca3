"""Estimates how good a mask is without a reference: its Dice, a flag, and reasons in words.

How unsure the network is of its pixels, what cleaning took away, and how far the lungs' outlines are from those of the
shape model are the features of a linear regression of Dice's logit; the more of each, the lower the estimate. It
belongs to the weights that it was fitted to (:mod:`quality.fit`) and lies under ``quality`` in their header; without it
there is no estimate. Lungs with the heart have other outlines, and other usual features: a network that learned both
conventions has an estimate for each. ``results/quality.json`` says what that of the shipped weights was measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..config import THRESHOLD
from ..files import write_bytes
from ..image import resize_mask, resize_prob
from .outline import landmarks, move, similarity

# What an outline is judged by: the shape part of the model of synthetic radiographs, a hundredth of it.
SHAPE = Path(__file__).parents[1] / "assets" / "shape.npz"
SIDE = 256  # px a side at which masks are looked at
OK, REJECT = 0.90, 0.70  # estimated Dice from which on a mask is ok, and below which it is probably of no use
LEAST = 0.3  # logits by which a feature must lower the estimate to be a reason
REASONS = {  # by feature; of all, more is worse
    "doubt": "the network is unsure of many pixels",
    "pieces": "pieces or holes beside two lungs",
    "size": "lungs of an unusual size for the film",
    "shape": "lungs of an unusual shape",
    "not_two": "not two lungs",
}


@dataclass(frozen=True)
class Quality:
    """How good a mask is likely to be.

    Attributes:
        estimate: of its Dice, in [0, 1].
        reasons: why it is not ok, the weightiest first; empty where it is.
    """

    estimate: float
    reasons: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """``ok``; ``check``, look at it before it is used; ``reject``, it is probably of no use."""
        if self.estimate >= OK:
            return "ok"
        if self.estimate >= REJECT:
            return "check"
        return "reject"


def estimate_quality(
    prob: np.ndarray, mask: np.ndarray, fit: Mapping[str, Any] | None, threshold: float = THRESHOLD
) -> Quality | None:
    """Estimates the quality of a mask that was made of a network's probabilities.

    Args:
        prob: ``float32 (S, S)``, of lung, at the network's own size.
        mask: ``uint8 (H, W)`` in {0, 1}, cleaned, of the upright film.
        fit: ``quality`` in the weights' header, see :func:`quality.fit.fit_quality`, by :func:`choose_fit`.
        threshold: above which a pixel is lung.

    Returns:
        None where the weights have no fit, see :func:`why_no_estimate`; but a mask without lungs is rejected by any.
    """
    features = observe(prob, mask, threshold)
    if features and why_no_estimate(fit):
        return None
    return judge(features, fit or {})


def choose_fit(fit: Mapping[str, Any], convention: str | None) -> Mapping[str, Any]:
    """The estimate for masks of a convention; the first one where a network has none for it.

    Args:
        fit: ``quality`` in the weights' header, empty if there is none.
        convention: of ``config.CONVENTIONS``; None where it is not known.
    """
    fits = fit.get("conventions", {None: fit})
    return fits.get(convention) or next(iter(fits.values()))


def why_no_estimate(fit: Mapping[str, Any] | None) -> str:
    """Why weights give no estimate of their masks' Dice; empty where they do."""
    if not fit:
        reason = "these weights carry none, as they are of an older version, or their training was not finished"
    elif "why_not" in fit:
        reason = fit["why_not"]
    else:
        return ""
    return f"no estimate of quality: {reason}"


def check_fit(fit: object) -> None:
    """Raises ValueError, in a few words, if ``quality`` in a header is not of :func:`quality.fit.fit_quality`."""
    fits = fit.get("conventions", {"": fit}) if isinstance(fit, dict) else {"": fit}
    if not isinstance(fits, dict) or not fits:
        raise ValueError(f"conventions of quality are estimates by their names, not {fits!r:.60}")
    for each in fits.values():
        _check_estimate(each)


def _check_estimate(fit: object) -> None:
    """One convention's coefficients, or why there are none."""
    if not isinstance(fit, dict):
        raise ValueError(f"quality is an estimate's coefficients, not {fit!r:.60}")
    if isinstance(fit.get("why_not"), str):
        return
    features = fit.get("features")
    if not isinstance(features, dict) or set(features) != set(REASONS) or not _is_finite(fit.get("bias")):
        raise ValueError(f"bias and features ({', '.join(REASONS)}) of quality are numbers, not {fit!r:.60}")
    for name, value in features.items():
        pair = isinstance(value, list) and len(value) == 2 and all(map(_is_finite, value))
        if not pair or value[1] < 0:  # more of a feature never makes a mask better
            raise ValueError(f"{name} of quality is a usual value and a weight of 0 or more, not {value!r:.60}")


def observe(prob: np.ndarray, mask: np.ndarray, threshold: float = THRESHOLD) -> dict[str, float] | None:
    """The features of a mask, see :data:`REASONS`; None where there is no lung.

    Args:
        prob, mask, threshold: as of :func:`estimate_quality`.
    """
    prob, mask = resize_prob(prob, (SIDE, SIDE)), resize_mask(mask, SIDE)
    raw = prob > threshold
    area = raw.sum()
    if not mask.any() or not area:
        return None
    # The Dice to expect, were the probabilities right and the pixels independent.
    expected = 2 * prob[raw].sum() / (prob.sum() + area)
    return {
        "doubt": _log(1 - expected),
        "pieces": _log((raw ^ (mask > 0)).sum() / area),
        "size": float(abs(np.log(mask.mean() / 0.25))),
        **_shape(mask),
    }


def judge(features: Mapping[str, Any] | None, fit: Mapping[str, Any]) -> Quality:
    """Features of a mask, as of :func:`observe`, to its estimate and reasons by a fit, as for :func:`estimate_quality`.

    A fit's ``bias`` is the logit of a median film; its ``features`` are of each what a median film has, and a weight.
    """
    if features is None:
        return Quality(0.0, ("no lung found",))
    # By so many logits each feature lowers the estimate against a median film; what is undefined does not.
    lowers = {
        name: float(np.nan_to_num(weight * (features[name] - usual)))
        for name, (usual, weight) in fit["features"].items()
    }
    logit = fit["bias"] - sum(lowers.values())
    found = Quality(float(1 + np.tanh(logit / 2)) / 2)  # as 1 / (1 + exp(-logit)), which may be beyond all floats
    if found.flag == "ok":
        return found
    ranked = sorted(lowers, key=lambda name: lowers[name], reverse=True)
    weighty = [name for name in ranked if lowers[name] > LEAST] or ranked[:1]
    return Quality(found.estimate, tuple(REASONS[name] for name in weighty))


def save_shape(arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the shape model that outlines are judged by; ``python -m kaggle_utils fit-synth`` calls it.

    Args:
        arrays: of a :class:`synthetic.AppearanceModel`, as read from its file.
    """
    mean, centre, modes = (arrays[f"shape_{part}"] for part in ("mean", "centre", "modes"))
    buffer = BytesIO()
    np.savez_compressed(buffer, mean=mean, centre=centre, modes=modes, sd=arrays["code_sd"][: len(modes)])
    write_bytes(SHAPE, buffer.getvalue())


def _shape(mask: np.ndarray) -> dict[str, float]:
    """Distance of both lungs' aligned outlines from the mean, in deviations of the shape model's modes.

    Source: Cootes, Taylor, Cooper & Graham 1995, Active shape models.
    """
    points = landmarks(mask)
    if points is None:
        return {"shape": np.nan, "not_two": 1.0}
    model = _shape_model()
    off = (move(points, *similarity(points, model["mean"])) - model["mean"]).ravel() - model["centre"]
    return {"shape": _log(np.sqrt(np.mean((model["modes"] @ off / model["sd"]) ** 2))), "not_two": 0.0}


@lru_cache(maxsize=1)
def _shape_model() -> dict[str, np.ndarray]:
    with np.load(SHAPE) as file:
        return dict(file)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6  # nor is NaN


def _log(value: float) -> float:
    return float(np.log(value + 0.003))  # what is below that is all the same
