"""ROC, operating point and calibration, against numbers known beforehand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from kaggle_utils.tb.calibrate import calibrated, choose_threshold, fit_temperature, reliability, score_tb


def test_temperature_of_known_logits(rng):
    true = rng.normal(0, 1.5, 20_000)
    labels = (rng.random(20_000) < expit(true)).astype(int)
    assert fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(0.5 * true, labels) == pytest.approx(0.5, rel=0.05)


def test_without_both_classes_there_are_no_scores():
    prob = np.linspace(0, 1, 60)
    with pytest.raises(ValueError, match="60 of 60 films have tuberculosis: an AUC needs both classes"):
        score_tb(prob, np.ones(60), prob > 0.5)


def test_bins_hold_what_their_means_are_of(rng):
    prob = rng.random(500)
    labels = (rng.random(500) < prob).astype(int)
    found = reliability(prob, labels)
    assert found["n"].sum() == 500 and (found["n"] * found["prob"]).sum() == pytest.approx(prob.sum())
    assert (found["n"] * found["share"]).sum() == pytest.approx(labels.sum())


@pytest.mark.parametrize("wanted, threshold", [(1.0, 0.1), (0.9, 0.2), (0.5, 0.6)])
def test_threshold_by_sensitivity(wanted, threshold):
    prob, labels = np.append(np.arange(1, 11) / 10, [0.05, 0.95]), np.array([1] * 10 + [0] * 2)
    assert choose_threshold(prob, labels, wanted) == pytest.approx(threshold)
    assert (prob[:10] >= choose_threshold(prob, labels, wanted)).mean() >= wanted


def test_scores_of_known_probabilities():
    prob, labels = np.array([0.9, 0.8, 0.3, 0.1, 0.2, 0.7]), np.array([1, 1, 1, 0, 0, 0])
    found = score_tb(prob, labels, prob >= 0.25)
    assert (
        found["auc"] == pytest.approx(8 / 9)
        and found["sensitivity"] == 1
        and found["specificity"] == pytest.approx(2 / 3)
    )
    assert found["low"] <= found["auc"] <= found["high"] and found["brier"] == pytest.approx(
        (0.01 + 0.04 + 0.49 + 0.01 + 0.04 + 0.49) / 6
    )
    perfect = reliability(np.array([0.25, 0.25, 0.25, 0.25]), np.array([1, 0, 0, 0]))
    assert perfect["prob"] == perfect["share"] == 0.25 and perfect["n"] == 4


def test_training_films_alone_fix_temperature_and_threshold(rng):
    true = rng.normal(0, 2, 4000)
    films = pd.DataFrame(
        {
            "tb": (rng.random(4000) < expit(true)).astype(int),
            "logit": 2 * true,
            "part": np.repeat(["train", "test"], 2000),
        }
    )
    test = calibrated(films)
    assert len(test) == 2000 and (test["part"] == "test").all()
    assert test["temperature"].unique() == pytest.approx(2, rel=0.15)
    assert test.loc[test["tb"] == 1, "presumptive"].mean() == pytest.approx(0.9, abs=0.04)
    changed = films.assign(tb=films["tb"].where(films["part"] != "test", 1 - films["tb"]))
    assert calibrated(changed)["prob"].equals(test["prob"])
