"""The tuberculosis classifier, on phantoms: variants, descriptions, line, heat map, screening."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from damaged_headers import BAD_CLASSIFIER, BAD_SCREENER, each
from dicoms import dicom
from phantoms import phantom, write_prepared
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.tb import follow, infiltrated
from kaggle_utils.cli import main
from kaggle_utils.files import Journal
from kaggle_utils.image import read_film, write_image
from kaggle_utils.infer import DEFAULT_WEIGHTS, CheckedFilm, LungSegmenter, Segmented, Unsegmented
from kaggle_utils.model import UNet, load_weights, read_header, save_weights
from kaggle_utils.quality import check_film
from kaggle_utils.quality.flags import Quality
from kaggle_utils.synthetic.model import AppearanceModel
from kaggle_utils.tb.data import (
    THIRDS,
    VARIANTS,
    balance,
    folds,
    from_letter_box,
    letter_box,
    lung_box,
    lung_fields,
    lung_zones,
    tb_frame,
    thumbnail,
    view,
)
from kaggle_utils.tb.fit import as_input, describe_films, fit_line, levels, out_of_fold
from kaggle_utils.tb.lite0 import CHANNELS, Conv, Lite0, fold_lite0
from kaggle_utils.tb.net import TBNet, describe, load_tb
from kaggle_utils.tb.screening import LEAST, SCREENING_COLUMNS, TB_WEIGHTS, TBScreener, draw_heat, screen, why_not

SIZE = 128


def spotted(n: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], pd.DataFrame]:
    """Phantom films with their lungs; every second one is sick: a bright spot in a lung."""
    rng, films = np.random.default_rng(seed), [phantom(128, 128, seed + k) for k in range(n)]
    images = [film.image.copy() for film in films]
    for image in images[1::2]:
        row, column = rng.integers(45, 75), rng.choice((36, 92))
        image[row - 6 : row + 6, column - 6 : column + 6] = 230
    frame = pd.DataFrame({"name": [f"f{k}" for k in range(n)], "source": "montgomery", "tb": [k % 2 for k in range(n)]})
    return images, [film.mask for film in films], frame


@pytest.fixture(scope="module")
def trained() -> TBNet:
    net = load_tb(TB_WEIGHTS)
    images, masks, frame = spotted(32)
    fit_line(describe_films(net, images, masks, "lungs", SIZE), frame).into(net)
    return net


# ---- lungs


def test_box_of_known_lungs():
    lungs = np.zeros((100, 200), np.uint8)
    lungs[20:60, 30:70] = lungs[30:70, 110:150] = 1
    assert lung_box(lungs, margin=0) == np.s_[20:70, 30:150]
    assert lung_box(lungs, margin=0.1) == np.s_[8:82, 18:162]  # 12 px, a tenth of the longer side, on every side
    assert lung_box(lungs, margin=1) == np.s_[0:100, 0:200]


def test_no_lung_is_no_box():
    with pytest.raises(ValueError, match="no lung"):
        lung_box(np.zeros((8, 8), np.uint8))


def test_letter_box_keeps_proportions_and_is_undone():
    image = np.zeros((60, 100), np.uint8)
    image[10:30, 40:80] = 200
    square = letter_box(image, np.s_[10:30, 40:80], 64)  # twice as wide as high
    assert square.shape == (64, 64) and (square[16:48] == 200).all() and not square[:16].any() and not square[48:].any()
    back = from_letter_box(square.astype(np.float32), np.s_[10:30, 40:80], image.shape)
    assert np.array_equal(back, image)


@pytest.mark.parametrize("box", [np.s_[3:50, 10:37], np.s_[0:64, 0:64], np.s_[5:9, 0:60]])
def test_letter_box_of_any_shape_fills_its_square(box):
    square = letter_box(np.full((64, 64), 9, np.uint8), box, 32)
    assert square.shape == (32, 32) and max(square.any(0).sum(), square.any(1).sum()) == 32


def test_lung_field_contains_what_disease_hides_from_the_mask():
    film = phantom(128, 128)
    eaten = film.mask.copy()
    eaten[50:75, 40:] &= 1 - film.right[50:75, 40:]  # a bite out of the right lung
    fields = lung_fields(eaten)
    assert (film.mask & (1 - eaten)).sum() > 50 and not (film.mask & (1 - fields)).any()
    assert fields.sum() < 1.8 * film.mask.sum()


def test_films_without_a_mask_count_and_those_without_a_label_do_not(tmp_path):
    write_prepared(tmp_path, {"train": 2, "test": 2})
    write_prepared(tmp_path, {"unlabelled": 3}, source="shenzhen", first=50)
    write_prepared(tmp_path, {"train": 2}, source="jsrt", first=80)
    frame = tb_frame(tmp_path)
    assert dict(frame.groupby("source")["part"].unique().map(list)) == {
        "montgomery": ["train", "test"],
        "shenzhen": ["train"],
    }
    with pytest.raises(ValueError, match="no film of padchest"):
        tb_frame(tmp_path, ["padchest"])


def test_the_published_lists_of_this_task_decide_not_those_of_the_segmentation(tmp_path):
    write_prepared(tmp_path, {"train": 2})
    table = pd.read_csv(tmp_path / "manifest.csv")
    for kind in ("image", "mask"):
        (tmp_path / "train" / kind / f"{table['name'][0]}.png").rename(tmp_path / "train" / kind / "MCUCXR_0038_0.png")
    table.loc[0, "name"] = "MCUCXR_0038_0"  # a training film of the segmentation's list, a test film of this one
    table.to_csv(tmp_path / "manifest.csv", index=False)
    assert list(tb_frame(tmp_path)["part"]) == ["test", "train"]


def test_a_lung_has_thirds_from_its_apex_down_and_one_that_is_not_there_has_none():
    lungs = np.zeros((90, 100), np.uint8)
    lungs[15:75, 10:40] = 1
    zones = lung_zones(lungs, margin=0)
    assert [np.flatnonzero(zone.any(1))[[0, -1]].tolist() for zone in zones[:3]] == [[15, 34], [35, 54], [55, 74]]
    assert not zones[THIRDS:].any() and np.array_equal(zones.max(0), lungs)


# ---- variants


def changed(variant: str, where: np.ndarray) -> bool:
    """Whether a variant sees a new texture there."""
    film = phantom(64, 64)
    other = np.where(where > 0, 255 - film.image, film.image)
    return not np.array_equal(view(film.image, film.mask, variant, 64)[0], view(other, film.mask, variant, 64)[0])


@pytest.mark.parametrize(
    "variant, sees_lungs, sees_rest",
    [("whole", True, True), ("box", True, True), ("lungs", True, False), ("blanked", False, True)],
)
def test_a_variant_sees_what_it_should_and_nothing_else(variant, sees_lungs, sees_rest):
    inside = lung_fields(phantom(64, 64).mask)
    deep = cv2.erode(inside, np.ones((7, 7), np.uint8))  # resizing blurs the border
    outside = 1 - cv2.dilate(inside, np.ones((7, 7), np.uint8))
    assert changed(variant, deep) == sees_lungs and changed(variant, outside) == sees_rest


@pytest.mark.parametrize("variant", VARIANTS[:-1])
def test_exposure_cancels_out(variant):
    film = phantom(64, 64)
    darker = (film.image // 2 * 2 * 0.5 + 20).astype(np.uint8)
    one, other = (view(image, film.mask, variant, 64)[0] for image in (film.image // 2 * 2, darker))
    assert np.abs(one - other).mean() < 0.02 and 0.3 < one.std() < 0.7


@pytest.mark.parametrize("variant", ["left", "thumbnail"])
def test_no_such_view(variant):
    film = phantom(64, 64)
    with pytest.raises(ValueError, match="whole, box, lungs, blanked"):
        view(film.image, film.mask, variant)


def test_thumbnail_is_a_smudge_of_256_numbers():
    film = phantom(128, 128).image
    small = thumbnail(film)
    assert small.shape == (256,) and abs(small.mean()) < 1e-5 and small.std() == pytest.approx(1, abs=1e-4)
    film[50, 50] ^= 64  # a pixel of 16384
    assert np.abs(thumbnail(film) - small).max() < 0.1


def test_every_set_s_classes_weigh_alike():
    frame = pd.DataFrame({"source": ["a"] * 5 + ["b"] * 3, "tb": [1, 0, 0, 0, 0, 1, 1, 0]})
    weight = balance(frame)
    sums = frame.assign(weight=weight).groupby(["source", "tb"])["weight"].sum()
    assert np.allclose(sums, [2.5, 2.5, 1.5, 1.5]) and np.isclose(weight.mean(), 1)


def test_folds_are_stratified_and_keep_a_patient_together():
    names = ["MCUCXR_0162_1", "MCUCXR_0166_1", "MCUCXR_0170_1", "MCUCXR_0113_1", "MCUCXR_0117_1"]
    frame = pd.DataFrame(
        {
            "name": names + [f"x{k}" for k in range(95)],
            "source": ["montgomery"] * 40 + ["shenzhen"] * 60,
            "tb": [1] * 20 + [0] * 80,
        }
    )
    fold = folds(frame, 5, seed=3)
    assert set(fold) == set(range(5)) and len(set(fold[:3])) == 1 and fold[3] == fold[4]
    assert all(abs(n - 12) <= 1 for n in pd.Series(fold[40:]).value_counts())


def areas(net: TBNet, variant: str) -> float:
    """Area under the ROC curve on phantoms that the line of a variant didn't see."""
    images, masks, frame = spotted(56)
    numbers = describe_films(net, images, masks, variant, SIZE)
    logits = fit_line(numbers[:36], frame[:36]).logits(numbers[36:])
    return roc_auc_score(frame["tb"][36:], logits)


def test_blanked_lungs_hide_what_the_lungs_show(trained):
    assert areas(trained, "lungs") == 1 and areas(trained, "blanked") < 0.8


# ---- network and descriptions


def test_convolutions_pad_as_the_published_network_was_trained():
    image = torch.rand(1, 3, 9, 8)
    conv = Conv(3, 2, 3, 2)
    padded = torch.nn.functional.pad(image, (0, 1, 1, 1))  # rows want a pixel on both sides, columns one
    expected = torch.nn.functional.conv2d(padded, conv.weight, conv.bias, stride=2)
    assert torch.equal(conv(image), expected) and expected.shape[-2:] == (5, 4)


def test_stages_have_the_published_channels_and_sizes():
    found = Lite0().eval()(torch.zeros(1, 3, 64, 64))
    assert [tuple(features.shape[1:3]) for features in found] == list(zip(CHANNELS, (32, 16, 8, 4, 4, 2, 2)))


def test_folded_normalisation_computes_what_it_did():
    torch.manual_seed(0)
    tensors = {}
    names = iter(["_conv_stem", *(f"_blocks.{n}.{part}" for n in range(16) for part in _parts(n))])
    for conv in (module for module in Lite0().modules() if isinstance(module, Conv)):
        name = next(names)
        norm = name.replace("_conv_stem", "_bn0").replace("_expand_conv", "_bn0")
        norm = norm.replace("_depthwise_conv", "_bn1").replace("_project_conv", "_bn2")
        tensors[f"{name}.weight"] = torch.randn_like(conv.weight)
        for key in ("weight", "bias", "running_mean"):
            tensors[f"{norm}.{key}"] = torch.randn(conv.out_channels)
        tensors[f"{norm}.running_var"] = torch.rand(conv.out_channels) + 0.5
    net, image = fold_lite0(tensors), torch.rand(1, 3, 16, 16)
    plain = torch.nn.functional.conv2d(
        torch.nn.functional.pad(image, (0, 1, 0, 1)), tensors["_conv_stem.weight"], stride=2
    )
    norm = [tensors[f"_bn0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    expected = torch.nn.functional.batch_norm(plain, *norm, eps=1e-3)
    assert torch.allclose(net.stem(image), expected, atol=1e-4)
    last = tensors["_blocks.15._project_conv.weight"], tensors["_blocks.15._bn2.weight"]
    scale = last[1] / (tensors["_blocks.15._bn2.running_var"] + 1e-3).sqrt()
    assert torch.allclose(net.stages[6][0].project.weight, last[0] * scale[:, None, None, None])


def _parts(block: int) -> list[str]:
    return ["_expand_conv"] * (block > 0) + ["_depthwise_conv", "_project_conv"]


def test_description_is_mean_deviation_and_maximum_of_each_third_and_how_the_lungs_differ():
    features, zones = torch.zeros(1, 1, 3, 4), torch.zeros(1, 6, 3, 4)
    for third in range(3):
        zones[0, third, third, :2] = zones[0, 3 + third, third, 2:] = 1
    features[0, 0] = torch.tensor([[1.0, 3, 5, 5], [0, 0, 0, 0], [2, 2, 2, 6]])
    found = describe(features, zones)[0].view(6, 3)
    means, deviations = [[3.5, 0, 3], [3, 0, 2]], [[0.5, 0, 1], [1, 0, 2]]  # of both lungs, their difference
    expected = [*means, *deviations, [4, 0, 4], [2, 0, 4]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-3)


def test_lung_that_is_not_there_is_taken_to_be_like_the_other():
    features, zones = torch.rand(1, 5, 8, 8), torch.zeros(1, 6, 8, 8)
    for third in range(3):
        zones[0, third, 2 * third : 2 * third + 2, :4] = 1
    both, difference, *_ = describe(features, zones)[0].view(6, 15)
    assert both.abs().min() > 0.01 and not difference.any()


def test_third_that_neither_lung_has_is_described_by_numbers():
    zones = torch.zeros(1, 6, 8, 8)
    zones[0, 1, 2:4, :4] = 1
    assert torch.isfinite(describe(torch.rand(1, 5, 8, 8), zones)).all()


def test_mirror_image_is_described_alike(trained):
    image, zones = view(*spotted(2)[0][1:], phantom(128, 128, 1).mask, "lungs", SIZE)
    mirrored = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(np.roll(zones, THIRDS, 0)[..., ::-1])
    one, other = (trained(*as_input(*seen, trained)).item() for seen in ((image, zones), mirrored))
    assert one == pytest.approx(other, abs=0.5) and one > 0


def test_nothing_outside_the_zones_is_described():
    features, zones = torch.rand(1, 3, 8, 8), torch.zeros(1, 6, 8, 8)
    zones[..., :4, :4] = 1
    other = features.clone()
    other[..., 4:, 4:] += 50
    assert torch.equal(describe(features, zones), describe(other, zones))


# ---- the line


def numbers_of(n: int, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """More numbers than films, of which one tells the classes apart."""
    rng, labels = np.random.default_rng(seed), np.arange(n) % 2
    numbers = rng.normal(3, 2, (n, 200)).astype(np.float32)
    numbers[:, 7] += 6 * labels
    return numbers, pd.DataFrame({"name": [f"f{k}" for k in range(n)], "source": "shenzhen", "tb": labels})


def test_line_is_that_of_a_logistic_regression_on_all_numbers():
    numbers, frame = numbers_of(60)
    line = fit_line(numbers, frame, strength=20)
    standard = (numbers - numbers.mean(0)) / numbers.std(0) / np.sqrt(200)
    plain = LogisticRegression(C=20, tol=1e-8, max_iter=5000).fit(standard, frame["tb"])
    assert np.allclose(line.logits(numbers), plain.decision_function(standard), atol=0.02)


def test_a_film_out_of_fold_was_not_seen():
    numbers, frame = numbers_of(40)
    frame["tb"] = np.random.default_rng(1).permutation(frame["tb"])  # nothing to learn
    seen, unseen = fit_line(numbers, frame, 1e4).logits(numbers), out_of_fold(numbers, frame, 1e4)
    assert roc_auc_score(frame["tb"], seen) > 0.95 and roc_auc_score(frame["tb"], unseen) < 0.75


def test_another_hospital_s_levels_cancel_out_where_it_is_standardised_by_its_own():
    numbers, frame = numbers_of(80)
    line = fit_line(numbers, frame)
    theirs = numbers * 0.5 + np.linspace(-9, 9, 200, dtype=np.float32)
    assert np.abs(line.logits(theirs) - line.logits(numbers)).mean() > 0.5
    assert np.allclose(line.at(theirs).logits(theirs), line.logits(numbers), atol=1e-3)


def test_one_class_is_nothing_to_learn_from():
    numbers, frame = numbers_of(8)
    with pytest.raises(ValueError, match="0 and with 1"):
        fit_line(numbers, frame.assign(tb=1))


def test_a_number_that_never_changes_says_nothing():
    numbers, frame = numbers_of(20)
    numbers[:, 3] = 4
    assert levels(numbers)[1][3] == 1 and np.isfinite(fit_line(numbers, frame).logits(numbers)).all()


def test_network_and_line_say_the_same(trained):
    images, masks, frame = spotted(12, seed=500)
    numbers = describe_films(trained, images, masks, "lungs", SIZE)
    line = fit_line(numbers, frame)
    net = load_tb(TB_WEIGHTS)
    line.into(net)
    assert np.allclose(net.classify(torch.from_numpy(numbers)).detach(), line.logits(numbers), atol=1e-3)


def test_heat_is_where_the_disease_is(trained):
    """On films whose disease was put there."""
    images, masks, _ = spotted(16, seed=900)
    for image, mask in zip(images[1::2], masks[1::2]):
        seen = view(image, mask, "lungs", SIZE)
        warm = trained.heat(*as_input(*seen, trained))[0].numpy() * seen[1].max(0)
        spot = letter_box(np.uint8(255) * (image == 230), lung_box(lung_fields(mask)), SIZE) > 100
        hottest = np.unravel_index(warm.argmax(), warm.shape)
        assert np.abs(np.argwhere(spot).mean(0) - hottest).max() <= SIZE / 8


@pytest.mark.slow
def test_heat_of_the_weights_that_ship_lies_in_the_lungs_and_follows_disease_that_was_put_there():
    """On synthetic radiographs; how little it does so is in results/tb_heat.csv."""
    screener, films = TBScreener(device="cpu"), AppearanceModel.load().sample(16, 5, size=256, tb=0)
    found = pd.DataFrame([follow(film.image, screener, seed=k) for k, film in enumerate(films)]).mean()
    assert found["in_lungs"] > 1.3 * found["lungs"]
    assert found["heat"] > 1.2 * found["disease"] and found["heat"] > found["before"]


def test_planted_disease_lies_in_the_lungs_and_changes_nothing_else():
    film = phantom(256, 256)
    sick, disease = infiltrated(film.image, film.mask, np.random.default_rng(0))
    assert 0 < disease.sum() < 0.1 * film.mask.sum() and not (disease & (1 - film.mask)).any()
    assert (sick[disease > 0] > film.image[disease > 0]).mean() > 0.95
    assert np.array_equal(sick[film.mask == 0], film.image[film.mask == 0])


def test_weights_come_back_as_they_were(tmp_path, trained):
    save_weights(tmp_path / "tb.safetensors", trained, {"variant": "lungs"})
    again, numbers = load_tb(tmp_path / "tb.safetensors"), torch.rand(2, len(trained.mean))
    assert torch.equal(again.classify(numbers), trained.classify(numbers))


def test_other_weights_are_refused(tmp_path):
    save_weights(tmp_path / "unet.safetensors", UNet(base_channels=4, depth=2))
    with pytest.raises(ValueError, match="no tuberculosis classifier"):
        load_tb(tmp_path / "unet.safetensors")
    net = TBNet()
    net.architecture["first"] = 3
    save_weights(tmp_path / "odd.safetensors", net)
    with pytest.raises(ValueError, match="don't fit"):
        load_tb(tmp_path / "odd.safetensors")


SCREENER = {"variant": "lungs", "size": SIZE, "temperature": 1.5, "threshold": 0.5}


def refused(path, about):
    """Whether it is in a line that names the file."""
    with pytest.raises(ValueError, match=f"{path.name}: .*{about}") as raised:
        TBScreener(path, device="cpu")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize("name, value", each(BAD_SCREENER), ids=repr)
def test_header_of_wrong_types_and_sizes_is_refused_in_a_line(tmp_path, name, value):
    save_weights(tmp_path / "tb.safetensors", TBNet(first=6, last=6), {**SCREENER, name: value})
    refused(tmp_path / "tb.safetensors", name)


@pytest.mark.parametrize("name, value", each(BAD_CLASSIFIER), ids=repr)
def test_architecture_that_no_classifier_has_is_refused_in_a_line(tmp_path, name, value):
    net = TBNet(first=6, last=6)
    net.architecture = {**net.architecture, name: value}
    save_weights(tmp_path / "tb.safetensors", net, SCREENER)
    refused(tmp_path / "tb.safetensors", name)


@pytest.mark.parametrize("name", SCREENER)
def test_header_that_lacks_a_key_is_refused_in_a_line(tmp_path, name):
    save_weights(
        tmp_path / "tb.safetensors", TBNet(first=6, last=6), {key: SCREENER[key] for key in SCREENER if key != name}
    )
    refused(tmp_path / "tb.safetensors", f"no {name} in the header")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, wrong):
    net = TBNet(first=6, last=6)
    net.head.bias.data[0] = wrong
    save_weights(tmp_path / "tb.safetensors", net, SCREENER)
    refused(tmp_path / "tb.safetensors", "holds NaN or infinity")


# ---- screening


@pytest.fixture(scope="module")
def weights(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("tb") / "tb.safetensors"
    save_weights(path, trained, {**SCREENER, "size": SIZE})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two synthetic radiographs and everything that can't be classified."""
    root = tmp_path_factory.mktemp("films")
    for k, film in enumerate(AppearanceModel.load().sample(2, 0, size=256)):
        write_image(root / f"film{k}.png", film.image)
    write_image(root / "blank.png", np.full((256, 256), 90, np.uint8))
    write_image(root / "noise.png", np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8))
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no film")
    return root


def test_screening_gives_a_probability_or_a_reason(folder, weights, tmp_path):
    table = screen([folder], tmp_path / "out", TBScreener(weights, device="cpu"), batch=3)
    assert tuple(table) == SCREENING_COLUMNS and list(table["name"]) == ["blank", "broken", "film0", "film1", "noise"]
    fine = table["name"].str.startswith("film")
    assert (
        table.loc[fine, "probability"].between(0, 1).all()
        and table.loc[fine, "label"].isin(["presumptive", "not presumptive"]).all()
    )
    assert table.loc[~fine, "probability"].isna().all() and (table.loc[~fine, "label"] == "").all()
    assert (
        (table.loc[fine, "flag"] == "ok").all()
        and (table.loc[fine, "reason"] == "").all()
        and (table.loc[~fine, "reason"] != "").all()
    )
    assert table["reason"][0].startswith("refused: blank") and table["reason"][1].startswith("the file is truncated")
    assert len(pd.read_csv(tmp_path / "out" / "screening.csv")) == 5
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["film0.png", "film1.png"]


@pytest.mark.parametrize("how", ["Ctrl-C", "full disk"])
def test_what_stops_a_screening_is_told_in_a_line_and_the_same_command_goes_on(
    folder, weights, tmp_path, how, ctrl_c, full_disk, monkeypatch, capfd
):
    command = [
        "screen",
        str(folder / "film*.png"),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        str(weights),
        "--device",
        "cpu",
        "--batch-size",
        "1",
    ]
    if how == "Ctrl-C":
        ctrl_c(Journal, "add", calls=1)
    else:
        full_disk(2)  # the journal and the first overlay
    assert main(command) == (130 if how == "Ctrl-C" else 1)
    said = capfd.readouterr().err
    assert said.endswith(
        "stopped; the same command resumes it\n"
        if how == "Ctrl-C"
        else "No space left on device: make room there; the same command resumes it\n"
    )
    assert said.count("\n") == 1 and (how == "Ctrl-C" or str(tmp_path / "out") in said)
    full_disk(None)
    seen, real = [], LungSegmenter.probabilities
    monkeypatch.setattr(
        LungSegmenter, "probabilities", lambda self, films, *heads: seen.append(len(films)) or real(self, films, *heads)
    )
    assert main(command) == 0 and sum(seen) == 1
    assert pd.read_csv(tmp_path / "out" / "screening.csv")["probability"].notna().tolist() == [True, True]


def test_no_name_of_a_file_ends_a_run(odd_names, weights, tmp_path):
    for path in list(odd_names)[:3]:
        write_image(tmp_path / "film.png", AppearanceModel.load().film(0, 0, size=256).image)
        path.write_bytes((tmp_path / "film.png").read_bytes())
    table = screen([tmp_path / "odd"], tmp_path / os.fsdecode(b"\xf6ut"), TBScreener(weights, device="cpu"))
    stored = pd.read_csv(tmp_path / os.fsdecode(b"\xf6ut") / "screening.csv", keep_default_na=False)
    assert (
        set(stored["name"]) == set(odd_names.values())
        and (stored["overlay"] != "").sum() == table["probability"].notna().sum() == 3
    )
    assert all("\n" not in reason for reason in stored["reason"])


@pytest.mark.parametrize("chosen", ["lung-field", "with-heart"])
def test_screening_looks_at_lung_fields_whatever_convention_the_segmenter_follows(folder, weights, tmp_path, chosen):
    header = read_header(DEFAULT_WEIGHTS)
    header["heads"] = ["kermany", *(head for head in header["heads"] if head != "kermany")][: len(header["heads"])]
    save_weights(tmp_path / "both.safetensors", load_weights(DEFAULT_WEIGHTS), header)
    segmenter = LungSegmenter(tmp_path / "both.safetensors", convention=chosen, device="cpu")
    table = screen([folder / "film0.png"], tmp_path, TBScreener(weights, segmenter=segmenter, device="cpu"))
    image = read_film(folder / "film0.png").image
    mask = segmenter.masks([image], [header["heads"][1]])[0]
    probability = TBScreener(weights, segmenter=segmenter, device="cpu").probabilities([image], [mask])[0]
    assert table["probability"][0] == pytest.approx(probability, abs=1e-3)


def test_segmenter_that_knows_no_lung_fields_is_not_for_screening(folder, weights, tmp_path):
    path = tmp_path / "heart.safetensors"
    save_weights(path, UNet(base_channels=2, depth=2), {"size": 32, "sources": ["kermany"]})
    screener = TBScreener(weights, segmenter=LungSegmenter(path, device="cpu"), device="cpu")
    with pytest.raises(ValueError, match="screening looks at lung fields"):
        screen([folder], tmp_path / "out", screener)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("age, screened", [("014Y", False), ("006M", False), ("015Y", True), ("", True)])
def test_no_statement_on_children(weights, tmp_path, age, screened):
    film = AppearanceModel.load().film(2, 5, size=256, tb=0)
    (tmp_path / "film.dcm").write_bytes(dicom(film.image, PatientAge=age))
    table = screen([tmp_path / "film.dcm"], tmp_path / "out", TBScreener(weights, device="cpu"))
    assert table["probability"].notna()[0] == screened
    assert table["reason"][0] == ("" if screened else "not for children under 15, of whom the classifier saw few")


def test_films_of_children_that_an_older_rule_screened_are_done_again(weights, tmp_path, monkeypatch):
    (tmp_path / "film.dcm").write_bytes(
        dicom(AppearanceModel.load().film(2, 5, size=256, tb=0).image, PatientAge="012Y")
    )
    monkeypatch.setattr("kaggle_utils.tb.screening.ADULT", 0)
    before = screen([tmp_path / "film.dcm"], tmp_path / "out", TBScreener(weights, device="cpu"))
    monkeypatch.undo()
    after = screen([tmp_path / "film.dcm"], tmp_path / "out", TBScreener(weights, device="cpu"))
    assert before["probability"].notna()[0] and after["probability"].isna()[0] and "children" in after["reason"][0]
    assert not list((tmp_path / "out" / "overlays").iterdir())


def test_hospital_s_own_levels_are_taken_from_its_films(weights, tmp_path):
    """Films through a machine with another contrast are called as they were, once it is calibrated on them."""
    films = [film.image for film in AppearanceModel.load().sample(LEAST, 3, size=160)]
    (tmp_path / "theirs").mkdir()
    for n, image in enumerate(films):
        write_image(tmp_path / "theirs" / f"{n}.png", image)
    screener, plain = TBScreener(weights, device="cpu"), TBScreener(weights, device="cpu")
    assert screener.calibrate([tmp_path / "theirs"]) == LEAST and screener.version != plain.version
    masks = screener.fields().masks(films)
    described = torch.from_numpy(describe_films(plain.net, films, masks, "lungs", SIZE))
    assert torch.allclose(screener.net.mean, described.mean(0), atol=1e-3)
    assert (screener.probabilities(films, masks) != plain.probabilities(films, masks)).any()
    with pytest.raises(ValueError, match=f"1 radiographs .* give {LEAST} or more"):
        plain.calibrate([tmp_path / "theirs" / "0.png"])


def test_no_lungs_no_probability(folder, weights, tmp_path, monkeypatch):
    segmenter = LungSegmenter(device="cpu")
    monkeypatch.setattr(segmenter, "finish", lambda prob, shape: np.zeros(shape, np.uint8))
    table = screen([folder / "film0.png"], tmp_path, TBScreener(weights, segmenter=segmenter, device="cpu"))
    assert table["probability"].isna().all() and table["reason"][0] == "no lung found" and table["flag"][0] == "reject"


@pytest.mark.parametrize(
    "estimate, error, expected",
    [
        (0.95, "", ""),
        (0.8, "", ""),
        (0.69, "", "no lungs to speak of"),
        (None, "a.png: refused: blank", "refused: blank"),
    ],
)
def test_masks_of_no_use_get_no_probability_and_doubtful_ones_do(estimate, error, expected):
    quality = Quality(estimate, ("no lungs to speak of",)) if estimate else None
    mask = np.ones((8, 8), np.uint8)
    film = CheckedFilm("a", Path("a.png"), mask, check_film(mask))
    found = Unsegmented("a", Path("a.png"), error) if error else Segmented(film, mask, mask.astype(np.float32), quality)
    assert why_not(found) == expected


def test_the_heat_map_stays_inside_the_lungs(weights):
    film = AppearanceModel.load().sample(1, 3, size=200)[0]
    heat = TBScreener(weights, device="cpu").heat(film.image, film.mask)
    assert heat.shape == film.image.shape and heat.max() <= 1
    assert not heat[lung_fields(film.mask, margin=0.02) == 0].any()
    drawn = draw_heat(film.image, film.mask, np.maximum(heat, film.mask * 0.5))
    assert (
        drawn[lung_fields(film.mask, margin=0.02) == 0] == film.image[lung_fields(film.mask, margin=0.02) == 0][:, None]
    ).all()


def test_a_heat_map_is_drawn_in_strips_that_take_little_memory_and_leave_no_seam(monkeypatch):
    film = phantom(1300, 400)
    heat = np.random.default_rng(0).random(film.image.shape, np.float32)
    whole = draw_heat(film.image, film.mask, heat, 0.6)
    monkeypatch.setattr("kaggle_utils.tb.screening._STRIP", 37)
    tracemalloc.start()
    drawn = draw_heat(film.image, film.mask, heat, 0.6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(drawn, whole)
    assert peak < 8 * film.image.size  # all at once took 48


def test_the_weights_that_ship(folder, tmp_path):
    assert TB_WEIGHTS.stat().st_size <= 10e6
    screener = TBScreener(device="cpu")
    assert 0 < screener.threshold < 1 and {"task", "sources", "licence", "test", "command", "origin"} <= set(
        screener.header
    )
    table = screen([folder / "film0.png", folder / "film1.png"], tmp_path, screener)
    assert table["probability"].between(0, 1).all()


def test_command_line(folder, weights, tmp_path, capsys):
    assert (
        main(["screen", str(folder), "--out", str(tmp_path / "out"), "--weights", str(weights), "--device", "cpu"]) == 3
    )
    said = capsys.readouterr()
    assert (
        "2 of 5 radiographs have a probability" in said.out
        and "No medical device" in said.out
        and "broken: the file is truncated" in said.err
    )
