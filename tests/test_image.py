"""image.py: every file becomes uint8 (H, W), or an error that names the file and the reason."""

import gzip
import os
import re
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import cv2
import nibabel
import numpy as np
import pytest
from dicoms import dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from phantoms import lost_in_the_middle, phantom, tiff, write_raw
from PIL import Image, ImageOps
from pydicom import uid

from kaggle_utils import image as files
from kaggle_utils.pictures import complaints, header
from kaggle_utils.pictures.decode import decode
from kaggle_utils.pictures.gray import gray_range, to_8_bits
from kaggle_utils.pictures.header import read_picture_header


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


@pytest.mark.parametrize(
    "levels",
    [[7] * 50, [0, 1], [0] * 99 + [65_535], [5e-324] * 3 + [1e-320], [-1e30, 1e30]],
    ids=lambda v: f"{v[0]} to {v[-1]}",
)
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


# --- what surrounds the pixels: trailers, orientation, pages, wrappings
# --------------------------------------------------


def encoded(kind, array, **options):
    """A picture file's bytes, by Pillow."""
    file = BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


TRAILERS = {
    "zeros": bytes(20_000),
    "a phone's trailer": b"SEFHk\0\0\0" + bytes(range(256)) * 80 + b"SEFT",
    "fill bytes": b"\xff" * 50,
}
WRITTEN = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "jpeg progressive": ("JPEG", {"progressive": True}),
    "gif": ("GIF", {}),
    "jpeg restarts": ("JPEG", {"restart_marker_blocks": 3}),
    "webp": ("WEBP", {"lossless": True}),
    "webp lossy": ("WEBP", {"quality": 80}),
    "jpeg 2000": ("JPEG2000", {}),
    "jpeg 2000 tiles": ("JPEG2000", {"tile_size": (64, 64), "no_jp2": True}),
}
each_format = pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)


@each_format
@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_what_lies_behind_the_image_s_end_changes_nothing(tmp_path, written, trailer):
    data = encoded(written[0], phantom(200, 160).image, **written[1])
    plain, more = tmp_path / "plain", tmp_path / "more"
    plain.write_bytes(data)
    more.write_bytes(data + trailer)
    np.testing.assert_array_equal(files.read_image(more), files.read_image(plain))
    assert np.abs(files.read_image(plain).astype(int) - phantom(200, 160).image).mean() < 8


@each_format
@pytest.mark.parametrize("left", [0.2, 0.7, 0.98])
def test_truncated_picture_is_refused(tmp_path, written, left):
    data = encoded(written[0], phantom(200, 160).image, **written[1])
    path = tmp_path / "half"
    path.write_bytes(data[: int(left * len(data))])
    with pytest.raises(ValueError, match="truncated"):
        files.read_image(path)


@pytest.mark.parametrize(
    "written",
    [written for written in WRITTEN.values() if written[0] in ("PNG", "JPEG")],
    ids=[name for name, written in WRITTEN.items() if written[0] in ("PNG", "JPEG")],
)
def test_truncated_picture_that_was_filled_up_is_refused_too(tmp_path, written):
    data = encoded(written[0], phantom(200, 160).image, **written[1])
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    with pytest.raises(ValueError, match="truncated"):
        files.read_image(path)


@pytest.mark.parametrize(
    "kind, options",
    [("PNG", {}), ("JPEG", {"quality": 100}), ("WEBP", {"lossless": True}), ("TIFF", {})],
    ids=lambda v: v if v else "",
)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("read", [files.read_image, lambda path: files.read_mask(path) * 255], ids=["film", "mask"])
def test_orientation_tag_is_obeyed_in_every_format_as_pillow_and_opencv_do(tmp_path, read, kind, options, orientation):
    shape = np.zeros((40, 24), np.uint8)
    shape[4:30, 4:9], shape[24:30, 4:18] = 255, 255  # an L
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"film.{kind.lower()}"
    path.write_bytes(encoded(kind, shape, exif=exif, **options))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(encoded("PNG", shape, exif=exif)))))
    assert read(path).shape == upright.shape
    if kind != "TIFF":  # OpenCV 5 has no gray of a TIFF that is to be turned
        assert cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape == upright.shape
    assert np.abs(read(path).astype(int) - upright).max() < 20
    said = f"turned or mirrored as its orientation tag says ({orientation})"
    assert (said in files.read_film(path).notes) == (orientation > 1)


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"junk" * 9], ids=["empty", "cut", "beyond the end", "junk"]
)
def test_damaged_orientation_says_nothing_about_the_pixels(tmp_path, film, block):
    path = tmp_path / "film.png"
    data = encoded("PNG", film.image)
    chunk = b"eXIf" + block
    path.write_bytes(
        data[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    )
    np.testing.assert_array_equal(files.read_image(path), film.image)


def test_of_a_tiff_with_reduced_copies_the_whole_film_is_read(tmp_path, film):
    path, small = tmp_path / "film.tif", film.image[::4, ::4].copy()
    for tags in ({254: 1}, {255: 2}, {254: 4}):  # reduced, as older files say it, a transparency mask
        for pages in (
            [(small, tags), (film.image, {})],
            [(film.image, {}), (small, tags)],
            [(small, tags), (small, tags), (film.image, {254: 0})],
        ):
            path.write_bytes(tiff(*pages))
            np.testing.assert_array_equal(files.read_image(path), film.image)


def test_page_that_is_the_film_has_an_orientation_of_its_own(tmp_path, film):
    (tmp_path / "film.tif").write_bytes(tiff((film.image[::4, ::4].copy(), {254: 1}), (film.image, {274: 6})))
    np.testing.assert_array_equal(files.read_image(tmp_path / "film.tif"), np.rot90(film.image, -1))


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("read", [files.read_image, files.read_mask], ids=["film", "mask"])
def test_several_films_in_one_file_are_refused(tmp_path, read, kind):
    images = [Image.fromarray(phantom(80, 64, seed).image) for seed in range(3)]
    images[0].save(tmp_path / "films", kind, save_all=True, append_images=images[1:])
    with pytest.raises(ValueError, match=f"films: {'WebP' if kind == 'WEBP' else kind} of 3 pictures, a film has one"):
        read(tmp_path / "films")


def test_tiff_whose_pages_go_round_in_a_circle_ends(tmp_path, film):
    data = bytearray(tiff((film.image, {})))
    data[-4:] = data[4:8]
    (tmp_path / "film.tif").write_bytes(data)
    np.testing.assert_array_equal(files.read_image(tmp_path / "film.tif"), film.image)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_gzip_film_and_mask_are_read_as_what_is_in_them(tmp_path, film, suffix):
    plain = write_raw(tmp_path / f"film{suffix}", film.image)
    packed = tmp_path / f"film{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()[:500]) + gzip.compress(plain.read_bytes()[500:]))
    np.testing.assert_array_equal(files.read_image(packed), files.read_image(plain))
    plain = write_raw(tmp_path / f"mask{suffix}", film.mask * 255)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(files.read_mask(packed), files.read_mask(plain))


def test_gzip_dicom_is_read(tmp_path, film):
    (tmp_path / "film.dcm.gz").write_bytes(gzip.compress(dicom(film.image)))
    np.testing.assert_array_equal(files.read_image(tmp_path / "film.dcm.gz"), film.image)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda data: data[:-20], "gzip file that is truncated"),
        (lambda data: data[:40], "gzip file that is truncated"),
        (lambda data: data[:2] + b"x" * 50, "gzip file that is truncated"),
        (lambda _: gzip.compress(b"text"), "not an image"),
    ],
    ids=["no end", "cut", "junk", "of no image"],
)
def test_damaged_gzip_is_refused(tmp_path, film, damage, said):
    (tmp_path / "film.png.gz").write_bytes(damage(gzip.compress(encoded("PNG", film.image))))
    with pytest.raises(ValueError, match=f"film.png.gz: .*{said}"):
        files.read_image(tmp_path / "film.png.gz")


# --- NIfTI, and the raw films of JSRT
# ------------------------------------------------------------------------------------


def nifti(axes, affine, *, kind=nibabel.Nifti1Image, code=1):
    image = kind(axes, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    return image.to_bytes()


LEFT_AND_DOWN = np.diag([-0.2, 1.0, -0.2, 1.0])  # the first axis runs to the left, the third to the feet (RAS)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["NIfTI-1", "NIfTI-2"])
@pytest.mark.parametrize("packed", [False, True], ids=[".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "layout, affine, code",
    [
        (lambda film: film.T[:, None], LEFT_AND_DOWN, 1),
        (lambda film: film[:, ::-1].T[:, None], np.diag([1.0, 1, -1, 1]), 1),
        (lambda film: film[::-1].T[:, None], np.diag([-1.0, 1, 1, 1]), 1),
        (lambda film: film.T, np.diag([-1.0, -1, 1, 1]), 1),
        (lambda film: film.T[..., None], np.diag([-1.0, -1, 1, 1]), 1),
        (lambda film: film[::-1, ::-1].T[..., None], np.eye(4), 1),
        (lambda film: film.T[..., None], np.eye(4), 0),
        (lambda film: film[:, None], np.array([[0, 0, -1.0, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]), 1),
    ],
    ids=[
        "left, feet",
        "right, feet",
        "left, head",
        "a picture of two axes",
        "a picture by ITK",
        "right, front",
        "no affine",
        "feet, left",
    ],
)
def test_slice_of_nifti_lies_as_its_affine_says(tmp_path, film, kind, packed, layout, affine, code):
    data = nifti(np.ascontiguousarray(layout(film.image)), affine, kind=kind, code=code)
    (tmp_path / "film").write_bytes(gzip.compress(data) if packed else data)
    np.testing.assert_array_equal(files.read_image(tmp_path / "film"), film.image)


def test_nifti_of_other_types_is_scaled_as_other_films_are(tmp_path, film):
    expected = to_8_bits(film.image.astype(np.uint16) * 16)
    for array in (
        film.image.astype(np.int16) * 16 - 1000,
        film.image.astype(np.float64) / 1e4,
        film.image.astype(np.int32) * 16,
    ):
        (tmp_path / "film.nii").write_bytes(nifti(array.T[:, None], LEFT_AND_DOWN))
        assert np.abs(files.read_image(tmp_path / "film.nii").astype(int) - expected).max() <= 1


def test_nifti_s_own_scaling_is_obeyed(tmp_path, film):
    image = nibabel.Nifti1Image(film.image.T[:, None], LEFT_AND_DOWN)
    image.header.set_slope_inter(-2, 10)
    (tmp_path / "film.nii").write_bytes(image.to_bytes())
    assert (
        np.abs(
            files.read_image(tmp_path / "film.nii").astype(int) - to_8_bits(510 - 2 * film.image.astype(np.int16))
        ).max()
        <= 1
    )


def test_labels_of_nifti_are_a_mask(tmp_path, film):
    (tmp_path / "mask.nii").write_bytes(nifti((film.right + 2 * film.left).T[:, None], LEFT_AND_DOWN))
    np.testing.assert_array_equal(files.read_mask(tmp_path / "mask.nii"), film.mask)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda data, _: data[:-100], "damaged NIfTI"),
        (lambda data, _: data[:352], "damaged NIfTI"),
        (lambda _, film: nifti(np.dstack([film] * 3), np.eye(4)), "NIfTI of 3 pictures, a film has one"),
        (lambda _, film: nifti(film.astype(np.complex64), np.eye(4)), "NIfTI of complex64: no gray"),
    ],
    ids=["cut", "head alone", "slices", "complex"],
)
def test_nifti_that_is_no_film_is_refused(tmp_path, film, damage, said):
    (tmp_path / "film.nii").write_bytes(damage(nifti(film.image.T, LEFT_AND_DOWN), film.image))
    with pytest.raises(ValueError, match=f"film.nii: {said}"):
        files.read_image(tmp_path / "film.nii")


def test_without_nibabel_it_is_said_what_to_install(tmp_path, film, monkeypatch):
    (tmp_path / "film.nii").write_bytes(nifti(film.image.T, LEFT_AND_DOWN))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match="NIfTI files need nibabel: pip install nibabel"):
        files.read_image(tmp_path / "film.nii")


def test_raw_film_of_jsrt_has_high_values_dark(tmp_path):
    dense = np.zeros((2048, 2048), ">u2")
    dense[:1024] = np.linspace(100, 4000, 2048)
    dense[1024:] = 4000
    (tmp_path / "JPCLN001.IMG").write_bytes(dense.tobytes())
    read = files.read_image(tmp_path / "JPCLN001.IMG")
    assert (
        read.shape == (2048, 2048)
        and (read[0, 0], read[-1, 0]) == (255, 0)
        and (np.diff(read[0].astype(int)) <= 0).all()
    )


@pytest.mark.parametrize("data", [bytes(8_388_607), b"\x20\0" * 4_194_304], ids=["a byte less", "more than 12 bits"])
def test_other_raw_files_are_no_image(tmp_path, data):
    (tmp_path / "x.img").write_bytes(data)
    with pytest.raises(ValueError, match="x.img: not an image"):
        files.read_image(tmp_path / "x.img")


# --- masks -----------------------------------------------------------------------------------------------------------

MASK = np.zeros((20, 12), np.uint8)
MASK[3:15, 2:9] = 1


@pytest.mark.parametrize(
    "stored",
    [
        MASK,
        MASK * 255,
        MASK * 128,
        MASK.astype(np.uint16) * 65535,
        MASK.astype(np.uint16),
        np.dstack([MASK * 255] * 3),
        np.dstack([MASK * 0, MASK * 0, MASK * 255]),
        np.dstack([MASK * 255] * 3 + [np.full_like(MASK, 255)]),
    ],
    ids=["0/1", "0/255", "0/128", "16-bit", "16-bit 0/1", "rgb", "red", "bgra"],
)
def test_mask_is_0_and_1_whatever_the_file_holds(tmp_path, stored):
    read = files.read_mask(write_raw(tmp_path / "mask.png", stored))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, MASK)


@pytest.mark.parametrize(
    "right, left", [(1, 2), (2, 1), (100, 200), (127, 255), (20, 255), (254, 255), (1000, 60_000)], ids=str
)
@pytest.mark.parametrize("kind", ["gray", "colour"])
def test_of_a_label_map_both_lungs_are_taken(tmp_path, right, left, kind):
    film = phantom(128, 128)
    labels = film.right.astype(np.uint16) * right + film.left.astype(np.uint16) * left
    labels = labels if left > 255 else labels.astype(np.uint8)
    path = write_raw(
        tmp_path / "mask.png",
        labels if kind == "gray" else np.dstack([film.right * 0 + 0, film.right * 200, film.left * 200]),
    )
    np.testing.assert_array_equal(files.read_mask(path), film.mask)


@pytest.mark.parametrize("background, lung", [(1, 2), (10, 255), (200, 255), (-1000, 1)], ids=str)
def test_background_of_a_mask_need_not_be_0(background, lung):
    mask = phantom(128, 128).mask
    np.testing.assert_array_equal(
        files.to_mask(np.where(mask, lung, background).astype(np.int16 if background < 0 else np.uint8)), mask
    )


def test_what_jpeg_leaves_of_0_and_255_are_no_labels():
    mask = phantom(128, 128).mask
    gray = mask * np.uint8(255)
    gray[:16], gray[60:68, 30:40] = 1, 254
    np.testing.assert_array_equal(files.to_mask(gray), mask | (gray == 254))


def test_small_lung_of_a_label_map_is_not_lost(tmp_path):
    labels = phantom(256, 256).left * np.uint8(2)
    labels[100:108, 60:70] = 1
    np.testing.assert_array_equal(files.read_mask(write_raw(tmp_path / "mask.png", labels)), labels > 0)


def test_jpeg_of_a_label_map_has_both_lungs(tmp_path):
    film = phantom(256, 256)
    read = files.read_mask(write_raw(tmp_path / "mask.jpg", film.right * 120 + film.left * 240))
    assert (read != film.mask).mean() < 0.01


@pytest.mark.parametrize("labels", [(1, 2, 3), (85, 170, 255)], ids=str)
def test_more_than_two_labels_are_a_problem_in_words(tmp_path, labels):
    film = phantom(128, 128)
    heart = np.zeros_like(film.left)
    heart[60:100, 55:75] = 1
    path = write_raw(
        tmp_path / "mask.png", np.select([heart > 0, film.right > 0, film.left > 0], labels).astype(np.uint8)
    )
    with pytest.raises(
        ValueError,
        match=f"mask.png: a label map of 3 labels \\({labels[0]}, {labels[1]}, {labels[2]}\\): which are lungs",
    ):
        files.read_mask(path)
    np.testing.assert_array_equal(files.read_mask(path, labels=labels[1:]), film.mask & ~heart & 1)


@pytest.mark.parametrize(
    "soften",
    [
        lambda mask: cv2.GaussianBlur(mask, (0, 0), 2),
        lambda mask: cv2.resize(cv2.resize(mask, (64, 64), interpolation=cv2.INTER_AREA), (256, 256)),
        lambda mask: cv2.resize(
            cv2.resize(mask, (128, 128), interpolation=cv2.INTER_AREA), (256, 256), interpolation=cv2.INTER_NEAREST
        ),
        lambda mask: cv2.imdecode(cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_GRAYSCALE),
    ],
    ids=["blurred", "enlarged", "enlarged in blocks", "poor JPEG"],
)
@pytest.mark.parametrize("top", [255, 90])
def test_grays_along_an_edge_are_no_labels(tmp_path, soften, top):
    mask = phantom(256, 256).mask
    read = files.read_mask(write_raw(tmp_path / "mask.png", soften(mask * np.uint8(top))))
    assert (read != mask).mean() < 0.02


def test_probabilities_in_a_float_tiff_are_a_mask_from_a_half_of_the_highest_on(tmp_path, film):
    read = files.read_mask(write_raw(tmp_path / "mask.tif", film.mask * np.float32(0.9)))
    np.testing.assert_array_equal(read, film.mask)


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
    content = {
        "empty": b"",
        "text": b"this is no image",
        "truncated": whole[: len(whole) // 2],
        "truncated jpeg": whole[: len(whole) // 2],
        "header only": whole[:30],
    }[kind]
    path = folder / ("bad film.jpg" if kind.endswith("jpeg") else "bad film.png")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("read", [files.read_image, files.read_mask])
@pytest.mark.parametrize(
    "kind, reason",
    [
        ("empty", "empty"),
        ("text", "not an image"),
        ("truncated", "truncated"),
        ("truncated jpeg", "truncated"),
        ("header only", "truncated"),
    ],
)
def test_unreadable_file_is_an_error_with_its_name_and_the_reason(tmp_path, read, kind, reason):
    path = broken_file(tmp_path, kind)
    with pytest.raises(ValueError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("error", [MemoryError, cv2.error], ids=["python", "opencv"])
@pytest.mark.parametrize("read", [files.read_image, files.read_mask])
def test_too_little_memory_is_an_error_of_the_file_that_says_what_takes_less(tmp_path, film, monkeypatch, read, error):
    def full(*_):
        if error is MemoryError:
            raise MemoryError
        return cv2.resize(film.image, (1 << 20, 1 << 25))  # 32 TB

    path = write_raw(tmp_path / "film.png", film.image)
    monkeypatch.setattr("kaggle_utils.pictures.decode.cv2.imdecode", full)
    with pytest.raises(ValueError, match=f"{path}: this machine's memory is too small for it: fewer workers"):
        read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        files.read_image(tmp_path / "nowhere.png")


# --- writing ---------------------------------------------------------------------------------------------------------


def test_mask_is_written_as_0_255_and_reads_back(tmp_path):
    files.write_mask(tmp_path / "mask.png", MASK)
    assert set(np.unique(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED))) == {0, 255}
    np.testing.assert_array_equal(files.read_mask(tmp_path / "mask.png"), MASK)


def test_png_is_smaller_than_opencv_would_have_it_and_reads_back():
    film, mask = cv2.GaussianBlur(phantom(400, 400).image, (0, 0), 3), phantom(400, 400).mask * np.uint8(255)
    for image in (film, mask, cv2.cvtColor(film, cv2.COLOR_GRAY2BGR)):
        data = files.encode_image(image, ".png")
        assert len(data) < 0.95 * len(cv2.imencode(".png", image)[1])
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), image)


@pytest.mark.parametrize("mask", [MASK * 255, np.dstack([MASK] * 3)], ids=["0/255", "three channels"])
@pytest.mark.parametrize("function", [files.check_mask, lambda m: files.resize_mask(m, 8)], ids=["check", "resize"])
def test_what_is_not_a_mask_is_refused(mask, function):
    with pytest.raises(ValueError, match="mask"):
        function(mask)


@pytest.mark.parametrize(
    "mask", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -1)], ids=["probabilities", "negative"]
)
def test_fractions_and_negative_numbers_are_no_mask(mask):
    with pytest.raises(ValueError):
        files.check_mask(mask)


def test_unknown_suffix_is_a_value_error_with_the_file(tmp_path, film):
    with pytest.raises(ValueError, match="film.xyz"):
        files.write_image(tmp_path / "film.xyz", film.image)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_readable_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "file.bin", b"new")
        files.write_image(tmp_path / "film.png", np.zeros((8, 8), np.uint8))
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("file.bin", "film.png")} == {mode}


@pytest.mark.parametrize("where", ["os.replace", "pathlib.Path.open"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    path = tmp_path / "file.bin"
    files.write_bytes(path, b"old")

    def disk_full(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(where, disk_full)
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
@given(
    mask=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_resized_mask_holds_0_and_1_at_any_size(mask, size):
    resized = files.resize_mask(mask, size)
    assert resized.shape == size and resized.dtype == np.uint8
    assert set(np.unique(resized)) <= {0, 1}


def test_probabilities_stay_probabilities_and_beat_the_resized_mask():
    truth = phantom(512, 512).mask
    small = files.resize_prob(truth.astype(np.float32), (64, 64))
    assert small.min() >= 0 and small.max() <= 1 and small.dtype == np.float32

    def dice(pred):
        return 2 * (pred & truth).sum() / (pred.sum() + truth.sum())

    from_prob = (files.resize_prob(small, (512, 512)) > 0.5).astype(np.uint8)
    from_mask = cv2.resize(files.resize_mask(truth, 64), (512, 512), interpolation=cv2.INTER_NEAREST)
    assert dice(from_prob) > 0.995 and dice(from_prob) > dice(from_mask)


# --- memory ----------------------------------------------------------------------------------------------------------


def pictures(film: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays by the suffixes that they are written with."""
    wide, colour, alpha = film.astype(np.uint16) * 9, np.dstack([film] * 3), np.dstack([film] * 4)
    floats = film.astype(np.float32)
    return {
        "gray.png": film,
        "wide.png": wide,
        "colour.png": colour,
        "alpha.png": np.dstack([wide] * 4),
        "gray.jpg": film,
        "colour.jpg": colour,
        "gray.bmp": film,
        "colour.bmp": colour,
        "alpha.webp": alpha,
        "gray.webp": film,
        "gray.jp2": film,
        "colour.jp2": colour,
        "wide.jp2": wide,
        "gray.tif": film,
        "wide.tif": wide,
        "colour.tif": np.dstack([wide] * 3),
        "float.tif": floats,
        "double.tif": floats.astype(float),
        "colours.tif": np.dstack([floats] * 3),
        "gray.gif": colour,
    }


@pytest.mark.parametrize("name", pictures(np.zeros((1, 1), np.uint8)))
def test_a_file_declares_at_least_what_its_pixels_take(tmp_path, film, name):
    path = write_raw(tmp_path / name, pictures(film.image)[name])
    pixels = decode(path.read_bytes())[0]
    declared = read_picture_header(path.read_bytes())
    assert declared.pixel * declared.rows * declared.columns >= pixels.nbytes
    assert files.film_bytes(path) >= pixels.nbytes + files.FINISHED_BYTES * pixels.shape[0] * pixels.shape[1]


def test_palette_with_transparency_declares_its_four_channels(tmp_path):
    picture = Image.new("P", (64, 64))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(tmp_path / "film.png", transparency=0)
    data = (tmp_path / "film.png").read_bytes()
    assert decode(data)[0].nbytes == 4 * 64 * 64 <= read_picture_header(data).pixel * 64 * 64


def test_pixels_of_many_bytes_have_a_lower_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MAX_PIXELS", 1000)
    path = write_raw(tmp_path / "film.tif", np.zeros((30, 30, 3), np.float64))
    with pytest.raises(ValueError, match=f"{path}: it declares 30 x 30 pixels of 24 bytes, more than 0 million in all"):
        files.read_image(path)


PARTS = {
    "png": (b"\x89PNG\r\n\x1a\n", bytes(12)),
    "jpg": (b"\xff\xd8\xff", b"\x01\xff"),
    "gif": (b"GIF89a" + bytes(7), b"!\xf9\0"),
    "gif of blocks": (b"GIF89a" + bytes(7) + b"!\xf9", b"\1\0" * 2),
    "webp": (b"RIFF\xff\xff\xff\1WEBP", b"ABCD\0\0\0\0"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x08free"),
    "j2k": (b"\xff\x4f\xff\x51" + bytes(37) + b"\1", b"\xff\x90\0\0\0\0\0\0\0\1"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_file_of_millions_of_parts_is_refused_in_a_second_or_two(kind):
    head, part = PARTS[kind]
    used = time.process_time()
    with pytest.raises(ValueError):
        read_picture_header(head + part * (40_000_000 // len(part)))
    assert time.process_time() - used < 4


def test_tiff_whose_tiles_are_larger_than_the_film_is_refused(tmp_path, film):
    (tmp_path / "film.tif").write_bytes(tiff((film.image, {322: 30000, 323: 30000})))
    with pytest.raises(ValueError, match="its tiles of 30000 x 30000 pixels are larger than the film"):
        files.read_image(tmp_path / "film.tif")


def test_of_a_tag_that_is_there_twice_the_first_counts_as_in_libtiff(film):
    data = bytearray(tiff((film.image, {279: film.image.size, 330: 9})))
    at = data.index(struct.pack("<HHII", 330, 4, 1, 9))
    struct.pack_into("<HHII", data, at, 257, 4, 1, 7)
    assert read_picture_header(bytes(data)).rows == film.image.shape[0]


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless]
)
def test_memory_of_a_dicom_film_is_that_of_its_size(tmp_path, syntax):
    (tmp_path / "film").write_bytes(dicom(np.zeros((300, 200), np.uint16), syntax))
    decoder = 80_000_000 if syntax == uid.RLELossless else 0
    assert 300 * 200 * (4 * 2 + files.FINISHED_BYTES) <= files.film_bytes(tmp_path / "film") - decoder < 300 * 200 * 30


@pytest.mark.parametrize("sizes", [[100] * 12, [3000, 10, 3000, 10, 900, 200], [0, 0]], ids=str)
def test_threads_that_read_at_once_wait_for_room(monkeypatch, sizes):
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    held, most, lock = [], [], threading.Lock()

    def work(size):
        with files.room(size):
            with lock:
                held.append(size)
                most.append(list(held))
            time.sleep(0.005)
            with lock:
                held.remove(size)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, sizes))
    assert all(sum(at_once) <= 1000 or len(at_once) == 1 for at_once in most) and len(most) == len(sizes)


@pytest.mark.parametrize("read", [files.read_image, files.read_mask])
def test_room_is_given_back_whatever_a_film_raises(tmp_path, monkeypatch, film, read):
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    (tmp_path / "broken.png").write_bytes(files.encode_image(film.image, ".png")[:-30])
    for _ in range(3):
        with pytest.raises(ValueError, match="broken.png"):
            read(tmp_path / "broken.png")
    assert files._taken == [0]


def test_memory_of_what_is_no_film_or_doesnt_tell_is_none_or_all(tmp_path, film):
    (tmp_path / "packed.png.gz").write_bytes(gzip.compress(files.encode_image(film.image, ".png")))
    (tmp_path / "late").write_bytes(
        (lambda d: d[:132] + b"\x29\0\x10\x10OB\0\0" + (2 << 20).to_bytes(4, "little") + bytes(2 << 20) + d[132:])(
            dicom(film.image)
        )
    )
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "empty.png").write_bytes(b"")
    assert files.film_bytes(tmp_path / "packed.png.gz") == files.film_bytes(tmp_path / "late") == files.MOST_BYTES
    assert [files.film_bytes(tmp_path / name) for name in ("text.png", "empty.png", "none.png", ".")] == [4, 0, 0, 0]


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_png_that_is_damaged_in_the_middle_is_refused_and_nothing_else_is_said(tmp_path, film, place, capfd):
    data = bytearray(files.encode_image(film.image, ".png"))
    data[int(place * len(data))] ^= 0x55
    (tmp_path / "film.png").write_bytes(data)
    with pytest.raises(
        ValueError, match="film.png: the file is damaged in the middle: a checksum of its pixels is wrong"
    ):
        files.read_film(tmp_path / "film.png")
    assert capfd.readouterr() == ("", "")


CHECKED = {
    "jpeg": ("JPEG", {}, 0.5, "premature end of data segment"),
    "jpeg progressive": ("JPEG", {"progressive": True}, 0.3, "extraneous bytes before marker"),
    "jpeg restarts": ("JPEG", {"restart_marker_blocks": 3}, 0.5, "extraneous bytes before marker"),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}, 0.5, "Not enough data"),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}, 0.5, "a checksum of its pixels is wrong"),
    "tiff jpeg": ("TIFF", {"compression": "jpeg"}, 0.3, "premature end of data segment"),
}
UNCHECKED = WRITTEN | {"tiff": ("TIFF", {}), "tiff packbits": ("TIFF", {"compression": "packbits"}), "bmp": ("BMP", {})}


@pytest.mark.parametrize("kind, options, place, said", CHECKED.values(), ids=CHECKED)
def test_what_the_decoder_says_of_damage_is_in_a_note_and_nowhere_else(tmp_path, kind, options, place, said, capfd):
    data = encoded(kind, phantom(400, 320).image, **options)
    (tmp_path / "film").write_bytes(lost_in_the_middle(data, place))
    (damage,) = [note for note in files.read_film(tmp_path / "film").notes if note.startswith("damaged: ")]
    assert said in damage and ";" not in damage
    for read in (files.read_image, files.read_mask):
        with pytest.raises(ValueError, match=re.escape(f"film: {damage}")):
            read(tmp_path / "film")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "written", [*CHECKED.values(), *UNCHECKED.values()], ids=[*CHECKED, *(f"{name}, unchecked" for name in UNCHECKED)]
)
@pytest.mark.parametrize("shape", [(200, 160), (700, 500)], ids=["small", "of many strips"])
def test_nothing_is_said_of_a_whole_film(written, shape):
    assert not files.read_film("film", data=encoded(written[0], phantom(*shape).image, **written[1])).notes


@pytest.mark.parametrize(
    "options",
    [{"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {}],
    ids=lambda o: o.get("compression", "raw"),
)
@pytest.mark.parametrize("wide", [np.uint16, np.float32], ids=lambda t: t.__name__)
def test_nothing_is_said_of_a_whole_tiff_of_more_bits(options, wide, film):
    assert not files.read_film("film", data=encoded("TIFF", film.image.astype(wide), **options)).notes


def test_deflate_in_tiles_has_its_checksums_read(film):
    packed = bytearray(zlib.compress(film.image.tobytes()))
    side, long = film.image.shape[1], film.image.shape[0]
    for damage in (0, 1):
        packed[-1] ^= damage
        data = tiff((np.frombuffer(packed, np.uint8)[None], {256: side, 257: long, 259: 8, 322: side, 323: long}))
        notes = files.read_film(
            "film",
            data=data.replace(struct.pack("<H", 273), struct.pack("<H", 324), 1).replace(
                struct.pack("<H", 279), struct.pack("<H", 325), 1
            ),
        ).notes
        assert notes == (("damaged: a checksum of its pixels is wrong",) if damage else ())


def test_lost_end_of_a_format_without_checksums_is_a_border():
    noisy = np.random.default_rng(0).integers(0, 255, (60, 40), np.uint8)
    for kind in ("BMP", "TIFF"):
        data = encoded(kind, noisy)
        notes = files.read_film("film", data=data[: len(data) // 2].ljust(len(data), b"\0")).notes
        assert len(notes) == 1 and notes[0].startswith("constant border: ")


def test_of_films_decoded_at_once_the_damaged_ones_alone_are_noted(capfd):
    whole = encoded("JPEG", phantom(400, 320).image)
    todo = [lost_in_the_middle(whole) if n % 5 == 0 else whole for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        noted = list(pool.map(lambda data: files.read_film("film", data=data).notes != (), todo))
    print("printed", file=sys.stderr)
    assert noted == [n % 5 == 0 for n in range(40)]
    assert capfd.readouterr() == ("", "printed\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_process_forked_while_a_film_is_decoded_hears_too():
    broken = lost_in_the_middle(encoded("JPEG", phantom(400, 320).image))
    with complaints.listening():
        child = os.fork()
        if not child:
            os._exit(files.read_film("film", data=broken).notes == ())
    assert os.waitpid(child, 0)[1] == 0


def test_a_soft_mask_is_a_mask_and_a_radiograph_is_none(tmp_path):
    film = phantom(64, 64, 1)
    soft = cv2.GaussianBlur(film.mask * 255, (0, 0), 1.5)
    assert len(np.unique(soft)) > 16
    found = files.read_mask(write_raw(tmp_path / "soft.png", soft))
    assert (found != film.mask).mean() < 0.03
    with pytest.raises(ValueError, match="film.png: a picture in shades of gray"):
        files.read_mask(write_raw(tmp_path / "film.png", film.image))
