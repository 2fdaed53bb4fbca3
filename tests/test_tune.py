"""Studies: what a kill costs, what is recorded, which tables are refused; and each mistake does what it says."""

import multiprocessing
import os
import pickle
import re
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import phantom, write_prepared
from torch import nn

from kaggle_utils.cli import main
from kaggle_utils.commands import training
from kaggle_utils.config import TrainConfig
from kaggle_utils.loss import BCEDiceLoss, BCEWithLogitsLoss
from kaggle_utils.trainer import make_trainer
from kaggle_utils.tuning import mistakes, study
from kaggle_utils.tuning import search as searching
from kaggle_utils.tuning import studies as tune
from kaggle_utils.tuning.artefacts import SCORED
from kaggle_utils.tuning.mistakes import MISTAKES
from kaggle_utils.tuning.protocol import PROTOCOLS
from kaggle_utils.tuning.study import STUDY_COLUMNS, Run, read_table

TINY = TrainConfig(
    sources=("montgomery",),
    size=32,
    base_channels=2,
    depth=2,
    patch=1,
    batch_size=4,
    epochs=2,
    lr=0.01,
    ema_decay=0.0,
    augment="light",
    precision="fp32",
    device="cpu",
)
RUNS = [Run("default"), Run("base_channels=4", {"base_channels": 4}), Run("dice_weight=1.0", {"dice_weight": 1.0})]
TRUTH = torch.from_numpy(np.stack([phantom(64, 64, seed).mask for seed in range(8)]))[:, None].float()
SHARE = TRUTH.mean().item()  # of lung: p in the comments of test_twenty_bugs.py
PERFECT, NOTHING = (TRUTH * 2 - 1) * 20, torch.full_like(TRUTH, -20.0)  # logits


@pytest.fixture(autouse=True)
def few_runs(monkeypatch, tmp_path):
    monkeypatch.setitem(tune.STUDIES, "loss", RUNS)
    monkeypatch.setattr(tune, "CACHE", tmp_path / "cache")


def do(data, out, name="loss", **options):
    config = replace(TINY, base_channels=8) if name == "search" else TINY  # the narrowest that is searched
    return tune.run_study(name, data, config=config, out=out, **{"jobs": 1, "seeds": 2, **options})


def without_clock(table):
    return table.drop(columns="seconds").sort_values(["seed", "run", "epoch"], ignore_index=True)


@pytest.fixture
def counted(monkeypatch):
    """The runs that are trained, as (name, seed)."""
    trained, train_run = [], study.train_run

    def counting(run, data, config, prune=None):
        trained.append((run.name, config.seed))
        return train_run(run, data, config, prune)

    monkeypatch.setattr(tune, "train_run", counting)
    return trained


# --- kill and restart -------------------------------------------------------------------------------------------------


def slowly(trainer):
    time.sleep(0.5)


def do_in_child(data, out):
    tune.STUDIES["loss"] = [replace(run, change=slowly) for run in RUNS]
    do(data, out)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_repeats_no_run(prepared, tmp_path, counted):
    path = tmp_path / "out" / "loss.csv"
    child = multiprocessing.get_context("spawn").Process(target=do_in_child, args=(prepared, path.parent))
    child.start()
    deadline = time.monotonic() + 600
    while len(read_table(path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    before = path.read_bytes()
    ended = read_table(path).drop_duplicates(["run", "seed"])
    assert 1 <= len(ended) < 6
    table = do(prepared, path.parent)
    assert path.read_bytes().startswith(before)
    assert len(counted) == 6 - len(ended) and not set(counted) & set(zip(ended["run"], ended["seed"]))
    assert len(table) == 12 and not table.duplicated(["run", "seed", "epoch"]).any()


def test_an_error_costs_the_run_under_way_alone(prepared, tmp_path, counted, monkeypatch):
    counting = tune.train_run

    def failing(run, data, config):
        if len(counted) == 2:
            raise OSError("disk full")
        return counting(run, data, config)

    monkeypatch.setattr(tune, "train_run", failing)
    with pytest.raises(OSError):
        do(prepared, tmp_path)
    monkeypatch.setattr(tune, "train_run", counting)
    assert len(do(prepared, tmp_path)) == 12 and len(counted) == 6


def test_more_seeds_are_added_to_a_finished_study(prepared, tmp_path, counted):
    do(prepared, tmp_path, seeds=1)
    do(prepared, tmp_path, seeds=2)
    assert counted == [(run.name, seed) for seed in range(2) for run in RUNS]


@pytest.mark.slow
def visible(folder):
    """The GPU of this process, of which there are to be two: neither does all tasks before the other has begun."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize("named, gpus", [(None, {"0", "1"}), ("3,5", {"3", "5"})])
def test_each_process_has_one_of_the_gpus(monkeypatch, tmp_path, named, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = set(study.beside(visible, [(tmp_path,)] * 6))
    assert len(found) == 2 and {gpu for _, gpu in found} == gpus


def test_processes_beside_each_other_write_the_same_rows(prepared, tmp_path):
    alone, beside = (do(prepared, tmp_path / str(jobs), seeds=1, jobs=jobs) for jobs in (1, 2))
    pd.testing.assert_frame_equal(without_clock(alone), without_clock(beside))


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_a_row_an_epoch_with_settings_scores_and_commit(prepared, tmp_path):
    write_prepared(prepared, {"test": 3}, source="jsrt", first=100)
    table = do(prepared, tmp_path, seeds=1)
    assert tuple(table) == STUDY_COLUMNS and table.groupby("run").size().eq(2).all()
    wide = table[table["run"] == "base_channels=4"]
    assert (
        wide["base_channels"].eq(4).all()
        and wide["epochs"].eq(2).all()
        and wide["size"].eq(32).all()
        and wide["real"].eq(8).all()
    )
    assert wide["parameters"].iloc[0] > table["parameters"].iloc[0]
    assert table["reported"].equals(table["val_dice"]) and table["status"].eq("finished").all()
    last = table["epoch"] == 1
    assert table.loc[last, ["dice_256", "jsrt_256"]].notna().all(axis=None) and table.loc[
        ~last, ["dice_256", "jsrt_256"]
    ].isna().all(axis=None)


def test_without_jsrt_its_score_is_empty(prepared, tmp_path):
    assert do(prepared, tmp_path, seeds=1)["jsrt_256"].isna().all()


def test_a_foreign_film_gets_the_first_sets_head(prepared):
    write_prepared(prepared, {"train": 4, "val": 2}, source="shenzhen", first=50)
    trainer = make_trainer(prepared, None, replace(TINY, sources=("montgomery", "shenzhen")))
    with torch.no_grad():
        trainer.best_model.outc.bias.copy_(torch.tensor([20.0, -20.0]))  # the first head sees lung everywhere
    batch = next(iter(trainer.val_loader))
    sources = ["jsrt", "shenzhen", "montgomery", "jsrt", "shenzhen", "shenzhen"]
    ((logits, _),) = trainer.outputs([{**batch, "image": batch["image"][[0] * 6], "source": sources}])
    assert (logits.mean((1, 2, 3)) > 0).tolist() == [source != "shenzhen" for source in sources]


def test_test_films_are_not_opened(prepared, tmp_path, monkeypatch):
    from kaggle_utils import data

    opened, read = [], data.read_image
    monkeypatch.setattr(data, "read_image", lambda path: opened.append(str(path)) or read(path))
    do(prepared, tmp_path, seeds=1)
    assert opened and not any(f"{os.sep}test{os.sep}" in path.removeprefix(str(tmp_path)) for path in opened)


class NotANumber(BCEDiceLoss):
    """Good for one epoch of two batches and its validation."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, logits, truth):
        self.calls += 1
        return super().forward(logits, truth) * (float("nan") if self.calls > 3 else 1)


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(prepared, tmp_path, monkeypatch, counted):
    monkeypatch.setitem(
        tune.STUDIES, "loss", [Run("breaks", {}, partial(mistakes.swap_loss, loss=NotANumber)), RUNS[0]]
    )
    table = do(prepared, tmp_path, seeds=1)
    broken = table[table["run"] == "breaks"]
    assert broken["status"].eq("diverged").all() and broken["epoch"].tolist() == [0, 1]
    assert broken["val_dice"].notna().tolist() == [True, False]
    assert tune.summarise_runs(table).set_index("run")["diverged"].to_dict() == {"breaks": 1, "default": 0}
    do(prepared, tmp_path, seeds=1)
    assert len(counted) == 2


def test_summary_has_means_over_the_seeds_after_the_last_epoch(prepared, tmp_path):
    table = do(prepared, tmp_path)
    summary = tune.summarise_runs(table)
    assert summary["seeds"].eq(2).all() and summary["val_dice"].is_monotonic_decreasing
    last = table[(table["run"] == "default") & (table["epoch"] == 1)]
    assert summary.set_index("run").loc["default", "val_dice"] == pytest.approx(last["val_dice"].mean())


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_unknown_study_is_answered_with_the_list(tmp_path):
    with pytest.raises(ValueError, match="'colour'") as error:
        tune.run_study("colour", tmp_path, out=tmp_path)
    assert all(name in str(error.value) for name in [*tune.STUDIES, "search"])


@pytest.mark.parametrize(
    "content", ["config,seed,dice\n1,0,0.9\n", "", "\x00\xff", ",".join(STUDY_COLUMNS[::-1]) + "\n"]
)
@pytest.mark.parametrize("name", ["loss", "search"])
def test_a_table_of_another_version_is_left_alone(prepared, tmp_path, name, content):
    (tmp_path / f"{name}.csv").write_text(content)
    with pytest.raises(ValueError, match="another version .* move it away"):
        do(prepared, tmp_path, name)
    assert (tmp_path / f"{name}.csv").read_text() == content


def test_runs_of_other_settings_or_films_are_not_mixed(prepared, tmp_path):
    do(prepared, tmp_path / "out", seeds=1)
    with pytest.raises(ValueError, match="epochs was 2, is 3"):
        tune.run_study("loss", prepared, config=replace(TINY, epochs=3), out=tmp_path / "out", jobs=1)
    with pytest.raises(ValueError, match="data was"):
        do(write_prepared(tmp_path / "other", first=50), tmp_path / "out")


# --- the lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tune.STUDIES)
def test_studies_have_unique_runs_of_valid_settings_that_a_process_can_be_sent(name):
    runs = tune.STUDIES[name]
    assert len({run.name for run in runs}) == len(runs) > 2
    for run in runs:
        replace(TINY, **run.settings)
        assert set(run.settings) <= set(study.SETTINGS)
        pickle.dumps(run)


def test_the_command_runs_a_study_and_prints_its_summary(prepared, tmp_path, monkeypatch, capsys):
    run_study = tune.run_study
    monkeypatch.setattr(
        "kaggle_utils.tuning.run_study",
        lambda *names, config, **options: run_study(
            *names, config=replace(TINY, size=config.size, epochs=config.epochs), **options
        ),
    )
    arguments = ["--data", prepared, "--out", tmp_path, "--seeds", 1, "--size", 32, "--epochs", 1, "--jobs", 1]
    assert main(["tune", "loss", *map(str, arguments)]) == 0
    assert all(run.name in capsys.readouterr().out for run in RUNS[:1])
    assert len(read_table(tmp_path / "loss.csv")) == 3


# --- how many films ---------------------------------------------------------------------------------------------------


@pytest.fixture
def built_in(tmp_path):
    return write_prepared(tmp_path / "cache" / "built_in" / "segmentation", {"train": 4, "val": 2}, first=200)


@pytest.mark.parametrize(
    "real, drawn, films", [(4, 0, (4, 0)), (None, 0, (8, 0)), (0, 4, (0, 4)), (0, None, (0, 6)), (2, None, (2, 6))]
)
def test_an_epoch_has_as_many_films_whatever_they_are_drawn_from(prepared, built_in, real, drawn, films):
    trainer = make_trainer(prepared, None, TINY)
    before = len(trainer.train_loader), len(trainer.train_loader.sampler)
    tune.choose_films(trainer, real, drawn)
    assert (len(trainer.train_loader), len(trainer.train_loader.sampler)) == before == (2, 8)
    paths = trainer.train_loader.dataset.frame["image"].drop_duplicates()
    drawn_ones = sum(p.startswith(str(built_in)) for p in paths)
    assert (len(paths) - drawn_ones, drawn_ones) == films
    seen = [name for batch in trainer.train_loader for name in batch["name"]]
    assert len(seen) == 8


def test_the_few_films_are_among_the_many(prepared):
    chosen = []
    for n in (2, 4, 6):
        trainer = make_trainer(prepared, None, TINY)
        tune.choose_films(trainer, n, 0)
        chosen.append(set(trainer.train_loader.dataset.frame["name"]))
    assert chosen[0] < chosen[1] < chosen[2] and [len(names) for names in chosen] == [2, 4, 6]


def test_synthetic_films_are_drawn_once_and_counted_as_such(prepared, tmp_path):
    root = tune.synthetic_films(n=9, size=64)
    written = (root / "manifest.csv").stat().st_mtime_ns
    assert tune.synthetic_films(n=9, size=64) == root and (root / "manifest.csv").stat().st_mtime_ns == written
    rows = study.train_run(Run("both", {}, partial(tune.choose_films, real=3, synthetic=None)), prepared, TINY)
    assert rows[-1]["real"] == 3 and 6 <= rows[-1]["synthetic"] <= 9


# --- search -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_search_goes_on(prepared, tmp_path, monkeypatch):
    table = do(prepared, tmp_path, "search", trials=2)
    assert table["run"].unique().tolist() == ["trial 0", "trial 1"]
    assert table.loc[0, ["lr", "base_channels", "dice_weight"]].tolist() == [
        TINY.lr,
        8,
        TINY.dice_weight,
    ]  # the default comes first
    with monkeypatch.context() as patch:
        patch.setattr(searching, "train_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            do(prepared, tmp_path, "search", trials=4)
    again = do(prepared, tmp_path, "search", trials=4)
    assert again["run"].nunique() == 4
    pd.testing.assert_frame_equal(again.head(4), table)
    assert len(do(prepared, tmp_path, "search", trials=3)) == len(again)  # enough already


def test_pruned_and_diverged_trials_are_recorded(prepared, tmp_path, monkeypatch):
    train_run = study.train_run

    def odd(run, data, config, prune):
        if run.name == "trial 0":
            return train_run(run, data, config, lambda row: True)
        return train_run(
            replace(run, change=partial(mistakes.swap_loss, loss=NotANumber)),
            data,
            replace(config, batch_size=4),
            prune,
        )

    monkeypatch.setattr(searching, "train_run", odd)
    table = do(prepared, tmp_path, "search", trials=2)
    assert table["status"].tolist() == ["pruned", "diverged", "diverged"]


@pytest.mark.parametrize(
    "storage, said",
    [
        ("garbage", "Could not parse SQLAlchemy URL"),
        ("sqlite:///nowhere/x.db", "unable to open database file"),
        ("sqlite:///notes.txt", "file is not a database"),
        ("sqlite:///theirs.db", "a database of something else .its tables are invoices"),
        ("sqlite://me:secret@host/x", "Invalid SQLite URL"),
    ],
)
def test_storage_that_is_none_is_told_in_a_line_and_left_as_it_is(
    prepared, tmp_path, storage, said, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine" * 999)
    with closing(sqlite3.connect("theirs.db")) as theirs:
        theirs.execute("CREATE TABLE invoices (id)")
    before = Path("theirs.db").read_bytes()
    assert (
        main(
            [
                "tune",
                "search",
                "--data",
                str(prepared),
                "--storage",
                storage,
                "--out",
                "out",
                "--jobs",
                "1",
                "--trials",
                "1",
            ]
        )
        == 1
    )
    said_so = capsys.readouterr().err
    assert (
        re.search(f"^unet-lung tune: storage sqlite.*{said}|^unet-lung tune: storage garbage: {said}", said_so)
        and said_so.count("\n") == 1
    )
    assert "secret" not in said_so
    assert Path("theirs.db").read_bytes() == before and Path("notes.txt").read_text() == "mine" * 999


def test_a_search_without_its_storage_does_not_overwrite_its_table(prepared, tmp_path):
    do(prepared, tmp_path, "search", trials=1)
    with pytest.raises(ValueError, match="1 trials of another storage"):
        do(prepared, tmp_path, "search", trials=1, storage=f"sqlite:///{tmp_path}/new.db")


# --- the mistakes -----------------------------------------------------------------------------------------------------


def in_batches(logits, batch=4):
    return list(zip(logits.split(batch), TRUTH.split(batch)))


def reported(name, logits, batch=4):
    return MISTAKES[name][1](in_batches(logits, batch))


def loss_of(name):
    return MISTAKES[name][0].keywords["loss"]()


def gradient(loss):
    logits = torch.zeros_like(TRUTH).requires_grad_()
    loss(logits, TRUTH).backward()
    return logits.grad


def test_masks_of_255_score_almost_2_and_have_no_floor():
    assert reported("masks of 0 and 255", PERFECT) == pytest.approx(510 / 256)
    assert loss_of("masks of 0 and 255")(PERFECT * 2, TRUTH) < loss_of("masks of 0 and 255")(PERFECT, TRUTH) < -100


def test_a_second_sigmoid_has_a_floor_and_sees_lung_everywhere():
    assert loss_of("sigmoid twice")(PERFECT, TRUTH) > 0.5
    assert reported("sigmoid twice", PERFECT) == pytest.approx(2 * SHARE / (1 + SHARE), abs=0.01)


def test_logits_in_dice_are_not_bounded():
    assert reported("logits in Dice", PERFECT) < -1 and loss_of("logits in Dice")(-PERFECT, TRUTH) > 1


def test_the_wrong_sign_makes_the_right_answer_cost():
    assert loss_of("wrong sign")(PERFECT, TRUTH).item() == pytest.approx(0.5, abs=1e-3)
    right, wrong = gradient(BCEDiceLoss(0.5)), gradient(loss_of("wrong sign"))
    torch.testing.assert_close(right + wrong, gradient(BCEWithLogitsLoss()))


def test_thresholded_dice_adds_no_gradient():
    torch.testing.assert_close(gradient(loss_of("thresholded Dice")), gradient(BCEWithLogitsLoss()) / 2)
    assert loss_of("thresholded Dice")(NOTHING, TRUTH) > BCEWithLogitsLoss()(NOTHING, TRUTH) / 2 + 0.4


def test_ten_times_dice_is_eleven_times_a_weight_of_ten_elevenths():
    torch.testing.assert_close(mistakes.TenfoldDice()(TRUTH, TRUTH), 11 * BCEDiceLoss(10 / 11)(TRUTH, TRUTH))


def test_evaluation_mode_stays(prepared):
    trainer = make_trainer(prepared, None, TINY)
    MISTAKES["stuck in eval()"][0](trainer)
    norm = next(m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d))
    means = [norm.running_mean.clone()]
    trainer.fit(lambda row: means.append(norm.running_mean.clone()) or False)
    assert not means[0].equal(means[1]) and means[1].equal(means[2]) and not trainer.model.training


def test_the_film_moves_and_the_mask_does_not(prepared):
    trainer = make_trainer(prepared, None, TINY)
    films = trainer.train_loader.dataset
    MISTAKES["mask not moved"][0](trainer)
    items = [films[epoch, 0] for epoch in range(4)]
    assert all(np.array_equal(item["mask"][0], films.masks[0]) for item in items)
    assert not items[0]["image"].equal(items[1]["image"]) and items[0]["image"].equal(films[0, 0]["image"])


def test_pairs_are_scrambled_where_one_learns_and_where_one_reports(prepared):
    trainer = make_trainer(prepared, None, TINY)
    films = trainer.train_loader.dataset
    before = films.masks.copy()
    MISTAKES["scrambled pairs"][0](trainer)
    assert not np.array_equal(films.masks, before)
    assert sorted(m.tobytes() for m in films.masks) == sorted(m.tobytes() for m in before)
    assert 0.6 < reported("scrambled pairs", PERFECT) < 0.97


@pytest.mark.parametrize(
    "name, logits, number",
    [
        ("+1 on means", NOTHING, 1 / (1 + SHARE)),
        ("+1 on means", PERFECT, 1.0),
        ("sum / batches", PERFECT, 4.0),
        ("total / i + 1", PERFECT, 3.0),
    ],
)
def test_the_reported_number_is_the_bugs(name, logits, number):
    assert reported(name, logits) == pytest.approx(number, abs=0.01)


def test_broadcast_dice_grows_with_the_batch():
    assert 1 < reported("broadcast", PERFECT, 2) < reported("broadcast", PERFECT, 4) < 4


def test_a_falsified_number_leaves_the_training_as_it_is(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(
        tune.STUDIES, "bugs", [run for run in tune.STUDIES["bugs"] if run.name in ("no mistake", "sum / batches")]
    )
    table = do(prepared, tmp_path, "bugs", seeds=1)
    right, wrong = (rows.reset_index() for _, rows in table.groupby("run", sort=False))
    assert right["val_dice"].equals(wrong["val_dice"]) and right["reported"].equals(right["val_dice"])
    np.testing.assert_allclose(wrong["reported"], 4 * wrong["val_dice"], atol=1e-4)  # one batch of four


def test_an_unknown_study_or_protocol_is_refused_first_with_the_names(capsys):
    assert {*training.STUDIES} == {*tune.STUDIES, *SCORED, "search"} and {*training.PROTOCOLS} == {*PROTOCOLS}
    for command, known in (("tune", "capacity"), ("protocol", "jsrt")):
        with pytest.raises(SystemExit):
            main([command, "nix", "--data", "nowhere"])
        said = capsys.readouterr().err
        assert "nix" in said and known in said and "nowhere" not in said
