"""Twenty bugs that code of this kind really had, most of them with a public thread to their name; none may come back.

The numbers in the comments are what the bug shows: a Dice above 1, or one stuck at 0.78. The lungs cover about 28 %.
"""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from phantoms import phantom, write_prepared, write_raw
from torch import nn

from kaggle_utils import data, loss, metrics, prep
from kaggle_utils import image as files
from kaggle_utils.augment import augmentation
from kaggle_utils.data import LungDataset, make_loader, read_manifest
from kaggle_utils.model import UNet
from kaggle_utils.trainer import TrainConfig, Trainer

LUNGS = np.stack([phantom(64, 64, seed).mask for seed in range(8)])  # uint8 (8, 64, 64)
TRUTH = torch.from_numpy(LUNGS)[:, None].float()  # (8, 1, 64, 64)
PERFECT, NOTHING = (TRUTH * 2 - 1) * 20, torch.full_like(TRUTH, -20.0)  # logits
LOSSES = {name: loss.make_loss(name) for name in loss.LOSSES}
each_loss = pytest.mark.parametrize("name", LOSSES)


def dice(pred, truth):
    return metrics.overlap(metrics.confusion(pred, truth))["dice"]


def validated(root, batch, model=None):
    """What the trainer reports on 7 films, in batches that don't divide 7."""
    frame = read_manifest(root)
    loader = make_loader(LungDataset(frame[frame["split"] == "val"], 32), batch)
    torch.manual_seed(0)
    trainer = Trainer(
        model or UNet(base_channels=2, depth=2),
        LOSSES["bce_dice"],
        loader,
        loader,
        TrainConfig(size=32, precision="fp32", device="cpu"),
    )
    return trainer, loader


@pytest.fixture
def seven_films(tmp_path):
    return write_prepared(tmp_path / "set", {"train": 1, "val": 7})


# 1. Masks stored as 0/255: a perfect prediction scores 510/256 = 1.99; the loss falls below zero.
@pytest.mark.parametrize("top", [1, 255])
def test_01_masks_of_0_255_are_read_as_0_and_1(tmp_path, top):
    write_raw(tmp_path / "mask.png", LUNGS[0] * top)
    assert set(np.unique(files.read_mask(tmp_path / "mask.png"))) == {0, 1}


@each_loss
def test_01_losses_and_dice_refuse_0_255(name):
    with pytest.raises(ValueError, match="truth holds 0 and 1"):
        LOSSES[name](PERFECT, TRUTH * 255)
    with pytest.raises(ValueError, match="from 0 to 255"):
        dice(LUNGS[0], LUNGS[0] * 255)


# 2. 8-bit arithmetic: left + right wraps from 510 to 254, 255 · 255 to 1.
def test_02_overlapping_left_and_right_masks_do_not_wrap_round(tmp_path):
    left, right = np.zeros((80, 80), np.uint8), np.zeros((80, 80), np.uint8)
    left[8:72, 8:48], right[8:72, 32:72] = 255, 255
    paths = {side: write_raw(tmp_path / f"{side}.png", mask) for side, mask in (("left", left), ("right", right))}
    paths["image"] = write_raw(tmp_path / "film.png", phantom(80, 80).image)
    for kind in ("image", "mask"):
        (tmp_path / "out" / kind).mkdir(parents=True)
    prep.prepare_film(prep.RawFilm("film", "montgomery", files=paths), tmp_path / "out", 80)
    np.testing.assert_array_equal(files.read_mask(tmp_path / "out" / "mask" / "film.png"), (left | right) // 255)


def test_02_counts_of_a_large_mask_do_not_wrap_round():
    ones = np.ones((600, 600), np.uint8)
    assert metrics.confusion(ones, ones)["tp"] == 360_000


# 3. total / index + 1 instead of total / (index + 1): 2.11 for a mean of 0.95.
@settings(max_examples=60, deadline=None)
@given(
    pred=arrays(np.uint8, (6, 6), elements=st.integers(0, 1)),
    truth=arrays(np.uint8, (6, 6), elements=st.integers(0, 1)),
)
def test_03_dice_stays_in_0_1(pred, truth):
    assert 0 <= dice(pred, truth) <= 1


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_03_reported_dice_of_a_perfect_network_is_1(seven_films, batch):
    trainer, loader = validated(seven_films, batch)
    truths = iter([b["mask"] * 40 - 20 for b in loader])
    trainer.model.forward = lambda images: next(truths)
    assert trainer.validate(trainer.model)["val_dice"] == 1.0


# 4. Sum of the films' Dice over the number of batches: 7.6 at batches of 8.
# 5. n // batch as the denominator, with a ragged last batch: 1.27.
# 6. Mean of batch means: biased towards the films of the short last batch.
@pytest.mark.parametrize("batch", [1, 3, 8, 28])
def test_04_05_06_reported_dice_is_the_mean_over_films_in_batches_of_any_size(seven_films, batch):
    trainer, loader = validated(seven_films, batch)
    trainer.model.eval()
    with torch.no_grad():
        plain = [
            dice(
                (trainer.model(item["image"][None])[0, 0] > 0).numpy().astype(np.uint8),
                item["mask"][0].numpy().astype(np.uint8),
            )
            for item in loader.dataset
        ]
    assert trainer.validate(trainer.model)["val_dice"] == pytest.approx(np.mean(plain), abs=1e-6)


# 7. Raw logits in the Dice formula: unbounded, -1.50 was seen.
@pytest.mark.parametrize("name", ["dice", "tversky"])
@pytest.mark.parametrize("scale", [-1e4, -3.0, 0.0, 3.0, 1e4])
def test_07_overlap_losses_of_any_logits_stay_in_0_1(name, scale):
    assert 0 <= LOSSES[name](torch.full_like(TRUTH, scale), TRUTH).item() <= 1


# 8. Sigmoid twice: a perfect network is capped at a soft Dice of 0.48, its cross-entropy at 0.59.
@each_loss
def test_08_perfect_logits_cost_nothing(name):
    assert LOSSES[name](PERFECT, TRUTH).item() < 1e-3


def test_08_the_network_gives_logits_not_probabilities():
    torch.manual_seed(0)
    net = UNet(base_channels=4, depth=2)
    nn.init.constant_(net.outc.bias, -7.0)
    assert net(torch.randn(2, 1, 16, 16)).max() < 0
    assert not any(isinstance(module, (nn.Sigmoid, nn.Softmax)) for module in net.modules())


# 9. (B, 1, H, W) against (B, H, W): broadcast to (B, B, H, W), Dice 7.15.
@each_loss
@pytest.mark.parametrize(
    "truth", [TRUTH[:, 0], TRUTH[:1], TRUTH[..., :32]], ids=["no channel", "one film", "half a film"]
)
def test_09_shapes_that_would_be_broadcast_are_refused(name, truth):
    with pytest.raises(ValueError, match=re.escape(f"truth is {tuple(truth.shape)}")):
        LOSSES[name](PERFECT, truth)


def test_09_metrics_refuse_masks_of_two_shapes():
    with pytest.raises(ValueError, match="pred is"):
        metrics.score(LUNGS[0], LUNGS[0][:1])


# 10. Smoothing by 1 on means instead of sums: the empty prediction scores 0.78.
def test_10_empty_prediction_scores_nothing():
    assert dice(LUNGS[0] * 0, LUNGS[0]) == 0
    assert LOSSES["dice"](NOTHING, TRUTH).item() > 0.99


def test_10_empty_prediction_of_an_empty_film_is_right_by_definition():
    assert dice(LUNGS[0] * 0, LUNGS[0] * 0) == 1
    assert LOSSES["dice"](NOTHING, TRUTH * 0).item() == pytest.approx(0, abs=1e-4)


# 11. The wrong sign, BCE + w·Dice: Dice falls to 0.00 within 20 steps.
@each_loss
def test_11_the_right_answer_costs_less_than_nothing_at_all(name):
    assert LOSSES[name](PERFECT, TRUTH) < LOSSES[name](NOTHING, TRUTH)


@each_loss
def test_11_thirty_steps_raise_the_dice(name):
    torch.manual_seed(0)
    net = UNet(base_channels=4, depth=2, norm="group")
    films = data.normalise(torch.from_numpy(np.stack([phantom(32, 32, s).image for s in range(4)]))[:, None])
    truth = torch.from_numpy(np.stack([phantom(32, 32, s).mask for s in range(4)]))[:, None].float()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)

    def soft_dice():
        with torch.no_grad():
            return 1 - loss.DiceLoss()(net(films), truth).item()

    before = soft_dice()
    for _ in range(30):
        optimizer.zero_grad()
        LOSSES[name](net(films), truth).backward()
        optimizer.step()
    assert soft_dice() > before + 0.15


# 12. A thresholded Dice in the loss: no gradient, training proceeds "as if BCE only".
@each_loss
def test_12_each_loss_has_a_gradient(name):
    logits = torch.zeros_like(TRUTH).requires_grad_()
    LOSSES[name](logits, TRUTH).backward()
    assert (logits.grad != 0).all()


def test_12_the_dice_term_of_the_combination_has_its_share_of_the_gradient():
    def gradient(weight):
        logits = torch.zeros_like(TRUTH).requires_grad_()
        loss.BCEDiceLoss(weight)(logits, TRUTH).backward()
        return logits.grad

    assert not torch.allclose(gradient(0.9) / 0.1, gradient(0.0), rtol=1e-3)


# 13. Accuracy and Dice of two different countings: 70 % with 0.80 is impossible where lungs cover 20-35 %.
@settings(max_examples=60, deadline=None)
@given(pred=arrays(np.uint8, (6, 6), elements=st.integers(0, 1)))
def test_13_accuracy_and_dice_come_from_one_count(pred):
    truth = LUNGS[0][16:22, 14:20]
    counts = metrics.confusion(pred, truth)
    scores = metrics.overlap(counts)
    assert sum(counts.values()) == pred.size
    assert (
        scores["dice"] == pytest.approx(2 * counts["tp"] / max(2 * counts["tp"] + counts["fp"] + counts["fn"], 1))
        or not (pred | truth).any()
    )
    share, accuracy = truth.mean(), scores["accuracy"]
    if share:
        assert scores["dice"] <= 2 * share / (2 * share + 1 - accuracy) + 1e-9


# 14. eval() without a way back: batch normalisation frozen from the first validation on.
@pytest.mark.parametrize("is_training", [True, False])
def test_14_validation_puts_the_mode_back(seven_films, is_training):
    trainer, _ = validated(seven_films, 3)
    trainer.model.train(is_training)
    trainer.validate(trainer.model)
    assert all(module.training is is_training for module in trainer.model.modules())


@pytest.mark.parametrize("batch", [1, 2])
def test_14_small_batches_train_and_evaluation_agrees_with_training(tmp_path, batch):
    frame = read_manifest(write_prepared(tmp_path, {"train": 4}))
    films = LungDataset(frame, 32)
    torch.manual_seed(0)
    trainer = Trainer(
        UNet(base_channels=4, depth=2, norm="group"),
        LOSSES["bce_dice"],
        make_loader(films, batch, shuffle=True),
        make_loader(films, 4),
        TrainConfig(size=32, batch_size=batch, epochs=30, lr=0.01, ema_decay=0.0, precision="fp32", device="cpu"),
    )
    history = trainer.fit()
    assert history["val_dice"].iloc[-1] > 0.9
    assert abs(history["val_loss"].iloc[-1] - history["train_loss"].iloc[-1]) < 0.1


# 15. Bilinear resizing of masks, colour read as three channels, (width, height) mixed up with (height, width).
def test_15_a_resized_mask_holds_0_and_1():
    assert set(np.unique(files.resize_mask(LUNGS[0], (37, 51)))) == {0, 1}


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)], ids=["landscape", "portrait"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_15_a_film_that_is_not_square_is_the_same_array_from_every_file(tmp_path, shape, suffix, channels):
    film = phantom(*shape)
    stored = film.image if channels == 1 else np.dstack([film.image] * 3)
    np.testing.assert_array_equal(files.read_image(write_raw(tmp_path / f"film{suffix}", stored)), film.image)
    np.testing.assert_array_equal(files.read_mask(write_raw(tmp_path / f"mask{suffix}", film.mask * 255)), film.mask)


def test_15_a_landscape_film_is_not_transposed_on_its_way():
    film = phantom(48, 80)
    there_and_back = files.resize_mask(files.resize_mask(film.mask, 128), (48, 80))
    assert dice(there_and_back, film.mask) > 0.97


# 16. Augmentation of the film alone: the better it is meant, the worse the labels fit.
@pytest.mark.parametrize("preset", ("none", "light", "full"))
def test_16_film_and_mask_move_together(preset):
    """A bright square on a dark film is its own mask; wherever it goes, the mask must be there."""
    marker = np.zeros((64, 64), np.uint8)
    marker[12:28, 30:52] = 1
    augment = augmentation(preset)
    moved_at_all, overlaps = False, []
    for seed in range(40):
        augment.set_random_seed(seed)
        moved = augment(image=marker * 200 + 20, mask=marker)
        if moved["mask"].sum() < 60:  # nearly outside the film
            continue
        moved_at_all |= not np.array_equal(moved["mask"], marker)
        inside, outside = moved["image"][moved["mask"] == 1], moved["image"][moved["mask"] == 0]
        middle = (np.median(inside) + np.median(outside)) / 2
        overlaps.append(dice((moved["image"] > middle).astype(np.uint8), moved["mask"]))
        assert np.median(inside) > np.median(outside)
    assert np.median(overlaps) > 0.95 and moved_at_all == (preset != "none")


@pytest.mark.parametrize("preset", ["light", "full"])
def test_16_the_lungs_stay_dark_below_their_moved_mask(tmp_path, preset):
    films = LungDataset(read_manifest(write_prepared(tmp_path, {"train": 8})), 32, preset)
    for epoch in range(4):
        for index in range(8):
            item = films[epoch, index]
            assert item["image"][item["mask"] == 1].mean() < item["image"][item["mask"] == 0].mean()


# 17. Films and masks paired by their place in two unsorted listings: Dice of a mean shape, never above 0.8.
def test_17_pairs_have_one_stem_whatever_the_order_of_the_directories(tmp_path):
    names = [f"CHNCXR_{n:04d}_0" for n in random_order(12)]
    for name in names:
        write_raw(tmp_path / "images" / "CXR_png" / f"{name}.png", phantom(20, 20).image)
    for name in names[::-1]:
        write_raw(tmp_path / "masks" / f"{name}_mask.png", phantom(20, 20).mask)
    films = prep.find_films(tmp_path)
    assert len(films) == 12
    assert all(
        film.files["image"].stem == film.name and film.files["mask"].stem == f"{film.name}_mask" for film in films
    )


def test_17_dataset_pairs_by_the_manifests_row(tmp_path):
    frame = read_manifest(write_prepared(tmp_path, {"train": 8})).iloc[random_order(8)]
    films = LungDataset(frame, 32)
    for index, row in enumerate(frame.itertuples()):
        np.testing.assert_array_equal(
            films[index]["mask"][0], files.read_mask(tmp_path / "train" / "mask" / f"{row.name}.png")
        )


def random_order(n):
    return np.random.default_rng(1).permutation(n)


# 18. A scheduler or an accumulator that isn't reset between epochs: Dice drifts.
def test_18_two_validations_of_the_same_weights_give_the_same_numbers(seven_films):
    trainer, _ = validated(seven_films, 3)
    assert trainer.validate() == trainer.validate()


# 19. A sum in float16: 512 × 512 ones are inf (the largest number is 65,504).
@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_19_loss_of_half_precision_logits_equals_that_of_float32(name, dtype):
    truth = torch.ones(1, 1, 512, 512)
    logits = torch.full_like(truth, 2.0)
    with torch.autocast("cpu", dtype=dtype):
        half = LOSSES[name](logits.to(dtype), truth.to(dtype))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, LOSSES[name](logits, truth))


# 20. Films of the test in the training set, by name or under another name.
@pytest.mark.parametrize("column", ["name", "pixels"])
def test_20_a_film_in_two_splits_is_refused(tmp_path, column):
    write_prepared(tmp_path, {"train": 2, "test": 2})
    frame = pd.read_csv(tmp_path / "manifest.csv")
    frame.loc[3, column] = frame.loc[0, column]
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(ValueError, match="twice"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("split", ["published", "random"])
def test_20_no_film_is_in_two_splits(split):
    names = pd.concat([pd.read_csv(p) for p in (Path(prep.__file__).parent / "splits").glob("segmentation_*.csv")])[
        "name"
    ]
    frame = pd.DataFrame(
        {
            "name": names.to_numpy(),
            "source": np.where(names.str.startswith("M"), "montgomery", "shenzhen"),
            "tb": 0,
            "masked": True,
        }
    )
    parts = frame.groupby(prep.assign_splits(frame, split=split))["name"].agg(set)
    assert set(parts.index) == set(prep.SPLITS)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(frame)


def test_20_the_best_epoch_is_chosen_on_the_validation_films(tmp_path, monkeypatch):
    """Training doesn't so much as open a film of the test."""
    from kaggle_utils import trainer as training

    write_prepared(tmp_path / "set", {"train": 4, "val": 2, "test": 2})
    opened, read = [], data.read_image
    monkeypatch.setattr(data, "read_image", lambda path: opened.append(str(path)) or read(path))
    training.train(
        tmp_path / "set",
        tmp_path / "run",
        TrainConfig(sources=("montgomery",), size=32, base_channels=2, depth=2, patch=1, epochs=1, precision="fp32"),
    )
    assert len(opened) == 6 and not any(f"{os.sep}test{os.sep}" in path.removeprefix(str(tmp_path)) for path in opened)
