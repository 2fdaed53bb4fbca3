"""Figures of step two, drawn of made-up logits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from phantoms import phantom

from kaggle_utils.plots.tb import draw_tb_arms, draw_tb_reliability, draw_tb_roc, draw_tb_transfer, read_tb, show_heat


@pytest.fixture
def films(rng) -> pd.DataFrame:
    """Two arms, two seeds, 60 films each for validation and test; `masked` tells them apart, `blanked` doesn't."""
    rows = []
    for arm, gap in (("masked", 50.0), ("blanked", 0.0)):
        for seed in range(2):
            for part in ("val", "test"):
                tb = np.arange(60) % 2
                rows.append(
                    pd.DataFrame(
                        {
                            "arm": arm,
                            "seed": seed,
                            "part": part,
                            "tb": tb,
                            "logit": gap * (tb - 0.5) + rng.normal(0, 1, 60),
                            "source": np.repeat(["montgomery", "shenzhen"], 30),
                            "name": [f"{part}{k}" for k in range(60)],
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def test_arms_are_bars_of_their_auc(films):
    axes = draw_tb_arms(films=films).axes
    assert [ax.get_title() for ax in axes] == ["Montgomery, 30 test films", "Shenzhen, 30 test films"]
    heights = [bar.get_height() for bar in axes[0].patches]
    assert heights[0] == 1 and 0.2 < heights[1] < 0.8


def test_roc_of_what_tells_them_apart_goes_through_the_corner(films):
    ax = draw_tb_roc(films=films).axes[0]
    curve = next(line for line in ax.lines if line.get_label().startswith("lungs alone"))
    assert curve.get_label() == "lungs alone, 1.000" and [0, 1] in np.column_stack(curve.get_data()).tolist()


def test_reliability_and_heat(films, tmp_path):
    assert draw_tb_reliability(tmp_path / "new" / "a.png", films=films).axes and (tmp_path / "new" / "a.png").exists()
    film = phantom(32, 32)
    assert (
        len(show_heat([film.image] * 3, [film.mask] * 3, [film.mask * np.float32(0.5)] * 3, ["a", "b", "c"]).axes) == 6
    )


def test_transfer_shows_the_set_that_was_not_trained_on():
    titles = [ax.get_title() for ax in draw_tb_transfer().axes]
    assert titles == ["Montgomery, 138 test films", "Shenzhen, 662 test films"]


def test_no_results_are_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="benchmarks.tb"):
        read_tb(tmp_path / "none.csv")
