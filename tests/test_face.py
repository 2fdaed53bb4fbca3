"""``from kaggle_utils import LungSegmenter``: what a segmenter makes of paths, arrays and lists of them."""

import numpy as np
import pytest

from kaggle_utils import LungSegmenter, dice
from kaggle_utils.image import write_image
from kaggle_utils.synthetic import AppearanceModel


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    return AppearanceModel.load().film(0, 0, size=256).image


@pytest.fixture(scope="module")
def segmenter() -> LungSegmenter:
    return LungSegmenter(device="cpu")


def test_a_segmenter_takes_a_path_an_array_or_a_list(film, segmenter, tmp_path):
    write_image(tmp_path / "film.png", film)
    alone, of_array = segmenter(tmp_path / "film.png"), segmenter(film)
    several = segmenter([tmp_path / "film.png", str(tmp_path / "none.png"), film])
    assert [type(result).__name__ for result in several] == ["Segmented", "Unsegmented", "Segmented"]
    assert (alone.name, of_array.name) == ("film", "film 0") and several[1].error.endswith("none.png: no such file")
    for result in (alone, of_array, several[0], several[2]):
        np.testing.assert_array_equal(result.mask, alone.mask)
    assert alone.mask.shape == alone.probability.shape == film.shape and alone.probability.dtype == np.float32
    np.testing.assert_array_equal(alone.left | alone.right, alone.mask)
    assert np.nonzero(alone.left)[1].mean() > np.nonzero(alone.right)[1].mean()  # as a radiologist hangs it
    assert repr(alone).startswith("<Segmented film: 256 × 256 px, ") and len(repr(several)) < 500


def test_what_is_no_film_is_refused_in_words(segmenter, tmp_path):
    for what, kind, said in (
        (np.zeros((64, 64), np.uint8), ValueError, "^film 0: refused: blank"),
        (tmp_path / "none.png", ValueError, "none.png: no such file$"),
        (tmp_path, ValueError, "a folder, not a film: give `predict` the folder"),
        (None, TypeError, "expected a path, bytes, an array, or a list of them, not None"),
    ):
        with pytest.raises(kind, match=said):
            segmenter(what)
    assert "expected gray" in segmenter([None])[0].error


def test_results_lie_as_the_film_does(film, segmenter):
    upright, lying = segmenter(film), segmenter(np.ascontiguousarray(np.rot90(film)))
    assert "turned" in "; ".join(lying.notes)
    for name in ("mask", "left", "right"):
        np.testing.assert_array_equal(getattr(lying, name), np.rot90(getattr(upright, name)))


@pytest.mark.parametrize(
    "change",
    [
        lambda film: film[..., None],
        lambda film: film[None],
        lambda film: np.dstack([film] * 3),
        lambda film: np.dstack([film] * 3 + [film * 0 + 255]),
    ],
    ids=["(H, W, 1)", "(1, H, W)", "RGB", "RGBA"],
)
def test_arrays_of_other_shapes_give_the_same_lungs(change, film, segmenter):
    assert dice(segmenter(change(film)).mask, segmenter(film).mask) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda film: film.astype(np.uint16) * 16,
        lambda film: film.astype(np.int32) - 99,
        lambda film: film / 255,
        lambda film: np.dstack([film / np.float32(255)] * 3),
    ],
    ids=["12 bits", "signed", "from 0 to 1", "RGB of floats"],
)
def test_arrays_of_other_ranges_are_read_as_files_are(change, film, segmenter, tmp_path):
    write_image(tmp_path / "film.png", film.astype(np.uint16) * 256)
    assert dice(segmenter(change(film)).mask, segmenter(tmp_path / "film.png").mask) > 0.999


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 64, 64), np.uint8),
        np.zeros(64, np.uint8),
        np.zeros((64, 64), bool),
        np.zeros((64, 64, 2), np.uint8),
        np.full((64, 64), np.nan),
        np.zeros((64, 64), complex),
        np.zeros((2, 3, 64, 64), np.uint8),
    ],
    ids=str,
)
def test_other_arrays_are_refused_in_words(array, segmenter):
    with pytest.raises(ValueError, match="expected gray|several films are given as a list|not finite"):
        segmenter(array)
