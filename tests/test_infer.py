"""infer.py: masks for arrays, for files, and the scores of a prepared set."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import lost_in_the_middle, phantom, write_prepared, write_raw
from scipy import ndimage

from kaggle_utils import image as files
from kaggle_utils import infer, predictions
from kaggle_utils.files import DEFAULT_WEIGHTS, find_weights, printable
from kaggle_utils.infer import LungSegmenter, clean_mask
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.pictures.overlay import draw_overlay
from kaggle_utils.predictions import evaluate
from kaggle_utils.quality.measurements import MEASUREMENTS, measure

predict = partial(predictions.predict, force=True)  # the checks say, rightly, that a phantom is no chest film


class DarkIsLung(torch.nn.Module):
    """A network whose right answer is known: dark pixels inside a normalised film are lung."""

    def forward(self, images):
        return 20 * (-0.8 - images.float())


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_weights(path, UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    return path


@pytest.fixture
def segmenter(weights) -> LungSegmenter:
    segmenter = LungSegmenter(weights, device="cpu")
    segmenter.model, segmenter.dtype = DarkIsLung(), None
    return segmenter


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_masks_have_each_films_own_size_and_hold_0_and_1(segmenter):
    films = [phantom(90, 60), phantom(50, 70), phantom(33, 47)]
    masks = segmenter.masks([f.image for f in films])
    assert [m.shape for m in masks] == [(90, 60), (50, 70), (33, 47)]
    assert all(m.dtype == np.uint8 and set(np.unique(m)) == {0, 1} for m in masks)


def test_mask_lies_where_the_lungs_are_in_a_film_that_is_not_square(segmenter):
    film = phantom(128, 80)
    mask = segmenter.masks([film.image])[0]
    assert 2 * (mask & film.mask).sum() / (mask.sum() + film.mask.sum()) > 0.9


def test_probability_is_resized_before_the_threshold(segmenter):
    film = phantom(128, 80)
    segmenter.clean = False
    expected = files.resize_prob(segmenter.probabilities([film.image])[0], (128, 80)) > 0.5
    np.testing.assert_array_equal(segmenter.masks([film.image])[0], expected)


def test_mask_does_not_depend_on_the_other_films_of_the_batch(weights):
    segmenter = LungSegmenter(weights, device="cpu")
    segmenter.dtype = None
    films = [phantom(40, 40, s).image for s in range(3)]
    together = segmenter.probabilities(films)
    alone = np.concatenate([segmenter.probabilities([f]) for f in films])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_exposure_does_not_change_the_probability(segmenter):
    film = phantom(32, 32).image
    np.testing.assert_allclose(segmenter.probabilities([film // 2 + 60]), segmenter.probabilities([film]), atol=0.15)


@pytest.fixture
def two_heads(tmp_path):
    """One head finds dark pixels, the other bright ones."""
    path = tmp_path / "two.safetensors"
    save_weights(
        path,
        UNet(classes=2, base_channels=2, depth=2),
        {"size": 32, "sources": ["montgomery", "shenzhen"], "heads": ["montgomery", "shenzhen"]},
    )
    dark = DarkIsLung()

    def segmenter(**options):
        made = LungSegmenter(path, device="cpu", **options)
        made.model, made.dtype = (lambda images: torch.cat([dark(images), -dark(images)], dim=1)), None
        return made

    return segmenter


def test_head_decides_whose_rules_the_masks_follow(two_heads):
    film = phantom(32, 32).image
    first, second = two_heads().probabilities([film]), two_heads(head="shenzhen").probabilities([film])
    np.testing.assert_allclose(first, two_heads(head="montgomery").probabilities([film]))
    np.testing.assert_allclose(first + second, 1, atol=1e-6)
    both = two_heads().probabilities([film, film], ["shenzhen", "montgomery"])
    np.testing.assert_allclose(both, np.concatenate([second, first]))


def test_unknown_head_is_an_error_that_names_those_there(two_heads, weights):
    with pytest.raises(ValueError, match="no head 'jsrt': the heads are montgomery, shenzhen$"):
        two_heads(head="jsrt")
    with pytest.raises(ValueError, match="no head 'shenzhen': there is one output, whose .* the rules of montgomery$"):
        LungSegmenter(weights, device="cpu", head="shenzhen")


def test_a_convention_is_that_of_the_first_set_that_has_it(tmp_path, two_heads, weights):
    path, sets = tmp_path / "heads.safetensors", ["montgomery", "shenzhen", "kermany"]
    save_weights(path, UNet(classes=3, base_channels=2, depth=2), {"size": 32, "sources": sets, "heads": sets})
    for wanted, head in (("lung-field", "montgomery"), ("with-heart", "kermany"), (None, "montgomery")):
        assert LungSegmenter(path, device="cpu", head=wanted).head == head
        assert LungSegmenter(path, device="cpu", convention=wanted).head == head
    assert LungSegmenter(weights, device="cpu", convention="lung-field").head == ""


@pytest.mark.parametrize(
    "heads, sources, head, found",
    [
        (True, ["montgomery", "shenzhen", "kermany"], None, {"lung-field": "montgomery", "with-heart": "kermany"}),
        (True, ["kermany", "montgomery", "shenzhen"], "shenzhen", {"lung-field": "shenzhen", "with-heart": "kermany"}),
        (True, ["mine", "montgomery"], None, {"lung-field": "montgomery"}),
        (False, ["montgomery", "shenzhen"], None, {"lung-field": ""}),
        (False, ["montgomery", "kermany"], None, {}),
        (False, ["mine"], None, {}),
    ],
)
def test_conventions_of_a_network_each_with_its_head(tmp_path, heads, sources, head, found):
    header = {"size": 32, "sources": sources, **({"heads": sources} if heads else {})}
    classes = len(sources) if heads else 1
    save_weights(tmp_path / "w.safetensors", UNet(classes=classes, base_channels=2, depth=2), header)
    assert LungSegmenter(tmp_path / "w.safetensors", device="cpu", head=head).conventions == found


def test_a_convention_that_weights_never_learned_is_refused_in_words(tmp_path, two_heads):
    learned = r"learned lung-field masks only \(of montgomery, shenzhen\); with-heart needs weights trained on kermany"
    for choice in ({"convention": "with-heart"}, {"head": "with-heart"}):
        with pytest.raises(ValueError, match=learned + ": `train --sources … kermany`$"):
            two_heads(**choice)
    save_weights(tmp_path / "own.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["mine"]})
    with pytest.raises(ValueError, match=r"learned other masks only \(of mine\); lung-field .* montgomery or shenzhen"):
        LungSegmenter(tmp_path / "own.safetensors", device="cpu", convention="lung-field")


def test_a_convention_is_one_of_two_and_stands_alone(two_heads):
    with pytest.raises(ValueError, match="convention is lung-field or with-heart, not 'heart'"):
        two_heads(convention="heart")
    with pytest.raises(ValueError, match="head 'shenzhen' and convention 'lung-field': give one of them"):
        two_heads(head="shenzhen", convention="lung-field")


def test_films_of_a_set_with_a_head_are_scored_by_that_head(tmp_path, two_heads):
    root = write_prepared(tmp_path / "set", {"test": 2})
    for source, first in (("shenzhen", 20), ("jsrt", 40)):
        write_prepared(root, {"test": 2}, source=source, first=first)
    dice = evaluate(root, two_heads(), sizes=[32]).groupby("source")["dice"].mean()
    assert dice["montgomery"] > 0.9 and dice["jsrt"] > 0.9 > 0.5 > dice["shenzhen"]


def test_flip_averages_with_the_mirrored_film(weights):
    plain, flipped = (LungSegmenter(weights, device="cpu", flip=flip) for flip in (False, True))
    plain.dtype = flipped.dtype = None
    film = phantom(32, 32).image
    mirrored = plain.probabilities([np.ascontiguousarray(film[:, ::-1])])[0, :, ::-1]
    np.testing.assert_allclose(
        flipped.probabilities([film])[0], (plain.probabilities([film])[0] + mirrored) / 2, atol=1e-5
    )


@pytest.mark.parametrize("threshold, lung", [(1e-6, 1), (1 - 1e-6, 0)])
def test_threshold_is_an_argument(weights, threshold, lung):
    masks = LungSegmenter(weights, device="cpu", threshold=threshold).masks([phantom().image])
    assert (masks[0] == lung).all()


@pytest.mark.parametrize("threshold", [9, -1, 0, 1, True, "a", None, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold is a number between 0 and 1, not {threshold!r}"):
        LungSegmenter(device="cpu", threshold=threshold)


def test_model_is_in_evaluation_mode(weights):
    assert not LungSegmenter(weights, device="cpu").model.training


def test_weights_that_ship_are_found_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_weights() == find_weights("lungs") == DEFAULT_WEIGHTS
    assert find_weights("lungs.safetensors") == Path("lungs.safetensors")  # a file here
    assert find_weights(tmp_path / "mine.safetensors") == tmp_path / "mine.safetensors"
    assert LungSegmenter("lungs", device="cpu").version == LungSegmenter(device="cpu").version


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("kaggle_utils.files.DEFAULT_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="--weights"):
        LungSegmenter()


def test_weights_without_the_networks_size_are_refused_with_the_files_name(tmp_path):
    save_weights(tmp_path / "bare.safetensors", UNet(base_channels=2, depth=2))
    with pytest.raises(ValueError, match="bare.safetensors.*size"):
        LungSegmenter(tmp_path / "bare.safetensors")


# --- cleaning --------------------------------------------------------------------------------------------------------


def test_two_largest_components_are_kept_and_their_holes_filled():
    mask = np.zeros((30, 30), np.uint8)
    mask[2:20, 2:10], mask[2:22, 15:25] = 1, 1
    expected = mask.copy()
    mask[5:8, 4:7] = 0  # a hole
    mask[27:29, 27:29] = 1  # a third component
    np.testing.assert_array_equal(clean_mask(mask), expected)


@pytest.mark.parametrize("seed", range(3))
def test_cleaning_equals_scipy_labels(seed):
    mask = (cv2.GaussianBlur(np.random.default_rng(seed).random((64, 64)), (0, 0), 2) > 0.5).astype(np.uint8)
    labels, count = ndimage.label(mask)
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1))
    largest = 1 + np.argsort(-areas, kind="stable")[:2]
    np.testing.assert_array_equal(clean_mask(mask), ndimage.binary_fill_holes(np.isin(labels, largest)))


def test_one_lung_or_none_stays_as_it_is():
    one = np.zeros((9, 9), np.uint8)
    one[2:5, 2:5] = 1
    np.testing.assert_array_equal(clean_mask(one), one)
    assert not clean_mask(one * 0).any()


def test_cleaning_can_be_switched_off(weights):
    segmenter = LungSegmenter(weights, device="cpu", clean=False)
    segmenter.model, segmenter.dtype = DarkIsLung(), None
    film = phantom(64, 64).image
    film[2:5, 2:5] = 0  # a speck
    assert segmenter.masks([film])[0][3, 3] == 1
    segmenter.clean = True
    assert segmenter.masks([film])[0][3, 3] == 0


# --- predict ---------------------------------------------------------------------------------------------------------


def test_prediction_writes_masks_overlays_and_a_table(folder, segmenter, tmp_path):
    table = predict([folder], tmp_path / "out", segmenter, batch=3)
    assert table["name"].tolist() == ["a", "b", "c", "d"] and (table["error"] == "").all()
    for row in table.itertuples():
        mask = cv2.imread(row.mask, cv2.IMREAD_UNCHANGED)
        assert mask.shape == (row.height, row.width) == (40, 32) and set(np.unique(mask)) == {0, 255}
        assert row.lung_px == (mask > 0).sum() and row.lung_share == pytest.approx((mask > 0).mean(), abs=1e-4)
        assert cv2.imread(row.overlay).shape == (40, 32, 3)
    stored = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    assert list(stored) == [
        "name",
        "path",
        "height",
        "width",
        "lung_px",
        "lung_share",
        "quality",
        "flag",
        "reasons",
        "mask",
        "overlay",
        "notes",
        "error",
    ]
    assert stored["name"].tolist() == table["name"].tolist()


def test_contact_sheet_shows_the_most_doubtful_masks_first(folder, tmp_path):
    out, names = tmp_path / "out", ["good", "doubtful", "a name that is far too long to stand below a picture"]
    qualities = pd.Series([0.97, 0.6, 0.9])
    for n, name in enumerate(names):
        picture = np.full((40, 60, 3), 80 * n + 40, np.uint8)
        write_raw(out / "overlays" / f"{name}.png", picture)
    table = pd.DataFrame({"name": names, "quality": qualities, "flag": ["ok", "check", "ok"]})
    predictions._write_sheet(table, out)
    sheet = cv2.imread(str(out / "contact.png")).astype(int)
    middle = [sheet[200, 8 + 264 * n + 128] for n in range(3)]
    assert [int(pixel[0]) for pixel in middle] == [120, 200, 40]
    captions = sheet[2 * 22 + 256 :]
    orange = (captions[..., 2] > 180) & (captions[..., 0] < 60)
    assert orange[:, :264].any() and not orange[:, 264:].any()
    left_out = captions[:22, 528:536]  # between the captions of the second and the third
    assert left_out.max() < 60
    predictions._write_sheet(table[:0], out)
    assert not (out / "contact.png").exists()


def test_written_mask_is_that_of_the_segmenter(folder, segmenter, tmp_path):
    predict([folder / "b.png"], tmp_path / "out", segmenter)
    np.testing.assert_array_equal(
        files.read_mask(tmp_path / "out" / "masks" / "b.png"), segmenter.masks([files.read_image(folder / "b.png")])[0]
    )


def test_no_name_of_a_file_ends_a_run(odd_names, segmenter, tmp_path):
    out = tmp_path / os.fsdecode(b"\xf6ut")
    table = predict([tmp_path / "odd"], out, segmenter, formats=("png", "coco"))
    assert (table["error"] == "").all() and set(table["name"]) == set(odd_names.values())
    stored = pd.read_csv(out / "predictions.csv").set_index("name")
    assert (
        set(pd.read_parquet(BytesIO((out / "coco.parquet").read_bytes()))["path"])
        == set(stored["path"])
        == set(map(printable, odd_names))
    )
    for name in odd_names.values():
        assert (out / "masks" / f"{name}.png").exists() and stored.loc[name, "overlay"] == printable(
            out / "overlays" / f"{name}.png"
        )
    assert set(pd.read_csv(out / "measurements.csv")["name"]) == set(odd_names.values())


def test_a_damaged_film_of_an_odd_name_is_a_row_with_one_line(odd_names, segmenter, tmp_path):
    for path in odd_names:
        path.write_bytes(b"\x89PNG")
    table = predict([tmp_path / "odd"], tmp_path / "out", segmenter)
    assert set(table["name"]) == {
        odd_names[path] for path in odd_names if path.suffix == ".png"
    }  # what has no suffix is no PNG any more
    assert all(error.startswith(path) and "\n" not in error for path, error in zip(table["path"], table["error"]))


@pytest.mark.parametrize("where", ["films", "."], ids=["the input's own folder", "the folder above"])
def test_results_beside_the_films_are_not_taken_for_films(folder, segmenter, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert predict(["films", "films/b.png"], where, segmenter)["name"].tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_one_bad_file_among_many_is_a_row_with_its_error(folder, segmenter, tmp_path, batch):
    whole = (folder / "b.png").read_bytes()
    (folder / "ab_bad.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zz_bad.png").write_bytes(b"")
    table = predict([folder], tmp_path / "out", segmenter, batch=batch).set_index("name")
    assert "truncated" in table.loc["ab_bad", "error"] and "empty" in table.loc["zz_bad", "error"]
    assert (table.drop(index=["ab_bad", "zz_bad"])["error"] == "").all() and len(table) == 6
    assert sorted(os.listdir(tmp_path / "out" / "masks")) == ["a.png", "b.png", "c.png", "d.png"]


def test_damaged_film_is_segmented_with_a_note_of_what_the_decoder_said(folder, segmenter, tmp_path, capfd):
    whole = files.encode_image(phantom(400, 320).image, ".jpg")
    (folder / "ab_bad.jpg").write_bytes(lost_in_the_middle(whole))
    table = predict([folder], tmp_path / "out", segmenter, batch=2).set_index("name")
    assert table.loc["ab_bad", "notes"].startswith("damaged: ") and table.loc["ab_bad", "lung_px"] >= 0
    assert not table.drop(index="ab_bad")["notes"].str.contains("damaged").any() and (table["error"] == "").all()
    assert "Corrupt" not in capfd.readouterr().err


def test_folder_of_dicom_is_segmented_with_a_reason_for_what_is_no_film(study, segmenter, tmp_path):
    table = predict([study], tmp_path / "out", segmenter)
    table["notes"] = table["notes"].fillna("")
    errors, notes = dict(zip(table["name"], table["error"])), dict(zip(table["name"], table["notes"]))
    assert notes["IM2"].split("; ")[0] == "spacing from PixelSpacing" and "MONOCHROME1 inverted" in notes[
        "1.2.840.1"
    ].split("; ")
    assert errors["IM2"] == errors["1.2.840.1"] == ""
    assert "without an image" in errors["SR1"] and "less than expected" in errors["IM3"] and "empty" in errors["cut"]
    stored = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    assert stored["notes"].tolist() == table["notes"].tolist()


def test_spacing_of_a_dicom_film_is_kept(study):
    assert infer.read_checked(study / "ST1/IM2", "x", force=True).spacing_mm == (0.2, 0.1)


def test_without_pydicom_a_dicom_file_is_a_row_that_says_what_to_install(study, segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    write_raw(study / "film.png", phantom(40, 32).image)
    table = predict([study / "ST1", study / "film.png"], tmp_path / "out", segmenter).set_index("name")
    assert "pip install pydicom" in table.loc["IM2", "error"] and table.loc["film", "error"] == ""


def test_each_of_the_childrens_films_that_ship_has_a_mask_or_a_reason(tmp_path):
    examples = Path(infer.__file__).parent / "assets" / "examples"
    table = predictions.predict([examples], tmp_path, LungSegmenter(device="cpu"))
    assert list(table["name"]) == sorted(path.stem for path in examples.glob("*.jpg")) and len(table) == 12
    for film in table.itertuples():
        if film.error:
            assert f"{film.name}.jpg: refused: " in film.error
        else:
            assert 0.05 < film.lung_share < 0.6 and files.read_mask(film.mask).any()


def test_only_bad_files_still_give_a_table(segmenter, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    assert predict([tmp_path / "bad.png"], tmp_path / "out", segmenter)["error"].str.contains("empty").all()


def overlapping_pairs():
    return [
        ["left/film.png", "right/film.png"],
        ["film.png", "film.jpg"],
        ["a/film.png", "b/FILM.png"],
        pytest.param(["x/b/film.png", "x_b/film.png"], id="a folder named like another's path"),
    ]


def test_measurements_have_a_row_for_each_film_with_a_mask(folder, segmenter, tmp_path):
    (folder / "broken.png").write_bytes(b"no film")
    predict([folder], tmp_path / "out", segmenter, batch=2)
    table = pd.read_csv(tmp_path / "out" / "measurements.csv")
    assert table["name"].tolist() == ["a", "b", "c", "d"] and list(table) == ["name", *MEASUREMENTS]
    for row in table.to_dict("records"):
        expected = measure(files.read_mask(tmp_path / "out" / "masks" / f"{row['name']}.png"))
        assert {key: row[key] for key in MEASUREMENTS} == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_measurements_are_in_mm_where_the_film_has_a_spacing(tmp_path, monkeypatch, segmenter):
    film = phantom(40, 32)
    monkeypatch.setattr(
        "kaggle_utils.infer.read_film", lambda path, **_: files.Radiograph(film.image, spacing_mm=(2.0, 0.5))
    )
    write_raw(tmp_path / "a.png", film.image)
    predict([tmp_path / "a.png"], tmp_path / "out", segmenter)
    row = pd.read_csv(tmp_path / "out" / "measurements.csv").loc[0]
    assert row["right_height_mm"] == 2 * row["right_height_px"] > 0 and row["left_width_mm"] == row["left_width_px"] / 2


def test_measurements_of_no_mask_are_a_table_without_rows(tmp_path, segmenter):
    (tmp_path / "broken.png").write_bytes(b"no film")
    predict([tmp_path / "broken.png"], tmp_path / "out", segmenter)
    assert pd.read_csv(tmp_path / "out" / "measurements.csv").empty


@pytest.mark.parametrize("pair", overlapping_pairs())
def test_films_of_the_same_stem_do_not_overwrite_each_other(segmenter, tmp_path, pair):
    for seed, name in enumerate(pair):
        write_raw(tmp_path / "films" / name, phantom(40 + seed, 32, seed).image)
    table = predict([tmp_path / "films"], tmp_path / "out", segmenter)
    assert table["mask"].nunique() == 2
    assert [cv2.imread(path).shape[:2] for path in table["mask"]] == list(
        zip(table["height"].astype(int), table["width"].astype(int))
    )


def test_overlay_outlines_the_lungs_in_orange():
    film, mask = phantom(64, 64), np.zeros((64, 64), np.uint8)
    mask[10:40, 10:30] = 1
    overlay = draw_overlay(film.image, mask)
    np.testing.assert_allclose(overlay[10, 20], (0, 159, 230), atol=40)  # the line is antialiased
    np.testing.assert_array_equal(overlay[50], cv2.cvtColor(film.image, cv2.COLOR_GRAY2BGR)[50])


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_sources(tmp_path):
    """Montgomery, which the weights know, and JSRT, which they don't."""
    root = write_prepared(tmp_path / "set", {"train": 2, "val": 1, "test": 3})
    return write_prepared(root, {"train": 4, "test": 2, "unlabelled": 1}, source="jsrt", first=50)


def test_foreign_source_is_scored_on_all_its_films_besides_the_split(two_sources, segmenter):
    scores = evaluate(two_sources, segmenter, sizes=[32])
    counts = scores.groupby(["source", "protocol"]).size().to_dict()
    assert counts == {("montgomery", "test"): 3, ("jsrt", "test"): 2, ("jsrt", "all"): 6}


def test_known_source_is_scored_on_the_split_alone(two_sources, segmenter):
    scores = evaluate(two_sources, segmenter, split="val", sizes=[32])
    assert scores[scores["source"] == "montgomery"]["protocol"].tolist() == ["val"]


def test_scores_have_a_row_a_film_and_size(two_sources, segmenter):
    scores = evaluate(two_sources, segmenter, sizes=[16, 32])
    known = scores[scores["source"] == "montgomery"]
    assert known.groupby("size")["name"].nunique().to_dict() == {16: 3, 32: 3}
    assert known.loc[known["size"] == 32, "dice"].between(0.9, 1).all()


def test_raw_sets_add_the_scores_at_each_films_own_size(two_sources, segmenter, tmp_path):
    manifest = pd.read_csv(two_sources / "manifest.csv")
    raw, old, new = phantom(50, 44, seed=3), manifest.loc[3, "name"], "MCUCXR_0001_0"
    for kind in ("image", "mask"):
        (two_sources / "test" / kind / f"{old}.png").rename(two_sources / "test" / kind / f"{new}.png")
    manifest.loc[3, ["name", "height", "width"]] = [new, 50, 44]
    manifest.to_csv(two_sources / "manifest.csv", index=False)
    write_raw(tmp_path / "raw" / "CXR_png" / f"{new}.png", raw.image)
    write_raw(tmp_path / "raw" / "masks" / f"{new}.png", raw.mask * 255)
    scores = evaluate(two_sources, segmenter, sizes=[32], raw=tmp_path / "raw").query("size == 0")
    pred = segmenter.finish(
        segmenter.probabilities([files.read_image(two_sources / "test" / "image" / f"{new}.png")])[0], (50, 44)
    )
    assert scores["name"].tolist() == [new]
    assert scores["dice"].iloc[0] == pytest.approx(2 * (pred & raw.mask).sum() / (pred.sum() + raw.mask.sum()))


def test_scores_do_not_depend_on_the_batch(two_sources, segmenter):
    pd.testing.assert_frame_equal(*(evaluate(two_sources, segmenter, sizes=[32], batch=batch) for batch in (1, 4)))


def test_split_without_films_is_an_error_in_words(tmp_path, segmenter):
    with pytest.raises(ValueError, match="val"):
        evaluate(write_prepared(tmp_path / "set", {"train": 2}), segmenter, split="val")


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[100] * 30, [1000] * 5, [5000] * 4, [100, 5000, 100, 0, 900, 900, 0] * 3, []], ids=str
)
@pytest.mark.parametrize("batch", [1, 4])
def test_films_wait_in_memory_only_as_far_as_there_is_room(monkeypatch, sizes, batch):
    held, most, lock = {}, [], threading.Lock()

    def read(path, name, force):
        with lock:
            held[name] = sizes[int(name)]
            most.append((sum(held.values()), len(held)))
        return infer.Unsegmented(name, path, "")

    monkeypatch.setattr(infer, "MOST_BYTES", 1000)
    monkeypatch.setattr(infer, "film_bytes", lambda path: sizes[int(path)])
    monkeypatch.setattr(infer, "read_checked", read)
    names = []
    with ThreadPoolExecutor(3) as pool:
        for films in infer.read_ahead([(str(n), str(n)) for n in range(len(sizes))], pool, batch):
            assert 0 < len(films) <= batch
            names += [film.name for film in films]
            time.sleep(0.002)  # while the next ones are read
            with lock:
                for name in names:
                    held.pop(name, None)
    assert names == [str(n) for n in range(len(sizes))]
    assert all(size <= 1000 or count == 1 for size, count in most) and all(count <= 2 * batch for _, count in most)


def test_films_are_read_while_others_are_segmented(monkeypatch):
    begun = []
    monkeypatch.setattr(infer, "film_bytes", lambda path: 1)
    monkeypatch.setattr(
        infer, "read_checked", lambda path, name, force: begun.append(name) or infer.Unsegmented(name, path, "")
    )
    with ThreadPoolExecutor(1) as pool:
        first = next(infer.read_ahead([(name, name) for name in "abcdefgh"], pool, 2))
        pool.submit(int).result()  # what waits before it is done
    assert [film.name for film in first] == ["a", "b"] and begun == ["a", "b", "c", "d"]
