"""image.py: every file becomes uint8 (H, W), or an error that names the file and the reason."""

import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from kaggle_utils import image as files
from kaggle_utils.gray import gray_range, to_8_bits
from phantoms import phantom, write_raw


def encode_gray8(path, film):
    return write_raw(path, film)


def encode_gray16(path, film):
    return write_raw(path, film.astype(np.uint16) * 257)


def encode_twelve_bits_in_16(path, film):
    return write_raw(path, film.astype(np.uint16) * 16)


def encode_rgb(path, film):
    return write_raw(path, np.dstack([film] * 3))


def encode_bgra(path, film):
    # Alpha is 0 where a viewer should see nothing; the gray levels below it are still the film's.
    return write_raw(path, np.dstack([film, film, film, (film > 50) * np.uint8(255)]))


def encode_palette(path, film):
    """Palette entry i is gray 255 - i, so the stored indices are a negative: reading indices would invert the film."""
    indexed = Image.frombytes("P", film.shape[::-1], (255 - film).tobytes())
    indexed.putpalette([value for i in range(256) for value in (255 - i,) * 3])
    indexed.save(path)
    return path


def encode_gray_alpha(path, film):
    Image.merge("LA", (Image.fromarray(film), Image.new("L", film.shape[::-1], 255))).save(path)
    return path


LOSSLESS = [encode_gray8, encode_rgb, encode_bgra, encode_palette, encode_gray_alpha]


@pytest.mark.parametrize("encode", LOSSLESS, ids=lambda f: f.__name__.removeprefix("encode_"))
@pytest.mark.parametrize("shape", [(80, 64), (64, 80)], ids=["portrait", "landscape"])
def test_every_8_bit_encoding_reads_as_the_same_array(tmp_path, encode, shape):
    film = phantom(*shape).image
    read = files.read_image(encode(tmp_path / "film.png", film))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, film)


@pytest.mark.parametrize("encode", [encode_gray16, encode_twelve_bits_in_16], ids=["full_range", "12_bits"])
def test_16_bit_film_fills_the_8_bit_range_whatever_its_scale(tmp_path, film, encode):
    read = files.read_image(encode(tmp_path / "film.png", film.image))
    low, high = np.percentile(film.image[::4, ::4], (0.1, 99.9))
    expected = np.clip((film.image - low) / (high - low) * 255, 0, 255)
    assert read.dtype == np.uint8
    assert np.abs(read - expected).max() <= 1


@pytest.mark.parametrize("top", [1.0, 0.05, 1e-3, 1e-30, 1e6], ids=str)
def test_float_film_reads_the_same_in_any_unit(tmp_path, film, top):
    read = files.read_image(write_raw(tmp_path / "film.tif", film.image.astype(np.float32) / 255 * np.float32(top)))
    low, high = np.percentile(film.image[::4, ::4], (0.1, 99.9))
    assert np.abs(read - np.clip((film.image - low) / (high - low) * 255, 0, 255)).max() <= 1


def marked(film, kind, level):
    """The film with something on it that is no part of it."""
    film, blurred = film.copy(), np.zeros(film.shape, np.float32)
    if kind == "label":
        film[2:40, 2:40] = level
    elif kind == "rim":
        film[:12], film[-12:], film[:, :12], film[:, -12:] = level, level, level, level
    elif kind == "blurred label":
        blurred[8:40, 8:40] = 1
        blurred = cv2.GaussianBlur(blurred, (0, 0), 2)
    return (film * (1 - blurred) + level * blurred).astype(film.dtype)


@pytest.mark.parametrize("kind", ["label", "blurred label", "rim"])
@pytest.mark.parametrize("level", [0, 12_000, 65_535])
def test_a_marker_or_a_saturated_rim_takes_no_gray_levels_from_the_film(kind, level):
    film = phantom(400, 400).image.astype(np.uint16) * 4 + 5_000  # the film lies in 1,020 of 65,536 levels
    plain, read = to_8_bits(film), to_8_bits(marked(film, kind, level))
    inside = np.s_[60:-20, 60:-20]
    assert read[inside].std() > 0.8 * plain[inside].std()
    if kind != "blurred label":  # whose edge goes into the film's levels
        assert np.abs(read[inside].astype(int) - plain[inside]).max() <= 4
    assert read[5 if kind == "rim" else 20, 20] == (255 if level > film.max() else 0)


def test_two_kinds_of_outliers_at_once_are_left_out():
    film = phantom(400, 400).image.astype(np.uint16) * 4 + 5_000
    both = marked(marked(film, "rim", 0), "label", 65_535)
    inside = np.s_[60:-20, 60:-20]
    assert np.abs(to_8_bits(both)[inside].astype(int) - to_8_bits(film)[inside]).max() <= 4


@pytest.mark.parametrize("levels", [[7] * 50, [0, 1], [0] * 99 + [65_535], [5e-324] * 3 + [1e-320], [-1e30, 1e30]], ids=lambda v: f"{v[0]} to {v[-1]}")
def test_gray_range_ends_whatever_the_levels_are(levels):
    low, high = gray_range(np.array(levels))
    assert min(levels) <= low <= high <= max(levels)


def test_film_has_its_colours_where_the_file_has_them(tmp_path, film):
    colour = np.dstack([film.image, film.image, film.image // 2])
    np.testing.assert_array_equal(files.read_film(write_raw(tmp_path / "colour.png", colour)).colour, colour)
    assert files.read_film(write_raw(tmp_path / "gray.png", film.image)).colour is None


def test_constant_16_bit_film_reads_without_dividing_by_zero(tmp_path):
    assert files.read_image(write_raw(tmp_path / "flat.png", np.full((8, 8), 4000, np.uint16))).shape == (8, 8)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".bmp", ".PNG"])
def test_other_formats_keep_shape_and_about_the_gray_levels(tmp_path, film, suffix):
    read = files.read_image(write_raw(tmp_path / f"film{suffix}", film.image))
    assert read.shape == film.image.shape
    assert np.abs(read.astype(int) - film.image).mean() < 3


def test_a_plain_reader_does_not_turn_over_a_negative(tmp_path, film):
    np.testing.assert_array_equal(files.read_image(write_raw(tmp_path / "n.png", 255 - film.image)), 255 - film.image)


# --- masks -----------------------------------------------------------------------------------------------------------

MASK = np.zeros((20, 12), np.uint8)
MASK[3:15, 2:9] = 1


@pytest.mark.parametrize("stored", [MASK, MASK * 255, MASK * 128, MASK.astype(np.uint16) * 65535, MASK.astype(np.uint16),
                                    np.dstack([MASK * 255] * 3), np.dstack([MASK * 0, MASK * 0, MASK * 255]),
                                    np.dstack([MASK * 255] * 3 + [np.full_like(MASK, 255)])],
                         ids=["0/1", "0/255", "0/128", "16-bit", "16-bit 0/1", "rgb", "red", "bgra"])
def test_mask_is_0_and_1_whatever_the_file_holds(tmp_path, stored):
    read = files.read_mask(write_raw(tmp_path / "mask.png", stored))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, MASK)


@pytest.mark.parametrize("bits", [1, 8], ids=["bilevel", "palette"])
def test_mask_from_pillow_modes(tmp_path, bits):
    if bits == 1:
        Image.fromarray(MASK.astype(bool)).save(tmp_path / "mask.png")
    else:
        indexed = Image.frombytes("P", MASK.shape[::-1], MASK.tobytes())
        indexed.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
        indexed.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(files.read_mask(tmp_path / "mask.png"), MASK)


def test_jpeg_mask_loses_its_ringing(tmp_path, film):
    read = files.read_mask(write_raw(tmp_path / "mask.jpg", film.mask * 255))
    assert set(np.unique(read)) == {0, 1}
    assert (read != film.mask).mean() < 0.01


def test_empty_mask_reads_as_zeros(tmp_path):
    assert not files.read_mask(write_raw(tmp_path / "mask.png", MASK * 0)).any()


# --- files that can't be read ----------------------------------------------------------------------------------------

def broken_file(folder, kind):
    whole = cv2.imencode(".jpg" if kind.endswith("jpeg") else ".png", phantom().image)[1].tobytes()
    content = {"empty": b"", "text": b"this is no image", "truncated": whole[: len(whole) // 2],
               "truncated jpeg": whole[: len(whole) // 2], "header only": whole[:30]}[kind]
    path = folder / ("bad film.jpg" if kind.endswith("jpeg") else "bad film.png")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("read", [files.read_image, files.read_mask])
@pytest.mark.parametrize("kind, reason", [("empty", "empty"), ("text", "not an image"), ("truncated", "truncated"),
                                          ("truncated jpeg", "truncated"), ("header only", "truncated")])
def test_unreadable_file_is_an_error_with_its_name_and_the_reason(tmp_path, read, kind, reason):
    path = broken_file(tmp_path, kind)
    with pytest.raises(ValueError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        files.read_image(tmp_path / "nowhere.png")


# --- writing ---------------------------------------------------------------------------------------------------------

def test_mask_is_written_as_0_255_and_reads_back(tmp_path):
    files.write_mask(tmp_path / "mask.png", MASK)
    assert set(np.unique(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED))) == {0, 255}
    np.testing.assert_array_equal(files.read_mask(tmp_path / "mask.png"), MASK)


@pytest.mark.parametrize("mask", [MASK * 255, np.dstack([MASK] * 3)], ids=["0/255", "three channels"])
@pytest.mark.parametrize("function", [files.check_mask, lambda m: files.resize_mask(m, 8)], ids=["check", "resize"])
def test_what_is_not_a_mask_is_refused(mask, function):
    with pytest.raises(ValueError, match="mask"):
        function(mask)


@pytest.mark.parametrize("mask", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -1)], ids=["probabilities", "negative"])
def test_fractions_and_negative_numbers_are_no_mask(mask):
    with pytest.raises(ValueError):
        files.check_mask(mask)


def test_unknown_suffix_is_a_value_error_with_the_file(tmp_path, film):
    with pytest.raises(ValueError, match="film.xyz"):
        files.write_image(tmp_path / "film.xyz", film.image)


@pytest.mark.parametrize("where", ["os.replace", "os.fdopen"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    path = tmp_path / "file.bin"
    files.write_bytes(path, b"old")

    def disk_full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(where, disk_full)
    with pytest.raises(OSError, match="no space"):
        files.write_bytes(path, b"new, but only half")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_written_file_is_readable_by_others(tmp_path):
    files.write_bytes(tmp_path / "file.bin", b"x")
    assert (tmp_path / "file.bin").stat().st_mode & 0o777 == 0o644


# --- resizing --------------------------------------------------------------------------------------------------------

def test_bigtiff_whose_directory_lies_beyond_all_files_is_refused(tmp_path):
    (tmp_path / "x.tif").write_bytes(b"II\x2b\x00\x08\x00\x00\x00" + b"\xff" * 8 + bytes(100))
    with pytest.raises(ValueError, match="x.tif: the file is truncated or damaged"):
        files.read_image(tmp_path / "x.tif")


def test_size_is_height_then_width():
    assert files.resize_image(np.zeros((10, 20), np.uint8), (6, 8)).shape == (6, 8)


def test_shrinking_averages_areas():
    image = np.array([[0, 100], [200, 100]], np.uint8).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(files.resize_image(image, 2), [[0, 100], [200, 100]])
    assert files.resize_image(image, 1) == 100


def test_mask_pixel_is_lung_where_half_of_its_area_was():
    mask = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]], np.uint8)  # 4, 1 and 2 of 4 pixels
    np.testing.assert_array_equal(files.resize_mask(mask, (1, 3)), [[1, 0, 1]])


@settings(max_examples=60, deadline=None)
@given(mask=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)),
       size=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_resized_mask_holds_0_and_1_at_any_size(mask, size):
    resized = files.resize_mask(mask, size)
    assert resized.shape == size and resized.dtype == np.uint8
    assert set(np.unique(resized)) <= {0, 1}


def test_probabilities_stay_probabilities_and_beat_the_resized_mask():
    truth = phantom(512, 512).mask
    small = files.resize_prob(truth.astype(np.float32), (64, 64))
    assert 0 <= small.min() and small.max() <= 1 and small.dtype == np.float32

    def dice(pred):
        return 2 * (pred & truth).sum() / (pred.sum() + truth.sum())

    from_prob = (files.resize_prob(small, (512, 512)) > 0.5).astype(np.uint8)
    from_mask = cv2.resize(files.resize_mask(truth, 64), (512, 512), interpolation=cv2.INTER_NEAREST)
    assert dice(from_prob) > 0.995 and dice(from_prob) > dice(from_mask)
