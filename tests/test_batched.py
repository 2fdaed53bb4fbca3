"""Augmentation on the device: held against albumentations' by what it does to a film, the same for a film whatever the
batch, and a training that learns as much."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from phantoms import phantom, write_prepared
from scipy.ndimage import laplace
from test_no_waiting import TINY, no_reading  # noqa: F401 (a fixture)

from kaggle_utils import trainer as training
from kaggle_utils.augment import BATCHED, BatchedAugmentation, augmentation, draw_artefacts
from kaggle_utils.augment.artefacts import ARTEFACTS
from kaggle_utils.data import LungDataset, make_sampler, read_manifest
from kaggle_utils.prep import prepare
from kaggle_utils.synthetic import write_raw
from kaggle_utils.trainer import make_trainer
from kaggle_utils.training import DeviceLoader, films

CPU = torch.device("cpu")
SIZE, DRAWS = 64, 500


def facts(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Of a changed film: how large its lungs are and where, how they lie, its grays and its noise."""
    y, x = np.nonzero(mask)
    spread = np.cov(x, y)
    return {
        "area": mask.mean(),
        "x": x.mean(),
        "y": y.mean(),
        "width": spread[0, 0] ** 0.5,
        "height": spread[1, 1] ** 0.5,
        "slant": spread[0, 1],
        "gray": image.mean(),
        "contrast": image.std(),
        "noise": np.median(np.abs(laplace(image.astype(float)))),
    }


@pytest.fixture(scope="module")
def film():
    """One lung alone, so that a mirrored film shows."""
    whole = phantom(SIZE, SIZE, 5)
    return whole.image, whole.left


@pytest.mark.parametrize("preset", ["light", "clinic"])
def test_distributions_are_those_of_albumentations(film, preset, monkeypatch):
    image, mask = film
    if preset == "clinic":  # what is drawn is drawn by the same code
        monkeypatch.setattr(
            "kaggle_utils.augment.artefacts.ARTEFACTS", {name: ARTEFACTS[name] for name in ("noise", "blur", "window")}
        )
    theirs, reference = [], augmentation(preset)
    for seed in range(DRAWS):
        reference.set_random_seed(seed)
        moved = reference(image=image, mask=mask)
        theirs.append(facts(moved["image"], moved["mask"]))
    ours, batched = [], BatchedAugmentation(preset, SIZE, CPU)
    changes = {name: torch.from_numpy(rows) for name, rows in batched.changes(0, DRAWS).items()}
    images, masks = (torch.from_numpy(array)[None, None].repeat(DRAWS, 1, 1, 1) for array in (image, mask))
    for gray, lungs in zip(*batched(images, masks, changes)):
        ours.append(facts(gray[0].numpy(), lungs[0].numpy()))
    for name in theirs[0]:
        one, other = (np.array([row[name] for row in rows]) for rows in (theirs, ours))
        quantiles = np.quantile(one, [0.1, 0.25, 0.5, 0.75, 0.9])
        shares = [np.mean(other < value + 1e-6) for value in quantiles]
        # A share of 500 has a standard deviation of 0.03, the two together 0.035; x has two humps, one a side.
        tolerance = 0.13 if name != "x" else 0.2
        np.testing.assert_allclose(shares, [np.mean(one < value + 1e-6) for value in quantiles], atol=tolerance), name


def test_a_film_that_nothing_is_drawn_for_stays_as_it_is(film):
    image, mask = (torch.from_numpy(array)[None, None] for array in film)
    batched = BatchedAugmentation("clinic", SIZE, CPU)
    changes = {name: torch.zeros(1) for name in ("noise", "grain", "coarse", "blur", "level")}
    changes |= {"gamma": torch.ones(1), "steepness": torch.ones(1), "affine": torch.eye(3)[None, :2]}
    changes |= {"spot": torch.zeros(1, 2), "grain_spot": torch.zeros(1, 2)}
    gray, lungs = batched(image, mask, changes)
    torch.testing.assert_close(gray, image.float(), atol=0.02, rtol=0)
    assert torch.equal(lungs, mask.float())


def test_image_and_mask_move_together(film):
    _, mask = film
    batched = BatchedAugmentation("light", SIZE, CPU)
    changes = {name: torch.from_numpy(rows) for name, rows in batched.changes(3, 40).items()}
    changes["gamma"], changes["noise"] = torch.ones(40), torch.zeros(40)
    masks = torch.from_numpy(mask)[None, None].repeat(40, 1, 1, 1)
    gray, lungs = batched(masks * 255, masks, changes)
    assert (
        torch.equal((gray > 127.5).float(), lungs) and len({m.numpy().tobytes() for m in lungs}) > 20
    )  # seven in ten are moved


def test_each_film_is_blurred_by_its_own_width():
    from kaggle_utils.augment.batched import _blur

    point = torch.zeros(3, 1, 41, 41)
    point[:, :, 20, 20] = 1
    blurred = _blur(point, torch.tensor([0.0, 1.0, 3.0]), 12)[:, 0]
    assert torch.equal(blurred[0], point[0, 0])
    reach = torch.arange(-20, 21.0) ** 2
    for image, sigma in zip(blurred[1:], (1, 3)):
        assert (image.sum(0) * reach).sum() == pytest.approx(sigma**2, rel=0.02) and image.sum() == pytest.approx(1)


def test_other_presets_are_drawn_on_the_cpu_alone():
    with pytest.raises(ValueError, match="on a GPU, augment is one of none, light, clinic, not 'full'"):
        BatchedAugmentation("full", 32, CPU)


def test_some_artefacts_can_be_drawn_alone(monkeypatch):
    seen = []
    everything = {name: (lambda i, m, r, n=name: seen.append(n) or i, 1.0) for name in ARTEFACTS}
    monkeypatch.setattr("kaggle_utils.augment.artefacts.ARTEFACTS", everything)
    draw_artefacts(None, None, np.random.default_rng(0), among=("gas", "text"))
    assert seen == ["gas", "text"]


# --- films on the device ---------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    root = write_prepared(tmp_path / "set", {"train": 8, "val": 3})
    return write_prepared(root, {"train": 5, "val": 2}, source="shenzhen", first=50)


def batches(data, augment, batch, epoch=0):
    dataset = LungDataset(read_manifest(data).query("split == 'train'"), 32, seed=4)
    order = make_sampler(dataset, batch, shuffle=True)
    order.epoch = epoch
    return list(DeviceLoader(dataset, batch, CPU, order, augment))


@pytest.mark.parametrize("augment", BATCHED)
def test_a_film_is_changed_in_the_same_way_whatever_the_batch(data, augment, monkeypatch):
    by_name = []
    for batch, chunk in ((2, 1), (5, 64), (13, 64)):
        monkeypatch.setattr("kaggle_utils.training.on_device.CHUNK", chunk)
        found = {}
        for one in batches(data, augment, batch):
            assert len(one["name"]) <= batch and one["image"].dtype == one["mask"].dtype == torch.float32
            found |= {name: pair for name, *pair in zip(one["name"], one["image"], one["mask"])}
        by_name.append(found)
    for other in by_name[1:]:
        for name, (image, mask) in by_name[0].items():
            torch.testing.assert_close(other[name][0], image, atol=1e-3, rtol=0)
            assert torch.equal(other[name][1], mask)


@pytest.mark.parametrize("augment", ["light", "clinic"])
def test_each_epoch_changes_a_film_anew(data, augment):
    first, second = (
        {n: i for b in batches(data, augment, 4, e) for n, i in zip(b["name"], b["image"])} for e in (0, 1)
    )
    assert all(not torch.equal(first[name], second[name]) for name in first)


def test_unchanged_films_are_those_of_the_dataset(data):
    dataset = LungDataset(read_manifest(data).query("split == 'val'"), 32)
    loader = DeviceLoader(dataset, 2, CPU, make_sampler(dataset, 2))
    assert len(loader) == len(list(loader)) == 3
    items = [(n, i, m) for b in loader for n, i, m in zip(b["name"], b["image"], b["mask"])]
    for (name, image, mask), item in zip(items, (dataset[n] for n in range(5)), strict=True):
        assert name == item["name"] and torch.equal(mask, item["mask"])
        torch.testing.assert_close(image, item["image"])


@pytest.mark.parametrize("augment", ["light", "clinic"])
def test_no_number_is_read_while_films_are_taken_from_the_device(data, no_reading, monkeypatch, augment):  # noqa: F811
    monkeypatch.setattr(training, "FUSED", ("cpu",))
    run = make_trainer(data, None, replace(TINY, augment_on="device", augment=augment))
    run._train_step(next(iter(run.train_loader)))
    no_reading().seen.clear()
    with no_reading() as reads:
        for batch in run.train_loader:
            run._train_step(batch)
    assert run.step == 5 and not reads.seen


@pytest.mark.parametrize("augment", ["light", "clinic"])
def test_a_run_with_films_on_the_device_resumes_to_the_same_bits(data, tmp_path, monkeypatch, augment):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    config = replace(TINY, augment_on="device", augment=augment, shares=(1.0, 1.0))
    whole = make_trainer(data, tmp_path / "whole", config)
    whole.fit()
    stopped = make_trainer(data, tmp_path / "run", config)
    step = stopped._train_step

    def dies(batch):
        if stopped.step == 5:
            raise KeyboardInterrupt
        step(batch)

    stopped._train_step = dies
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = make_trainer(data, tmp_path / "run", config, resume=True)
    assert resumed.step == 5 and resumed.begun.batches
    resumed.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "device, augment, free, wanted, expected",
    [
        ("cuda", "light", 10**9, "auto", True),
        ("cuda", "clinic", 10**9, "auto", True),
        ("cuda", "full", 10**9, "auto", False),
        ("cuda", "light", 10**4, "auto", False),
        ("cuda", "light", 10**9, "cpu", False),
        ("cpu", "light", 10**9, "auto", False),
        ("cpu", "light", 10**9, "device", True),
    ],
)
def test_films_live_on_a_gpu_that_has_room_for_them(monkeypatch, device, augment, free, wanted, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**10))
    config = replace(TINY, augment=augment, augment_on=wanted)
    assert films.augments_on_device(config, 20, torch.device(device)) is expected


def test_films_that_stay_on_the_cpu_are_normalised_on_the_device(data):
    runs = [make_trainer(data, None, TINY) for _ in range(2)]
    runs[0].train_loader.dataset.raw = True
    batch = next(iter(runs[0].train_loader))
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    for raw, ready in zip(runs[0]._to_device(batch), runs[1]._to_device(next(iter(runs[1].train_loader)))):
        torch.testing.assert_close(raw, ready)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Synthetic radiographs: 46 to learn from, 12 to validate on."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_raw(folder / "raw", 80, seed=0, size=64)
    prepare(folder / "raw", folder / "set", size=64)
    return folder / "set"


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["light", "clinic"])
def test_a_training_on_the_device_learns_as_much_as_one_with_albumentations(synthetic, augment):
    """Validation Dice of the last three epochs, over two seeds, is within 0.01; it is about 0.945."""
    config = replace(TINY, size=64, patch=1, base_channels=8, epochs=16, lr=1e-2, ema_decay=0.9, heads=False)

    def learned(where: str) -> float:
        configs = [replace(config, augment=augment, augment_on=where, seed=seed) for seed in (0, 1)]
        runs = [make_trainer(synthetic, None, config).fit() for config in configs]
        return np.mean([run["val_dice"].iloc[-3:] for run in runs])

    assert min(found := [learned("cpu"), learned("device")]) > 0.92 and abs(found[0] - found[1]) < 0.01
