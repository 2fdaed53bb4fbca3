"""Studies by set and artefact, and benchmarks/artefacts.py: what is trained, scored, kept, and not done twice."""

import argparse
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from phantoms import phantom, write_prepared

from benchmarks import artefacts as bench
from kaggle_utils.augment.artefacts import ARTEFACTS
from kaggle_utils.cli import main
from kaggle_utils.config import TrainConfig
from kaggle_utils.data import read_manifest
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import UNet, read_header, save_weights
from kaggle_utils.trainer import make_trainer
from kaggle_utils.tuning import artefacts as study
from kaggle_utils.tuning.artefacts import COLUMNS, DRAWN, NOISE, SCORED, THREE_SETS, artefact_scores, run_scored
from kaggle_utils.tuning.study import Run

TINY = TrainConfig(
    sources=("montgomery",),
    size=32,
    base_channels=2,
    depth=2,
    patch=1,
    batch_size=4,
    epochs=1,
    augment="clinic",
    precision="fp32",
    device="cpu",
    workers=0,
)
RUNS = [Run("clinic"), Run("without gas", {}, partial(study.leave_out, artefact="gas")), Run("wide", {"depth": 1})]


class DarkIsLung:
    """Finds dark pixels: right on phantoms until something else is dark."""

    def __call__(self, images):
        return 20 * (-0.8 - images.float())


@pytest.fixture
def segmenter(tmp_path):
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 64, "sources": ["montgomery"]})
    found = LungSegmenter(tmp_path / "w.safetensors", device="cpu")
    found.model = DarkIsLung()
    return found


@pytest.fixture
def films(tmp_path):
    return write_prepared(tmp_path / "films", {"val": 5, "test": 2}, size=64)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_each_film_is_scored_as_it_is_and_with_each_artefact(films, segmenter):
    frame = read_manifest(films)
    table = artefact_scores(frame, segmenter)
    assert len(table) == 7 * len(DRAWN) == 7 * 9 and set(table["artefact"]) == {"none", *ARTEFACTS, NOISE}
    pd.testing.assert_frame_equal(table, artefact_scores(frame, segmenter))
    dice = table.groupby("artefact")["dice"].mean()
    assert dice["none"] > 0.85 and (dice[[*ARTEFACTS, NOISE]] < dice["none"] + 0.01).all()
    assert dice["gas"] < dice["none"]  # which is dark and no lung


def test_summary_has_a_row_a_set_and_artefact():
    scores = pd.DataFrame({"name": [*"abc"], "source": "a", "artefact": "gas", "dice": [0.95, 0.8, 0.91]})
    (row,) = study.summarise_artefacts(scores).to_dict("records")
    assert row == {
        "source": "a",
        "artefact": "gas",
        "n": 3,
        "dice": pytest.approx(0.8867),
        "worst": 0.8,
        "share_below_0.90": pytest.approx(0.3333),
    }


# --- studies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORED)
def test_runs_differ_and_can_be_sent_to_a_process(name):
    runs = SCORED[name]
    assert len({run.name for run in runs}) == len(runs) > 2
    for run in runs:
        replace(THREE_SETS, **run.settings)
        pickle.dumps(run)


def test_a_study_leaves_each_artefact_out_once():
    left_out = [run.change.keywords["artefact"] for run in SCORED["artefacts"] if run.change]
    assert left_out == list(ARTEFACTS)


def test_what_is_left_out_is_not_drawn(prepared, monkeypatch):
    film, white = phantom(64, 64), lambda image, mask, rng: np.full_like(image, 255)
    monkeypatch.setattr("kaggle_utils.augment.artefacts.ARTEFACTS", {"gas": (white, 1.0)})
    trainer = make_trainer(prepared, None, TINY)
    loaded = trainer.train_loader.dataset
    before = loaded.augment(image=film.image, mask=film.mask)["image"]
    study.leave_out(trainer, "gas")
    after = loaded.augment(image=film.image, mask=film.mask)["image"]
    assert np.median(before) > 200 > np.median(after)


@pytest.fixture
def do(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORED, "artefacts", RUNS)

    def do(**options):
        options = {"config": TINY, "jobs": 1, **options}
        return run_scored("artefacts", prepared, out=tmp_path / "out", runs=tmp_path / "runs", **options)

    return do


def test_a_row_a_run_set_and_artefact_and_nothing_twice(do, tmp_path, monkeypatch):
    table = do()
    assert tuple(table) == COLUMNS and len(table) == 3 * len(DRAWN) and (table["n"] == 4).all()
    weights = tmp_path / "runs/artefacts/wide, seed 0/best.safetensors"
    trained_by = table.loc[table["run"] == "wide", "trained_by"].unique().tolist()
    assert trained_by == [read_header(weights)["command"]] and "--depth 1" in trained_by[0]
    monkeypatch.setattr(study, "train_and_score", None)
    pd.testing.assert_frame_equal(do(), table)
    with pytest.raises(ValueError, match="trained_by was python -m kaggle_utils train .*, is python .*--epochs 2"):
        do(config=replace(TINY, epochs=2))


def test_a_run_that_was_killed_before_its_rows_is_scored_again_and_not_trained(do, tmp_path):
    table = do()
    history = (tmp_path / "runs/artefacts/clinic, seed 0/history.csv").read_bytes()
    (tmp_path / "out/artefacts.csv").unlink()
    again = do()
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    assert (tmp_path / "runs/artefacts/clinic, seed 0/history.csv").read_bytes() == history


def test_a_table_of_another_version_is_left_alone(do, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/artefacts.csv").write_text("study,run\na,b\n")
    with pytest.raises(ValueError, match="another version"):
        do()


def test_the_command_runs_such_a_study_once(tmp_path, monkeypatch, prepared, capsys):
    given = {}

    def ran(name, data, **options):
        given.update(options, name=name)
        return pd.DataFrame({"run": ["light"], "source": ["a"], "artefact": ["gas"], "dice": [0.9]})

    monkeypatch.setattr("kaggle_utils.tuning.run_scored", ran)
    assert main(["tune", "artefacts", "--data", str(prepared), "--out", str(tmp_path / "out")]) == 0
    assert given["name"] == "artefacts" and given["seeds"] == 1 and "light" in capsys.readouterr().out


# --- the benchmark ---------------------------------------------------------------------------------------------------


def test_networks_are_scored_on_their_own_sets_and_other_rows_stay(films, segmenter, tmp_path, monkeypatch, capsys):
    write_prepared(films, {"val": 2}, source="kermany", first=50, size=64)
    monkeypatch.setattr(bench, "TABLE", tmp_path / "artefacts.csv")
    monkeypatch.setattr(bench, "LungSegmenter", lambda path: segmenter)
    for split, names in (("val", "ab"), ("test", "a"), ("val", "b")):
        words = ["--split", split, "--data", str(films), "--weights", *[f"{name}=w.safetensors" for name in names]]
        monkeypatch.setattr("sys.argv", ["artefacts.py", *words])
        bench.main()
    table = pd.read_csv(tmp_path / "artefacts.csv")
    assert list(table) == bench.COLUMNS and set(table["source"]) == {"montgomery"}
    clean = table[table["artefact"] == "none"].set_index(["network", "split"])["n"].to_dict()
    assert clean == {("a", "val"): 5, ("a", "test"): 2, ("b", "val"): 5}


@pytest.mark.parametrize("text", ["w.safetensors", "=w", "a="])
def test_a_network_is_named(text):
    assert bench.network("a=b=c") == ("a", "b=c")
    with pytest.raises(argparse.ArgumentTypeError, match="is not NAME=PATH"):
        bench.network(text)
