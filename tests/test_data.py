"""data.py: the prepared set to batches."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import phantom, write_prepared, write_raw

from kaggle_utils import data
from kaggle_utils import image as files
from kaggle_utils.augment import augmentation

PRESETS = ("none", "light", "clinic", "full")


def dataset(root, split="train", **options):
    frame = data.read_manifest(root)
    return data.LungDataset(frame[frame["split"] == split], options.pop("size", 32), **options)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_manifest_names_files_that_are_there(prepared):
    frame = data.read_manifest(prepared)
    assert frame["split"].value_counts().to_dict() == {"train": 8, "val": 4, "test": 4}
    for row in frame.itertuples():
        assert files.read_image(row.image).shape == files.read_mask(row.mask).shape == (32, 32)
        assert row.name in row.image and row.name in row.mask


def test_film_without_mask_has_an_empty_path(tmp_path):
    frame = data.read_manifest(write_prepared(tmp_path, {"unlabelled": 2}))
    assert frame["mask"].tolist() == ["", ""]


def test_missing_manifest_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="kaggle_utils prep"):
        data.read_manifest(tmp_path)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_film_that_is_gone_is_named(prepared, kind):
    lost = next(prepared.glob(f"val/{kind}/*.png"))
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"{lost.name}.*run prep again"):
        data.read_manifest(prepared)


@pytest.mark.parametrize("column", ["name", "pixels"])
def test_film_that_is_in_the_set_twice_is_refused(prepared, column):
    frame = pd.read_csv(prepared / "manifest.csv")
    frame.loc[1, column] = frame.loc[0, column]
    frame.to_csv(prepared / "manifest.csv", index=False)
    with pytest.raises(ValueError, match="in the set twice"):
        data.read_manifest(prepared)


def test_manifest_of_another_program_is_refused(prepared):
    pd.read_csv(prepared / "manifest.csv").drop(columns="pixels").to_csv(prepared / "manifest.csv", index=False)
    with pytest.raises(ValueError, match="no column pixels"):
        data.read_manifest(prepared)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "not a table as prep writes it"),
        (b"\x00\xff\xfe\x89PNG\n,,", "not a table as prep writes it"),
        ('name\n"a\nb', "not a table as prep writes it"),
        (
            "name,source,split,tb,pixels\na,montgomery,,1,x\n",
            "line 2 has {'name': 'a', 'source': 'montgomery', 'pixels': 'x', 'split': nan}",
        ),
        (
            "name,source,split,tb,pixels\na,montgomery,dev,1,x\n",
            "line 2 has {'name': 'a', 'source': 'montgomery', 'pixels': 'x', 'split': 'dev'}",
        ),
        ("name,source,split,tb,pixels\n,montgomery,val,1,x\n", "line 2 has {'name': nan"),
        ("name,source,split,tb,pixels\na,,val,1,x\n", "line 2 has {'name': 'a', 'source': nan"),
        (
            "name,source,split,tb,pixels\na,montgomery,val,1,x\nb,montgomery,val,1,nan\n",
            "line 3 has {'name': 'b', 'source': 'montgomery', 'pixels': nan",
        ),
    ],
    ids=["empty", "bytes", "an open quote", "no split", "a split of another program", "no name", "no source", "NaN"],
)
def test_damaged_manifest_is_refused_in_one_line_with_its_path(tmp_path, text, reason):
    (tmp_path / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        data.read_manifest(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'manifest.csv'}: {reason}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "root, error",
    [("film.png", "a file; expected the folder"), ("film.png/manifest.csv", "is not there"), ("odd", "is not there")],
)
def test_what_is_no_prepared_folder_is_refused(tmp_path, root, error):
    (tmp_path / "film.png").touch()
    (tmp_path / "odd" / "manifest.csv").mkdir(parents=True)
    with pytest.raises(OSError, match=error):
        data.read_manifest(tmp_path / root)


@pytest.mark.parametrize(
    "film, mask, reason",
    [
        ((32, 32), np.ones((32, 32)), "mask.train_000.png: 100% of the film is lung"),
        ((32, 32), np.zeros((32, 32)), "mask.train_000.png: 0% of the film is lung"),
        ((32, 32), np.tri(16), r"mask.train_000.png: the mask is \(16, 16\) and the film \(32, 32\)"),
        ((1, 1), np.ones((1, 1)), "image.train_000.png: 1×1 px, not as prep writes them"),
    ],
    ids=["all lung", "no lung", "another size", "1×1"],
)
def test_pairs_that_prep_does_not_write_are_refused_by_name(prepared, film, mask, reason):
    frame = data.read_manifest(prepared).query("split == 'train'")
    write_raw(Path(frame["image"].iloc[0]), np.full(film, 90, np.uint8))
    write_raw(Path(frame["mask"].iloc[0]), (mask * 255).astype(np.uint8))
    with pytest.raises(ValueError, match=reason.replace("train_000", frame["name"].iloc[0]) + "[^\n]*run prep again$"):
        data.LungDataset(frame, 32)


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_normalised_film_has_zero_mean_and_unit_deviation():
    films = data.normalise(torch.from_numpy(np.stack([phantom(seed=s).image for s in range(3)])[:, None]))
    torch.testing.assert_close(films.mean((-2, -1)), torch.zeros(3, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(films.std((-2, -1), correction=0), torch.ones(3, 1), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0.1, 300), offset=st.floats(-1000, 1000))
def test_normalisation_cancels_exposure(gain, offset):
    film = torch.from_numpy(phantom().image[None]).double()
    torch.testing.assert_close(data.normalise(film * gain + offset), data.normalise(film), atol=2e-3, rtol=0)


def test_constant_film_is_normalised_to_zeros():
    assert (data.normalise(torch.full((1, 8, 8), 7, dtype=torch.uint8)) == 0).all()


# --- films and masks as tensors --------------------------------------------------------------------------------------


def test_item_is_the_film_on_disk(prepared):
    films = dataset(prepared)
    for index, row in enumerate(films.frame.itertuples()):
        item = films[index]
        assert item["name"] == row.name
        torch.testing.assert_close(item["image"], data.normalise(torch.from_numpy(files.read_image(row.image)[None])))
        np.testing.assert_array_equal(item["mask"][0], files.read_mask(row.mask))


@pytest.mark.parametrize("preset", PRESETS)
def test_tensors_are_as_the_contract_says(prepared, preset):
    item = dataset(prepared, size=48, augment=preset)[3, 2]
    assert item["image"].shape == item["mask"].shape == (1, 48, 48)
    assert item["image"].dtype == item["mask"].dtype == torch.float32


def test_no_png_is_decoded_twice(prepared, monkeypatch):
    films = dataset(prepared, augment="full")
    monkeypatch.setattr(data, "read_image", None)
    monkeypatch.setattr(data, "read_mask", None)
    for index in range(len(films)):
        films[0, index], films[1, index]
    assert films.images.dtype == films.masks.dtype == np.uint8


def test_augmentation_leaves_the_cache_alone(prepared):
    films = dataset(prepared, augment="full")
    before = films.images.copy(), films.masks.copy()
    for index in range(len(films)):
        films[0, index]
    np.testing.assert_array_equal(films.images, before[0])
    np.testing.assert_array_equal(films.masks, before[1])


def test_film_without_mask_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="MONTGOMERY_0000_0 has no mask"):
        dataset(write_prepared(tmp_path, {"unlabelled": 1}), "unlabelled")


def test_empty_choice_is_refused(prepared):
    with pytest.raises(ValueError, match="no film to load"):
        dataset(prepared, "holdout")


def test_unknown_preset_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="none, light, clinic, full, not 'heavy'"):
        augmentation("heavy")


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_preset_none_changes_nothing(film):
    same = augmentation("none")(image=film.image, mask=film.mask)
    np.testing.assert_array_equal(same["image"], film.image)
    np.testing.assert_array_equal(same["mask"], film.mask)


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_stay_0_and_1(preset):
    film, augment = phantom(), augmentation(preset)
    for seed in range(40):
        augment.set_random_seed(seed)
        moved = augment(image=film.image, mask=film.mask)
        assert moved["mask"].dtype == np.uint8 and set(np.unique(moved["mask"])) <= {0, 1}
        assert moved["image"].dtype == np.uint8 and moved["image"].shape == film.image.shape


@pytest.mark.parametrize("preset", ["light", "full"])
def test_every_kind_of_change_happens(preset):
    film, augment = phantom(), augmentation(preset)
    moved = []
    for seed in range(20):
        augment.set_random_seed(seed)
        moved.append(augment(image=film.image, mask=film.mask)["mask"])
    assert len({m.tobytes() for m in moved}) > 10


@pytest.mark.parametrize("preset", ["light", "full"])
def test_what_a_preset_does_to_the_grays_is_left_after_normalisation(preset):
    """Weak brightness and contrast once were all that light did to them, and cancelled out: 0.09 deviations were
    left."""
    image, changes = phantom().image, []
    plain = data.normalise(torch.from_numpy(image[None]))
    steps = augmentation(preset)
    for step in steps:
        if type(step).__name__ in ("HorizontalFlip", "Affine", "ElasticTransform", "CoarseDropout"):
            continue
        step.p = 1
        alone = type(steps)([step], seed=0)
        moved = [data.normalise(torch.from_numpy(alone(image=image)["image"][None])) for _ in range(40)]
        changes.append(np.mean([(image - plain).std() for image in moved]))
    assert changes and min(changes) > 0.025 and max(changes) > 0.1, changes


# --- randomness ------------------------------------------------------------------------------------------------------


def test_same_seed_epoch_and_index_give_the_same_item(prepared):
    first, second = dataset(prepared, augment="full", seed=3), dataset(prepared, augment="full", seed=3)
    second[4, 1], second[9, 5]  # what was drawn before doesn't matter
    for index in range(len(first)):
        assert torch.equal(first[2, index]["image"], second[2, index]["image"])
        assert torch.equal(first[2, index]["mask"], second[2, index]["mask"])


@pytest.mark.parametrize("other", ["seed", "epoch", "index"])
def test_another_seed_epoch_or_index_gives_other_random_numbers(prepared, other):
    def draws(seed, epoch, index):
        films = dataset(prepared, augment="full", seed=seed)
        films.images[:], films.masks[:] = films.images[0], films.masks[0]  # the same film everywhere
        return films[epoch, index]["image"]

    reference = {"seed": 0, "epoch": 0, "index": 0}
    assert not torch.equal(draws(**reference), draws(**{**reference, other: 1}))


def collect(root, workers, epochs=(0, 1)):
    loader = data.make_loader(dataset(root, augment="full", seed=5), 3, shuffle=True, workers=workers)
    batches = []
    for loader.sampler.epoch in epochs:
        batches += list(loader)
    return [name for b in batches for name in b["name"]], torch.cat([b["image"] for b in batches])


def test_any_number_of_workers_gives_the_same_batches(prepared):
    names, images = collect(prepared, 0)
    names_of_two, images_of_two = collect(prepared, 2)
    assert names == names_of_two and torch.equal(images, images_of_two)


def test_epochs_differ_in_order_and_in_pixels(prepared):
    names, images = collect(prepared, 0)
    assert names[:8] != names[8:] and sorted(names[:8]) == sorted(names[8:])
    assert not torch.equal(images[:8], images[8:])


def test_epoch_sampler_yields_each_film_once_in_an_order_of_seed_and_epoch():
    sampler = data.EpochSampler(10, seed=1)
    first, again = list(sampler), list(sampler)
    assert (
        first == again
        and sorted(index for _, index in first) == list(range(10))
        and {epoch for epoch, _ in first} == {0}
    )
    sampler.epoch = 3
    assert [i for _, i in sampler] != [i for _, i in first] and {epoch for epoch, _ in sampler} == {3}
    assert list(data.EpochSampler(10, seed=2)) != first


def test_loader_without_shuffle_keeps_the_manifests_order_and_the_last_batch(prepared):
    loader = data.make_loader(dataset(prepared), 3)
    assert [len(batch["name"]) for batch in loader] == [3, 3, 2]
    assert [name for batch in loader for name in batch["name"]] == loader.dataset.frame["name"].tolist()


def drawn(sets, draws, epochs, **options):
    sampler = data.SetSampler([np.arange(*part) for part in sets], draws, **options)
    keys = []
    for sampler.epoch in range(epochs):
        keys.append(list(sampler))
    return keys


def test_each_batch_has_the_sets_shares_and_each_film_its_turn():
    epochs = drawn([(0, 10), (10, 14)], [6, 6], 5, seed=3, batch=4)
    for keys in epochs:
        assert len(keys) == 12
        assert all(sum(index >= 10 for _, index in keys[at : at + 4]) == 2 for at in (0, 4, 8))
    every = [key for keys in epochs for key in keys]
    assert len(set(every)) == len(every)  # no film is augmented twice in the same way
    times = np.bincount([index for _, index in every])
    assert set(times[:10]) == {3} and times[10:].min() >= 7 and times[10:].max() <= 8


def test_a_resumed_run_draws_what_an_uninterrupted_one_would_have_drawn():
    assert drawn([(0, 7), (7, 9)], [3, 3], 4)[3] == drawn([(0, 7), (7, 9)], [3, 3], 4, batch=2)[3]
    assert drawn([(0, 7)], [7], 2)[1] != drawn([(0, 7)], [7], 2, seed=1)[1]


def test_one_set_drawn_whole_is_an_epoch():
    keys = drawn([(0, 9)], [9], 2)
    assert [sorted(index for _, index in one) for one in keys] == [list(range(9))] * 2
    assert [{times for times, _ in one} for one in keys] == [{0}, {1}]
