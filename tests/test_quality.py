"""quality: damage and what is no film lower the estimate, and reasons say why. benchmarks/quality.py: its sums, by
hand."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from phantoms import with_prior, write_prepared

from benchmarks import quality as bench
from kaggle_utils.cli import main
from kaggle_utils.data import read_manifest
from kaggle_utils.image import resize_image, resize_mask, write_image
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter, finish_mask
from kaggle_utils.model import UNet, read_header, save_weights
from kaggle_utils.predictions import predict
from kaggle_utils.quality import fit as quality_fit
from kaggle_utils.quality import flags as quality
from kaggle_utils.quality.damages import DRAWN, damaged, draw
from kaggle_utils.quality.fit import GOOD_FLAGGED, Item, by_convention, fit_quality, levelled, regress
from kaggle_utils.quality.flags import (
    REASONS,
    Quality,
    check_fit,
    choose_fit,
    estimate_quality,
    judge,
    observe,
    why_no_estimate,
)
from kaggle_utils.synthetic.model import AppearanceModel

SHIPPED = choose_fit(read_header(DEFAULT_WEIGHTS)["quality"], "lung-field")
USUAL = {name: usual for name, (usual, _) in SHIPPED["features"].items()}
FIT = {
    "bias": 3.0,
    "features": {name: [0.0, 1.0] for name in REASONS},
}  # each feature lowers the estimate by itself in logits


@pytest.fixture(scope="module")
def segmenter():
    return LungSegmenter(device="cpu")


@pytest.fixture(scope="module")
def films():
    return AppearanceModel.load().sample(3, 11, size=256, tb=0)


def judged(segmenter, images):
    return [
        estimate_quality(prob, segmenter.finish(prob, image.shape), segmenter.quality)
        for prob, image in zip(segmenter.probabilities(images), images)
    ]


def drawn(mask):
    """Features of a mask that the network is sure of."""
    return observe(mask.astype(np.float32), mask)


@pytest.fixture(scope="module")
def untouched(segmenter, films):
    return judged(segmenter, [film.image for film in films])


# --- the shape model -------------------------------------------------------------------------------------------------


def test_shape_model_is_the_built_in_films_own():
    arrays = AppearanceModel.load().arrays
    model = quality._shape_model()
    assert {name: array.dtype for name, array in model.items()} == dict.fromkeys(
        ("mean", "centre", "modes", "sd"), np.float32
    )
    for name, array in {
        "mean": arrays["shape_mean"],
        "centre": arrays["shape_centre"],
        "modes": arrays["shape_modes"],
        "sd": arrays["code_sd"][:20],
    }.items():
        np.testing.assert_array_equal(model[name], array)
    assert len(model["modes"]) == 20 and quality.SHAPE.stat().st_size < 20_000


def test_shape_model_is_written_with_the_built_in_films_model(monkeypatch, tmp_path):
    model, asset = AppearanceModel.load(), tmp_path / "appearance.npz"
    monkeypatch.setattr("kaggle_utils.synthetic.fit_prepared", lambda data: model)
    monkeypatch.setattr("kaggle_utils.synthetic.ASSET", asset)
    monkeypatch.setattr("kaggle_utils.quality.flags.SHAPE", tmp_path / "shape.npz")
    write_prepared(tmp_path / "set", {"train": 1})
    assert main(["fit-synth", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "other.npz")]) == 0
    assert not (tmp_path / "shape.npz").exists()
    assert main(["fit-synth", "--data", str(tmp_path / "set")]) == 0 and asset.exists()
    quality._shape_model.cache_clear()
    written = dict(quality._shape_model())
    quality._shape_model.cache_clear()
    np.testing.assert_array_equal(written["modes"], AppearanceModel.load(asset).arrays["shape_modes"])


# --- estimates -------------------------------------------------------------------------------------------------------


def test_built_in_films_are_ok(untouched):
    assert all(found.flag == "ok" and 0.9 < found.estimate < 1 and not found.reasons for found in untouched)


@pytest.mark.parametrize("kind", ["noise", "inversion", "blur", "down-sampling"])
def test_damage_lowers_the_estimate_and_says_why(kind, segmenter, films, untouched):
    worse = judged(segmenter, [damaged(film.image, film.mask, kind, 5, seed=film.name)[0] for film in films])
    assert all(now.estimate < then.estimate for now, then in zip(worse, untouched))
    assert any(found.flag != "ok" for found in worse)
    assert all(found.reasons for found in worse if found.flag != "ok")
    assert {reason for found in worse for reason in found.reasons} <= {*REASONS.values(), "no lung found"}


@pytest.mark.parametrize("kind", DRAWN)
def test_pictures_of_no_chest_are_not_ok(kind, segmenter):
    pictures = [draw(kind, np.random.default_rng(seed)) for seed in (50, 51)]
    assert all(found.flag != "ok" for found in judged(segmenter, pictures))


def test_empty_mask_is_rejected():
    found = estimate_quality(np.zeros((64, 64), np.float32), np.zeros((512, 400), np.uint8), None)
    assert found == Quality(0.0, ("no lung found",)) and found.flag == "reject"


def test_sure_and_clean_mask_has_the_least_doubt_and_no_pieces(films):
    found = drawn(films[0].mask)
    assert found["pieces"] == found["doubt"] == pytest.approx(np.log(0.003))
    unsure = observe(films[0].mask * np.float32(0.6), films[0].mask)
    assert np.exp(unsure["doubt"]) == pytest.approx(1 - 2 * 0.6 / 1.6 + 0.003, abs=1e-4)  # sums: 0.6 n of n pixels


def test_what_cleaning_took_away_are_pieces(films):
    mask = films[0].mask
    raw = mask.astype(np.float32)
    raw[:16, :16] = 1  # 256 px in a corner
    assert np.exp(observe(raw, mask)["pieces"]) == pytest.approx(256 / (mask.sum() + 256) + 0.003, rel=1e-3)


def test_one_lung_has_no_shape_and_says_so(films):
    found = drawn(films[0].left)
    assert found["not_two"] == 1 and np.isnan(found["shape"])
    assert REASONS["not_two"] in judge(found | {"doubt": 0.0, "pieces": 0.0}, FIT).reasons


def test_boxes_are_further_from_lungs_than_lungs(films):
    boxes = np.zeros((256, 256), np.uint8)
    boxes[60:180, 40:110] = boxes[60:180, 150:220] = 1
    assert (
        drawn(boxes)["shape"] > max(drawn(film.mask)["shape"] for film in films) + 0.5 and drawn(boxes)["not_two"] == 0
    )


def test_shape_has_no_place_and_no_size(films):
    mask = films[0].mask
    smaller = np.pad(resize_image(mask * np.uint8(255), 200) // 128, ((40, 16), (10, 46)))
    assert drawn(smaller)["shape"] == pytest.approx(drawn(mask)["shape"], abs=0.15)
    assert drawn(smaller)["size"] > drawn(mask)["size"]


# --- judgement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REASONS)
def test_more_of_a_feature_never_raises_the_estimate(name):
    assert judge(USUAL | {name: USUAL[name] + 1}, SHIPPED).estimate <= judge(USUAL, SHIPPED).estimate


def test_estimate_is_the_logistic_of_bias_less_the_features():
    features = dict.fromkeys(REASONS, 0.0)
    assert judge(features, FIT).estimate == pytest.approx(1 / (1 + np.exp(-3)))
    assert judge(features | {"shape": 2.0}, FIT).estimate == pytest.approx(1 / (1 + np.exp(-1)))
    assert judge(features | {"shape": np.nan}, FIT).estimate == pytest.approx(
        1 / (1 + np.exp(-3))
    )  # what is undefined says nothing


def test_reasons_are_the_weightiest_first_and_there_is_always_one():
    features = dict.fromkeys(REASONS, 0.0)
    found = judge(features | {"shape": 1.0, "doubt": 2.0, "size": 0.1}, FIT)
    assert found.flag == "reject" and found.reasons == (REASONS["doubt"], REASONS["shape"])
    assert judge(features, FIT).reasons == ()
    small = judge(features | dict.fromkeys(REASONS, 0.25), FIT)
    assert small.flag == "check" and len(small.reasons) == 1


@pytest.mark.parametrize(
    "estimate, flag", [(0.95, "ok"), (0.90, "ok"), (0.899, "check"), (0.70, "check"), (0.699, "reject")]
)
def test_flag(estimate, flag):
    assert Quality(estimate).flag == flag


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_says_what_it_thinks_of_each_mask(segmenter, films, tmp_path):
    write_image(tmp_path / "good.png", films[0].image)
    write_image(tmp_path / "noise.png", draw("noise", np.random.default_rng(1)))
    (tmp_path / "broken.png").write_bytes(b"x")
    table = predict([tmp_path], tmp_path / "out", segmenter, force=True).set_index("name")
    assert table.loc["good", "quality"] == pytest.approx(judged(segmenter, [films[0].image])[0].estimate, abs=0.002)
    assert table.loc["good", "quality"] > 0.9
    assert table.loc["good", "flag"] == "ok" and table.loc["good", "reasons"] == ""
    assert table.loc["noise", "flag"] in ("check", "reject") and table.loc["noise", "reasons"]
    assert table.loc["broken", ["quality", "flag", "reasons"]].isna().all()


@pytest.mark.parametrize("header, why", [({}, "carry none"), ({"quality": {"why_not": "3 films"}}, "3 films")])
def test_weights_without_an_estimate_leave_the_column_empty_and_say_why(header, why, films, tmp_path, capsys):
    save_weights(
        tmp_path / "w.safetensors",
        with_prior(UNet(base_channels=2, depth=1), 0.9),
        {"size": 32, "sources": ["a"], **header},
    )
    (tmp_path / "films").mkdir()
    write_image(tmp_path / "films" / "good.png", films[0].image)
    command = [
        "predict",
        str(tmp_path / "films"),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        str(tmp_path / "w.safetensors"),
        "--raw",
        "--force",
    ]
    assert main(command) == 0 and f"no estimate of quality: {why}" in capsys.readouterr().out.replace(
        "these weights ", ""
    )
    row = pd.read_csv(tmp_path / "out" / "predictions.csv").iloc[0]
    assert row[["quality", "flag", "reasons"]].isna().all() and row["lung_px"] > 0
    assert row["notes"].endswith(why_no_estimate(header.get("quality")))


def test_shipped_weights_carry_the_estimate_that_was_measured():
    assert not why_no_estimate(SHIPPED) and SHIPPED["films"] == 70 and 0 < SHIPPED["mean_error"] < 0.1


# --- the fit and its measures ----------------------------------------------------------------------------------------


def made_up(n=400):
    """Dice that falls with one feature and nothing else."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.normal(size=n) for name in REASONS})
    dice = 1 / (1 + np.exp(-(2 - 0.8 * table["shape"])))
    return table.assign(
        name=[f"{k // 4}" for k in range(n)],
        source="a",
        damage=["none", "blur"] * (n // 2),
        strength=0,
        dice=dice,
        found=True,
    )


def test_fit_finds_the_feature_that_matters_and_none_that_raises_the_estimate():
    found = regress(made_up())
    weights = {name: weight for name, (_, weight) in found["features"].items()}
    assert weights["shape"] == pytest.approx(0.8, abs=0.02) and sum(weights.values()) < 0.9
    assert min(weights.values()) >= 0


def test_feature_that_goes_with_better_masks_is_left_out():
    table = made_up()
    table["shape"] = -table["shape"]
    assert regress(table)["features"]["shape"][1] == 0


def test_cross_validation_judges_each_row_once_by_other_films():
    fitted = []
    table = made_up(40)
    unseen = quality_fit.out_of_fold(table, lambda rows: fitted.append(set(rows["name"])) or FIT)
    assert sorted(unseen.index) == list(table.index) and len(fitted) == quality_fit.FOLDS
    assert set.intersection(*fitted) == set() and set.union(*fitted) == set(table["name"])


def test_few_good_masks_are_flagged():
    """Where a line lies too low between good and poor: here Dice falls steeply below .9, as where lungs are lost."""
    table = made_up(2000)
    table["dice"] = np.where(table["shape"] < 0.5, 0.905 + 0.02 * np.random.default_rng(1).random(2000), 0.2)
    good = table["dice"] >= 0.9
    flagged = [(quality_fit.judged(table, fit(table))["flag"] != "ok")[good].mean() for fit in (regress, levelled)]
    assert flagged[0] > 2 * GOOD_FLAGGED and flagged[1] == pytest.approx(GOOD_FLAGGED, abs=0.01)
    sure = made_up()
    sure["dice"] = np.where(sure["shape"] < 0, 0.97, 0.2)
    assert levelled(sure)["bias"] >= regress(sure)["bias"]  # estimates are raised, never lowered


def test_each_convention_has_a_fit_and_is_judged_by_it():
    """Lungs with the heart that are as unusual by their shape as poor ones without it."""
    lungs, hearts = made_up().assign(source="jsrt"), made_up().assign(source="kermany")
    hearts["shape"] += 2
    table = pd.concat([lungs, hearts], ignore_index=True)
    fit = by_convention(table, regress)
    assert list(fit["conventions"]) == ["lung-field", "with-heart"]
    separate = quality_fit.judged(table, fit)
    np.testing.assert_allclose(separate["estimate"], separate["dice"], atol=0.02)
    together = quality_fit.judged(table, regress(table))
    assert (together["estimate"] - together["dice"]).abs().max() > 0.1
    assert by_convention(lungs, regress) == regress(lungs)
    own = pd.concat([lungs, made_up().assign(source="ours")], ignore_index=True)  # a set whose convention nobody knows
    assert by_convention(own, regress) == regress(own)


def test_segmenter_has_the_estimate_of_its_heads_convention(tmp_path):
    fits = {name: FIT | {"bias": bias} for name, bias in (("lung-field", 1.0), ("with-heart", 2.0))}
    header = {"size": 32, "sources": ["shenzhen", "kermany"], "heads": ["shenzhen", "kermany"]}
    path = tmp_path / "w.safetensors"
    save_weights(path, UNet(classes=2, base_channels=2, depth=1), header | {"quality": {"conventions": fits}})
    found = {head: LungSegmenter(path, device="cpu", head=head).quality["bias"] for head in (None, "kermany")}
    assert found == {None: 1.0, "kermany": 2.0}
    assert choose_fit({"conventions": fits}, None)["bias"] == 1.0 and choose_fit(FIT, "with-heart") == FIT


@pytest.mark.parametrize("fits", [{}, [FIT], {"lung-field": {}}, {"lung-field": {"conventions": {"lung-field": FIT}}}])
def test_conventions_that_hold_no_estimates_are_refused(fits):
    check_fit({"conventions": {"lung-field": FIT, "with-heart": {"why_not": "3 films"}}})
    with pytest.raises(ValueError, match="of quality|quality is"):
        check_fit({"conventions": fits})


def test_gas_is_drawn_into_films_before_they_are_damaged(tmp_path):
    frame = read_manifest(write_prepared(tmp_path / "set", {"test": 2}, size=96))
    plain, gas = bench.films(frame, 1), bench.films(frame, 1, artefact="gas")
    assert [item.damage for item in gas] == [item.damage for item in plain] and gas[0].damage == "none"
    assert (gas[0].image != plain[0].image).any() and (gas[0].truth == plain[0].truth).all()
    assert (gas[0].image == bench.films(frame, 0, artefact="gas")[0].image).all()


def test_table_is_judged_as_each_row_would_be():
    table = made_up(8)
    table.loc[3, "shape"], table.loc[5, "found"] = np.nan, False
    rows = [judge(row if row["found"] else None, SHIPPED) for row in table[[*REASONS, "found"]].to_dict("records")]
    found = quality_fit.judged(table, SHIPPED)
    np.testing.assert_allclose(found["estimate"], [row.estimate for row in rows], rtol=1e-12)
    assert list(found["flag"]) == [row.flag for row in rows]


class Blurring:
    """A network that finds the drawn lungs, the worse the darker the film is, and is as unsure."""

    size, threshold, heads, head = 64, 0.5, [""], ""

    def probabilities(self, images, heads):
        return np.stack([self.blurred(image) for image in images])

    @staticmethod
    def blurred(image):
        mask = (image > 0).astype(np.float32)
        return np.clip(cv2.GaussianBlur(mask, (0, 0), 1 + (255 - int(image.max())) / 20), 0, 1)

    finish = staticmethod(finish_mask)


def test_estimate_fitted_to_a_network_tells_its_better_masks_from_worse(films):
    """On lungs that are given, drawn in a gray that tells how well the network will find them."""
    given = [
        Item(
            f"{film.name} {gray}",
            "a",
            "none",
            0,
            resize_mask(film.mask, 64) * np.uint8(gray),
            resize_mask(film.mask, 64),
        )
        for film in films
        for gray in (255, 230, 200, 160, 110, 60)
    ]
    fit = fit_quality(given, Blurring())
    assert fit["films"] == 18 and fit["masks"] == 18 * 4 + 20 and fit["spearman"] > 0.5
    assert fit == fit_quality(given, Blurring())  # the same each time
    check_fit(fit)
    table = quality_fit.judged(quality_fit.observed(given, Blurring()), fit)
    assert table["dice"].corr(table["estimate"], method="spearman") > 0.7
    assert json.loads(json.dumps(fit)) == fit


def test_too_few_films_or_masks_give_no_estimate_and_the_reason(films):
    few = [Item(str(n), "a", "none", 0, films[0].image, films[0].mask) for n in range(8)]
    assert "7 validation films are too few" in fit_quality(few[:7], Blurring())["why_not"]
    blind = Blurring()
    blind.blurred = lambda image: np.zeros((64, 64), np.float32)
    assert "found lungs in too few" in fit_quality(few, blind)["why_not"]


def test_estimate_that_is_no_better_than_one_number_is_none(films, monkeypatch):
    monkeypatch.setattr(quality_fit, "out_of_fold", lambda table, fit: table.assign(estimate=1 - table["dice"]))
    few = [
        Item(str(n), "a", "none", 0, resize_mask(films[0].mask, 64) * np.uint8(200), resize_mask(films[0].mask, 64))
        for n in range(8)
    ]
    assert "no better than one number" in fit_quality(few, Blurring())["why_not"]


def test_measures_of_made_up_rows():
    table = pd.DataFrame(
        {"dice": [0.95, 0.97, 0.5, 0.89], "estimate": [0.94, 0.96, 0.4, 0.95], "flag": ["ok", "ok", "reject", "ok"]}
    )
    found = bench.measured(table)
    assert found["n"] == 4 and found["poor"] == 2 and found["auc"] == 0.75
    assert found["poor_flagged"] == 0.5 and found["good_flagged"] == 0 and found["useless_rejected"] == 1
    assert bench.measured(table[:2])["auc"] is None  # no poor one to find
    found = bench.by_state(table.assign(damage=["none", "none", "blur", "blur"]))
    assert {state: (part["n"], part["poor"]) for state, part in found.items()} == {
        "untouched": (2, 0),
        "damaged": (2, 2),
        "both": (4, 2),
    }


def test_drawn_pictures_are_pictures_and_the_same_each_time():
    found, again = quality_fit.drawn(2), quality_fit.drawn(2)
    assert [item.damage for item in found] == [kind for kind in DRAWN for _ in range(2)]
    for one, other, same in zip(found[::2], found[1::2], again[1::2]):
        assert one.image.shape == (256, 256) and one.image.dtype == np.uint8 and np.ptp(one.image) > 30
        assert (one.image != other.image).any() and not one.truth.any()
        np.testing.assert_array_equal(other.image, same.image)
