"""Raw sets: Kermany's, found by its layout; and sets of one's own, whatever the names and the form of their masks."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicoms import dicom
from phantoms import phantom
from pycocotools import mask as coco

from kaggle_utils import image as files
from kaggle_utils.cli import main
from kaggle_utils.data import read_manifest
from kaggle_utils.dicom.seg import write_dicom_seg
from kaggle_utils.prep import assign_splits, prepare, random_split
from kaggle_utils.sets import combined_mask, find_films, find_own
from kaggle_utils.sets.film import RunLengths
from kaggle_utils.sets.public import kermany_list

SIZE = 96
FILMS = {f"patient {n}.v1": phantom(SIZE, SIZE, n) for n in range(3)}  # a space and a dot in their names


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_image(path, image)


def write_mask(path, mask):
    write_image(path, mask * 255)


def write_images(folder):
    for name, film in FILMS.items():
        write_image(folder / f"{name}.png", film.image)
    return folder


def pairs(mask):
    """Start and length of each run along the rows, counted from 1."""
    ends = np.flatnonzero(np.diff(mask.ravel(), prepend=0, append=0))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(ends[::2], ends[1::2]))


def packed(mask):
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def whole(folder):
    for name, film in FILMS.items():
        write_mask(folder / f"{name}_mask.png", film.mask)


def zero_and_one(folder):
    for name, film in FILMS.items():
        write_image(folder / f"{name}.tif", film.mask)


def side_folders(folder):
    for name, film in FILMS.items():
        write_mask(folder / "Left Lung" / f"{name}.png", film.left)
        write_mask(folder / "Right Lung" / f"{name}.png", film.right)


def side_suffixes(folder):
    for name, film in FILMS.items():
        write_mask(folder / f"{name}_left_mask.png", film.left)
        write_mask(folder / f"{name}-right.png", film.right)


def label_maps(folder):
    for name, film in FILMS.items():
        write_image(folder / f"{name}.png", film.right + 2 * film.left)


def half_the_size(folder):
    for name, film in FILMS.items():
        write_mask(folder / f"{name}.png", files.resize_mask(film.mask, SIZE // 2))


@pytest.mark.parametrize("write", [whole, zero_and_one, side_folders, side_suffixes, label_maps, half_the_size])
def test_masks_of_any_name_and_form_are_paired(tmp_path, write):
    write(tmp_path / "masks")
    films = find_own(write_images(tmp_path / "images"), tmp_path / "masks", "mine")
    assert [film.name for film in films] == list(FILMS) and {film.source for film in films} == {"mine"}
    for film in films:
        differ = combined_mask(film, (SIZE, SIZE)) != FILMS[film.name].mask
        assert differ.mean() < (0.03 if write is half_the_size else 1e-9)


def chexmask(path):
    rows = [
        {"Image Index": f"{name}.png", "Left Lung": pairs(f.left), "Right Lung": pairs(f.right), "Heart": "1 5",
         "Height": SIZE, "Width": SIZE}
        for name, f in FILMS.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)


def contest(path):
    rows = [
        {"ImageID": name, "EncodedPixels": pairs(half), "height": SIZE, "width": SIZE}
        for name, film in FILMS.items()
        for half in (film.left, film.right)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def coco_table(path):
    rows = [{"name": n, "segmentation": packed(half)} for n, film in FILMS.items() for half in (film.left, film.right)]
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table["segmentation"] = table["segmentation"].map(json.dumps)
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)


def coco_json(path):
    images, annotations = [], []
    for number, (name, film) in enumerate(FILMS.items()):
        images.append({"id": number, "file_name": f"scans/{name}.png", "height": SIZE, "width": SIZE})
        uncompressed = np.diff(np.r_[0, np.flatnonzero(np.diff(film.left.ravel("F"), prepend=0)), SIZE * SIZE])
        for category, segmentation in ((1, packed(film.right)), (2, {"counts": uncompressed.tolist()})):
            annotations.append({"image_id": number, "category_id": category, "segmentation": segmentation})
        annotations.append({"image_id": number, "category_id": 3, "segmentation": [[0, 0, 90, 0, 90, 90, 0, 90]]})
    categories = [{"id": 1, "name": "Right lung"}, {"id": 2, "name": "left_lung"}, {"id": 3, "name": "heart"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


TABLES = [
    (chexmask, "masks.csv"),
    (contest, "masks.csv"),
    (coco_table, "masks.csv"),
    (coco_table, "masks.parquet"),
    (coco_json, "masks.json"),
]


@pytest.mark.parametrize("write, name", TABLES, ids=lambda value: getattr(value, "__name__", value))
def test_run_lengths_of_a_table_are_masks(tmp_path, write, name):
    write(tmp_path / name)
    films = find_own(write_images(tmp_path / "images"), tmp_path / name, "mine")
    assert [film.name for film in films] == list(FILMS)
    for film in films:
        np.testing.assert_array_equal(combined_mask(film, (SIZE, SIZE)), FILMS[film.name].mask)


def test_what_predict_wrote_as_coco_is_a_set_of_masks(tmp_path):
    folder = write_images(tmp_path / "images")
    assert main(["predict", str(folder), "--out", str(tmp_path / "p"), "--force", "--format", "coco"]) == 0
    films = find_own(folder, tmp_path / "p" / "coco.parquet", "mine")
    assert [film.name for film in films if film.runs] and len(films) == 3


def test_dicom_segmentations_are_masks_of_dicom_radiographs(tmp_path):
    film = phantom(SIZE, SIZE, 5)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    path = tmp_path / "images" / "one.dcm"
    path.write_bytes(dicom(film.image, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4"))
    write_dicom_seg(tmp_path / "masks" / "one.dcm", (film.right, film.left), path, version="1")
    np.testing.assert_array_equal(files.read_mask(tmp_path / "masks" / "one.dcm"), film.mask)
    (found,) = find_own(tmp_path / "images", tmp_path / "masks", "mine")
    np.testing.assert_array_equal(combined_mask(found, (SIZE, SIZE)), film.mask)


def test_polygons_are_filled(tmp_path):
    write_images(tmp_path / "images")
    name = next(iter(FILMS))
    annotation = {"image_id": 0, "category_id": 1, "segmentation": [[10, 20, 40, 20, 40, 80, 10, 80]]}
    image = {"id": 0, "file_name": f"{name}.png", "height": SIZE, "width": SIZE}
    (tmp_path / "m.json").write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    film = find_own(tmp_path / "images", tmp_path / "m.json", "mine")[0]
    mask = combined_mask(film, (SIZE, SIZE))
    assert mask[50, 25] and mask.sum() == pytest.approx(30 * 60, rel=0.05)


def test_own_set_is_prepared_and_its_patients_kept_together(tmp_path):
    folder = tmp_path / "images"
    names = [f"x{n}" for n in range(20)]
    for n, name in enumerate(names):
        film = phantom(SIZE, SIZE, n)
        write_image(folder / f"{name}.png", film.image)
        write_mask(tmp_path / "masks" / f"{name}.png", film.mask)
    write_image(folder / "unmasked.png", phantom(SIZE, SIZE, 99).image)
    write_mask(tmp_path / "masks" / "nobody.png", phantom(SIZE, SIZE, 98).mask)
    patients = pd.DataFrame({"name": [*names, "unmasked"], "patient": [f"p{n // 4}" for n in range(21)]})
    patients.to_csv(tmp_path / "split.csv", index=False)
    arguments = ["prep", "--images", folder, "--masks", tmp_path / "masks", "--out", tmp_path / "out", "--name", "mine"]
    assert main([*map(str, arguments), "--split", str(tmp_path / "split.csv")]) == 0
    manifest = read_manifest(tmp_path / "out").set_index("name")
    assert set(manifest["source"]) == {"mine"} and manifest.loc["unmasked", "split"] == "unlabelled"
    one_split = manifest.loc[names].groupby([n // 4 for n in range(20)])["split"].nunique()
    assert (one_split == 1).all() and set(manifest.loc[names, "split"]) == {"train", "val", "test"}
    problems = pd.read_csv(tmp_path / "out" / "problems.csv")
    assert problems[["name", "reason"]].values.tolist() == [["nobody", "mask without image"]]


def test_a_changed_table_of_masks_is_read_again(tmp_path):
    folder, table = write_images(tmp_path / "images"), tmp_path / "masks.csv"
    contest(table)
    first = prepare(folder, tmp_path / "out", masks=table, split="random")
    text = pd.read_csv(table)
    text[text["ImageID"] != text["ImageID"][0]].to_csv(table, index=False)
    second = prepare(folder, tmp_path / "out", masks=table, split="random")
    assert "unlabelled" not in set(first["split"]) and (second["split"] == "unlabelled").sum() == 1


def test_splits_of_a_list_are_taken(tmp_path):
    frame = pd.DataFrame({"name": ["a", "b", "c"], "source": "mine", "tb": None, "masked": [True, True, False]})
    (tmp_path / "s.csv").write_text("name,split\na,test\nb,train\nc,train\n")
    assert assign_splits(frame, split=tmp_path / "s.csv").tolist() == ["test", "train", "unlabelled"]


LISTS = {
    "name,group\na,test\n": "no columns name and split",
    "name,split\na,tset\nb,train\n": "tset is no split",
    "name,split\na,test\n": "1 radiographs are not in it, the first is b",
}


@pytest.mark.parametrize("text", LISTS)
def test_a_list_that_is_none_is_refused(tmp_path, text):
    frame = pd.DataFrame({"name": ["a", "b"], "source": "mine", "tb": None, "masked": True})
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ValueError, match=LISTS[text]):
        assign_splits(frame, split=tmp_path / "s.csv")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("1 5 3 4", "runs overlap"),
        ("9000 500", "don't fill a mask"),
        ("1 2 3", "odd number"),
        ("a b", "are numbers"),
        ("0 4", "begin before the mask"),
    ],
)
def test_run_lengths_that_are_no_mask_are_refused_with_their_place(text, reason):
    with pytest.raises(ValueError, match=f"t.csv, row 2: .*{reason}"):
        RunLengths.from_pairs(text, (SIZE, SIZE), "t.csv, row 2").decode((SIZE, SIZE))


@pytest.mark.parametrize("counts", ["no runs", {"a": 1}, 5, [1, 2]], ids=str)
def test_coco_segmentation_that_is_none_is_refused(counts):
    with pytest.raises(ValueError, match="t.json, row 2"):
        RunLengths.from_coco({"counts": counts}, (SIZE, SIZE), "t.json, row 2").decode((SIZE, SIZE))


WRONG = {
    "one name": (["a/film.png", "a/film.jpg"], ["film.png"], "have one name"),
    "second mask": (["film.png"], ["film-mask.png", "film_mask.png"], "a second mask of film"),
    "the same folder": (["film.png"], ["../images/film.png"], "no folder of masks|no mask has the name"),
    "nothing paired": (["film.png"], ["other.png"], "no mask has the name of a radiograph"),
    "no radiograph": ([], ["film.png"], "no radiograph in it|no such folder"),
    "no masks": (["film.png"], [], "no folder of masks"),
}


@pytest.mark.parametrize("images, masks, reason", WRONG.values(), ids=WRONG)
def test_own_set_that_is_not_clear_is_refused_in_words(tmp_path, images, masks, reason):
    for folder, names in (("images", images), ("masks", masks)):
        for name in names:
            write_image(tmp_path / folder / name, phantom(SIZE, SIZE).image)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        find_own(tmp_path / "images", tmp_path / "masks", "mine")


@pytest.mark.parametrize("name", ["", "My set", "a/b", "jsrt", "kermany"])
def test_a_name_that_is_no_sets_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="the name of a set"):
        find_own(write_images(tmp_path / "images"), tmp_path, name)


@pytest.mark.parametrize("options", [["--images", "a"], ["--input", "a", "--masks", "b"], []])
def test_images_and_masks_go_together(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    try:
        assert main(["prep", *options]) == 1
    except SystemExit as end:
        assert end.code == 2
    assert "--images" in capsys.readouterr().err


KERMANY = ["IM-0117-0001", "person1000_virus_1681"]


def test_kermanys_radiographs_get_their_masks_from_the_package(tmp_path):
    for n, (folder, name) in enumerate(zip(("NORMAL", "PNEUMONIA"), KERMANY)):
        write_image(tmp_path / "chest_xray" / "train" / folder / f"{name}.jpeg", phantom(200, 300, n).image)
    films = find_films(tmp_path)
    assert [(film.name, film.source, film.patient) for film in films] == [
        ("IM-0117-0001", "kermany", "IM-0117"),
        ("person1000_virus_1681", "kermany", "person1000"),
    ]
    for film in films:
        mask = combined_mask(film, (200, 300))
        assert mask.shape == (200, 300) and 0.1 < mask.mean() < 0.65
    published = kermany_list().set_index("name")["split"]
    table = prepare(tmp_path, tmp_path / "out").set_index("name")
    assert table["split"].to_dict() == published[KERMANY].to_dict()


def test_a_scanners_name_alone_is_not_kermanys(tmp_path):
    write_image(tmp_path / "study" / "IM-0117-0001.png", phantom(SIZE, SIZE).image)
    with pytest.raises(FileNotFoundError, match="--images and --masks take any names"):
        find_films(tmp_path)


def test_kermanys_splits_keep_patients_apart_and_their_masks_are_lungs():
    listed = kermany_list()
    patient = listed["name"].str.extract(r"(person\d+|(?:NORMAL2-)?IM-\d+)")[0]
    assert patient.notna().all() and (listed.groupby(patient)["split"].nunique() == 1).all()
    assert listed["split"].value_counts().to_dict() == {"train": 3654, "test": 341, "val": 218}
    assert listed["name"].is_unique and listed["v7_id"].is_unique


def test_a_split_that_is_none_is_told_before_anything_is_prepared(tmp_path):
    write_images(tmp_path / "images")
    whole(tmp_path / "masks")
    with pytest.raises(ValueError, match="published, random or a CSV file, and folds is no file"):
        prepare(tmp_path / "images", tmp_path / "out", masks=tmp_path / "masks", split="folds")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_walk_through_for_own_sets_runs_as_it_stands(tmp_path, monkeypatch, capfd):
    text = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    python, *shells = re.findall(r"```(?:python)?\n(.*?)```", text.split("## On Kaggle")[0], re.S)
    monkeypatch.chdir(tmp_path)
    exec(python)
    for line in "".join(shells).splitlines():
        assert line.startswith("unet-lung ")
        assert main(shlex.split(line.removeprefix("unet-lung "))) == 0, capfd.readouterr().err
    assert len(pd.read_csv("mine/lungs/predictions.csv")) == 24 and len(list(Path("mine/lungs/masks").iterdir())) == 24


def paired(root):
    films = find_own(root / "images", root / "masks" if (root / "masks").exists() else root / "images", "mine")
    return {film.name: sorted(path.name for path in film.mask_files) for film in films}


def test_radiographs_and_masks_may_lie_in_one_folder(tmp_path):
    for name, film in FILMS.items():
        write_image(tmp_path / "images" / f"{name}.png", film.image)
        write_mask(tmp_path / "images" / f"{name}_mask.png", film.mask)
    assert paired(tmp_path) == {name: [f"{name}_mask.png"] for name in FILMS}


def test_masks_may_lie_below_the_radiographs(tmp_path):
    folder = write_images(tmp_path / "images")
    whole(folder / "masks")
    films = find_own(folder, folder / "masks", "mine")
    assert [film.name for film in films] == list(FILMS) and all(film.mask_files for film in films)


def test_a_radiograph_is_never_its_own_mask(tmp_path):
    folder = write_images(tmp_path / "images")
    with pytest.raises(ValueError, match="no mask has the name of a radiograph"):
        find_own(folder, folder, "mine")


def test_of_a_copy_of_the_radiograph_and_its_mask_the_mask_counts(tmp_path):
    write_images(tmp_path / "images")
    write_images(tmp_path / "masks")
    whole(tmp_path / "masks")
    assert paired(tmp_path) == {name: [f"{name}_mask.png"] for name in FILMS}


def test_pictures_that_are_no_masks_are_problems(tmp_path):
    write_images(tmp_path / "images")
    write_images(tmp_path / "masks")
    with pytest.raises(ValueError, match="none of 3 films could be prepared.*"):
        prepare(tmp_path / "images", tmp_path / "out", masks=tmp_path / "masks", split="random")
    assert pd.read_csv(tmp_path / "out" / "problems.csv")["reason"].str.contains("shades of gray").all()


@pytest.mark.parametrize("sides", [("",), ("left/", "right/")], ids=str)
def test_radiographs_of_one_name_are_told_apart_by_their_folders(tmp_path, sides):
    for patient, n in (("p1", 1), ("p2", 2)):
        film = phantom(SIZE, SIZE, n)
        write_image(tmp_path / "images" / patient / "IM1.png", film.image)
        for side in sides:
            half = {"": film.mask, "left/": film.left, "right/": film.right}[side]
            write_mask(tmp_path / "masks" / side / patient / "IM1.png", half)
    films = find_own(tmp_path / "images", tmp_path / "masks", "mine")
    assert [film.name for film in films] == ["p1_IM1", "p2_IM1"]
    for film, n in zip(films, (1, 2)):
        np.testing.assert_array_equal(combined_mask(film, (SIZE, SIZE)), phantom(SIZE, SIZE, n).mask)


@pytest.mark.parametrize(
    "image, mask", [("s (1)", "s (1) mask"), ("img_12", "mask_12"), ("scan-7", "7_Lung_Mask"), ("IMG7", "IMG7 label")]
)
def test_usual_names_of_masks_are_known(tmp_path, image, mask):
    write_image(tmp_path / "images" / f"{image}.png", phantom(SIZE, SIZE).image)
    write_mask(tmp_path / "masks" / f"{mask}.png", phantom(SIZE, SIZE).mask)
    assert paired(tmp_path) == {image: [f"{mask}.png"]}


def test_run_lengths_without_a_size_have_the_radiographs(tmp_path):
    rows = [{"ImageId": name, "EncodedPixels": pairs(film.mask)} for name, film in FILMS.items()]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    for film in find_own(write_images(tmp_path / "images"), tmp_path / "m.csv", "mine"):
        np.testing.assert_array_equal(combined_mask(film, (SIZE, SIZE)), FILMS[film.name].mask)


def test_other_labels_or_another_name_prepare_again(tmp_path):
    write_images(tmp_path / "images")
    label_maps(tmp_path / "masks")
    shares = []
    for labels, name in (((1, 2), "mine"), ((1,), "mine"), ((1,), "other")):
        options = {"masks": tmp_path / "masks", "labels": labels, "source": name, "split": "random"}
        table = prepare(tmp_path / "images", tmp_path / "out", **options)
        assert set(table["source"]) == {name}
        shares.append(files.read_mask(next((tmp_path / "out").glob("*/mask/*.png"))).mean())
    assert shares[0] > 1.5 * shares[1]


def test_a_few_patients_make_all_three_parts(tmp_path):
    frame = pd.DataFrame({"name": list("abcdef"), "source": "mine", "tb": None, "patient": list("112233")})
    for seed in range(5):
        assert random_split(frame, seed=seed).value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}
