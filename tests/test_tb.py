"""The tuberculosis classifier, on phantoms: cuts, variants, head, heat map, calibration, scores, screening."""

from __future__ import annotations

import os
import tracemalloc
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from damaged_headers import BAD_CLASSIFIER, BAD_SCREENER, each
from dicoms import dicom
from phantoms import phantom, write_prepared
from sklearn.metrics import roc_auc_score

from kaggle_utils.cli import main
from kaggle_utils.data import read_manifest
from kaggle_utils.files import Journal
from kaggle_utils.image import read_film, write_image
from kaggle_utils.infer import DEFAULT_WEIGHTS, CheckedFilm, LungSegmenter, Segmented, Unsegmented
from kaggle_utils.model import UNet, load_weights, read_header, save_weights
from kaggle_utils.quality import check_film
from kaggle_utils.quality.estimate import Quality
from kaggle_utils.synthetic.model import AppearanceModel
from kaggle_utils.tb.data import (
    VARIANTS,
    Cuts,
    balance,
    batches,
    cut,
    folds,
    from_letter_box,
    letter_box,
    load_cuts,
    lung_box,
    lung_fields,
    make_cuts,
    save_cuts,
    tb_frame,
    view,
)
from kaggle_utils.tb.net import TBEnsemble, TBNet, grad_cam, load_tb
from kaggle_utils.tb.screening import SCREENING_COLUMNS, TB_WEIGHTS, TBScreener, draw_heat, screen, why_not
from kaggle_utils.tb.train import TBConfig, compare_variants, logits_of, read_off, train_tb

SIZE = 64


def spotted(n: int, size: int = SIZE, seed: int = 0) -> Cuts:
    """Phantom films; every second one is sick: a bright spot in a lung."""
    rng, arrays = np.random.default_rng(seed), []
    for k in range(n):
        film = phantom(128, 128, seed + k)
        image = film.image.copy()
        if k % 2:
            row, column = rng.integers(45, 75), rng.choice((36, 92))
            image[row - 6 : row + 6, column - 6 : column + 6] = 230
        arrays.append(cut(image, film.mask, size))
    frame = pd.DataFrame({"name": [f"f{k}" for k in range(n)], "source": "montgomery", "tb": [k % 2 for k in range(n)]})
    return Cuts(frame, *map(np.stack, zip(*arrays)))


@pytest.fixture(scope="module")
def trained() -> TBNet:
    return train_tb(
        spotted(32),
        TBConfig(size=SIZE, base_channels=8, depth=2, epochs=15, batch_size=8, lr=4e-3, ema_decay=0.9, device="cpu"),
    )


# ---- cuts


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


def test_cuts_survive_the_disk(tmp_path):
    cuts = spotted(3)
    save_cuts(tmp_path / "a" / "cuts.npz", cuts)
    again = load_cuts(tmp_path / "a" / "cuts.npz")
    assert list(again.frame["name"]) == ["f0", "f1", "f2"] and all(
        np.array_equal(getattr(again, key), getattr(cuts, key)) for key in ("films", "lungs", "crops", "crop_lungs")
    )


def test_films_of_a_set_are_cut_by_the_segmenter_named_for_it_and_those_without_lungs_left_out(tmp_path):
    class Finder:
        def __init__(self, empty):
            self.empty = empty

        def masks(self, films):
            return [np.zeros_like(film) if self.empty else phantom(*film.shape).mask for film in films]

    write_prepared(tmp_path, {"train": 3})
    write_prepared(tmp_path, {"train": 4}, source="shenzhen", first=50)
    cuts = make_cuts(read_manifest(tmp_path), {"montgomery": Finder(True), "shenzhen": Finder(False)}, 32)
    assert list(cuts.frame["source"]) == ["shenzhen"] * 4 and cuts.crops.shape == (4, 32, 32)


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


# ---- variants


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    film = phantom(64, 64)
    return tuple(torch.from_numpy(a[None, None]) for a in (film.image, film.mask))


def changed(variant: str, pair, where: torch.Tensor) -> bool:
    """Whether a variant sees a new texture there."""
    image, lungs = pair
    other = torch.where(where.bool(), 255 - image, image)
    return not torch.equal(view(image, lungs, variant)[0], view(other, lungs, variant)[0])


@pytest.mark.parametrize(
    "variant, sees_lungs, sees_rest",
    [("whole", True, True), ("crop", True, True), ("masked", True, False), ("blanked", False, True)],
)
def test_a_variant_sees_what_it_should_and_nothing_else(variant, sees_lungs, sees_rest, pair):
    assert changed(variant, pair, pair[1]) == sees_lungs and changed(variant, pair, 1 - pair[1]) == sees_rest


@pytest.mark.parametrize("variant", VARIANTS)
def test_exposure_cancels_out(variant, pair):
    image, lungs = pair
    assert torch.allclose(view(image, lungs, variant)[0], view(0.5 * image.float() + 20, lungs, variant)[0], atol=1e-4)


def test_no_such_variant(pair):
    with pytest.raises(ValueError, match="whole, crop, masked, blanked"):
        view(*pair, "left")


def test_every_set_s_classes_weigh_alike():
    frame = pd.DataFrame({"source": ["a"] * 5 + ["b"] * 3, "tb": [1, 0, 0, 0, 0, 1, 1, 0]})
    weight = balance(frame)
    sums = frame.assign(weight=weight).groupby(["source", "tb"])["weight"].sum()
    assert np.allclose(sums, [2.5, 2.5, 1.5, 1.5]) and np.isclose(weight.mean(), 1)


def test_an_epoch_is_every_film_once_and_repeats(trained):
    cuts = spotted(7)
    one, two = (list(batches(cuts, "masked", batch=3, seed=4, epoch=2)) for _ in range(2))
    assert sorted(np.concatenate([films for *_, films in one])) == list(range(7))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two))
    assert not torch.equal(one[0][0], next(batches(cuts, "masked", batch=3, seed=4, epoch=3))[0])


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


def test_blanked_lungs_hide_what_the_masked_variant_sees():
    cuts = spotted(48)
    cuts.frame["part"] = ["train"] * 32 + ["val"] * 8 + ["test"] * 8
    films = compare_variants(
        cuts,
        TBConfig(size=SIZE, base_channels=8, depth=2, epochs=15, batch_size=8, lr=4e-3, ema_decay=0.9, device="cpu"),
        variants=("masked", "blanked"),
    )
    assert (
        films.groupby("arm")["name"].agg(list).map(lambda names: sorted(names) == sorted(cuts.frame["name"][32:])).all()
    )
    by_variant = {variant: roc_auc_score(some["tb"], some["logit"]) for variant, some in films.groupby("arm")}
    assert by_variant["masked"] == 1 and by_variant["blanked"] < 0.8


# ---- network and heat map


def test_the_head_reads_only_the_region():
    torch.manual_seed(0)
    net = TBNet(base_channels=4, depth=2).eval()
    features, region = torch.rand(1, 16, 8, 8), torch.zeros(1, 1, 64, 64)
    region[..., :32, :32] = 1
    other = features.clone()
    other[..., 4:, 4:] += 50
    assert torch.allclose(net.classify(features, region), net.classify(other, region))


def test_it_starts_from_a_segmenter_of_its_shape():
    net, unet = TBNet(base_channels=4, depth=2), UNet(base_channels=4, depth=2, patch=2)
    net.take_encoder(unet)
    assert torch.equal(net.down[1][1][0].weight, unet.down[1][1][0].weight)
    with pytest.raises(ValueError, match="depth"):
        net.take_encoder(UNet(base_channels=4, depth=3, patch=2))


def test_it_learns_what_can_be_learned(trained):
    cuts = spotted(24, seed=500)
    cuts.frame["part"] = "test"
    films = read_off([trained], cuts, "masked")
    assert list(films) == ["name", "source", "tb", "part", "logit"] and roc_auc_score(films["tb"], films["logit"]) == 1


def test_the_heat_is_where_the_spot_is(trained):
    film = phantom(128, 128, seed=900)
    spot = np.zeros_like(film.image)
    spot[50:62, 86:98] = 230
    _, _, crop, lungs = cut(np.maximum(film.image, spot), film.mask, SIZE)
    warm = grad_cam([trained], *view(*(torch.from_numpy(a[None, None]) for a in (crop, lungs)), "masked"))[0].numpy()
    row, column = np.unravel_index(warm.argmax(), warm.shape)
    planted = np.argwhere(cut(spot, film.mask, SIZE)[2] > 115).mean(0)
    assert np.abs(planted - (row, column)).max() < 6
    assert warm[24:50, 44:60].mean() > 3 * warm.mean()


def test_weights_come_back_as_they_were(tmp_path, trained):
    save_weights(tmp_path / "tb.safetensors", TBEnsemble([trained, deepcopy(trained)]), {"arm": "masked"})
    ensemble, cuts = load_tb(tmp_path / "tb.safetensors"), spotted(4)
    assert len(ensemble.members) == 2
    assert np.allclose(
        logits_of(list(ensemble.members), cuts, "masked"), logits_of([trained], cuts, "masked"), atol=1e-3
    )


def test_other_weights_are_refused(tmp_path):
    save_weights(tmp_path / "unet.safetensors", UNet(base_channels=4, depth=2))
    with pytest.raises(ValueError, match="no tuberculosis classifier"):
        load_tb(tmp_path / "unet.safetensors")
    net = TBEnsemble([TBNet(base_channels=4, depth=2)])
    net.architecture["base_channels"] = 8
    save_weights(tmp_path / "odd.safetensors", net)
    with pytest.raises(ValueError, match="don't fit"):
        load_tb(tmp_path / "odd.safetensors")


SCREENER = {"arm": "masked", "size": SIZE, "temperature": 1.5, "threshold": 0.5}


def refused(path, about):
    """Whether it is in a line that names the file."""
    with pytest.raises(ValueError, match=f"{path.name}: .*{about}") as raised:
        TBScreener(path, device="cpu")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize("name, value", each(BAD_SCREENER), ids=repr)
def test_header_of_wrong_types_and_sizes_is_refused_in_a_line(tmp_path, name, value):
    save_weights(tmp_path / "tb.safetensors", TBEnsemble([TBNet(base_channels=2, depth=1)]), {**SCREENER, name: value})
    refused(tmp_path / "tb.safetensors", name)


@pytest.mark.parametrize("name, value", each(BAD_CLASSIFIER), ids=repr)
def test_architecture_that_no_classifier_has_is_refused_in_a_line(tmp_path, name, value):
    net = TBEnsemble([TBNet(base_channels=2, depth=1)])
    net.architecture = {**net.architecture, name: value}
    save_weights(tmp_path / "tb.safetensors", net, SCREENER)
    refused(tmp_path / "tb.safetensors", name)


@pytest.mark.parametrize("name", SCREENER)
def test_header_that_lacks_a_key_is_refused_in_a_line(tmp_path, name):
    save_weights(
        tmp_path / "tb.safetensors",
        TBEnsemble([TBNet(base_channels=2, depth=1)]),
        {key: SCREENER[key] for key in SCREENER if key != name},
    )
    refused(tmp_path / "tb.safetensors", f"no {name} in the header")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, wrong):
    net = TBEnsemble([TBNet(base_channels=2, depth=1)])
    net.members[0].head[1].bias.data[0] = wrong
    save_weights(tmp_path / "tb.safetensors", net, SCREENER)
    refused(tmp_path / "tb.safetensors", "holds NaN or infinity")


# ---- training's edges


def test_one_class_is_nothing_to_learn_from():
    cuts = spotted(8)
    with pytest.raises(ValueError, match="0 and with 1"):
        train_tb(cuts[cuts.frame["tb"] == 1], TBConfig(size=SIZE, base_channels=4, depth=2))
    with pytest.raises(ValueError, match="64 px"):
        train_tb(cuts, TBConfig(size=32, base_channels=4, depth=2))


# ---- screening


@pytest.fixture(scope="module")
def weights(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("tb") / "tb.safetensors"
    save_weights(path, TBEnsemble([trained]), {"arm": "masked", "size": SIZE, "temperature": 1.5, "threshold": 0.5})
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
    assert TB_WEIGHTS.stat().st_size <= 2e6
    screener = TBScreener(device="cpu")
    assert 0 < screener.threshold < 1 and {"task", "sources", "licence", "test", "command"} <= set(screener.header)
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
