"""Artefacts: what each draws, where, and that the mask stays true. The presets are tested with the data they change."""

import numpy as np
import pytest
from phantoms import phantom

from kaggle_utils.augment import augmentation
from kaggle_utils.augment.artefacts import ARTEFACTS, draw_artefacts, draw_one

FILM = phantom(160, 128, 3)
SEEDS = range(12)


def drawn(name, seed, film=FILM):
    return ARTEFACTS[name][0](film.image, film.mask, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_artefact_changes_the_image_and_only_that(name):
    mask = FILM.mask.copy()
    before = FILM.image.copy()
    images = [drawn(name, seed) for seed in SEEDS]
    assert all(image.shape == FILM.image.shape and image.dtype == np.uint8 for image in images)
    assert sum((image != FILM.image).any() for image in images) >= 10
    np.testing.assert_array_equal(mask, FILM.mask)
    np.testing.assert_array_equal(before, FILM.image)
    np.testing.assert_array_equal(drawn(name, 5), images[5])


def test_gas_is_dark_and_below_the_lungs_alone():
    for seed in SEEDS:
        image = drawn("gas", seed)
        changed = image != FILM.image
        assert not changed[FILM.mask > 0].any()
        assert (image[changed] < FILM.image[changed]).all()
        rows = np.flatnonzero(changed.any(axis=1))
        assert not len(rows) or rows[0] > np.flatnonzero(FILM.mask.any(axis=1))[len(rows) // 4]


def test_gas_lies_mostly_under_the_left_diaphragm():
    sides = []
    for seed in range(60):
        changed = (drawn("gas", seed) != FILM.image).any(axis=0)
        if changed.any():
            sides.append(np.flatnonzero(changed).mean() > 64)
    assert len(sides) > 40 and 0.65 < np.mean(sides) < 0.95


def test_blinds_leave_the_lungs_in_sight():
    for seed in SEEDS:
        np.testing.assert_array_equal(drawn("collimation", seed)[FILM.mask > 0], FILM.image[FILM.mask > 0])


def test_a_hard_window_cuts_black_and_white_off():
    before = np.isin(FILM.image, (0, 255)).mean()
    after = [np.isin(drawn("window", seed), (0, 255)).mean() for seed in SEEDS]
    assert np.median(after) > before + 0.1
    order = np.argsort(FILM.image, axis=None, kind="stable")
    assert all((np.diff(drawn("window", seed).ravel()[order].astype(int)) >= 0).all() for seed in SEEDS)


def test_clinic_turns_some_films_far_and_most_a_little():
    upright = np.zeros((200, 200), np.uint8)
    upright[30:170, 95:105] = 1
    augment, turns = augmentation("clinic"), []
    for seed in range(200):
        augment.set_random_seed(seed)
        y, x = np.nonzero(augment(image=upright * 99, mask=upright)["mask"])
        turns.append(abs(np.degrees(np.polyfit(y - y.mean(), x, 1)[0])))  # small angles: the slope is the angle
    assert 0.05 < np.mean(np.greater(turns, 9)) < 0.3 and np.median(turns) < 5


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_film_without_lungs_is_no_error(name):
    empty = np.zeros((40, 50), np.uint8)
    assert ARTEFACTS[name][0](empty + 90, empty, np.random.default_rng(0)).shape == (40, 50)


def test_each_artefact_comes_by_its_chance(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "kaggle_utils.augment.artefacts.ARTEFACTS",
        {name: (lambda i, m, r, n=name: seen.append(n) or i, chance) for name, (_, chance) in ARTEFACTS.items()},
    )
    rng = np.random.default_rng(0)
    for _ in range(2000):
        draw_artefacts(FILM.image, FILM.mask, rng)
    for name, (_, chance) in ARTEFACTS.items():
        assert seen.count(name) / 2000 == pytest.approx(chance, abs=0.04)


def test_one_artefact_is_the_same_each_time_for_a_seed():
    one, again, other = (draw_one("noise", FILM.image, FILM.mask, seed=seed) for seed in ("a", "a", "b"))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_an_artefact_can_be_left_out(monkeypatch):
    white = lambda image, mask, rng: np.full_like(image, 255)  # noqa: E731
    monkeypatch.setattr("kaggle_utils.augment.artefacts.ARTEFACTS", {"gas": (white, 1.0), "text": (white, 0.0)})
    images = [augmentation("clinic", without)(image=FILM.image, mask=FILM.mask)["image"] for without in ("", "gas")]
    assert np.median(images[0]) > 200 > np.median(images[1])


def test_the_preset_draws_them_by_its_seed_and_moves_the_mask_with_the_image():
    augment = augmentation("clinic")
    results = []
    for seed in (1, 1, 2):
        augment.set_random_seed(seed)
        results.append(augment(image=FILM.image, mask=FILM.mask))
    np.testing.assert_array_equal(results[0]["image"], results[1]["image"])
    np.testing.assert_array_equal(results[0]["mask"], results[1]["mask"])
    assert (results[0]["image"] != results[2]["image"]).any()
    assert all(set(np.unique(result["mask"])) == {0, 1} for result in results)
