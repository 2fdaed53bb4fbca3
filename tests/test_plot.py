"""Figures are drawn from tables alone, and a study that was not run is an error in words."""

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from kaggle_utils.cli import main  # noqa: E402
from kaggle_utils.plots import benchmarks, check_replaceable, save, show_table  # noqa: E402
from kaggle_utils.plots import figures as plot  # noqa: E402
from kaggle_utils.quality.measurements import SIDES, measure  # noqa: E402


@pytest.fixture
def pareto(tmp_path):
    rows = [
        (f"n{k}", "plain", 2, 16, 3, size, 450_000, ms, dice, 0.004)
        for k, (size, ms, dice) in enumerate([(256, 5, 0.950), (256, 9, 0.949), (384, 12, 0.953)])
    ]
    path = tmp_path / "pareto.csv"
    pd.DataFrame(
        rows,
        columns=[
            "network",
            "conv",
            "patch",
            "base_channels",
            "depth",
            "size",
            "parameters",
            "ms",
            "val_dice",
            "standard_error",
        ],
    ).to_csv(path, index=False)
    return tmp_path


def test_pareto_front_leaves_out_what_is_slower_and_no_better(pareto):
    front = benchmarks.draw_pareto(pareto).axes[0].lines[0]
    assert front.get_xdata().tolist() == [5, 12] and front.get_ydata().tolist() == [0.950, 0.953]


def test_time_to_dice_has_a_curve_for_each_contestant(tmp_path):
    rows = [
        {
            "contestant": name,
            "parameters": 1e6,
            "precision": "bf16",
            "seconds": s,
            "films": s,
            "val_dice": 0.5 + s / 250,
        }
        for name in ("ours", "MONAI UNet")
        for s in (10, 100)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "time_to_dice.csv", index=False)
    figure = benchmarks.draw_time_to_dice(tmp_path)
    assert len(figure.axes[0].lines) == 3  # and the line at 0.95
    save(figure, tmp_path / "t.png")
    assert cv2.imread(str(tmp_path / "t.png")).std() > 0


def test_measurements_are_drawn_where_they_were_measured():
    film = plot.AppearanceModel.load().sample(1, 4, size=128)[0]
    found, ax = measure(film.mask), matplotlib.figure.Figure().subplots()
    plot.draw_measured(film.image, film.mask, ax)
    marks = {tuple(float(v) for v in line.get_xydata()[0]) for line in ax.lines if len(line.get_xydata()) == 1}
    assert marks == {
        (found[f"{side}_{place}_column"], found[f"{side}_{place}_row"])
        for side in SIDES
        for place in ("apex", "costophrenic")
    }
    midline = ax.lines[-1]
    assert np.interp(64, midline.get_ydata(), midline.get_xdata()) == pytest.approx(found["midline_column"])
    assert (midline.get_xdata()[0] > midline.get_xdata()[1]) == (
        found["tilt_deg"] > 0
    )  # its upper end leans to the right


def test_figure_of_measurements_has_a_normal_film_and_one_with_tb():
    figure = plot.draw_measurements()
    assert len(figure.axes) == 2 and all("symmetry" in ax.get_title() for ax in figure.axes)


@pytest.mark.parametrize("draw", [benchmarks.draw_pareto, benchmarks.draw_time_to_dice])
def test_study_that_was_not_run_is_an_error_with_its_command(draw, tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m benchmarks"):
        draw(tmp_path)


def test_others_pictures_are_not_replaced_and_own_ones_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kaggle_utils.plots.PICTURES", {})
    monkeypatch.setattr("kaggle_utils.plots.CHARTS", {"a.png": lambda results: plt.figure()})
    for _ in range(2):
        assert main(["plots", "--out", str(tmp_path)]) == 0
    plt.figure().savefig(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert main(["plots", "--out", str(tmp_path)]) == 1
    assert "a.png: it is there, and no figure that this command drew: choose another folder" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before
    plt.close("all")


def test_figures_of_this_project_are_told_for_its_own():
    for path in sorted((Path(plot.__file__).parents[1] / "images").glob("*.png")):
        check_replaceable(path)


def missing(results):
    raise FileNotFoundError(f"{results}/x.csv is not there")


def test_plots_goes_on_after_a_figure_without_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kaggle_utils.plots.PICTURES", {})
    monkeypatch.setattr("kaggle_utils.plots.CHARTS", {"a.png": missing, "b.png": lambda results: plt.figure()})
    assert main(["plots", "--out", str(tmp_path), "--results", "there"]) == 0
    assert (tmp_path / "b.png").exists() and "a.png not drawn: there/x.csv is not there" in capsys.readouterr().out
    save(plt.figure(), tmp_path / "a.png")
    assert main(["plots", "--out", str(tmp_path), "--results", "there"]) == 0
    assert "a.png left as it is: there/x.csv is not there" in capsys.readouterr().out


def test_a_folder_without_results_is_an_error_that_names_the_option(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kaggle_utils.plots.PICTURES", {"self.png": plt.figure})
    monkeypatch.setattr("kaggle_utils.plots.CHARTS", {"a.png": missing})
    monkeypatch.chdir(tmp_path)
    assert main(["plots"]) == 1
    said = capsys.readouterr()
    assert said.err.endswith("results: no results to draw: name their folder with --results\n") and not said.out
    assert not (tmp_path / "images").exists()


def test_a_table_shows_the_best_of_a_column_bold_and_digits_that_count():
    table = pd.DataFrame({"n": [1200, 3], "Dice": [0.91234, 0.95], "HD95, px": [3.5, None]}, index=["a <b>", "b"])
    shown = show_table(table, best={"Dice": "max", "HD95, px": "min"}, digits=2)
    html = shown._repr_html_()
    assert html.count("<b>") == 2 and "<td><b>0.95</b></td>" in html and "<td><b>3.50</b></td>" in html
    assert "<td>1,200</td>" in html and "<td>0.91</td>" in html and "<td></td>" in html
    assert "0.91" in repr(shown) and "0.912" not in repr(shown)
    two = show_table(table.set_index([["x", "y"], ["v", "w"]]).rename_axis(["one", "other"]))
    assert "other" not in two._repr_html_() and "<th>v</th>" in two._repr_html_()
