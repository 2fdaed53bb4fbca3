"""quality.measurements: shapes whose areas, landmarks, symmetry and tilt are known, films of known lungs, and masks of
any kind."""

from math import isnan, nan

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kaggle_utils.quality.measurements import MEASUREMENTS, check_height, find_midline, measure, split_lungs
from kaggle_utils.synthetic.model import AppearanceModel


def boxes(*spans: tuple[int, int, int, int], shape=(100, 120)) -> np.ndarray:
    """Rectangles: first row, row after the last, first column, column after the last."""
    mask = np.zeros(shape, np.uint8)
    for top, bottom, first, end in spans:
        mask[top:bottom, first:end] = 1
    return mask


RIGHT, LEFT = (20, 80, 20, 50), (30, 80, 70, 95)  # 1,800 and 1,250 px
PAIR = boxes(RIGHT, LEFT)


def ellipses(*, tilt: float = 0.0, size: int = 400, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two upright ellipses, mirror images of each other, turned clockwise about the film's middle and shifted along
    the row."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    x -= shift
    turn = np.radians(tilt)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    right, left = (((x - side * 0.2 * size) / (0.12 * size)) ** 2 + (y / (0.3 * size)) ** 2 < 1 for side in (-1, 1))
    return right.astype(np.uint8), left.astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def films():
    return AppearanceModel.load().sample(8, 21, size=384)


# --- split -----------------------------------------------------------------------------------------------------------


def test_lungs_apart_are_taken_as_they_are():
    right, left = split_lungs(PAIR)
    np.testing.assert_array_equal(right, boxes(RIGHT))
    np.testing.assert_array_equal(left, boxes(LEFT))


def test_built_in_films_are_split_as_they_were_drawn(films):
    for film in films:
        right, left = split_lungs(film.mask)
        assert dice(right, film.right) > 0.999 and dice(left, film.left) > 0.999


@pytest.mark.parametrize("thick", [1, 6, 24])
def test_built_in_films_with_a_bridge_are_split_at_the_bridge(films, thick):
    for film in films:
        rows = np.flatnonzero((film.left.any(1)) & (film.right.any(1)))
        middle = rows[len(rows) // 2]
        ends = np.flatnonzero(film.right[middle]).max(), np.flatnonzero(film.left[middle]).min()
        bridged = film.mask.copy()
        bridged[middle : middle + thick, ends[0] - 5 : ends[1] + 5] = 1
        assert cv2.connectedComponents(bridged)[0] == 2
        right, left = split_lungs(bridged)
        np.testing.assert_array_equal(right + left, bridged)
        assert min(dice(right & film.mask, film.right), dice(left & film.mask, film.left)) > 0.99


def test_lungs_of_a_pixel_apart_are_not_clipped_on_a_large_film():
    right, left = boxes((100, 1900, 200, 1000), shape=(2000, 2000)), boxes((100, 1900, 1001, 1700), shape=(2000, 2000))
    for found, drawn in zip(split_lungs(right | left), (right, left)):
        np.testing.assert_array_equal(found, drawn)


def test_small_left_lung_is_found_beside_a_large_right_one():
    right, left = split_lungs(boxes((10, 90, 10, 60), (30, 50, 90, 105)))
    assert right.sum() == 80 * 50 and left.sum() == 20 * 15


def test_lung_in_two_parts_stays_one_lung():
    upper, lower = (20, 45, 20, 50), (50, 80, 20, 50)
    right, left = split_lungs(boxes(upper, lower, LEFT))
    np.testing.assert_array_equal(right, boxes(upper, lower))
    np.testing.assert_array_equal(left, boxes(LEFT))


def test_dust_belongs_to_neither_lung():
    right, left = split_lungs(boxes(RIGHT, LEFT, (1, 3, 1, 3), (95, 97, 110, 112)))
    np.testing.assert_array_equal(right | left, PAIR)


@pytest.mark.parametrize("span, side", [(RIGHT, 0), (LEFT, 1)])
def test_lone_lung_is_named_by_the_half_of_the_image_where_it_lies(span, side):
    lungs = split_lungs(boxes(span))
    np.testing.assert_array_equal(lungs[side], boxes(span))
    assert not lungs[1 - side].any()


def test_lone_lungs_of_built_in_films_are_not_split(films):
    for film in films:
        assert (
            split_lungs(film.right)[0].sum() == film.right.sum() and split_lungs(film.left)[1].sum() == film.left.sum()
        )


@pytest.mark.parametrize("wrong", [PAIR * 255, PAIR[None], PAIR.astype(float), PAIR.astype(np.int8) * -1])
@pytest.mark.parametrize("function", [split_lungs, measure])
def test_anything_but_a_mask_is_refused(wrong, function):
    with pytest.raises(ValueError, match="a mask"):
        function(wrong)


# --- one lung's numbers ----------------------------------------------------------------------------------------------


def test_rectangles_have_the_numbers_that_they_were_drawn_with():
    found = measure(PAIR)
    expected = {
        "lungs": 2,
        "lung_share": 3050 / 12000,
        "left_right_ratio": 1250 / 1800,
        "right_area_px": 1800,
        "left_area_px": 1250,
        "right_height_px": 60,
        "right_width_px": 30,
        "left_height_px": 50,
        "left_width_px": 25,
        "right_apex_row": 20,
        "right_apex_column": 34.5,
        "left_apex_row": 30,
        "left_apex_column": 82,
        "right_costophrenic_row": 79,
        "right_costophrenic_column": 20,
        "left_costophrenic_row": 79,
        "left_costophrenic_column": 94,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert tuple(found) == MEASUREMENTS


def test_spacing_turns_rows_and_columns_into_mm():
    found = measure(PAIR, (0.5, 0.2))
    assert [found[f"right_{key}"] for key in ("area_mm2", "height_mm", "width_mm")] == pytest.approx([180, 30, 6])
    assert [found[f"left_{key}"] for key in ("area_mm2", "height_mm", "width_mm")] == pytest.approx([125, 25, 5])
    assert found["right_area_px"] == 1800 and found["right_height_px"] == 60


def test_without_a_spacing_mm_are_nan_and_nothing_else():
    assert [key for key, value in measure(PAIR).items() if isnan(value)] == [
        key for key in MEASUREMENTS if "_mm" in key
    ]


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (nan, 1.0), (1.0,), (1.0, 1.0, 1.0)])
def test_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing_mm"):
        measure(PAIR, spacing)


def test_costophrenic_angle_is_the_tip_not_the_lowest_pixel():
    right = np.zeros((100, 120), np.uint8)  # the inner corner is the lowest, the outer lower corner lies further out
    cv2.fillPoly(right, [np.array([[20, 20], [45, 20], [45, 82], [40, 84], [15, 78]])], 1)
    found = measure(right | boxes(LEFT))
    assert (found["right_costophrenic_row"], found["right_costophrenic_column"]) == (78, 15)


def test_landmarks_of_built_in_films_lie_where_anatomy_has_them(films):
    for film in films:
        found = measure(film.mask)
        for side, lung, outwards in (("right", film.right, -1), ("left", film.left, 1)):
            row, column = found[f"{side}_costophrenic_row"], found[f"{side}_costophrenic_column"]
            assert lung[row, column] == 1 and found[f"{side}_apex_row"] == np.flatnonzero(lung.any(1))[0]
            assert row > found[f"{side}_apex_row"] + 0.8 * found[f"{side}_height_px"]
            assert (column - found[f"{side}_apex_column"]) * outwards > 0  # lateral of the apex
        assert found["left_right_ratio"] == pytest.approx(film.left.sum() / film.right.sum())


# --- midline ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", [-15, -4, 0, 1, 7, 15])
def test_mirrored_pair_is_symmetric_about_the_line_that_it_was_mirrored_at(tilt):
    line = find_midline(*ellipses(tilt=tilt, shift=30))
    assert line.symmetry == pytest.approx(1, abs=0.01)
    assert line.tilt_deg == pytest.approx(tilt, abs=0.2)
    assert line.midline_column == pytest.approx(399 / 2 + 30, abs=1)


def test_tilt_is_positive_where_the_film_is_turned_clockwise(films):
    film = films[0]
    size, before = film.mask.shape, find_midline(film.right, film.left).tilt_deg
    turned = cv2.getRotationMatrix2D((size[1] / 2, size[0] / 2), -6, 0.8)  # OpenCV's angles are counter-clockwise
    lungs = (cv2.warpAffine(lung, turned, size[::-1], flags=cv2.INTER_NEAREST) for lung in (film.right, film.left))
    assert find_midline(*lungs).tilt_deg == pytest.approx(before + 6, abs=1)


def test_pixels_higher_than_wide_do_not_slant_the_midline():
    lungs = [
        cv2.resize(lung, (400, 200), interpolation=cv2.INTER_AREA) for lung in ellipses(tilt=8)
    ]  # 2 mm x 1 mm a pixel
    line = find_midline(*lungs, (2.0, 1.0))
    assert line.tilt_deg == pytest.approx(8, abs=0.3) and line.symmetry == pytest.approx(1, abs=0.01)
    assert abs(find_midline(*lungs).tilt_deg - 8) > 2


def test_symmetry_is_the_dice_of_one_lung_and_the_others_mirror_image():
    right, left = ellipses()
    left[:200] = 0  # the lower half is left: the best line stays where it was, Dice = 2 · 1/2 / (1 + 1/2)
    line = find_midline(right, left)
    assert line.symmetry == pytest.approx(2 / 3, abs=0.02)


def test_mirrored_film_has_the_sides_swapped_and_the_tilt_reversed(films):
    for film in films[:4]:
        found, mirrored = measure(film.mask), measure(np.ascontiguousarray(film.mask[:, ::-1]))
        assert mirrored["left_right_ratio"] == pytest.approx(1 / found["left_right_ratio"])
        assert mirrored["right_height_px"] == found["left_height_px"]
        assert mirrored["tilt_deg"] == pytest.approx(-found["tilt_deg"], abs=0.3)
        assert mirrored["symmetry"] == pytest.approx(found["symmetry"], abs=0.005)


# --- masks of any kind -----------------------------------------------------------------------------------------------


def test_empty_mask_has_no_lungs_and_no_shape():
    found = measure(np.zeros((30, 40), np.uint8), (1.0, 1.0))
    numbers = {key: value for key, value in found.items() if not isnan(value)}
    assert numbers == {
        "lungs": 0,
        "lung_share": 0,
        "right_area_px": 0,
        "right_area_mm2": 0,
        "left_area_px": 0,
        "left_area_mm2": 0,
    }


def test_one_lung_has_its_own_numbers_and_none_of_a_pair():
    found = measure(boxes(RIGHT))
    assert found["lungs"] == 1 and found["right_area_px"] == 1800 and found["left_area_px"] == 0
    assert all(
        isnan(found[key]) for key in ("left_right_ratio", "symmetry", "tilt_deg", "midline_column", "left_height_px")
    )


def test_full_mask_is_measured():
    found = measure(np.ones((60, 60), np.uint8))
    assert found["lung_share"] == 1 and found["lungs"] == 2


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(
        np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40), elements=st.integers(0, 1)
    ),
    st.none() | st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)),
)
def test_every_mask_is_measured(mask, spacing):
    found = measure(mask, spacing)
    right, left = split_lungs(mask)
    assert tuple(found) == MEASUREMENTS and not (right & left).any() and not ((right | left) & ~mask).any()
    assert found["right_area_px"] == right.sum() and found["left_area_px"] == left.sum()
    assert bool(mask.any()) == (found["lungs"] > 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 63)] * 4), min_size=1, max_size=6))
def test_every_heap_of_boxes_is_measured(spans):
    mask = boxes(*((min(a, b), max(a, b) + 1, min(c, d), max(c, d) + 1) for a, b, c, d in spans), shape=(64, 64))
    found = measure(mask)
    assert found["lungs"] in (1, 2) and (isnan(found["symmetry"]) or 0 <= found["symmetry"] <= 1 + 1e-6)
    assert found == pytest.approx(measure(mask), nan_ok=True)


# --- heights that can't be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "millimetres, age, said",
    [
        (121, 50, "lungs 121 mm high, an adult's are 140 to 400: is the spacing wrong, or the mask?"),
        (121, None, "lungs 121 mm high, an adult's are 140 to 400: a small child, or is the spacing wrong?"),
        (12, None, "lungs 12 mm high, an adult's are 140 to 400: is the spacing wrong, or the mask?"),
        (520, None, "lungs 520 mm high, an adult's are 140 to 400: is the spacing wrong, or the mask?"),
        (240, 2, "lungs 240 mm high, at 2 years they are 52 to 181: is the spacing wrong, or the mask?"),
        (187, 50, ""),
        (342, 50, ""),
        (260, None, ""),
        (70, 0, ""),
        (85, 1 / 12, ""),
        (161, 4, ""),
        (196, 4, ""),
        (121, 3, ""),
        (264, 8, ""),
    ],
)
def test_lungs_that_no_one_of_that_age_has_are_noted(millimetres, age, said):
    mask = np.zeros((300, 200), np.uint8)
    mask[50:150, 20:80], mask[70:250, 120:180] = 1, 1  # 200 rows
    assert check_height(mask, (millimetres / 200, 0.1), age) == ((said,) if said else ())


def test_height_is_not_judged_without_a_spacing_or_a_lung():
    assert check_height(np.ones((9, 9), np.uint8), None) == check_height(np.zeros((9, 9), np.uint8), (0.1, 0.1)) == ()
