"""Figures of the studies, from tables of made-up numbers."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from kaggle_utils.config import TrainConfig
from kaggle_utils.plots import figures as plot
from kaggle_utils.plots import save
from kaggle_utils.plots import tuning as plot_tuning
from kaggle_utils.tuning.studies import STUDIES
from kaggle_utils.tuning.study import SETTINGS, STUDY_COLUMNS, write_rows

CONFIG = TrainConfig(size=128, epochs=8)
NAMES = [*STUDIES, "search"]
FIGURES = {name.removeprefix("tuning_").removesuffix(".png"): draw for name, draw in plot_tuning.CHARTS.items()}


def made_up(name, *, jsrt=True, seeds=2, epochs=3):
    """A table as ``tune`` writes it."""
    rng, rows = np.random.default_rng(0), []
    runs = [(run.name, run.settings) for run in STUDIES.get(name, [])] or [
        (
            f"trial {n}",
            {
                "lr": 10 ** rng.uniform(-3, -2),
                "base_channels": int(rng.choice([8, 16])),
                "augment": str(rng.choice(["none", "full"])),
            },
        )
        for n in range(6)
    ]
    for run, settings in runs:
        n = run.split()[0]
        films = int(n) if n.isdigit() else 452
        for seed in range(seeds if name != "search" else 1):
            common = {
                "study": name,
                "run": run,
                **{key: getattr(CONFIG, key) for key in SETTINGS},
                **settings,
                "seed": seed,
                "real": 0 if run.endswith(" synthetic") else films,
                "synthetic": 468 if "synthetic" in run else 0,
                "parameters": 1_000_000,
                "data": "0",
                "commit": "0",
                "status": "pruned" if run == "trial 3" else "finished",
            }
            for epoch in range(epochs):
                dice = 0.9 + 0.02 * epoch + rng.normal(0, 0.01)
                ends = {"dice_256": dice, "jsrt_256": dice if jsrt else None} if epoch == epochs - 1 else {}
                rows.append(
                    {
                        **common,
                        "epoch": epoch,
                        "val_dice": dice,
                        "reported": 1.5 * dice,
                        "seconds": (1 + epoch) * rng.uniform(8, 12),
                        **ends,
                    }
                )
    return rows


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "tuning").mkdir()
    for name in NAMES:
        write_rows(folder / f"tuning/{name}.csv", made_up(name))
    return folder


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_each_study_has_a_figure():
    # The longer runs are in augmentation's; the rules are two sentences.
    assert sorted([*FIGURES, "longer", "rules"]) == sorted(NAMES)
    assert plot_tuning.CHARTS.items() <= plot.CHARTS.items()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_from_its_table(name, tables, tmp_path):
    figure = FIGURES[name](tables)
    shown = [ax for ax in figure.axes if ax.axison]
    assert shown and all(ax.lines or ax.collections or ax.patches or ax.images for ax in shown)
    save(figure, tmp_path / "new" / "figure.png")
    assert cv2.imread(str(tmp_path / "new" / "figure.png")).std() > 0


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_that_was_not_run_is_named_with_its_command(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="kaggle_utils tune "):
        FIGURES[name](tmp_path)


@pytest.mark.parametrize("name, panels", [("augmentation", 3), ("loss", 2), ("data", 2)])
def test_a_set_without_jsrt_has_no_panel_for_it(name, panels, tmp_path):
    (tmp_path / "tuning").mkdir()
    for jsrt in (True, False):
        for table in {name, "longer"}:
            write_rows(tmp_path / f"tuning/{table}.csv", made_up(table, jsrt=jsrt))
        assert len(FIGURES[name](tmp_path).axes) == panels - (not jsrt)


def test_curves_count_epochs_from_1(tables):
    assert plot_tuning.read_study("bugs", tables)["epoch"].unique().tolist() == [1, 2, 3]


def test_the_reported_pairs_lie_above_what_is_possible():
    axes = plot_tuning.draw_impossible().axes[0]
    bounds, reported = (
        [line for line in axes.lines if len(line.get_xdata()) > 2],
        [line for line in axes.lines if len(line.get_xdata()) == 2],
    )
    for bound, line, share, dice in zip(bounds, reported, (0.35, 0.35), (0.70, 0.7637)):
        assert np.interp(share, *bound.get_data()) == pytest.approx(dice, abs=5e-4) and dice < line.get_ydata()[0]


def test_the_curve_of_films_has_their_number_where_synthetic_ones_are_added(tables):
    axes = plot.CHARTS["tuning_data.png"](tables).axes[0]
    lines = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 6]
    assert [list(x) for x in lines] == [
        [10, 25, 50, 100, 200, 452],
        [10, 25, 50, 100, 200, 468],
        [10, 25, 50, 100, 200, 452],
    ]


def test_made_up_tables_are_what_studies_write(tables):
    assert all(tuple(pd.read_csv(tables / f"tuning/{name}.csv")) == STUDY_COLUMNS for name in NAMES)
