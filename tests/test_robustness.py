"""Damages have known effects; the table and the figure say what was measured."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from benchmarks import robustness
from kaggle_utils.data import read_manifest
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.plots import robustness as plot_robustness
from kaggle_utils.quality.damages import DAMAGES, STRENGTHS, damaged
from kaggle_utils.synthetic.model import AppearanceModel

MOVING = ("rotation", "crop")


@pytest.fixture(scope="module")
def drawn():
    return AppearanceModel.load().sample(1, 3, size=256)[0]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_leaves_a_film_of_the_same_form_and_grows_with_its_strength(kind, drawn):
    image, mask = drawn.image, drawn.mask
    same, truth = damaged(image, mask, kind, 0, seed="a")
    assert same is image and truth is mask
    changes = []
    for strength in STRENGTHS:
        film, truth = damaged(image, mask, kind, strength, seed="a")
        assert film.shape == truth.shape == image.shape and film.dtype == truth.dtype == np.uint8
        assert set(np.unique(truth)) == {0, 1}
        changes.append(np.abs(film.astype(float) - image).mean())
    assert changes[0] > 0
    if kind not in MOVING:  # a film turned or cut further isn't always further away, pixel for pixel
        assert changes == sorted(changes)


@pytest.mark.parametrize("kind", DAMAGES)
def test_seed_decides_noise_place_and_side(kind, drawn):
    once, again, other = (damaged(drawn.image, drawn.mask, kind, 3, seed=seed)[0] for seed in "aab")
    np.testing.assert_array_equal(once, again)
    if kind in ("noise", "crop", "occlusion"):
        assert (once != other).any()


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind not in MOVING])
def test_truth_stays_where_the_lungs_stay(kind, drawn):
    np.testing.assert_array_equal(damaged(drawn.image, drawn.mask, kind, 5, seed="a")[1], drawn.mask)


def test_truth_moves_with_the_film(drawn):
    bright = 200 * drawn.mask + 20
    for kind in MOVING:
        film, truth = damaged(bright, drawn.mask, kind, 3, seed="a")
        assert ((film > 120) == truth).mean() > 0.99 and (truth != drawn.mask).mean() > 0.02


def test_full_inversion_is_the_negative_and_occlusion_hides_its_share(drawn):
    np.testing.assert_array_equal(damaged(drawn.image, drawn.mask, "inversion", 5, seed="a")[0], 255 - drawn.image)
    gray = np.full((200, 200), 90, np.uint8)
    hidden = damaged(gray, drawn.mask, "occlusion", 4, seed="a")[0]
    assert (hidden != gray).mean() == pytest.approx(DAMAGES["occlusion"].values[3], abs=0.01)


def test_gamma_goes_both_ways(drawn):
    means = [damaged(drawn.image, drawn.mask, "gamma", 2, seed=str(k))[0].mean() for k in range(12)]
    assert min(means) < drawn.image.mean() < max(means)


def test_unknown_strength_is_an_error(drawn):
    with pytest.raises(ValueError, match="0 to 5"):
        damaged(drawn.image, drawn.mask, "noise", 6, seed="a")


class DarkIsLung:
    """Finds dark pixels: right on phantoms until something else is dark."""

    def __call__(self, images):
        return 20 * (-0.8 - images.float())


def test_table_has_a_row_a_network_set_and_setting(prepared, tmp_path):
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    right, wrong = (LungSegmenter(tmp_path / "w.safetensors", device="cpu") for _ in range(2))
    right.model = DarkIsLung()
    wrong.model = lambda images: right.model(-images)
    settings = [("none", 0), ("noise", 1), ("noise", 5), ("inversion", 5)]
    frame = read_manifest(prepared)
    table = robustness.scores(frame[frame["split"] == "test"], {"shipped": right, "plain": wrong}, settings)
    assert len(table) == 2 * 4 * 4
    found = robustness.summarise(table).set_index(["network", "damage", "strength"])
    assert (found["n"] == 4).all()
    dice = found["dice"]
    assert dice["shipped", "none", 0] > 0.85 > 0.5 > dice["shipped", "inversion", 5]
    assert dice["plain", "inversion", 5] > 0.85 > 0.5 > dice["plain", "none", 0]  # the negative's lungs are bright
    assert dice["shipped", "noise", 1] > dice["shipped", "noise", 5]
    assert found["share_below_0.90"]["plain", "none", 0] == 1
    assert found["value"]["shipped", "noise", 5] == DAMAGES["noise"].values[4]


def test_networks_are_compared_on_the_sets_that_all_of_them_learned(tmp_path):
    networks = []
    for sources in (["montgomery", "shenzhen", "kermany"], ["shenzhen", "montgomery"]):
        save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=1), {"size": 32, "sources": sources})
        networks.append(LungSegmenter(tmp_path / "w.safetensors", device="cpu"))
    assert robustness.shared_sources(networks) == ["montgomery", "shenzhen"]


def test_header_says_how_a_network_was_trained(tmp_path):
    save_weights(
        tmp_path / "w.safetensors",
        UNet(base_channels=2, depth=2),
        {"size": 32, "sources": ["montgomery"], "config": {"augment": "none"}},
    )
    assert (
        robustness.training(LungSegmenter(tmp_path / "w.safetensors")) == "python -m kaggle_utils train --augment none"
    )


def made_up(path):
    rows = [
        {
            "network": network,
            "source": source,
            "damage": kind,
            "strength": strength,
            "n": n,
            "dice": dice - 0.1 * strength,
            "value": DAMAGES[kind].values[strength - 1] if strength else None,
        }
        for network, dice in (("shipped", 0.98), ("before", 0.9))
        for source, n in (("a", 10), ("b", 30))
        for kind, strength in robustness.SETTINGS
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def test_figure_has_a_panel_a_damage_and_a_curve_a_network(tmp_path):
    made_up(tmp_path / "robustness.csv")
    figure = plot_robustness.draw_robustness(tmp_path)
    assert [ax.get_title() for ax in figure.axes] == list(DAMAGES)
    for ax in figure.axes:
        np.testing.assert_allclose(
            [line.get_ydata() for line in ax.lines],
            [[0.98 - 0.1 * s for s in range(6)], [0.9 - 0.1 * s for s in range(6)]],
        )
        assert ax.get_xticklabels()[0].get_text() == "none"
    assert figure.axes[5].get_xticklabels()[5].get_text() == "45"


def test_figure_of_the_worst_has_a_row_a_damage_and_a_point_a_network(tmp_path):
    made_up(tmp_path / "robustness.csv")
    (ax,) = plot_robustness.draw_worst_damage(tmp_path).axes
    assert sorted(label.get_text() for label in ax.get_yticklabels()) == sorted(DAMAGES)
    points = [collection.get_offsets()[:, 0] for collection in ax.collections if len(collection.get_offsets()) > 1]
    np.testing.assert_allclose(points, [[0.48] * len(DAMAGES), [0.4] * len(DAMAGES)])


def test_films_of_all_sets_count_alike(tmp_path):
    table = pd.DataFrame(
        {"network": "shipped", "damage": "none", "strength": 0, "value": None, "n": [1, 3], "dice": [0.5, 0.9]}
    )
    assert plot_robustness.pooled(table)["dice"].tolist() == pytest.approx([0.8])


def test_missing_table_names_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m benchmarks.robustness"):
        plot_robustness.draw_robustness(tmp_path)
