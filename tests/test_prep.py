"""prep.py: the raw public sets, in every layout they come in, to the prepared folder."""

import json
import os
import random
import time
from errno import EACCES
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
from phantoms import lost_in_the_middle, phantom, write_raw
from PIL import Image

from kaggle_utils import image as files
from kaggle_utils import prep
from kaggle_utils.cli import main
from kaggle_utils.files import Journal
from kaggle_utils.synthetic.model import AppearanceModel

SIZE = 32
MONTGOMERY = ["MCUCXR_0001_0", "MCUCXR_0108_1"]
SHENZHEN = ["CHNCXR_0001_0", "CHNCXR_0327_1"]
JSRT = ["JPCLN001", "JPCNN002"]


def film_of(name):
    """The phantom that goes by a name; films of the sets are not square, and the sets differ in shape."""
    height, width = {"M": (96, 80), "C": (80, 96), "J": (88, 88)}[name[0]]
    return phantom(height, width, seed=int.from_bytes(name.encode(), "big") % 2**31)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def montgomery(root, names=MONTGOMERY):
    for name in names:
        film = film_of(name)
        write_raw(root / "CXR_png" / f"{name}.png", film.image)
        write_raw(root / "ManualMask" / "leftMask" / f"{name}.png", film.left * 255)
        write_raw(root / "ManualMask" / "rightMask" / f"{name}.png", film.right * 255)
        write_text(root / "ClinicalReadings" / f"{name}.txt", "Patient's Sex: F \nPatient's Age: 027Y\nnormal\n")


def shenzhen(images, masks, names=SHENZHEN, unmasked=("CHNCXR_0025_0",)):
    for name in (*names, *unmasked):
        write_raw(images / "CXR_png" / f"{name}.png", film_of(name).image)
        write_text(images / "ClinicalReadings" / f"{name}.txt", "male 45yrs\nnormal")
    for name in names:
        write_raw(masks / f"{name}_mask.png", film_of(name).mask * 255)


def jsrt(root, names=JSRT):
    for name in names:
        film = film_of(name)
        write_raw(root / "images" / f"{name}.png", film.image)
        for organ, mask in (
            ("left lung", film.left),
            ("right lung", film.right),
            ("heart", film.left),
            ("left clavicle", film.left),
            ("right clavicle", film.left),
        ):
            write_raw(root / "scratch" / "fold1" / "masks" / organ / f"{name}.png", mask * 255)


def merged(root, names=(*MONTGOMERY, *SHENZHEN)):
    """chest-xray-masks-and-labels: whole masks, named like the film (Montgomery) or with _mask (Shenzhen)."""
    for name in names:
        film = film_of(name)
        write_raw(root / "CXR_png" / f"{name}.png", film.image)
        write_raw(root / "masks" / f"{name}{'_mask' if name[0] == 'C' else ''}.png", film.mask * 255)
        write_text(
            root / "ClinicalReadings" / f"{name}.txt",
            "Patient's Sex: F\nPatient's Age: 027Y" if name[0] == "M" else "male 45yrs",
        )
    write_raw(root / "CXR_png" / "CHNCXR_0025_0.png", film_of("CHNCXR_0025_0").image)
    write_raw(root / "test" / "CHNCXR_0025_0.png", film_of("CHNCXR_0025_0").image)  # the same pixels once more, no mask
    write_text(root / "ClinicalReadings" / "CHNCXR_0025_0.txt", "male 45yrs")


def single(root):
    montgomery(root / "pulmonary" / "MontgomerySet")
    shenzhen(root / "pulmonary" / "ChinaSet_AllFiles", root / "shcxr-lung-mask" / "mask")


def double(root):
    montgomery(root / "pulmonary" / "Montgomery" / "MontgomerySet")
    shenzhen(root / "pulmonary" / "ChinaSet_AllFiles" / "ChinaSet_AllFiles", root / "shcxr-lung-mask" / "mask" / "mask")


def new_mount(root):
    owner = root / "datasets"
    montgomery(owner / "kmader" / "pulmonary" / "Montgomery" / "MontgomerySet")
    shenzhen(
        owner / "kmader" / "pulmonary" / "ChinaSet_AllFiles" / "ChinaSet_AllFiles",
        owner / "yoctoman" / "shcxr-lung-mask" / "mask",
    )


def merged_twice(root):
    merged(root / "masks-and-labels" / "Lung Segmentation")
    merged(root / "masks-and-labels" / "data" / "Lung Segmentation")


def all_datasets(root):
    double(root)
    merged_twice(root)


def with_junk(root):
    double(root)
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (folder / "._MCUCXR_0001_0.png").write_bytes(b"a Mac's resource fork")
        write_text(folder / ".ipynb_checkpoints" / "MCUCXR_0009_0.png", "not even an image")
        write_text(folder / "README.md", "about")


LAYOUTS = [single, double, new_mount, merged_twice, all_datasets, with_junk]
EXPECTED = sorted([*MONTGOMERY, *SHENZHEN, "CHNCXR_0025_0"])


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request, tmp_path):
    request.param(tmp_path / "input")
    return tmp_path / "input"


@pytest.fixture
def raw(tmp_path):
    double(tmp_path / "input")
    return tmp_path / "input"


def problems_in(out):
    return pd.read_csv(out / "problems.csv").set_index("name")["reason"].to_dict()


def prepare(root, out, **options):
    return prep.prepare(root, out, size=SIZE, workers=2, **options)


def count_films(monkeypatch):
    """Counts the films that are really read, by name."""
    done, original = [], prep.prepare_film
    monkeypatch.setattr(prep, "prepare_film", lambda film, *rest: done.append(film.name) or original(film, *rest))
    return done


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_every_layout_gives_the_same_films(layout, tmp_path):
    frame = prepare(layout, tmp_path / "out")
    assert frame["name"].tolist() == EXPECTED
    assert problems_in(tmp_path / "out") == {}


def test_every_layout_gives_each_film_its_own_pixels_and_mask(layout, tmp_path):
    out = tmp_path / "out"
    for row in prepare(layout, out).itertuples():
        film = film_of(row.name)
        np.testing.assert_array_equal(
            files.read_image(out / row.split / "image" / f"{row.name}.png"), files.resize_image(film.image, SIZE)
        )
        if row.split != "unlabelled":
            np.testing.assert_array_equal(
                files.read_mask(out / row.split / "mask" / f"{row.name}.png"), files.resize_mask(film.mask, SIZE)
            )


def test_every_layout_gives_the_same_clinical_data(layout, tmp_path):
    frame = prepare(layout, tmp_path / "out").set_index("name")
    assert frame.loc["MCUCXR_0001_0", ["sex", "age", "tb"]].tolist() == ["F", 27, 0]
    assert frame.loc["CHNCXR_0327_1", ["sex", "age", "tb"]].tolist() == ["M", 45, 1]


def test_jsrt_takes_the_lungs_and_no_other_organ(tmp_path):
    jsrt(tmp_path / "input")
    frame = prepare(tmp_path / "input", tmp_path / "out")
    assert frame["name"].tolist() == JSRT and set(frame["source"]) == {"jsrt"} and frame["tb"].isna().all()
    for row in frame.itertuples():
        mask = files.read_mask(tmp_path / "out" / row.split / "mask" / f"{row.name}.png")
        np.testing.assert_array_equal(mask, files.resize_mask(film_of(row.name).mask, SIZE))


def test_the_hearts_mask_is_not_taken_for_the_lungs(tmp_path):
    jsrt(tmp_path / "input")
    for lung in ("left lung", "right lung"):
        for path in tmp_path.rglob(f"{lung}/*.png"):
            path.unlink()
    assert set(prepare(tmp_path / "input", tmp_path / "out")["split"]) == {"unlabelled"}


def test_manifest_says_where_a_film_comes_from(raw, tmp_path):
    row = prepare(raw, tmp_path / "out").set_index("name").loc["MCUCXR_0001_0"]
    assert (row["source"], row["height"], row["width"]) == ("montgomery", 96, 80)
    import hashlib

    path = next(raw.rglob("CXR_png/MCUCXR_0001_0.png"))
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_manifest_on_disk_is_the_one_returned(raw, tmp_path):
    frame = prepare(raw, tmp_path / "out")
    stored = pd.read_csv(tmp_path / "out" / "manifest.csv")
    assert list(stored) == list(prep.COLUMNS)
    assert stored["name"].tolist() == frame["name"].tolist() and stored["split"].tolist() == frame["split"].tolist()


def test_prepared_folder_holds_the_films_of_the_manifest_and_no_other_image(raw, tmp_path):
    out = tmp_path / "out"
    frame = prepare(raw, out)
    expected = {f"{s}/image/{n}.png" for s, n in zip(frame["split"], frame["name"])}
    expected |= {p.replace("/image/", "/mask/") for p in expected if not p.startswith("unlabelled")}
    assert {str(p.relative_to(out)) for p in out.rglob("*.png")} == expected


@pytest.mark.parametrize("names", [MONTGOMERY], ids=["montgomery"])
def test_pairs_are_made_by_stem_in_shuffled_directories(tmp_path, monkeypatch, names):
    montgomery(tmp_path / "input", names)
    walk = os.walk

    def shuffled(*args, **options):
        for folder, folders, inside in walk(*args, **options):
            random.Random(folder).shuffle(folders)
            random.Random(folder + "x").shuffle(inside)
            yield folder, folders, inside

    monkeypatch.setattr(prep.os, "walk", shuffled)
    for film in prep.find_films(tmp_path / "input"):
        assert {path.stem for path in film.files.values()} == {film.name}
        assert {role: path.parent.name for role, path in film.files.items()} == {
            "image": "CXR_png",
            "left": "leftMask",
            "right": "rightMask",
            "text": "ClinicalReadings",
        }


def test_left_and_right_are_combined_with_or_where_they_overlap(tmp_path):
    root = tmp_path / "input"
    montgomery(root, MONTGOMERY[:1])
    left, right = np.zeros((96, 80), np.uint8), np.zeros((96, 80), np.uint8)
    left[20:80, 10:50], right[20:80, 30:70] = 255, 255
    write_raw(root / "ManualMask" / "leftMask" / f"{MONTGOMERY[0]}.png", left)
    write_raw(root / "ManualMask" / "rightMask" / f"{MONTGOMERY[0]}.png", right)
    split = prepare(root, tmp_path / "out")["split"].iloc[0]
    expected = files.resize_mask((left | right) // 255, SIZE)
    np.testing.assert_array_equal(files.read_mask(tmp_path / "out" / split / "mask" / f"{MONTGOMERY[0]}.png"), expected)


def test_folder_without_films_says_what_it_looked_for(tmp_path):
    write_raw(tmp_path / "holiday.png", phantom().image)
    with pytest.raises(FileNotFoundError, match="no film of Montgomery .*Shenzhen .*JSRT"):
        prep.find_films(tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        prep.find_films(tmp_path / "nowhere")


@pytest.mark.parametrize("prepared_first", ["a_prepared", "z_prepared"], ids=["before the raw sets", "after them"])
def test_a_prepared_set_among_the_inputs_is_not_taken_for_raw_films(raw, tmp_path, prepared_first):
    """On Kaggle the output of the preparation is attached beside the raw sets."""
    prepare(raw, raw / prepared_first)
    assert not any(
        prepared_first in path.relative_to(raw).parts for film in prep.find_films(raw) for path in film.files.values()
    )


# --- problems --------------------------------------------------------------------------------------------------------


def break_film(root, kind):
    image = root / "CXR_png" / "MCUCXR_0001_0.png"
    left, right = (root / "ManualMask" / side / image.name for side in ("leftMask", "rightMask"))
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:500])
    elif kind == "damaged":
        image.write_bytes(
            lost_in_the_middle(
                cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (96, 80), np.uint8))[1].tobytes()
            )
        )
    elif kind == "empty file":
        image.write_bytes(b"")
    elif kind == "not an image":
        image.write_text("404: not found")
    elif kind == "truncated mask":
        left.write_bytes(left.read_bytes()[:60])
    elif kind == "mask without image":
        image.unlink()
    elif kind == "size mismatch":
        write_raw(right, np.full((80, 96), 255, np.uint8))
    elif kind == "empty mask":
        write_raw(right, np.zeros((96, 80), np.uint8))
    elif kind == "all lung":
        for mask in (left, right):
            write_raw(mask, np.full((96, 80), 255, np.uint8))
    elif kind == "too small":
        for path in (image, left, right):
            write_raw(path, np.full((1, 1), 255, np.uint8))
    elif kind == "half a mask":
        left.unlink()


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("truncated", "CXR_png.MCUCXR_0001_0.png: the file is truncated"),
        ("empty file", "the file is empty"),
        ("damaged", "CXR_png.MCUCXR_0001_0.png: damaged: .* marker 0xd9"),
        ("not an image", "not an image"),
        ("truncated mask", "leftMask.MCUCXR_0001_0.png: the file is truncated"),
        ("mask without image", "mask without image"),
        ("size mismatch", "size mismatch"),
        ("empty mask", "the mask is empty"),
        ("half a mask", "the other lung's mask is missing"),
        ("all lung", "leftMask.MCUCXR_0001_0.png: 100% of the film is lung"),
        ("too small", "CXR_png.MCUCXR_0001_0.png: too small: 1×1 px"),
    ],
)
def test_unusable_film_is_listed_with_its_reason_and_the_rest_goes_on(tmp_path, kind, reason):
    import re

    montgomery(tmp_path / "input")
    break_film(tmp_path / "input", kind)
    frame = prepare(tmp_path / "input", tmp_path / "out")
    assert frame["name"].tolist() == ["MCUCXR_0108_1"]
    problems = problems_in(tmp_path / "out")
    assert list(problems) == ["MCUCXR_0001_0"] and re.search(reason, problems["MCUCXR_0001_0"])


def test_mask_in_the_place_of_a_film_is_called_one(tmp_path):
    montgomery(tmp_path / "input")
    write_raw(tmp_path / "input" / "CXR_png" / "MCUCXR_0001_0.png", film_of("MCUCXR_0001_0").mask * 255)
    prepare(tmp_path / "input", tmp_path / "out")
    assert "MCUCXR_0001_0.png: a mask or a drawing, not a radiograph" in problems_in(tmp_path / "out")["MCUCXR_0001_0"]


@pytest.mark.parametrize("kind", ["python", "opencv"])
def test_too_little_memory_is_a_film_s_problem_that_says_what_to_make_smaller(tmp_path, monkeypatch, kind):
    montgomery(tmp_path / "input")
    resize = prep.resize_image

    def full(image, size):
        if image[0, 0] == film_of("MCUCXR_0001_0").image[0, 0] and image.shape == (96, 80) and kind == "python":
            raise MemoryError
        if image.shape == (96, 80) and np.array_equal(image, film_of("MCUCXR_0001_0").image):
            return cv2.resize(image, (1 << 20, 1 << 25))  # 32 TB
        return resize(image, size)

    monkeypatch.setattr(prep, "resize_image", full)
    assert prepare(tmp_path / "input", tmp_path / "out")["name"].tolist() == ["MCUCXR_0108_1"]
    assert "fewer workers than 2, or a smaller size than 32 px" in problems_in(tmp_path / "out")["MCUCXR_0001_0"]


@pytest.mark.parametrize("size", [0, 7, 8193, 1_000_000])
def test_size_that_no_film_should_have_is_refused_before_anything_is_looked_for(tmp_path, size):
    with pytest.raises(ValueError, match=f"side of 8 to 8192 px, not of {size}"):
        prep.prepare(tmp_path / "nowhere", tmp_path / "out", size=size)


def test_no_usable_film_at_all_is_an_error_with_the_first_reason(tmp_path):
    montgomery(tmp_path / "input", MONTGOMERY[:1])
    break_film(tmp_path / "input", "truncated")
    with pytest.raises(ValueError, match="none of 1 films .*truncated"):
        prepare(tmp_path / "input", tmp_path / "out")


def test_twins_by_pixels_are_reported_and_only_the_first_is_kept(tmp_path):
    root = tmp_path / "input"
    montgomery(root, ["MCUCXR_0001_0", "MCUCXR_0002_0"])
    for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"):
        first, second = (root / folder / f"MCUCXR_000{n}_0.png" for n in (1, 2))
        second.write_bytes(first.read_bytes())
    frame = prepare(root, tmp_path / "out")
    assert frame["name"].tolist() == ["MCUCXR_0001_0"]
    assert problems_in(tmp_path / "out") == {"MCUCXR_0002_0": "the same pixels as MCUCXR_0001_0"}


# --- negatives, and the raw films of JSRT
# ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return AppearanceModel.load().sample(1, 3, size=256, acquire=False)[0]


def test_negative_is_turned_over_and_the_manifest_says_of_which_film(tmp_path, drawn):
    root = tmp_path / "input"
    for name, image in (
        ("MCUCXR_0001_0", drawn.image),
        ("MCUCXR_0002_0", 255 - np.ascontiguousarray(drawn.image[:, 3:])),
    ):
        write_raw(root / "CXR_png" / f"{name}.png", image)
    prep.prepare(root, tmp_path / "out", size=64, workers=1)
    manifest = pd.read_csv(tmp_path / "out" / "manifest.csv").set_index("name")
    assert manifest["inverted"].to_dict() == {"MCUCXR_0001_0": 0, "MCUCXR_0002_0": 1}
    first, second = (
        files.read_image(tmp_path / "out" / "unlabelled" / "image" / f"{name}.png").astype(float)
        for name in manifest.index
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.8


def test_set_that_was_prepared_by_other_rules_is_prepared_anew(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prep, "_RULES", 2)
    prepare(raw, tmp_path / "out")
    monkeypatch.undo()
    done = count_films(monkeypatch)
    prepare(raw, tmp_path / "out")
    assert sorted(done) == EXPECTED


def test_films_and_masks_of_other_formats_are_paired_too(tmp_path):
    root, film = tmp_path / "input", film_of("CHNCXR_0001_0")
    for name, array in (
        ("CHNCXR_0001_0.nii.gz", film.image),
        ("CHNCXR_0001_0_mask.nii.gz", film.right + 2 * film.left),
    ):
        root.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.T[..., None], np.diag([-1.0, -1, 1, 1])), root / name)
    write_raw(root / "CHNCXR_0003_0.webp", film_of("CHNCXR_0003_0").image)
    frame = prepare(root, tmp_path / "out").set_index("name")
    assert sorted(frame.index) == ["CHNCXR_0001_0", "CHNCXR_0003_0"] and problems_in(tmp_path / "out") == {}
    split = frame.loc["CHNCXR_0001_0", "split"]
    found = files.read_mask(tmp_path / "out" / split / "mask" / "CHNCXR_0001_0.png")
    np.testing.assert_array_equal(found, files.resize_mask(film.mask, SIZE))


def write_img(path, drawn):
    """A film as JSRT distributes it: high values are dark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    film = cv2.resize(drawn.image, (2048, 2048), interpolation=cv2.INTER_LINEAR).astype(np.uint16)
    path.write_bytes((4095 - 3 * film).astype(">u2").tobytes())


def test_jsrt_as_it_is_distributed_raw_films_and_smaller_masks_in_folds(tmp_path, drawn):
    root, mask = tmp_path / "input", cv2.resize(drawn.mask, (1024, 1024), interpolation=cv2.INTER_NEAREST)
    write_img(root / "All247images" / "JPCLN001.IMG", drawn)
    for side, half in (("left lung", np.s_[:, 512:]), ("right lung", np.s_[:, :512])):
        part = np.zeros_like(mask)
        part[half] = mask[half] * 255
        (root / "scratch/fold1/masks" / side).mkdir(parents=True)
        Image.fromarray(part).save(root / "scratch/fold1/masks" / side / "JPCLN001.gif")
    row = prep.prepare(root, tmp_path / "out", size=128, workers=1).iloc[0]
    assert (row["height"], row["width"], row["inverted"], row["split"] in prep.SPLITS) == (2048, 2048, 0, True)
    read = files.read_image(tmp_path / "out" / row["split"] / "image" / "JPCLN001.png").astype(float)
    assert (
        np.corrcoef(read.ravel(), cv2.resize(drawn.image, (128, 128), interpolation=cv2.INTER_AREA).ravel())[0, 1]
        > 0.99
    )
    found = files.read_mask(tmp_path / "out" / row["split"] / "mask" / "JPCLN001.png")
    assert (found != cv2.resize(drawn.mask, (128, 128), interpolation=cv2.INTER_AREA)).mean() < 0.01


# --- clinical text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, sex, age",
    [
        ("Patient's Sex: F \nPatient's Age: 027Y\nnormal", "F", 27),
        ("Patient's Sex: M\r\nPatient's Age: 4Y\r\n", "M", 4),
        ("Patient's Sex: O\nPatient's Age: 052Y", "O", 52),
        ("male 45yrs\nnormal", "M", 45),
        ("femal 32yrs", "F", 32),
        ("Female, 28yrs", "F", 28),
        ("female24yrs", "F", 24),
        ("male , 29yrs", "M", 29),
        ("male 42", "M", 42),
        ("male 42 \nleft", "M", 42),
        ("male 16month", "M", 1.33),
        ("female 64days", "F", 0.18),
        ("  \n MALE 30YRS", "M", 30),
        ("male", "M", None),
        ("35yrs", None, 35),
        ("", None, None),
        ("no clinical data", None, None),
    ],
    ids=repr,
)
def test_clinical_text_however_it_is_spelt(tmp_path, text, sex, age):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert prep.read_clinical(path) == (sex, age)


def test_clinical_text_of_another_encoding_is_read(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"male 45yrs\n\xff\xfe opacity")
    assert prep.read_clinical(tmp_path / "text.txt") == ("M", 45)


def test_film_without_clinical_text_has_none(tmp_path):
    jsrt(tmp_path / "input")
    assert prepare(tmp_path / "input", tmp_path / "out")[["sex", "age"]].isna().all(axis=None)


# --- a second run ----------------------------------------------------------------------------------------------------


def test_second_run_reads_no_film_and_writes_the_same_manifest(raw, tmp_path, monkeypatch):
    first = prepare(raw, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    done = count_films(monkeypatch)
    second = prepare(raw, tmp_path / "out")
    assert done == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")} == before
    pd.testing.assert_frame_equal(first, second, check_dtype=False)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_second_run_makes_what_was_deleted(raw, tmp_path, monkeypatch, kind):
    frame = prepare(raw, tmp_path / "out").set_index("name")
    lost = tmp_path / "out" / frame.loc["MCUCXR_0001_0", "split"] / kind / "MCUCXR_0001_0.png"
    lost.unlink()
    done = count_films(monkeypatch)
    prepare(raw, tmp_path / "out")
    assert done == ["MCUCXR_0001_0"] and lost.exists()


@pytest.mark.parametrize("role", ["CXR_png", "leftMask", "ClinicalReadings"])
def test_changed_raw_file_is_prepared_again(raw, tmp_path, monkeypatch, role):
    prepare(raw, tmp_path / "out")
    path = next(raw.rglob(f"{role}/MCUCXR_0001_0.*"))
    changed = phantom(96, 80, seed=99)
    if role == "ClinicalReadings":
        path.write_text("Patient's Sex: M\nPatient's Age: 099Y")
    else:
        write_raw(path, changed.image if role == "CXR_png" else changed.left * 255)
    done = count_films(monkeypatch)
    row = prepare(raw, tmp_path / "out").set_index("name").loc["MCUCXR_0001_0"]
    assert done == ["MCUCXR_0001_0"]
    if role == "CXR_png":
        stored = files.read_image(tmp_path / "out" / row["split"] / "image" / "MCUCXR_0001_0.png")
        np.testing.assert_array_equal(stored, files.resize_image(changed.image, SIZE))
    elif role == "leftMask":
        stored = files.read_mask(tmp_path / "out" / row["split"] / "mask" / "MCUCXR_0001_0.png")
        np.testing.assert_array_equal(stored, files.resize_mask(changed.left | film_of("MCUCXR_0001_0").right, SIZE))
    else:
        assert (row["sex"], row["age"]) == ("M", 99)


def test_film_that_gains_its_mask_leaves_unlabelled(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    write_raw(
        next(raw.rglob("CHNCXR_0001_0_mask.png")).with_name("CHNCXR_0025_0_mask.png"),
        film_of("CHNCXR_0025_0").mask * 255,
    )
    split = prepare(raw, tmp_path / "out").set_index("name").loc["CHNCXR_0025_0", "split"]
    assert split in prep.SPLITS
    assert sorted(p.parts[-3] for p in (tmp_path / "out").rglob("CHNCXR_0025_0.png")) == [split, split]


def test_film_that_loses_its_mask_becomes_unlabelled(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    next(raw.rglob("CHNCXR_0001_0_mask.png")).unlink()
    assert prepare(raw, tmp_path / "out").set_index("name").loc["CHNCXR_0001_0", "split"] == "unlabelled"
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("CHNCXR_0001_0.png")] == [
        "unlabelled/image/CHNCXR_0001_0.png"
    ]


def test_another_size_does_everything_again(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    prep.prepare(raw, tmp_path / "out", size=16, workers=1)
    assert {files.read_image(p).shape for p in (tmp_path / "out").glob("*/image/*.png")} == {(16, 16)}


class Killed(BaseException):
    """Stands for the signal: nothing in the code may catch it."""


@pytest.mark.parametrize("after", [1, 3])
def test_killed_run_goes_on_where_it_was(raw, tmp_path, monkeypatch, after):
    reference = prepare(raw, tmp_path / "reference")
    with monkeypatch.context() as patch:
        original, done = prep.prepare_film, []

        def dies(film, *rest):
            if len(done) == after:
                while (tmp_path / "out" / "films.jsonl").read_text().count("\n") < after:
                    time.sleep(0.01)  # the journal is another thread's
                raise Killed
            row = original(film, *rest)
            done.append(film.name)
            return row

        patch.setattr(prep, "prepare_film", dies)
        with pytest.raises(Killed):
            prep.prepare(raw, tmp_path / "out", size=SIZE, workers=1)
    again = count_films(monkeypatch)
    frame = prepare(raw, tmp_path / "out")
    assert sorted([*done, *again]) == EXPECTED  # none twice, none forgotten
    pd.testing.assert_frame_equal(frame, reference, check_dtype=False)


def test_run_killed_while_moving_films_goes_on(raw, tmp_path, monkeypatch):
    reference = prepare(raw, tmp_path / "reference")
    with monkeypatch.context() as patch:
        replace, moved = os.replace, []

        def dies(source, target):
            if str(target).endswith(".png") and prep._NEW in str(source).split(os.sep):
                moved.append(target)
                if len(moved) == 3:
                    raise Killed
            replace(source, target)

        patch.setattr(prep.os, "replace", dies)
        with pytest.raises(Killed):
            prepare(raw, tmp_path / "out")
    pd.testing.assert_frame_equal(prepare(raw, tmp_path / "out"), reference, check_dtype=False)


def test_ctrl_c_ends_prep_in_a_line_and_the_same_command_goes_on(tmp_path, monkeypatch, ctrl_c, capfd):
    for n in range(30):
        write_raw(tmp_path / "raw" / f"MCUCXR_{n:04d}_0.png", phantom(96, 80, seed=n).image)
    command = [
        "prep",
        "--input",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
        "--size",
        str(SIZE),
        "--workers",
        "1",
    ]
    done = count_films(monkeypatch)
    monkeypatch.setattr(prep, "prepare_film", lambda *film, quick=prep.prepare_film: time.sleep(0.02) or quick(*film))
    ctrl_c(Journal, "add", calls=4)
    assert main(command) == 130
    assert capfd.readouterr().err == "unet-lung prep: stopped; the same command resumes it\n"
    before = len(done)
    assert 3 < before < 15
    assert main(command) == 0
    assert len(done) - before == 30 - 4 and len(pd.read_csv(tmp_path / "out" / "manifest.csv")) == 30


def test_journal_cut_in_mid_line_is_read_up_to_there(raw, tmp_path, monkeypatch):
    prepare(raw, tmp_path / "out")
    journal = tmp_path / "out" / "films.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:30])
    lost = json.loads(lines[-1])["name"]
    done = count_films(monkeypatch)
    prepare(raw, tmp_path / "out")
    assert done == [lost]
    done.clear()
    prepare(raw, tmp_path / "out")
    assert done == []


def test_prepared_films_are_not_put_into_the_raw_folder_itself_but_may_lie_below(raw, tmp_path):
    before = sorted(raw.rglob("*"))
    (tmp_path / "link").symlink_to(raw)
    for out in (raw, tmp_path / "link"):
        with pytest.raises(ValueError, match="choose another folder"):
            prep.prepare(raw, out, size=32)
    assert sorted(raw.rglob("*")) == before
    assert len(prep.prepare(raw, raw / "prepared", size=32)) == len(prep.prepare(raw, raw / "prepared", size=32)) > 0


def test_changing_the_split_moves_files_and_reads_none(raw, tmp_path, monkeypatch):
    prepare(raw, tmp_path / "out")
    done = count_films(monkeypatch)
    monkeypatch.setattr(prep, "random_split", lambda frame, **_: pd.Series("val", frame.index))
    frame = prepare(raw, tmp_path / "out", split="random")
    assert done == []
    assert set(frame.loc[frame["split"] != "unlabelled", "split"]) == {"val"}
    assert {p.parts[-3] for p in (tmp_path / "out").rglob("*.png")} == {"val", "unlabelled"}


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, counts", [("montgomery", (96, 14, 28)), ("shenzhen", (396, 56, 114)), ("jsrt", (172, 25, 50))]
)
def test_published_lists_have_the_published_counts(source, counts):
    names = pd.read_csv(Path(prep.__file__).parent / "splits" / f"segmentation_{source}.csv")["name"]
    split = prep.published_split(pd.DataFrame({"name": names}))
    assert names.is_unique
    assert tuple(split.value_counts()[list(prep.SPLITS)]) == counts


def test_published_split_does_not_know_other_names():
    assert prep.published_split(pd.DataFrame({"name": ["MCUCXR_9999_0"]})).isna().all()


def many(n, source="shenzhen", first=0):
    return pd.DataFrame(
        {
            "name": [f"{source}{i:04d}" for i in range(first, first + n)],
            "source": source,
            "tb": [i % 3 == 0 for i in range(n)],
            "masked": True,
        }
    ).astype({"tb": int})


def test_random_split_puts_50_aside_and_deals_the_rest_80_to_20():
    split = prep.random_split(pd.concat([many(600), many(104, "montgomery")], ignore_index=True))
    assert split.value_counts().to_dict() == {"train": 523, "val": 131, "test": 50}


def test_random_split_of_a_small_set_gives_a_fifth_to_the_test():
    assert prep.random_split(many(100)).value_counts().to_dict() == {"train": 64, "val": 16, "test": 20}


def test_random_split_is_stratified_by_source_and_tb():
    frame = pd.concat([many(600), many(300, "montgomery")], ignore_index=True)
    share = (
        frame.assign(split=prep.random_split(frame))
        .groupby(["source", "tb"])["split"]
        .value_counts(normalize=True)
        .unstack()
    )
    assert (share.max() - share.min() < 0.02).all()


def test_random_split_is_decided_by_its_seed_alone():
    frame = many(300)
    assert prep.random_split(frame, seed=1).equals(prep.random_split(frame, seed=1))
    assert not prep.random_split(frame, seed=1).equals(prep.random_split(frame, seed=2))


def test_names_outside_the_published_lists_are_dealt_out_at_random():
    known = pd.DataFrame({"name": ["MCUCXR_0393_1"], "source": "montgomery", "tb": 1, "masked": True})
    split = prep.assign_splits(pd.concat([known, many(100)], ignore_index=True))
    assert split.iloc[0] == "train"
    assert split.iloc[1:].value_counts().to_dict() == {"train": 64, "val": 16, "test": 20}


def test_jsrt_outside_its_lists_is_for_testing():
    frame = many(10, "jsrt").assign(tb=None)
    assert set(prep.assign_splits(frame)) == {"test"}


def test_unknown_split_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="published, random or a CSV file, and fold1 is no file"):
        prep.assign_splits(many(3), split="fold1")


def test_a_folder_that_holds_something_else_is_not_written_to(tmp_path):
    write_raw(tmp_path / "raw" / "CXR_png" / "MCUCXR_0001_0.png", phantom().image)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.csv").write_text("mine")
    with pytest.raises(
        ValueError, match="out: it holds something else, as there is no prep.json: choose another folder"
    ):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.csv"]


# --- nothing lost, nothing left out in silence -----------------------------------------------------------------------


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("inside", ["new", "train/image", "."])
def test_raw_films_in_the_folder_to_write_are_refused_and_stay(raw, tmp_path, inside):
    prepare(raw, tmp_path / "out")
    montgomery(tmp_path / "out" / inside, ["MCUCXR_0002_0"])
    (tmp_path / "link").symlink_to(tmp_path / "out")
    before = everything(tmp_path / "out")
    for out in (tmp_path / "out", tmp_path / "link", tmp_path / "raw" / ".." / "out"):
        with pytest.raises(ValueError, match="choose another"):
            prepare(tmp_path / "out" / inside, out)
    assert everything(tmp_path / "out") == before


@pytest.mark.parametrize("link", ["film", "folder"])
def test_raw_films_that_are_links_into_the_folder_to_write_are_refused_and_stay(raw, tmp_path, link):
    prepare(raw, tmp_path / "out")
    montgomery(tmp_path / "out" / "theirs", ["MCUCXR_0002_0"])
    (tmp_path / "links" / "CXR_png").mkdir(parents=True)
    if link == "film":
        (tmp_path / "links" / "CXR_png" / "MCUCXR_0002_0.png").symlink_to(
            tmp_path / "out" / "theirs" / "CXR_png" / "MCUCXR_0002_0.png"
        )
    else:
        (tmp_path / "links" / "theirs").symlink_to(tmp_path / "out" / "theirs")
    before = everything(tmp_path / "out")
    with pytest.raises(ValueError, match="MCUCXR_0002_0.png: a raw film in the folder to write"):
        prepare(tmp_path / "links", tmp_path / "out")
    assert everything(tmp_path / "out") == before


def test_folders_of_somebody_elses_beside_the_prepared_films_stay(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    write_raw(tmp_path / "out" / "new" / "image" / "MCUCXR_0001_0.png", np.zeros((8, 8), np.uint8))
    theirs = everything(tmp_path / "out" / "new")
    (ours,) = (path for path in tmp_path.glob("out/*/image/MCUCXR_0001_0.png") if path.parts[-3] in prep.SPLITS)
    ours.unlink()
    prepare(raw, tmp_path / "out")
    assert ours.exists()
    prep.prepare(raw, tmp_path / "out", size=16, workers=1)
    assert everything(tmp_path / "out" / "new") == theirs


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("where", ["film", "journal"])
def test_a_full_disk_ends_the_preparation_and_the_next_run_goes_on(raw, tmp_path, monkeypatch, where):
    reference, opened = prepare(raw, tmp_path / "reference"), Path.open

    def full(path, mode="r", *rest, **options):
        is_full = (
            path.name.startswith(".MCUCXR_0108_1") if where == "film" else (path.name, mode) == ("films.jsonl", "a")
        )
        return open("/dev/full", mode.replace("x", "w")) if is_full else opened(path, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left on device: .*(films.jsonl|MCUCXR_0108_1.png)"):
            prepare(raw, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()
    pd.testing.assert_frame_equal(prepare(raw, tmp_path / "out"), reference, check_dtype=False)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_that_can_not_be_searched_is_a_problem_and_a_status(raw, tmp_path, monkeypatch, capfd, kind):
    if kind == "link":
        (raw / "more films").symlink_to("gone")
    else:
        (raw / "more films").mkdir()
        listdir = os.listdir

        def locked(path):
            if str(path).endswith("more films"):
                raise PermissionError(EACCES, "Permission denied", str(path))
            return listdir(path)

        monkeypatch.setattr(os, "listdir", locked)
    assert main(["prep", "--input", str(raw), "--out", str(tmp_path / "out"), "--size", str(SIZE)]) == 3
    problems = pd.read_csv(tmp_path / "out" / "problems.csv").set_index("name")
    assert ("can't be searched" if kind == "folder" else "no such file") in problems.loc["more films", "reason"]
    assert f"{raw / 'more films'}" in capfd.readouterr().err and len(
        pd.read_csv(tmp_path / "out" / "manifest.csv")
    ) == len(EXPECTED)


def test_a_linked_folder_is_prepared(tmp_path):
    montgomery(tmp_path / "store")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "films").symlink_to(tmp_path / "store")
    (tmp_path / "input" / "round").symlink_to(".")
    (tmp_path / "input" / "again").symlink_to(".")
    assert list(prepare(tmp_path / "input", tmp_path / "out")["name"]) == MONTGOMERY


def test_problems_of_files_whose_names_are_not_utf_8_are_written(tmp_path):
    montgomery(tmp_path / "input")
    (tmp_path / "input" / "CXR_png" / f"{MONTGOMERY[0]}.png").write_bytes(b"broken")
    raw = (tmp_path / "input").rename(tmp_path / os.fsdecode(b"r\xf6ntgen"))
    assert list(prepare(raw, tmp_path / "out")["name"]) == MONTGOMERY[1:]
    assert "r\\xf6ntgen" in pd.read_csv(tmp_path / "out" / "problems.csv")["reason"][0]
