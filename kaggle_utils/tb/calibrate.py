"""Two classes told apart by a number: how well (ROC), from where on (operating point), and how surely (calibration).

N films; labels are 0 (normal) and 1 (sick); logits, scores, probabilities and labels are ``(N,)``.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

# What WHO asks of a triage test for tuberculosis, with a specificity of 0.7 (target product profiles, 2014).
SENSITIVITY = 0.9


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits are divided by so that their probabilities are likeliest, in [0.05, 20].

    Source: Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural networks.
    """

    def loss(log_temperature: float) -> float:
        signed = np.where(labels == 1, -1, 1) * logits / math.exp(log_temperature)
        return float(np.logaddexp(0, signed).mean())

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def choose_threshold(prob: np.ndarray, labels: np.ndarray, sensitivity: float = SENSITIVITY) -> float:
    """The highest probability at which this share of the films with tuberculosis, or more, is at or above it."""
    sick = np.sort(prob[labels == 1])
    return float(sick[math.floor(len(sick) * (1 - sensitivity) + 1e-9)])


def score_tb(prob: np.ndarray, labels: np.ndarray, presumptive: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Scores of a set of films.

    Args:
        prob: calibrated probabilities.
        labels: in {0, 1}.
        presumptive: whether each probability is at or above the threshold that other films fixed, bool.
        seed: of the bootstrap.

    Returns:
        n, auc with low and high (95 % of 2,000 resamples of each class), sensitivity, specificity, brier (mean squared
        error of the probability) and ece (expected calibration error, ten bins of equal width).

    Raises:
        ValueError: one class is missing.
    """
    if len(set(labels)) < 2:
        raise ValueError(f"{int(labels.sum())} of {len(labels)} films have tuberculosis: an AUC needs both classes")
    sick, well = labels == 1, labels == 0
    low, high = np.percentile(resampled_areas(prob, labels, seed=seed), (2.5, 97.5))
    bins = reliability(prob, labels)
    return {
        "n": len(labels),
        "auc": float(roc_auc_score(labels, prob)),
        "low": float(low),
        "high": float(high),
        "sensitivity": float(presumptive[sick].mean()),
        "specificity": float(1 - presumptive[well].mean()),
        "brier": float(brier_score_loss(labels, prob)),
        "ece": float((bins["n"] * abs(bins["prob"] - bins["share"])).sum() / len(labels)),
    }


def resampled_areas(scores: np.ndarray, labels: np.ndarray, *, seed: int = 0, draws: int = 2000) -> np.ndarray:
    """Areas under the ROC curve of resamples of each class, the same films for the same seed: ``(draws,)``."""
    rng = np.random.default_rng(seed)
    sick, well = scores[labels == 1], scores[labels == 0]
    wins = (sick[:, None] > well) + 0.5 * (sick[:, None] == well)
    often = [rng.multinomial(len(part), np.full(len(part), 1 / len(part)), draws) for part in (sick, well)]
    return ((often[0] @ wins) * often[1]).sum(1) / wins.size


def reliability(prob: np.ndarray, labels: np.ndarray, bins: int = 10) -> dict[str, np.ndarray]:
    """Of each bin of probability that holds films: how many (n), their mean probability (prob), the sick ones'
    share."""
    share, mean = calibration_curve(labels, prob, n_bins=bins)
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]  # as of scikit-learn, which keeps the numbers to itself
    count = np.bincount(np.searchsorted(inner_edges, prob), minlength=bins)
    return {"n": count[count > 0], "prob": mean, "share": share}


def calibrated(films: pd.DataFrame, sensitivity: float = SENSITIVITY) -> pd.DataFrame:
    """The test films of one network with what its training films, each seen by a network that it isn't in, fix.

    Args:
        films: with ``tb``, ``logit`` and ``part``: ``train`` (out of fold) or ``test``.
        sensitivity: of the training films, by :func:`choose_threshold`.

    Returns:
        The test rows with prob (calibrated), presumptive (at the threshold or above),
        temperature and threshold.
    """
    known, test = films[films["part"] == "train"], films[films["part"] == "test"]
    logits, labels = known["logit"].to_numpy(), known["tb"].to_numpy()
    temperature = fit_temperature(logits, labels)
    threshold = choose_threshold(expit(logits / temperature), labels, sensitivity)
    prob = expit(test["logit"] / temperature)
    return test.assign(prob=prob, presumptive=prob >= threshold, temperature=temperature, threshold=threshold)
