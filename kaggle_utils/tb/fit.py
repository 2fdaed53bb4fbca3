"""The line of the classifier: a logistic regression on what describes films, few films and many numbers.

N films, F numbers each; labels are 0 (normal) and 1 (sick).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from .data import VARIANTS, balance, folds, thumbnail, view
from .net import CLIP, TBNet

STRENGTH = 30.0  # of the fit: the inverse of the penalty on weights, times F; results/tb_tried.csv has others
FOLDS = 5


@dataclass(frozen=True)
class Line:
    """What a film's numbers are standardised by, and what they weigh.

    Attributes:
        mean, deviation, weight: ``(F,)``.
        bias: the logit of a film whose numbers are the mean.
    """

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: float

    def logits(self, described: np.ndarray) -> np.ndarray:
        """Logits ``(N,)`` of descriptions ``(N, F)``."""
        return _standard(described, self.mean, self.deviation) @ self.weight + self.bias

    def at(self, described: np.ndarray) -> Line:
        """The line as another hospital sees it: films are standardised by the hospital's own, which need no labels."""
        return Line(*levels(described), self.weight, self.bias)

    def into(self, net: TBNet) -> None:
        """Makes it the network's head."""
        with torch.no_grad():
            net.mean.copy_(torch.from_numpy(self.mean))
            net.deviation.copy_(torch.from_numpy(self.deviation))
            net.head.weight.copy_(torch.from_numpy(self.weight)[None])
            net.head.bias.fill_(self.bias)


@torch.inference_mode()
def describe_films(
    net: TBNet, films: Iterable[np.ndarray], lungs: Iterable[np.ndarray], variant: str, size: int
) -> np.ndarray:
    """The numbers that describe films: of the network, or the film itself where it is a thumbnail.

    Args:
        net: whose features.
        films: each ``uint8 (H, W)``, of any size.
        lungs: each ``uint8 (H, W)`` in {0, 1}.
        variant: of :data:`tb.data.VARIANTS`.
        size: px, side of the square that the network is shown.

    Returns:
        ``float32 (N, F)``.
    """
    if variant == VARIANTS[-1]:
        return np.stack([thumbnail(film) for film in films])
    rows = []
    for film, mask in zip(films, lungs, strict=True):
        rows.append(net.describe(*as_input(*view(film, mask, variant, size), net))[0].cpu().numpy())
    return np.stack(rows)


def as_input(image: np.ndarray, zones: np.ndarray, net: TBNet) -> tuple[torch.Tensor, torch.Tensor]:
    """A :func:`tb.data.view` as a batch of one: ``(1, 3, H, W)`` and ``(1, Z, H, W)``."""
    device = net.mean.device
    shown = torch.from_numpy(image).to(device).expand(1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return shown, torch.from_numpy(zones)[None].to(device)


def fit_line(described: np.ndarray, frame: pd.DataFrame, strength: float = STRENGTH) -> Line:
    """The likeliest line with small weights; each class of each set weighs alike.

    The films span few directions: the fit is one of N numbers, not of F, and the same.

    Args:
        described: ``(N, F)``.
        frame: their ``tb`` and ``source``.
        strength: inverse of the penalty, for numbers that together have a variance of 1.

    Raises:
        ValueError: one class is missing.
    """
    if set(frame["tb"]) != {0, 1}:
        raise ValueError(f"labels are {sorted(set(frame['tb']))}, there should be films with 0 and with 1")
    mean, deviation = levels(described)
    standard = _standard(described, mean, deviation) / np.sqrt(described.shape[1])
    values, vectors = np.linalg.eigh(standard @ standard.T)
    kept = values > 1e-6 * values[-1]
    values, vectors = np.sqrt(values[kept]), vectors[:, kept]
    fit = LogisticRegression(C=strength, max_iter=1000)
    fit.fit(vectors * values, frame["tb"], sample_weight=balance(frame))
    weight = standard.T @ (vectors @ (fit.coef_[0] / values)) / np.sqrt(described.shape[1])
    return Line(mean, deviation, weight.astype(np.float32), float(fit.intercept_[0]))


def out_of_fold(described: np.ndarray, frame: pd.DataFrame, strength: float = STRENGTH, seed: int = 0) -> np.ndarray:
    """Logits ``(N,)`` of films, each by a line that didn't see its patient: what a threshold can be fixed on."""
    fold, logits = folds(frame, FOLDS, seed), np.empty(len(frame))
    for k in range(FOLDS):
        out = fold == k
        logits[out] = fit_line(described[~out], frame[~out], strength).logits(described[out])
    return logits


def levels(described: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each number, ``(F,)``; the latter is 1 for a number that never changes."""
    deviation = described.std(0)
    return described.mean(0), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)


def _standard(described: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return np.clip((described - mean) / deviation, -CLIP, CLIP)
