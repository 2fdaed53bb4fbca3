"""quality.checks: what is said of a film before it is segmented, what is put right, and what of the lungs found."""

import itertools

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
from dicoms import dicom
from phantoms import phantom, write_raw

from kaggle_utils import image as files
from kaggle_utils import infer
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.predictions import predict
from kaggle_utils.quality import checks
from kaggle_utils.quality.checks import Checked, check_film, check_lungs, coloured_share, shape_distance, view_odds
from kaggle_utils.sets import public
from kaggle_utils.synthetic.model import AppearanceModel

EXAMPLES = sorted((checks.ASSET.parent / "examples").glob("*.jpg"))
POSITIONS = [(negative, quarters) for negative in (False, True) for quarters in range(4)]
SAID = {0: "", 1: "turned by 90° clockwise", 2: "upside down", 3: "turned by 90° counter-clockwise"}  # after np.rot90


@pytest.fixture(scope="module")
def films():
    """Built-in films, narrower than they are high."""
    drawn = AppearanceModel.load().stream(4, 11, size=256)
    return [(film.image[:, 6:-10], film.mask[:, 6:-10]) for film in drawn]


def lay(array: np.ndarray, negative: bool, quarters: int) -> np.ndarray:
    turned = np.rot90(array, quarters)
    return 255 - turned if negative else turned


# --- films that are put right ----------------------------------------------------------------------------------------


def test_film_that_is_in_order_stays_as_it_is_and_nothing_is_said(films):
    for image, mask in films:
        checked = check_film(image)
        assert (checked.turned, checked.inverted, checked.problems, checked.notes) == (0, False, (), ())
        np.testing.assert_array_equal(checked.image, image)
        assert check_lungs(mask) == ()


@pytest.mark.parametrize("negative, quarters", POSITIONS)
def test_turned_and_negative_films_are_put_right_to_the_last_pixel_and_it_is_said(films, negative, quarters):
    for image, _ in films:
        checked = check_film(lay(image, negative, quarters))
        np.testing.assert_array_equal(checked.image, image)
        assert checked.turned == -quarters % 4 * 90 and checked.inverted == negative and not checked.problems
        assert SAID[quarters] in "; ".join(checked.notes) and ("a negative: inverted" in checked.notes) == negative


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_childs_film_stays_as_it_is_and_nothing_is_said(path):
    image = files.read_image(path)
    squeezed = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    for film in (image, squeezed):
        checked = check_film(film)
        assert (checked.problems, checked.notes, checked.doubtful) == ((), (), False)
        np.testing.assert_array_equal(checked.image, film)


@pytest.mark.parametrize("negative, quarters", POSITIONS)
def test_childrens_films_are_put_right_too(negative, quarters):
    for image in map(files.read_image, EXAMPLES):
        checked = check_film(lay(image, negative, quarters))
        assert checked.turned == -quarters % 4 * 90 and checked.inverted == negative and not checked.problems


@pytest.mark.parametrize("negative, quarters", POSITIONS)
def test_mask_goes_back_to_where_the_film_lay(films, negative, quarters):
    image, mask = films[0]
    checked = check_film(lay(image, negative, quarters))
    np.testing.assert_array_equal(checked.undo(mask), lay(mask, False, quarters))


def test_undo_keeps_every_pixel_of_a_mask_of_odd_sides():
    mask = np.arange(15, dtype=np.uint8).reshape(3, 5) % 2
    for mirrored, quarters in itertools.product((False, True), range(4)):
        checked = Checked(mask, files.Lie(mirrored, quarters))
        back = checked.undo(mask)
        np.testing.assert_array_equal(np.rot90(back[:, ::-1] if mirrored else back, quarters), mask)
        np.testing.assert_array_equal(checked.lie.put_right(back), mask)


def test_mirrored_film_is_noted_and_left_as_it_is(films):
    checked = [check_film(np.ascontiguousarray(image[:, ::-1])) for image, _ in films]
    assert all(c.turned == 0 and not c.inverted and not c.problems for c in checked)
    noted = [any("heart is on the right" in note for note in c.notes) for c in checked]
    assert sum(noted) >= 2  # a small or hidden heart tells nothing


def test_position_that_is_not_certain_is_left_and_noted(films, monkeypatch):
    monkeypatch.setattr(checks, "SURE", 1e3)
    lain = lay(films[0][0], False, 2)
    checked = check_film(lain)
    np.testing.assert_array_equal(checked.image, lain)
    assert checked.turned == 0 and checked.notes == ("perhaps turned or a negative: left as it is",)


# --- what is not segmented -------------------------------------------------------------------------------------------


def page() -> np.ndarray:
    picture = np.full((300, 220), 255, np.uint8)
    for row in range(20, 290, 14):
        cv2.putText(picture, "Lungs clear. No effusion.", (8, row), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0, 1)
    return cv2.blur(picture, (2, 2))  # as a scanner, and not every version of OpenCV, has it


NO_CHEST = {
    "page": page,
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8),
    "slope": lambda: np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
    "photograph": skimage.data.camera,
    "coins": skimage.data.coins,
    "moon": skimage.data.moon,
    "chequers": lambda: ((np.indices((256, 256)) // 32).sum(0) % 2 * 155 + np.indices((256, 256))[0] // 4).astype(
        np.uint8
    ),
}


@pytest.mark.parametrize("kind", NO_CHEST)
def test_what_is_no_chest_film_is_refused(kind):
    checked = check_film(NO_CHEST[kind]())
    assert len(checked.problems) == 1 and checked.problems[0].startswith("no frontal chest film")


def test_corner_of_a_film_is_refused(films):
    assert check_film(films[0][0][:70, :70]).problems


@pytest.mark.parametrize("level", [0, 97, 255])
def test_blank_film_is_refused(level, rng):
    image = np.clip(level + rng.integers(-2, 3, (128, 128)), 0, 255).astype(np.uint8)
    image[:4, :6] = 255 - level  # a letter
    assert "blank" in check_film(image).problems[0]


def as_jpeg(image):
    return cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize(
    "encode",
    [
        lambda left, right: left | right,
        lambda left, right: (left | right) * 255,
        lambda left, right: left + 2 * right,
        lambda left, right: left * 255 + right * 127,
        lambda left, right: as_jpeg((left | right) * 255),
        lambda left, right: 255 - cv2.GaussianBlur((left | right) * 255, (0, 0), 1),
    ],
    ids=["0/1", "0/255", "labels", "gray labels", "JPEG", "soft, bright outside"],
)
def test_mask_given_as_a_film_is_called_one(encode):
    film = phantom(400, 300)
    assert check_film(encode(film.left, film.right)).problems == (checks.MASK,)


@pytest.mark.parametrize("shape", [(100, 90), (700, 1100)], ids=str)
def test_contrast_lies_between_percentiles_of_the_pixels(shape, rng):
    image = rng.normal(120, 20, shape).clip(0, 255).astype(np.uint8)
    low, high = np.percentile(checks._sampled(image), (1, 99), method="inverted_cdf")
    assert checks.contrast(image) == high - low > 80
    assert checks.contrast(np.full(shape, 7, np.uint8)) == 0


def test_what_has_two_gray_levels_is_refused_lungs_or_not():
    chequers = ((np.indices((256, 256)) // 32).sum(0) % 2 * 255).astype(np.uint8)
    assert check_film(chequers).problems == (checks.MASK,)


def test_film_in_hard_contrast_is_no_mask(films):
    hard = np.clip((films[0][0].astype(float) - 110) * 3 + 128, 0, 255).astype(np.uint8)
    assert not checks.is_mask(hard) and len(np.unique(hard)) > 50


@pytest.mark.parametrize("negative, quarters", POSITIONS)
def test_negative_is_told_in_every_position(films, negative, quarters):
    assert checks.is_negative(lay(films[0][0], negative, quarters)) == negative


@pytest.mark.parametrize(
    "expose",
    [lambda film: (film * 0.4).astype(np.uint8), lambda film: (film * 0.5 + 120).astype(np.uint8)],
    ids=["dark", "bright"],
)
def test_negative_is_told_at_any_exposure(films, expose):
    for image, _ in films:
        exposed = expose(image)
        assert not checks.is_negative(exposed) and checks.is_negative(255 - exposed)


def test_what_is_no_chest_film_is_no_negative_either(rng):
    assert not checks.is_negative(rng.integers(0, 256, (128, 128)).astype(np.uint8))
    assert not checks.is_negative(np.full((64, 64), 200, np.uint8))


@pytest.mark.parametrize("shape", [(63, 500), (500, 63), (1, 1)])
def test_too_small_film_is_refused_with_its_size(shape):
    said = f"too small: {shape[1]}×{shape[0]} px, lungs need {checks.LEAST_SIDE} px and more"
    assert check_film(np.zeros(shape, np.uint8)).problems == (said,)


# --- colour ----------------------------------------------------------------------------------------------------------


def test_photograph_in_colour_is_called_so():
    colour = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)
    assert check_film(cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY), colour).problems == (
        "a colour photograph, no chest film",
    )


def test_coloured_overlay_is_noted_and_the_film_still_segmented(films):
    colour = cv2.cvtColor(films[0][0], cv2.COLOR_GRAY2BGR)
    colour[40:200, 30:130, 2] //= 2
    checked = check_film(cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY), colour)
    assert not checked.problems and "in colour" in checked.notes[0]


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("tint", [(1, 1, 1), (0.6, 0.8, 1), (1, 0.8, 0.6)], ids=["gray", "sepia", "blue"])
def test_tint_of_a_film_and_a_coloured_mark_are_no_colour(films, tint, depth):
    scale = np.iinfo(depth).max / 255
    colour = (films[0][0][..., None] * np.array(tint) * scale).astype(depth)
    colour[5:20, 5:40] = np.array((0, 0, 255)) * scale
    assert coloured_share(colour) < checks.COLOURED
    assert coloured_share(np.dstack([colour, colour[..., 0]])) < checks.COLOURED  # with alpha


# --- lungs -----------------------------------------------------------------------------------------------------------


def test_no_lung_and_one_lung_are_said(films):
    mask = films[0][1]
    one = mask.copy()
    one[:, :120] = 0
    assert check_lungs(mask * 0) == ("no lung found",)
    assert check_lungs(one) == ("the lungs are not two, or have no corners",)


@pytest.mark.parametrize(
    "side, window", [("top", np.s_[90:]), ("bottom", np.s_[:150]), ("left", np.s_[:, 70:]), ("right", np.s_[:, :-70])]
)
def test_lungs_cut_by_the_frame_are_said_with_the_side(films, side, window):
    assert f"lungs cut by the frame ({side})" in check_lungs(np.ascontiguousarray(films[0][1][window]))


def test_lungs_out_of_shape_or_place_are_said(films):
    mask = films[0][1]
    small = cv2.resize(np.pad(mask, ((0, 150), (150, 0))), (256, 256), interpolation=cv2.INTER_NEAREST)
    assert "unusual shape or place" in check_lungs(small)[0]
    assert check_lungs(np.ascontiguousarray(mask[::-1]))


def test_distance_grows_as_lungs_leave_their_place(films):
    moved = [np.roll(films[0][1], shift, axis=1) for shift in (8, 20, 32, 44)]
    distances = [shape_distance(mask) for mask in moved]
    assert distances == sorted(distances) and distances[0] < checks.UNUSUAL < distances[-1]


def test_childrens_masks_with_the_heart_are_as_usual_as_adults_lung_fields():
    listed = public.kermany_list()
    names = listed.loc[listed["split"] == "val", "name"][::3]
    distances = np.array([shape_distance(public._kermany()[name].decode((0, 0))) for name in names])
    assert np.median(distances) < 1.1 and (distances > checks.UNUSUAL).mean() < 0.02


def test_no_two_lungs_are_infinitely_far(films):
    one = np.zeros((64, 64), np.uint8)
    one[10:40, 10:30] = 1
    assert shape_distance(one) == np.inf


def test_distance_is_the_root_mean_square_of_the_scores():
    model = {"mean": np.zeros(3), "modes": np.eye(3)[:2], "sd": np.array([1.0, 2.0]), "rest": np.array(4.0)}
    np.testing.assert_allclose(checks.distances(np.array([[3.0, 4.0, 2.0]]), model), np.sqrt((9 + 4 + 1) / 3))


def test_distance_does_not_depend_on_the_masks_size(films):
    mask = films[0][1]
    assert shape_distance(files.resize_mask(mask, (640, 600))) == pytest.approx(shape_distance(mask), abs=0.15)


def test_mask_with_values_of_255_is_an_error(films):
    with pytest.raises(ValueError, match="mask"):
        shape_distance(films[0][1] * 255)


# --- the network's views ---------------------------------------------------------------------------------------------


def test_views_are_the_film_and_its_negative_mirrored_and_turned():
    thumb = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    seen = checks.views(thumb)
    np.testing.assert_array_equal(seen[0, 0, 3], np.rot90(thumb, 3))
    np.testing.assert_array_equal(seen[1, 1, 1], -np.rot90(thumb, 1)[:, ::-1])


def test_turning_a_film_moves_its_odds_and_changes_none(films):
    image = np.ascontiguousarray(films[0][0][:240, :240])
    odds = view_odds(image)
    np.testing.assert_allclose(
        view_odds(np.ascontiguousarray(np.rot90(image)))[:, 0], np.roll(odds[:, 0], -1, axis=-1), atol=1e-3
    )
    np.testing.assert_allclose(view_odds(255 - image), odds[::-1], atol=1e-3)


@pytest.mark.parametrize("factor", [1, 8])
def test_large_film_is_judged_as_the_same_film_small(films, factor):
    image = films[0][0]
    odds = view_odds(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR))
    np.testing.assert_allclose(odds, view_odds(image), atol=1.5)


# --- predict ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter():
    return LungSegmenter(device="cpu")


def test_turned_negative_is_segmented_upright_and_its_mask_lies_as_the_file(films, segmenter, tmp_path):
    image, truth = films[0]
    write_raw(tmp_path / "films" / "plain.png", image)
    write_raw(tmp_path / "films" / "turned.png", lay(image, True, 1))
    table = predict([tmp_path / "films"], tmp_path / "out", segmenter).set_index("name")
    plain, turned = (files.read_mask(table.loc[name, "mask"]) for name in ("plain", "turned"))
    np.testing.assert_array_equal(turned, np.rot90(plain))
    assert 2 * (plain & truth).sum() / (plain.sum() + truth.sum()) > 0.9
    overlay = cv2.imread(table.loc["turned", "overlay"])
    assert overlay.shape[:2] == turned.shape == (table.loc["turned", "height"], table.loc["turned", "width"])
    np.testing.assert_array_equal(overlay[:8, :8, 0], lay(image, True, 1)[:8, :8])  # of the film as it is in the file
    stored = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("name")
    notes = {
        name: [note for note in stored.loc[name, "notes"].split("; ") if note and "border" not in note]
        for name in stored.index
    }
    assert notes == {"plain": [], "turned": ["a negative: inverted", "lay on its side: turned by 90° clockwise"]}


def test_turned_film_is_measured_upright_with_the_spacing_turned_too(films, segmenter, tmp_path):
    image = films[0][0]
    (tmp_path / "plain.dcm").write_bytes(dicom(image, PixelSpacing=[0.2, 0.1]))
    (tmp_path / "turned.dcm").write_bytes(dicom(lay(image, False, 1), PixelSpacing=[0.1, 0.2], ViewPosition="LL"))
    table = predict([tmp_path / "plain.dcm", tmp_path / "turned.dcm"], tmp_path / "out", segmenter).set_index("name")
    plain, turned = pd.read_csv(tmp_path / "out" / "measurements.csv").drop(columns="name").to_dict("records")
    assert (
        turned == plain
        and plain["right_height_mm"] == pytest.approx(0.2 * plain["right_height_px"])
        and plain["lungs"] == 2
    )
    notes = table.loc["turned", "notes"].split("; ")
    assert notes[-1].startswith("lungs ") and notes[-1].endswith(
        "mm high, an adult's are 140 to 400: is the spacing wrong, or the mask?"
    )
    assert {"spacing from PixelSpacing", "view LL: not frontal", "lay on its side: turned by 90° clockwise"} <= set(
        notes
    )


def test_films_that_wait_hold_no_colours_and_a_photograph_is_refused_by_them(tmp_path):
    write_raw(tmp_path / "photo.png", cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR))
    refused = infer.read_checked(tmp_path / "photo.png", "photo")
    assert refused.error.endswith("refused: a colour photograph, no chest film") and "in colour" in "; ".join(
        refused.notes
    )
    film = infer.read_checked(tmp_path / "photo.png", "photo", force=True)
    assert all(
        np.ndim(value) < 3 for value in (*vars(film).values(), film.checked.image) if isinstance(value, np.ndarray)
    )


def test_doubtful_film_is_refused_where_its_lungs_are_odd_too(films, segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "DOUBTFUL", 1e3)
    write_raw(tmp_path / "film.png", films[0][0])
    write_raw(tmp_path / "cut.png", np.ascontiguousarray(films[0][0][:, 80:]))
    table = predict([tmp_path / "film.png", tmp_path / "cut.png"], tmp_path / "out", segmenter).set_index("name")
    assert table.loc["film", "error"] == "" and table.loc["film", "notes"].endswith("hardly like a frontal chest film")
    assert (
        "refused: no frontal chest film" in table.loc["cut", "error"]
        and "cut by the frame" in table.loc["cut", "notes"]
    )
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["film.png"]
    assert pd.read_csv(tmp_path / "out" / "measurements.csv")["name"].tolist() == ["film"]
    forced = predict([tmp_path / "cut.png"], tmp_path / "forced", segmenter, force=True)
    assert forced.loc[0, "error"] == "" and forced.loc[0, "lung_px"] > 0


def test_refused_film_is_a_row_with_the_reason_and_no_mask_unless_forced(films, segmenter, tmp_path):
    write_raw(tmp_path / "films" / "chest.png", films[1][0])
    write_raw(tmp_path / "films" / "page.png", page())
    write_raw(tmp_path / "films" / "small.png", phantom(40, 32).image)
    table = predict([tmp_path / "films"], tmp_path / "out", segmenter).set_index("name")
    assert table["error"].str.contains(": refused: ").to_dict() == {"chest": False, "page": True, "small": True}
    assert "no frontal chest film" in table.loc["page", "error"] and "40" in table.loc["small", "error"]
    assert table["height"].to_dict() == {"chest": 256, "page": 300, "small": 40} and table["mask"].notna().sum() == 1
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["chest.png"]
    assert pd.read_csv(tmp_path / "out" / "measurements.csv")["name"].tolist() == ["chest"]
    forced = predict([tmp_path / "films"], tmp_path / "forced", segmenter, force=True).set_index("name")
    assert (forced["error"] == "").all() and "no frontal chest film" in forced.loc["page", "notes"]
    assert files.read_mask(forced.loc["page", "mask"]).shape == page().shape
