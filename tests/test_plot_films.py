"""Pictures of films: what is drawn, and on which axes."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from kaggle_utils.data import read_manifest  # noqa: E402
from kaggle_utils.infer import LungSegmenter  # noqa: E402
from kaggle_utils.model import UNet  # noqa: E402
from kaggle_utils.plots import films as plot_films  # noqa: E402
from kaggle_utils.plots import unet as plot_unet
from kaggle_utils.plots.style import letters, styled  # noqa: E402
from kaggle_utils.predictions import evaluate  # noqa: E402
from kaggle_utils.prep import prepare  # noqa: E402
from kaggle_utils.synthetic.model import write_raw  # noqa: E402

FILM, MASK = np.arange(64, dtype=np.uint8).reshape(8, 8), np.pad(np.ones((4, 4), np.uint8), 2)


def test_a_notebooks_own_figures_are_shown_after_ours():
    @styled
    def first():
        matplotlib.interactive(True)  # as a notebook's backend does when it makes its first figure
        return plt.figure()

    try:
        assert not plt.fignum_exists(first().number) and plt.isinteractive()
    finally:
        matplotlib.interactive(False)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_raw(folder / "raw", 14, seed=0, size=64)
    prepare(folder / "raw", folder / "set", size=64)
    return read_manifest(folder / "set"), folder / "set"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def outlines(ax):
    return [collection for collection in ax.collections if len(collection.get_paths()[0].vertices)]


def test_a_film_has_an_outline_for_each_mask_that_is_not_empty():
    for masks, n in (
        ({}, 0),
        ({"truth": MASK}, 1),
        ({"truth": MASK, "pred": MASK}, 2),
        ({"truth": MASK, "pred": 0 * MASK}, 1),
    ):
        ax = plot_films.show_film(FILM, **masks, title="name", ax=plt.figure().gca())
        assert len(outlines(ax)) == n and ax.get_title() == "name" and ax.images[0].get_array().shape == (8, 8)


def test_the_outline_runs_between_the_masks_pixels_and_the_others():
    x, y = outlines(plot_films.show_film(FILM, truth=MASK))[0].get_paths()[0].vertices.T
    assert (x.min(), x.max(), y.min(), y.max()) == (1.5, 5.5, 1.5, 5.5)


def test_films_stand_in_rows_and_empty_places_stay_empty():
    figure = plot_films.show_films([FILM] * 5, truths=[MASK] * 5, titles=list("abcde"), columns=3)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", "d", "e", ""]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 1, 0]
    assert figure.number not in plt.get_fignums()  # else a notebook shows it twice


@pytest.mark.parametrize(
    "title, points", [("draw 1", 14), ("best, 0.9", 14), ("stomach included: 0.92", 12.5), ("MCUCXR_0001_0: 0.97", 13)]
)
def test_letters_above_films_are_as_large_as_their_films_are_wide(title, points):
    figure = plot_films.show_films([FILM] * 6, titles=[title] * 6)
    assert figure.axes[0].title.get_fontsize() == pytest.approx(points, abs=0.5)
    figure.draw_without_rendering()
    assert letters(figure) == figure.axes[0].title.get_fontsize()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[1:]))
    assert min(ax.get_window_extent().height for ax in figure.axes) > 0.9 * plot_films.WIDE * figure.dpi


@pytest.mark.parametrize("films, titles", [([], []), ([FILM, FILM], ["one"])])
def test_films_and_titles_that_do_not_match_are_an_error(films, titles):
    with pytest.raises(ValueError, match="as many films"):
        plot_films.show_films(films, titles=titles)


def test_a_contact_sheet_outlines_what_has_a_mask(frame):
    films = frame[0]
    axes = plot_films.show_prepared(films, size=32).axes
    masked = dict(zip(films["name"], films["split"] != "unlabelled"))
    assert {ax.get_title(): bool(outlines(ax)) for ax in axes if ax.images} == masked and set(masked.values()) == {
        True,
        False,
    }
    long = films.head(1).assign(name="person1930_bacteria_4849")
    assert plot_films.show_prepared(long, size=32).axes[0].get_title() == "person1930_\nbacteria_4849"


def test_best_median_and_worst_are_those_of_the_scores(frame):
    films, folder = frame
    segmenter = LungSegmenter(device="cpu")
    scores = evaluate(folder, segmenter, split="train", sizes=(64,))
    titles = [ax.get_title() for ax in plot_films.show_ranked(scores, films, segmenter).axes]
    ranked = scores.sort_values("dice")["dice"]
    for title, rank, dice in zip(
        titles, ("best", "median", "worst"), (ranked.iloc[-1], ranked.iloc[(len(ranked) - 1) // 2], ranked.iloc[0])
    ):
        assert title.startswith(f"{rank}, Dice {dice:.3f}:\n")


def test_a_history_is_a_curve_of_each_loss_and_one_of_dice():
    history = pd.DataFrame({"epoch": [0, 1], "train_loss": [0.9, 0.5], "val_loss": [0.8, 0.4], "val_dice": [0.6, 0.8]})
    losses, dice = plot_films.draw_history(history).axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[0.9, 0.5], [0.8, 0.4]]
    assert dice.lines[0].get_xdata().tolist() == [1, 2] and dice.get_ylim() == (0, 1)


@pytest.mark.parametrize("patch, depth", [(1, 2), (2, 3)])
def test_shapes_in_the_networks_picture_are_those_that_come_out(patch, depth):
    shapes = plot_unet.block_shapes(UNet(classes=2, base_channels=4, depth=depth, patch=patch), 32)
    down = [(4 * 2**level, 32 // patch // 2**level) for level in range(depth + 1)]
    assert shapes == (down, down[-2::-1])


def test_the_networks_picture_names_what_ships():
    figure = plot_unet.draw_unet()
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    header = LungSegmenter().header
    assert (
        f"{header['parameters'] / 1e6:.2f}M parameters" in texts
        and f"film, {header['size']} px" in texts
        and "128 × 24²" in texts
    )
