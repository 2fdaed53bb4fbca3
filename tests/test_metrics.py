"""metrics.py against MONAI, scikit-image and scipy, and by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from phantoms import phantom
from scipy import stats
from skimage.metrics import hausdorff_distance

from kaggle_utils import metrics

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*always_return_as_numpy:FutureWarning"
)  # between MONAI's own functions

PRED = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.uint8)
TRUTH = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], np.uint8)  # tp 2, fp 1, fn 1, tn 4
EMPTY = np.zeros((2, 4), np.uint8)

masks = arrays(np.uint8, (7, 9), elements=st.integers(0, 1))


def monai(mask):
    return torch.from_numpy(mask)[None, None].float()


def test_counts_by_hand():
    assert metrics.confusion(PRED, TRUTH) == {"tp": 2, "fp": 1, "fn": 1, "tn": 4}


def test_scores_by_hand():
    scores = metrics.overlap(metrics.confusion(PRED, TRUTH))
    assert scores == pytest.approx(
        {"dice": 4 / 6, "iou": 2 / 4, "accuracy": 6 / 8, "sensitivity": 2 / 3, "specificity": 4 / 5}
    )


@pytest.mark.parametrize(
    "pred, truth, dice",
    [(EMPTY, EMPTY, 1.0), (EMPTY, TRUTH, 0.0), (TRUTH, EMPTY, 0.0), (TRUTH, TRUTH, 1.0), (EMPTY + 1, EMPTY + 1, 1.0)],
)
def test_dice_of_empty_and_full_masks(pred, truth, dice):
    assert metrics.overlap(metrics.confusion(pred, truth))["dice"] == dice


@pytest.mark.parametrize("seed", range(3))
def test_dice_equals_monai(seed):
    pred, truth = phantom(seed=seed).mask, phantom(seed=seed + 10).mask
    assert metrics.score(pred, truth)["dice"] == pytest.approx(compute_dice(monai(pred), monai(truth)).item())


@settings(max_examples=50, deadline=None)
@given(pred=masks, truth=masks)
def test_scores_stay_in_0_1_and_dice_and_iou_agree(pred, truth):
    scores = metrics.overlap(metrics.confusion(pred, truth))
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.175, 0.175), (2.0, 0.5)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_equal_monai_with_any_spacing(seed, spacing):
    pred, truth = phantom(48, 40, seed).mask, phantom(48, 40, seed + 10).mask
    distances = metrics.surface_distances(pred, truth, spacing)
    arguments = dict(y_pred=monai(pred), y=monai(truth), include_background=True, spacing=list(spacing))
    assert distances["hd95"] == pytest.approx(compute_hausdorff_distance(**arguments, percentile=95).item(), rel=1e-5)
    assert distances["hd"] == pytest.approx(compute_hausdorff_distance(**arguments).item(), rel=1e-5)
    assert distances["assd"] == pytest.approx(
        compute_average_surface_distance(**arguments, symmetric=True).item(), rel=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(pred=masks, truth=masks)
def test_hausdorff_of_the_surfaces_equals_scikit_image(pred, truth):
    if pred.any() and truth.any():
        from scipy.ndimage import binary_erosion

        pred_edge, truth_edge = (m.astype(bool) & ~binary_erosion(m) for m in (pred, truth))
        assert metrics.surface_distances(pred, truth)["hd"] == pytest.approx(hausdorff_distance(pred_edge, truth_edge))


def test_distance_of_a_shifted_square_by_hand():
    pred, truth = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    pred[5, 5], truth[5, 9] = 1, 1
    assert metrics.surface_distances(pred, truth, (1.0, 0.5)) == {"hd95": 2.0, "hd": 2.0, "assd": 2.0}


@settings(max_examples=30, deadline=None)
@given(pred=masks, truth=masks)
def test_distances_are_symmetric_and_ordered(pred, truth):
    there, back = metrics.surface_distances(pred, truth), metrics.surface_distances(truth, pred)
    assert there == pytest.approx(back)
    assert there["hd95"] <= there["hd"] + 1e-9


@pytest.mark.parametrize(
    "pred, truth, far", [(EMPTY, EMPTY, 0.0), (EMPTY, TRUTH, np.hypot(2, 4)), (TRUTH, EMPTY, np.hypot(2, 4))]
)
def test_empty_masks_have_defined_distances(pred, truth, far):
    assert set(metrics.surface_distances(pred, truth).values()) == {far}


@pytest.mark.parametrize(
    "pred, truth, message",
    [
        (PRED, TRUTH.T, "pred is"),
        (PRED[None], TRUTH, r"\(H, W\)"),
        (PRED * 255, TRUTH, "from 0 to 255"),
        (PRED, TRUTH * 255, "from 0 to 255"),
    ],
    ids=["transposed", "extra axis", "pred 0/255", "truth 0/255"],
)
def test_what_is_no_pair_of_masks_is_refused(pred, truth, message):
    with pytest.raises(ValueError, match=message):
        metrics.score(pred, truth)


def test_probabilities_are_refused_not_counted_as_lung():
    with pytest.raises(ValueError):
        metrics.confusion(np.full((2, 4), 0.2, np.float32), TRUTH)


def scores_table(dice):
    return pd.DataFrame(
        {
            "name": [f"film {i}" for i in range(len(dice))],
            "source": "jsrt",
            "dice": dice,
            "iou": 0.5,
            "hd95": 2.0,
            "hd": 3.0,
            "assd": 1.0,
        }
    )


def test_summary_by_hand():
    row = metrics.summarise(scores_table([0.9, 0.8, 1.0]), ["source"]).iloc[0]
    assert (row["source"], row["n"], row["worst"], row["worst_film"]) == ("jsrt", 3, 0.8, "film 1")
    assert row["dice"] == pytest.approx(0.9) and row["sd"] == pytest.approx(0.1) and row["median"] == pytest.approx(0.9)


def test_bootstrap_interval_is_reproducible_and_near_the_t_interval():
    dice = np.random.default_rng(0).normal(0.95, 0.02, 60)
    row, again = (metrics.summarise(scores_table(dice), ["source"]).iloc[0] for _ in range(2))
    low, high = stats.t.interval(0.95, 59, dice.mean(), stats.sem(dice))
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.002)
    assert (row["low"], row["high"]) == (again["low"], again["high"])


def test_one_film_has_itself_as_interval_and_no_spread():
    row = metrics.summarise(scores_table([0.9]), ["source"]).iloc[0]
    assert (row["low"], row["high"], row["sd"]) == (0.9, 0.9, 0.0)


def test_groups_keep_apart():
    table = pd.concat([scores_table([0.9, 0.9]), scores_table([0.5]).assign(source="montgomery")])
    assert metrics.summarise(table, ["source"]).set_index("source")["dice"].to_dict() == pytest.approx(
        {"jsrt": 0.9, "montgomery": 0.5}
    )
