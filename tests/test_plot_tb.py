"""Figures of step two, drawn of made-up logits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from phantoms import phantom
from scipy.special import expit

from kaggle_utils.plots.tb import draw_tb_arms, draw_tb_reliability, draw_tb_roc, draw_tb_transfer, read_tb, show_heat


@pytest.fixture
def results(rng, tmp_path):
    """60 test films of two variants; `blanked` is chance."""
    tables, tb = [], np.arange(60) % 2
    for variant, gap in (("lungs", 50.0), ("blanked", 0.0)):
        logit = gap * (tb - 0.5) + rng.normal(0, 1, 60)
        films = {"name": [f"f{k}" for k in range(60)], "source": np.repeat(["montgomery", "shenzhen"], 30), "tb": tb}
        numbers = {"logit": logit, "prob": expit(logit), "presumptive": logit > 0}
        columns = {"trained_on": "both", "variant": variant, "standardised": "training"} | films | numbers
        tables.append(pd.DataFrame(columns))
    pd.concat(tables).to_csv(tmp_path / "tb_films.csv", index=False)
    return tmp_path


def test_variants_are_bars_of_their_auc(results):
    axes = draw_tb_arms(results).axes
    assert [ax.get_title() for ax in axes] == ["Montgomery, 30 test films", "Shenzhen, 30 test films"]
    heights = [bar.get_height() for bar in axes[0].patches]
    assert heights[0] == 1 and 0.2 < heights[1] < 0.8


def test_roc_of_what_tells_them_apart_goes_through_the_corner(results):
    ax = draw_tb_roc(results).axes[0]
    curve = next(line for line in ax.lines if line.get_label().startswith("lungs alone"))
    assert curve.get_label() == "lungs alone, 1.000" and [0, 1] in np.column_stack(curve.get_data()).tolist()


def test_reliability_lies_on_the_corners_where_variants_are_told_apart(results):
    curve = draw_tb_reliability(results).axes[0].lines[1]
    assert curve.get_ydata()[[0, -1]].tolist() == [0, 1]


def test_heat_maps_stand_below_their_films():
    film = phantom(32, 32)
    axes = show_heat([film.image] * 3, [film.mask] * 3, [film.mask * np.float32(0.5)] * 3).axes
    assert [len(ax.images) for ax in axes] == [1, 1, 1, 2, 2, 2]


def test_transfer_shows_the_set_that_was_not_trained_on():
    titles = [ax.get_title() for ax in draw_tb_transfer().axes]
    assert titles == ["Montgomery, 138 test films", "Shenzhen, 662 test films"]


def test_no_results_are_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="benchmarks.tb"):
        read_tb(tmp_path)
