"""synthetic: radiographs that the model draws, without any real film at hand."""

import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import phantoms
import pytest
from matplotlib.figure import Figure
from scipy.ndimage import label

from kaggle_utils import image as files
from kaggle_utils.cli import main
from kaggle_utils.plots import figures as plot
from kaggle_utils.quality import outline
from kaggle_utils.splits import SAME_PATIENT
from kaggle_utils.synthetic import acquire
from kaggle_utils.synthetic import fit as appearance
from kaggle_utils.synthetic import model as synthetic
from kaggle_utils.synthetic.fit import FitConfig
from kaggle_utils.synthetic.model import ASSET, AppearanceModel


@pytest.fixture(scope="module")
def model():
    return AppearanceModel.load()


@pytest.fixture(scope="module")
def films(model):
    return model.sample(24, 0)


@pytest.fixture(scope="module")
def small(model):
    """A model fitted on 40 samples of the shipped one."""
    drawn = model.sample(40, 99, acquire=False)
    arrays = appearance.fit_arrays(
        [f.image for f in drawn],
        [f.mask for f in drawn],
        [f.tb for f in drawn],
        FitConfig(shape=6, flow=6, texture=12, windows=60, linked=8),
    )
    return AppearanceModel(arrays)


def test_film_keeps_the_data_contract(films):
    for film in films:
        assert film.image.dtype == film.left.dtype == film.right.dtype == np.uint8
        assert film.image.shape == film.left.shape == film.right.shape == (256, 256)
        assert set(np.unique(film.left)) == set(np.unique(film.right)) == {0, 1}
        assert not (film.left & film.right).any()
        assert (film.mask == (film.left | film.right)).all()
    assert len({film.name for film in films}) == len(films)
    assert {film.tb for film in films} == {0, 1}


def test_patients_left_lung_is_on_the_images_right(films):
    for film in films:
        assert np.nonzero(film.left)[1].mean() > np.nonzero(film.right)[1].mean()


def test_lungs_are_whole_and_of_human_size(films):
    for film in films:
        for lung in (film.left, film.right):
            assert label(lung)[1] == 1
            assert 0.02 < lung.mean() < 0.35


def test_lungs_are_darker_than_the_mediastinum(model):
    for film in model.sample(24, 1, acquire=False):
        rows = np.nonzero(film.mask.any(1))[0]
        middle = (rows[0] + 2 * rows[-1]) // 3
        between = [
            film.image[y, np.nonzero(film.right[y])[0][-1] + 2 : np.nonzero(film.left[y])[0][0] - 1]
            for y in range(middle - 10, middle + 10)
            if film.left[y].any() and film.right[y].any()
        ]
        assert np.median(np.concatenate(between)) > np.median(film.image[film.mask > 0]) + 10


def test_mask_lies_on_the_lungs_edge(model):
    """Over many films, the step from lung to chest wall is on the outline, not beside it."""
    steps = np.zeros(9)
    for film in model.sample(40, 2, acquire=False):
        lung, rest = film.mask, 1 - film.mask
        depth = np.where(
            lung, cv2.distanceTransform(lung, cv2.DIST_L2, 5) - 0.5, 0.5 - cv2.distanceTransform(rest, cv2.DIST_L2, 5)
        )
        level = [film.image[abs(depth - d) < 0.6].mean() for d in np.arange(-4.5, 5)]
        steps -= np.diff(level)
    assert abs(int(np.argmax(steps)) - 4) <= 1


def test_film_of_a_seed_does_not_depend_on_how_many_are_drawn(model):
    few, many = model.sample(2, 7), list(model.stream(4, 7))
    for a, b in zip(few, many):
        assert (a.image == b.image).all() and (a.mask == b.mask).all() and a.name == b.name
    assert (model.film(7, 3).image == many[3].image).all()


def test_seeds_differ(model):
    a, b, c = model.film(0, 0).image, model.film(1, 0).image, model.film(0, 1).image
    assert min(abs(a.astype(int) - b).mean(), abs(a.astype(int) - c).mean(), abs(b.astype(int) - c).mean()) > 5


# One film at every 32nd pixel, from the shipped asset; draw it again when the asset is fitted again:
# AppearanceModel.load().film(2026, 0, acquire=False).image[16::32, 16::32]
REFERENCE = np.array(
    [
        [32, 32, 100, 166, 93, 44, 41, 32],
        [150, 150, 160, 190, 171, 157, 186, 209],
        [179, 130, 100, 168, 174, 69, 178, 198],
        [198, 105, 97, 196, 200, 105, 115, 170],
        [180, 103, 100, 198, 224, 135, 97, 140],
        [177, 206, 204, 215, 229, 205, 132, 61],
        [191, 219, 226, 232, 236, 235, 225, 94],
        [164, 228, 234, 239, 238, 240, 240, 171],
    ]
)
REFERENCE_AREAS = (6474, 6130)  # px, right and left lung of film(2026, 1)


def test_film_is_the_same_on_every_machine_to_the_grey_level(model):
    film = model.film(2026, 0, acquire=False)
    assert abs(film.image[16::32, 16::32].astype(int) - REFERENCE).max() <= 1
    film = model.film(2026, 1)
    assert abs(int(film.right.sum()) - REFERENCE_AREAS[0]) <= 2
    assert abs(int(film.left.sum()) - REFERENCE_AREAS[1]) <= 2


def test_share_of_tuberculosis(model):
    assert {film.tb for film in model.sample(5, 3, tb=0)} == {0}
    assert {film.tb for film in model.sample(5, 3, tb=1)} == {1}


@pytest.mark.slow
def test_classes_look_different(model):
    """Upper lung fields are denser in tuberculosis; the same draws are compared."""

    def upper(film):
        rows = np.nonzero(film.mask.any(1))[0]
        part = film.mask.copy()
        part[rows[0] + len(rows) // 3 :] = 0
        return film.image[part > 0].mean() - film.image[film.mask > 0].mean()

    pairs = zip(model.sample(30, 4, tb=0, acquire=False), model.sample(30, 4, tb=1, acquire=False), strict=True)
    assert np.mean([upper(ill) - upper(well) for well, ill in pairs]) > 1


@pytest.mark.parametrize("size", [64, 250, 512])
def test_any_size(model, size):
    film, usual = model.film(0, 0, size=size, acquire=False), model.film(0, 0, acquire=False)
    assert film.image.shape == film.left.shape == (size, size)
    assert film.mask.mean() == pytest.approx(usual.mask.mean(), rel=0.03)
    assert abs(files.resize_image(film.image, 32).astype(int) - files.resize_image(usual.image, 32)).mean() < 3


def test_acquisition_moves_the_masks_with_the_film(model):
    """Undoing the place of an acquired film gives the outline that the model drew."""
    shape, _ = model._draw(0, np.random.default_rng(0))
    for seed in range(20):
        placed = acquire.place(shape, np.random.default_rng(seed))
        back = outline.move(placed.outlines, 1 / placed.a, -placed.b / placed.a)
        assert np.allclose(back, shape)
        assert placed.outlines.min() > 0 and placed.outlines.max() < 1


def test_acquisition_can_be_switched_off(model):
    raw, taken = model.film(5, 0, acquire=False), model.film(5, 0)
    assert (raw.image != taken.image).mean() > 0.5
    # Without grain, neighbouring pixels of an area of nothing are alike.
    assert raw.image.min() > 0 or raw.image.max() < 256


def test_right_marker_is_on_the_images_left(monkeypatch):
    monkeypatch.setattr(acquire, "MARKER", 1.0)
    sides = []
    for seed in range(20):
        printed = acquire._print_marker(np.zeros((128, 128), np.float32), np.random.default_rng(seed))
        assert printed.max() > 120
        sides.append(np.nonzero(printed)[1].mean() < 64)
    right = [np.random.default_rng(seed).random(4)[1] < 0.6 for seed in range(20)]
    assert sides == right and 0 < sum(sides) < 20


def test_nothing_but_an_earlier_model_is_replaced(tmp_path, monkeypatch, model, capsys):
    """Which is told before the fit, as that takes minutes."""
    monkeypatch.setattr("kaggle_utils.synthetic.fit_prepared", lambda data: model)
    data = phantoms.write_prepared(tmp_path / "set", {"train": 1})
    out = tmp_path / "notes.npz"
    for theirs in (b"a stranger's", b""):
        out.write_bytes(theirs)
        assert main(["fit-synth", "--data", str(data), "--out", str(out)]) == 1
        assert (
            "notes.npz: it is there, and no model of synthetic radiographs: choose another file"
            in capsys.readouterr().err
        )
        assert out.read_bytes() == theirs
    out.unlink()
    assert [main(["fit-synth", "--data", str(data), "--out", str(out)]) for _ in range(2)] == [0, 0]


@pytest.mark.slow
def test_fit_finds_the_shape_it_was_given(model, small):
    """Models of the same population: mean outlines agree within 3 % of the lungs' radius."""
    a, b = model.arrays["shape_mean"], small.arrays["shape_mean"]
    moved = outline.move(b, *outline.similarity(b, a))
    assert np.sqrt(((moved - a) ** 2).sum(-1).mean()) < 0.1
    film = small.film(0, 0)
    assert film.image.std() > 10 and film.mask.mean() > 0.08


@pytest.mark.slow
def test_fit_drops_a_mask_that_is_no_pair_of_lungs(model):
    drawn = model.sample(14, 98, acquire=False)
    masks = [f.mask for f in drawn]
    masks[3] = np.zeros_like(masks[3])
    masks[4] = drawn[4].left
    fitted = appearance.fit_arrays(
        [f.image for f in drawn],
        masks,
        np.zeros(14, int),
        FitConfig(shape=4, flow=4, texture=6, windows=20, linked=4, max_spread=9),
    )
    assert int(fitted["films"]) <= 12


def test_fit_needs_films(model):
    film = model.film(0, 0)
    with pytest.raises(ValueError, match="at least 12"):
        appearance.fit_arrays([film.image] * 3, [film.mask] * 3, [0, 1, 0])


@pytest.mark.slow
def test_model_comes_back_from_its_file(small, tmp_path):
    small.save(tmp_path / "model.npz")
    back = AppearanceModel.load(tmp_path / "model.npz")
    a, b = small.film(0, 0, acquire=False), back.film(0, 0, acquire=False)
    assert abs(a.image.astype(int) - b.image).mean() < 1.5  # modes are kept in 8 bits
    assert (a.mask != b.mask).mean() < 0.002
    back.save(tmp_path / "again.npz")
    c = AppearanceModel.load(tmp_path / "again.npz").film(0, 0, acquire=False)
    assert abs(c.image.astype(int) - b.image).max() <= 2


def test_bad_assets_say_how_to_get_one(tmp_path):
    whole = ASSET.read_bytes()
    with pytest.raises(FileNotFoundError, match="fit-synth"):
        AppearanceModel.load(tmp_path / "none.npz")
    for name, data in {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "text": b"not a model",
        "flipped": whole[:200_000] + b"\0" * 1000 + whole[201_000:],
    }.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="fit-synth") as error:
            AppearanceModel.load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arrays", [{"version": np.array(99)}, {"something": np.zeros(3)}, {"version": np.array(synthetic.VERSION)}]
)
def test_asset_of_another_version_says_so(tmp_path, arrays):
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match="fit-synth"):
        AppearanceModel.load(tmp_path / "other.npz")


def test_asset_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", version=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="fit-synth"):
        AppearanceModel.load(tmp_path / "evil.npz")


def test_asset_is_small_and_fast(model):
    assert ASSET.stat().st_size <= 4_000_000
    start = time.process_time()
    AppearanceModel.load()
    assert time.process_time() - start < 0.4  # 0.05 s on an idle core
    start = time.process_time()
    model.sample(20, 0)
    assert 20 / (time.process_time() - start) > 8  # 40 on an idle core


def test_raw_layouts(tmp_path, model):
    synthetic.write_raw(tmp_path, 21, 0, model=model, size=64)
    base = tmp_path / "pulmonary-chest-xray-abnormalities"
    montgomery, shenzhen = base / "Montgomery/MontgomerySet", base / "ChinaSet_AllFiles/ChinaSet_AllFiles"
    names = sorted(p.stem for p in (montgomery / "CXR_png").iterdir())
    assert len(names) == 7 and all(n[:7] == "MCUCXR_" and n[-2:] in ("_0", "_1") for n in names)
    for name in names:
        left, right = (
            files.read_mask(montgomery / "ManualMask" / side / f"{name}.png") for side in ("leftMask", "rightMask")
        )
        assert np.nonzero(left)[1].mean() > np.nonzero(right)[1].mean()
        sex, age, finding = (montgomery / "ClinicalReadings" / f"{name}.txt").read_text().splitlines()
        assert sex in ("Patient's Sex: F", "Patient's Sex: M") and age.startswith("Patient's Age: 0")
        assert (finding == "normal") == name.endswith("_0")
    chinese = sorted(p.stem for p in (shenzhen / "CXR_png").iterdir())
    masked = sorted(p.stem for p in (tmp_path / "shcxr-lung-mask/mask/mask").iterdir())
    assert len(chinese) == 14 and len(masked) == 12
    assert {name.removesuffix("_mask") for name in masked} < set(chinese)
    assert all(int(name.split("_")[1]) > 9000 for name in names + chinese)
    assert (shenzhen / "ClinicalReadings" / f"{chinese[0]}.txt").read_text().split()[1].endswith("yrs")


def write_prepared(root, drawn, source="montgomery"):
    for kind in ("image", "mask"):
        (root / "train" / kind).mkdir(parents=True, exist_ok=True)
    rows = ["name,source,split,tb"]
    lists = pd.read_csv(Path(synthetic.__file__).parents[1] / "splits/segmentation_montgomery.csv")
    training = lists["name"][lists["split"] == "train"]
    for film, name in zip(drawn, training[~training.isin([n for group in SAME_PATIENT for n in group])]):
        files.write_image(root / "train/image" / f"{name}.png", film.image)
        files.write_mask(root / "train/mask" / f"{name}.png", film.mask)
        rows.append(f"{name},{source},train,{film.tb}")
    # None of these has a file: touching one would raise. The first is on the published test list, whatever is said
    # here.
    rows += ["MCUCXR_0166_1,montgomery,train,1", "held_out,montgomery,test,0", "JPCLN049,jsrt,train,0"]
    (root / "manifest.csv").write_text("\n".join(rows))


@pytest.mark.slow
def test_privacy_check_passes_strangers_and_catches_a_copy(tmp_path, model):
    drawn = model.sample(14, 55, size=512, acquire=False)
    write_prepared(tmp_path, drawn)
    report = synthetic.check_privacy(model, tmp_path, n=6, seed=1)
    assert 12 <= report["films"] <= 14 and 4 <= report["samples"] <= 6  # less those whose corners are out of order
    assert report["sample_to_train"]["min"] > 0.1
    # Seed 55 gives the training films themselves.
    copied = synthetic.check_privacy(model, tmp_path, n=3, seed=55)
    assert copied["sample_to_train"]["min"] < 0.02 and not copied["passed"]


def test_fit_prepared_reads_training_films_only(tmp_path, model):
    write_prepared(tmp_path, model.sample(3, 56, size=512, acquire=False))
    with pytest.raises(ValueError, match="3 of 3 masks"):
        synthetic.fit_prepared(tmp_path)


def test_no_mode_of_the_shipped_model_is_one_film(model):
    assert model.arrays["share"].max() < 0.25
    assert int(model.arrays["films"]) > 400


def test_landmarks_start_at_the_apex_and_turn_at_the_corners():
    """Two trapezoids: apex on top, wide at the base; the corners are the lower ends."""
    mask = np.zeros((200, 200), np.uint8)
    cv2.fillPoly(mask, [np.array([(60, 20), (20, 150), (80, 150)]), np.array([(140, 20), (180, 150), (120, 150)])], 1)
    right, left = outline.landmarks(mask) * 200
    assert np.allclose(right[0], (60, 20), atol=3) and np.allclose(left[0], (140, 20), atol=3)
    first, second = outline.PARTS[0], outline.PARTS[0] + outline.PARTS[1]
    assert np.allclose(right[first], (20, 150), atol=3) and np.allclose(right[second], (80, 150), atol=3)
    assert np.allclose(left[first], (180, 150), atol=3) and np.allclose(left[second], (120, 150), atol=3)


def test_outline_rasterises_to_the_mask_it_came_from(films):
    for film in films[:6]:
        shape = outline.landmarks(film.mask)
        again = outline.fill(outline.smooth(shape[0]), 256)
        assert 2 * (again & film.right).sum() / (again.sum() + film.right.sum()) > 0.985


def test_fill_counts_area_and_centres_pixels():
    square = np.array([(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)])
    assert (outline.fill(square, 8) == np.pad(np.ones((4, 4), np.uint8), 2)).all()


def test_crossed_outline_is_not_simple(model):
    side = model.arrays["shape_mean"][0].astype(float)
    assert outline.is_simple(side)
    crossed = side.copy()
    crossed[[10, 40]] = crossed[[40, 10]]
    assert not outline.is_simple(crossed)


def test_warp_takes_landmarks_to_landmarks(model):
    frame = model.arrays["frame"].astype(float)
    target = outline.move(frame, 1.1 * np.exp(0.05j), 0.02 - 0.03j)
    field = outline.warp_field(frame, target, 256)
    y, x = 100, 60
    here = np.array([(x + 0.5) / 256, (y + 0.5) / 256])
    assert np.allclose(field[y, x], outline.move(here, 1.1 * np.exp(0.05j), 0.02 - 0.03j), atol=0.1 / 256)


def test_tone_survives_its_code_and_stays_in_order():
    tone = np.array([12.0, 80.0, 190.0])
    assert np.allclose(appearance.decode_tone(appearance.encode_tone(tone)), tone)
    for code in np.random.default_rng(0).normal(0, 4, (50, 3)):
        decoded = appearance.decode_tone(code)
        assert (np.diff(decoded) > 0).all() and decoded[0] >= 0 and decoded[-1] <= 255
        assert (np.diff(appearance.tone_curve(decoded)(np.arange(256))) > 0).all()


def test_windows_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr(appearance, "MAX_SHARE", 1.1)
    rest = np.random.default_rng(0).standard_normal((10, 256, 256)).astype(np.float32)
    rest = np.stack([cv2.GaussianBlur(r, (0, 0), 3) for r in rest])
    rest -= rest.mean(0)
    found = appearance.window_pca(rest, 10_000)
    again = appearance.window_sum(found["scores"], found["modes"], appearance.by_window(found["at"]))
    assert np.allclose(again, rest, atol=1e-3)


def test_print_and_borders_are_no_patient():
    film = np.full((256, 256), 120, np.uint8)
    film[220:] = 0
    cv2.rectangle(film, (10, 10), (22, 24), 255, -1)
    shape = outline.landmarks(_two_lungs())
    usable = appearance.usable_area(film, shape)
    assert not usable[222:].any() and not usable[12:22, 12:20].any()
    assert usable[100:200].all()


def _two_lungs():
    mask = np.zeros((256, 256), np.uint8)
    cv2.ellipse(mask, (85, 125), (35, 70), 0, 0, 360, 1, -1)
    cv2.ellipse(mask, (171, 125), (35, 70), 0, 0, 360, 1, -1)
    return mask


def test_a_row_has_every_film_and_its_outlines():
    drawn, ax = AppearanceModel.load().sample(3, 1, size=64), Figure().subplots()
    plot.draw_side_by_side([(film.image, (film.right, film.left)) for film in drawn], ax)
    assert [image.get_array().shape for image in ax.images] == [(64, 64)] * 3 and len(ax.collections) == 6
