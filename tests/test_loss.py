"""loss.py against MONAI: values and gradients; and what a loss must never do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss as MonaiDice
from monai.losses import FocalLoss as MonaiFocal
from monai.losses import TverskyLoss as MonaiTversky

from kaggle_utils import loss as losses

# MONAI's conventions that equal ours: sums per film (batch=False), smoothing of numerator and denominator alike. In
# MONAI's Dice the smoothing stands beside 2·tp, as here; in its Tversky beside tp.
PAIRS = {
    "bce": (losses.BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss()),
    "dice": (losses.DiceLoss(smooth=1.0), MonaiDice(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)),
    "dice, almost unsmoothed": (losses.DiceLoss(smooth=1e-5), MonaiDice(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)),
    "tversky": (
        losses.TverskyLoss(0.3, 0.7),
        MonaiTversky(sigmoid=True, alpha=0.3, beta=0.7, smooth_nr=1.0, smooth_dr=1.0),
    ),
    "focal": (losses.FocalLoss(2.0), MonaiFocal(gamma=2.0)),
    "focal, gamma 0.5": (losses.FocalLoss(0.5), MonaiFocal(gamma=0.5)),
}
ALL = {name: losses.make_loss(name) for name in losses.LOSSES}


def batch(seed=0, shape=(3, 1, 16, 12), spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator)
    truth = (torch.rand(shape, generator=generator) < 0.3).float()
    return logits, truth


def value_and_gradient(loss, logits, truth):
    logits = logits.clone().requires_grad_()
    value = loss(logits, truth)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_reference(name, seed):
    ours, reference = PAIRS[name]
    value, gradient = value_and_gradient(ours, *batch(seed))
    expected, expected_gradient = value_and_gradient(reference, *batch(seed))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_combination_is_the_weighted_sum_in_value_and_gradient(weight):
    value, gradient = value_and_gradient(losses.BCEDiceLoss(weight), *batch())
    parts = [value_and_gradient(loss, *batch()) for loss in (losses.BCEWithLogitsLoss(), losses.DiceLoss())]
    torch.testing.assert_close(value, (1 - weight) * parts[0][0] + weight * parts[1][0])
    torch.testing.assert_close(gradient, (1 - weight) * parts[0][1] + weight * parts[1][1])


def test_dice_by_hand():
    # p = [½ ½ 1 0], y = [1 0 1 0]: 2·tp = 3, Σp + Σy = 4 → (3 + 1) / (4 + 1)
    logits, truth = torch.tensor([[0.0, 0.0, 99.0, -99.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert losses.DiceLoss(smooth=1.0)(logits, truth).item() == pytest.approx(1 - 4 / 5)


def test_tversky_of_equal_prices_is_dice_with_half_the_smoothing():
    logits, truth = batch()
    assert losses.TverskyLoss(0.5, 0.5, smooth=0.5)(logits, truth).item() == pytest.approx(
        losses.DiceLoss(smooth=1.0)(logits, truth).item(), abs=1e-6
    )


def test_tversky_beta_is_the_price_of_a_missed_lung():
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    missed, invented = torch.tensor([[99.0, -99, -99, -99]]), torch.tensor([[99.0, 99, 99, -99]])
    dear_misses = losses.TverskyLoss(alpha=0.1, beta=0.9)
    assert dear_misses(missed, truth) > dear_misses(invented, truth)


@pytest.mark.parametrize("name", ALL)
def test_loss_is_the_mean_over_films_of_each_films_own(name):
    logits, truth = batch(shape=(4, 1, 8, 8))
    truth[0] = 0  # an empty mask counts for one film, no more
    singles = torch.stack([ALL[name](logits[i : i + 1], truth[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(ALL[name](logits, truth), singles.mean())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.01, 1.0, 30.0, 1e4]))
@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_overlap_losses_stay_in_0_1(name, seed, spread):
    assert 0 <= ALL[name](*batch(seed, (2, 1, 6, 6), spread)).item() <= 1


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_two_empty_masks_agree(name):
    assert ALL[name](torch.full((2, 1, 8, 8), -99.0), torch.zeros(2, 1, 8, 8)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_huge_logits_give_a_finite_loss_and_gradient(name, extreme):
    value, gradient = value_and_gradient(ALL[name], torch.full((1, 1, 4, 4), extreme), torch.ones(1, 1, 4, 4))
    assert math.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_a_float32_loss(name, dtype):
    logits, truth = batch(shape=(2, 1, 16, 16))
    logits = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ALL[name](logits, truth)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, ALL[name](logits.float(), truth))


@pytest.mark.parametrize("name", ALL)
def test_truth_of_any_number_type_counts_the_same(name):
    logits, truth = batch()
    torch.testing.assert_close(ALL[name](logits, truth.bool()), ALL[name](logits, truth))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [255.0, 0.5, -1.0, math.nan])
def test_truth_outside_0_1_is_refused(name, value):
    truth = torch.zeros(1, 1, 4, 4)
    truth[0, 0, 1, 1] = value
    loss = losses.make_loss(name)  # at its first call: later ones would wait for the device
    with pytest.raises(ValueError, match="truth holds 0 and 1"):
        loss(torch.zeros(1, 1, 4, 4), truth)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_dice_weight_outside_0_1_is_refused(weight):
    with pytest.raises(ValueError, match="dice_weight"):
        losses.BCEDiceLoss(weight)


def test_unknown_loss_names_the_known_ones():
    with pytest.raises(ValueError, match="bce, dice, bce_dice, tversky, focal.*'diec'"):
        losses.make_loss("diec")


def test_dice_weight_reaches_the_combination():
    assert losses.make_loss("bce_dice", dice_weight=0.2).dice_weight == 0.2
