"""``from kaggle_utils import LungSegmenter``: what a segmenter makes of paths, arrays and lists of them."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

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
        ("", ValueError, "^an empty name"),
        ("https://x.org/a.png", ValueError, "^https://x.org/a.png: addresses aren't read: download"),
        ("s3://bucket/a.png", ValueError, "^s3://bucket/a.png: addresses aren't read: download"),
        (None, TypeError, "expected a path, bytes, an open file, an array .*, or a list, .* of them, not NoneType$"),
        ({"film": 1}, TypeError, "not dict$"),
        (io.StringIO("text"), ValueError, "opened as text: open it with mode 'rb'"),
        (pd.DataFrame({"path": ["a.png"]}), ValueError, "paths are given as a list"),
        (torch.zeros(64, 64, dtype=torch.bfloat16), ValueError, "NumPy can't make an array of this Tensor"),
    ):
        with pytest.raises(kind, match=said):
            segmenter(what)
    assert segmenter([None])[0].error.startswith("film 0: expected a path, bytes, an open file")


@pytest.mark.parametrize(
    "wrap",
    [
        torch.from_numpy,
        lambda film: torch.from_numpy(film)[None],
        lambda film: torch.from_numpy(film)[None, None],
        Image.fromarray,
        lambda film: Image.fromarray(film).convert("P"),
        lambda film: Image.fromarray(film).convert("CMYK"),
        pd.DataFrame,
    ],
    ids=["tensor", "(1, H, W)", "(1, 1, H, W)", "Pillow", "palette", "CMYK", "DataFrame"],
)
def test_what_holds_pixels_is_one_film(wrap, film, segmenter):
    assert dice(segmenter(wrap(film)).mask, segmenter(film).mask) > 0.999
    assert [type(result).__name__ for result in segmenter([wrap(film), film])] == ["Segmented"] * 2


def test_a_tensor_with_a_gradient_is_read_as_its_array(film, segmenter):
    floats = film / np.float32(255)
    of_tensor = segmenter(torch.tensor(floats, requires_grad=True))
    np.testing.assert_array_equal(of_tensor.mask, segmenter(floats).mask)


def test_a_damaged_picture_of_pillow_is_refused_among_others(film, segmenter, tmp_path):
    Image.fromarray(film).save(tmp_path / "film.png")
    picture = Image.open(io.BytesIO((tmp_path / "film.png").read_bytes()[:9000]))
    assert [type(result).__name__ for result in segmenter([picture, film])] == ["Unsegmented", "Segmented"]


def test_open_files_and_iterators_are_read(film, segmenter, tmp_path):
    path = tmp_path / "film.png"
    write_image(path, film)
    expected = segmenter(path).mask
    with open(path, "rb") as file:
        np.testing.assert_array_equal(segmenter(file).mask, expected)
    for several in ([io.BytesIO(path.read_bytes())], (path,), {path}, tmp_path.glob("*.png"), map(np.str_, [path])):
        (result,) = segmenter(several)
        np.testing.assert_array_equal(result.mask, expected)


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
    with pytest.raises(ValueError, match="expected gray|grays are whole numbers or floats|not finite"):
        segmenter(array)


def test_the_refusal_of_an_array_says_what_to_do(segmenter):
    for array, said in (
        (np.zeros((224, 267), bool), r"bool \(224, 267\): grays are .* which bool is not \(a mask\?\)$"),
        (np.zeros((3, 64, 70), np.uint8), r"channels last: np.moveaxis\(array, 0, -1\)"),
        (np.zeros((1, 3, 64, 70), np.uint8), r"channels last: np.moveaxis\(array, 1, -1\)"),
        (np.zeros((9, 64, 70), np.uint8), r"\(H, W, C\); several films are given as a list$"),
    ):
        with pytest.raises(ValueError, match=said):
            segmenter(array)
