"""trainer.py: what training does, when it stops, and that a killed run resumes to the same weights."""

import json
import math
import multiprocessing
import random
import subprocess
import time
import zipfile
from dataclasses import asdict, fields, replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import phantom, train_in_child, write_prepared
from torch import nn

from kaggle_utils import cli, config
from kaggle_utils import trainer as training
from kaggle_utils.augment import augmentation
from kaggle_utils.data import LungDataset, make_loader, read_manifest
from kaggle_utils.hardware import PRECISIONS
from kaggle_utils.image import read_mask, write_mask
from kaggle_utils.loss import LOSSES, make_loss
from kaggle_utils.model import UNet, count_parameters, load_weights, read_header, update_header
from kaggle_utils.quality.flags import REASONS
from kaggle_utils.scale.shards import write_shards
from kaggle_utils.splits import flagged_masks, published_split
from kaggle_utils.trainer import TrainConfig, Trainer, check_batch
from kaggle_utils.training import MovingAverage, draws_per_epoch, films

TINY = TrainConfig(
    size=32,
    batch_size=3,
    base_channels=2,
    depth=2,
    patch=1,
    epochs=3,
    lr=1e-2,
    precision="fp32",
    device="cpu",
    augment="light",
)


def loaders(root, config):
    frame = read_manifest(root)
    return [
        make_loader(
            LungDataset(
                frame[frame["split"] == split],
                config.size,
                config.augment if split == "train" else "none",
                seed=config.seed,
            ),
            config.batch_size,
            shuffle=split == "train",
        )
        for split in ("train", "val")
    ]


def trainer(root, out=None, **changes) -> Trainer:
    config = replace(TINY, **changes)
    torch.manual_seed(config.seed)
    model = UNet(
        base_channels=config.base_channels, depth=config.depth, norm=config.norm, up=config.up, patch=config.patch
    )
    return Trainer(model, make_loss(config.loss), *loaders(root, config), config, out)


def weights_of(path):
    state = torch.load(path, weights_only=True)
    return {f"{part} {name}": tensor for part in ("model", "ema") for name, tensor in state[part].items()}


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(torch.as_tensor(left[name]), torch.as_tensor(right[name]))]
    assert not different


# --- it learns -------------------------------------------------------------------------------------------------------


# A patch of 2 px sees a 32 px film at 16 px: its outline is learned last.
@pytest.mark.slow
@pytest.mark.parametrize("norm, patch, dice", [("batch", 1, 0.95), ("group", 1, 0.95), ("batch", 2, 0.9)])
def test_overfits_one_batch(tmp_path, norm, patch, dice):
    write_prepared(tmp_path / "set", {"train": 4})
    frame = read_manifest(tmp_path / "set")
    films = LungDataset(frame, 32)
    config = replace(TINY, epochs=60 * patch, batch_size=4, base_channels=8, norm=norm, ema_decay=0.9, augment="none")
    torch.manual_seed(0)
    fitted = Trainer(
        UNet(base_channels=8, depth=2, norm=norm, patch=patch),
        make_loss("bce_dice"),
        make_loader(films, 4, shuffle=True),
        make_loader(films, 4),
        config,
    )
    assert fitted.fit()["val_dice"].max() > dice


def test_history_has_a_row_an_epoch_with_the_documented_columns(prepared):
    history = trainer(prepared).fit()
    assert list(history) == [
        "epoch",
        "lr",
        "train_loss",
        "val_loss",
        "val_dice",
        "val_iou",
        "val_accuracy",
        "val_foreground",
        "images_per_s",
        "seconds",
    ]
    assert history["epoch"].tolist() == [0, 1, 2] and history["seconds"].is_monotonic_increasing


def test_run_leaves_its_files(prepared, tmp_path):
    run = trainer(prepared, tmp_path / "run")
    history = run.fit()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "last.pt",
        "best.safetensors",
        "history.csv",
        "config.json",
    }
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "history.csv"), history)
    assert TrainConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())) == run.config


def test_best_weights_are_those_of_the_best_epoch(prepared, tmp_path):
    run = trainer(prepared, tmp_path / "run", epochs=8)
    history = run.fit()
    header = read_header(tmp_path / "run" / "best.safetensors")
    best = history["val_dice"].idxmax()
    assert header["validation"] == {"dice": round(history["val_dice"][best], 5), "epoch": best}
    assert run.validate(load_weights(tmp_path / "run" / "best.safetensors"))["val_dice"] == pytest.approx(
        history["val_dice"][best]
    )


def test_header_of_the_weights_says_what_a_user_must_know(prepared, tmp_path):
    training.train(prepared, tmp_path / "run", replace(TINY, sources=("montgomery",), epochs=1))
    header = read_header(tmp_path / "run" / "best.safetensors")
    assert header["size"] == 32 and header["sources"] == ["montgomery"] and "Montgomery" in header["licence"][0]
    assert TrainConfig.from_dict(header["config"]).epochs == 1


def test_run_ends_with_an_estimate_of_its_masks_or_the_reason_why_there_is_none(prepared, tmp_path, monkeypatch):
    training.train(prepared, tmp_path / "run", replace(TINY, sources=("montgomery",), epochs=1))
    assert "4 validation films are too few" in read_header(tmp_path / "run" / "best.safetensors")["quality"]["why_not"]
    fit = {"bias": 2.5, "features": {name: [0.5, 1.0] for name in REASONS}}
    monkeypatch.setattr(
        training,
        "fit_quality",
        lambda films, segmenter: fit if len(list(films)) == 4 and segmenter.size == 32 else None,
    )
    training.train(prepared, tmp_path / "other", replace(TINY, sources=("montgomery",), epochs=1))
    assert read_header(tmp_path / "other" / "best.safetensors")["quality"] == fit


def test_an_estimate_is_fitted_to_films_from_all_over_a_large_validation_set(tmp_path):
    write_prepared(tmp_path, {"train": 3, "val": 100})
    films = list(training._validation_films(trainer(tmp_path, batch_size=8)))
    names = [film.name for film in films]
    assert len(set(names)) == len(films) == 34  # every third, as 48 are the most
    truth = LungDataset(read_manifest(tmp_path).query("split == 'val'"), TINY.size)
    np.testing.assert_array_equal(films[1].truth, truth.masks[3])
    assert np.corrcoef(films[1].image.ravel(), truth.images[3].ravel())[0, 1] > 0.999


def test_a_source_that_is_not_there_is_an_error_not_a_line_in_the_header(prepared, tmp_path):
    """The set holds Montgomery alone; weights that claim Shenzhen too would be tested on it as if they knew it."""
    with pytest.raises(ValueError, match="no film of shenzhen .* --sources from montgomery"):
        training.train(prepared, tmp_path / "run", replace(TINY, sources=("montgomery", "shenzhen"), epochs=1))


def test_same_seed_gives_the_same_weights_and_another_seed_others(prepared, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(prepared, tmp_path / name, seed=seed, epochs=1).fit()
    assert_bit_equal(weights_of(tmp_path / "a" / "last.pt"), weights_of(tmp_path / "b" / "last.pt"))
    with pytest.raises(AssertionError):
        assert_bit_equal(weights_of(tmp_path / "a" / "last.pt"), weights_of(tmp_path / "c" / "last.pt"))


# --- learning rate, EMA, gradient ------------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls_to_a_hundredth(prepared):
    run = trainer(prepared, lr=1.0, warmup=0.1)
    assert [run.config.learning_rate(p) for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0, 0.5, 1, 0.505, 0.01])


@pytest.mark.parametrize("step, decay", [(1, 2 / 11), (10, 11 / 20), (10_000, 0.99)])
def test_average_forgets_fast_at_first(step, decay):
    model = nn.BatchNorm2d(3)
    average = MovingAverage(model, 0.99)
    average.updates = step
    nn.init.zeros_(average.module.weight), average.module.running_var.zero_()
    average.update()
    torch.testing.assert_close(average.module.weight, torch.full((3,), 1 - decay))
    torch.testing.assert_close(average.module.running_var, torch.full((3,), 1 - decay))


def test_average_starts_at_the_first_weights_that_it_sees():
    model = nn.Linear(2, 2)
    average = MovingAverage(model, 0.99)
    nn.init.constant_(model.weight, 5.0)
    average.update()
    assert (average.module.weight == 5).all() and average.updates == 1


def test_without_average_the_trained_weights_are_kept(prepared):
    run = trainer(prepared, ema_decay=0.0, epochs=1)
    run.fit()
    assert run.best_model is run.model


def test_average_differs_from_the_weights_and_is_what_is_validated(prepared):
    run = trainer(prepared, ema_decay=0.99)
    history = run.fit()
    assert not torch.equal(run.ema.module.outc.weight, run.model.outc.weight)
    assert run.validate(run.ema.module)["val_loss"] == pytest.approx(history["val_loss"].iloc[-1], rel=1e-5)


def test_gradient_is_clipped(prepared, monkeypatch):
    seen = []
    clip = nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        parameters = list(parameters)
        norm = clip(parameters, limit)
        seen.append((float(norm), float(torch.cat([p.grad.flatten() for p in parameters]).norm())))
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    trainer(prepared, grad_clip=0.01, epochs=1).fit()
    assert all(before > 0.01 and after <= 0.0101 for before, after in seen)


@pytest.mark.parametrize("up, conv", [("bilinear", "plain"), ("transposed", "separable")])
def test_kernels_decay_and_biases_and_normalisation_do_not(up, conv):
    model = UNet(base_channels=2, depth=2, up=up, conv=conv)
    optimizer = training.make_optimizer(model, replace(TINY, lr=0.1, weight_decay=0.5), torch.device("cpu"))
    before = {name: nn.init.uniform_(p.data, 1, 2).clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 4 else 1
        torch.testing.assert_close(parameter.data, factor * before[name], msg=name)


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_validation_does_not_depend_on_the_batch_size(tmp_path, batch):
    write_prepared(tmp_path, {"train": 3, "val": 8})
    reference, run = trainer(tmp_path, batch_size=4), trainer(tmp_path, batch_size=batch)
    assert run.validate(run.model) == pytest.approx(reference.validate(reference.model), rel=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_validation_puts_the_mode_back(prepared, is_training):
    run = trainer(prepared)
    run.model.train(is_training)
    run.validate(run.model)
    assert all(module.training is is_training for module in run.model.modules())


def test_validation_changes_no_weight_and_no_statistic(prepared):
    run = trainer(prepared)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.validate(run.model)
    assert_bit_equal(before, run.model.state_dict())


def test_validation_is_the_mean_over_films_of_a_plain_loop(prepared):
    run = trainer(prepared)
    run.model.eval()
    rows = []
    for item in run.val_loader.dataset:
        pred = (run.model(item["image"][None])[0] > 0).numpy()
        truth = item["mask"].numpy() > 0
        rows.append({"dice": 2 * (pred & truth).sum() / (pred.sum() + truth.sum()), "foreground": pred.mean()})
    result = run.validate(run.model)
    assert result["val_dice"] == pytest.approx(np.mean([r["dice"] for r in rows]))
    assert result["val_foreground"] == pytest.approx(np.mean([r["foreground"] for r in rows]))


def test_training_goes_on_in_training_mode_after_a_caller_left_it_in_evaluation_mode(prepared):
    run = trainer(prepared, epochs=1)
    run.model.eval()
    before = run.model.inc[1].running_mean.clone()
    run.fit()
    assert not torch.equal(before, run.model.inc[1].running_mean)


# --- resume is exact -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the signal: nothing in the code may catch it."""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 5, 8], ids=lambda s: f"step {s}")
@pytest.mark.parametrize(
    "precision, seconds", [("fp32", 300), ("bf16", 300), ("fp32", 0)], ids=["fp32", "bf16", "a checkpoint each step"]
)
def test_run_stopped_in_any_step_resumes_to_bit_equal_weights(
    prepared, tmp_path, monkeypatch, step, precision, seconds
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    trainer(prepared, tmp_path / "whole", precision=precision).fit()
    stopped = trainer(prepared, tmp_path / "stopped", precision=precision)
    one_step = stopped._train_step

    def dies(batch):
        if stopped.step == step:
            raise Killed
        return one_step(batch)

    stopped._train_step = dies
    with pytest.raises(Killed):
        stopped.fit()
    resumed = trainer(prepared, tmp_path / "stopped", precision=precision)
    if (tmp_path / "stopped" / "last.pt").exists():  # else it died in its first epoch, and starts anew
        resumed.resume(tmp_path / "stopped" / "last.pt")
    assert resumed.step == (step if seconds == 0 else step // 3 * 3)  # three steps an epoch
    history = resumed.fit()
    clock = ["images_per_s", "seconds"]
    expected = pd.read_csv(tmp_path / "whole" / "history.csv").drop(columns=clock)
    pd.testing.assert_frame_equal(history.drop(columns=clock), expected, check_exact=False, rtol=1e-12)
    assert_bit_equal(weights_of(tmp_path / "whole" / "last.pt"), weights_of(tmp_path / "stopped" / "last.pt"))


@pytest.mark.parametrize("steps", [3, 4], ids=["between epochs", "within one"])
def test_random_numbers_that_the_network_draws_itself_go_on_too(prepared, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)

    def run(out, last_step=None, resume=False):
        config = replace(TINY, epochs=2)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 1, 1))
        fitting = Trainer(net, make_loss("bce"), *loaders(prepared, config), config, tmp_path / out)
        if resume:
            torch.manual_seed(123)
            fitting.resume(tmp_path / out / "last.pt")
        one_step = fitting._train_step

        def dies(batch):
            if fitting.step == last_step:
                raise Killed
            return one_step(batch)

        fitting._train_step = dies
        fitting.fit()

    run("whole")
    with pytest.raises(Killed):
        run("stopped", last_step=steps)
    run("stopped", resume=True)
    assert_bit_equal(weights_of(tmp_path / "whole" / "last.pt"), weights_of(tmp_path / "stopped" / "last.pt"))


LONG = {**asdict(TINY), "epochs": 8, "sources": ["montgomery"], "augment": "full"}


@pytest.fixture(scope="module")
def forkserver():
    """Children that start in milliseconds: the server has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kaggle_utils.trainer"])
    return context


@pytest.fixture(scope="module")
def uninterrupted(forkserver, tmp_path_factory):
    """For each seed: the set, the folder of the uninterrupted run, and how long it took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    root = write_prepared(folder / "set", {"train": 12, "val": 4})

    def run(seed, epochs=LONG["epochs"]):
        start, values = time.monotonic(), {**LONG, "seed": seed, "epochs": epochs}
        child = forkserver.Process(target=train_in_child, args=(str(root), str(folder / str(seed)), values, False))
        child.start()
        child.join()
        assert child.exitcode == 0
        return root, folder / str(seed), time.monotonic() - start

    run(99, epochs=1)  # starts the server, so that the times below are those of training
    return {seed: run(seed) for seed in (0, 1)}


@pytest.mark.parametrize("seed", [0, 1])
def test_run_killed_by_sigkill_again_and_again_ends_with_bit_equal_weights(forkserver, uninterrupted, tmp_path, seed):
    root, whole, seconds = uninterrupted[seed]
    chance, kills = random.Random(seed), 0
    values, out = {**LONG, "seed": seed}, tmp_path / "run"
    for last_try in [False] * 3 + [True]:
        child = forkserver.Process(target=train_in_child, args=(str(root), str(out), values, True))
        child.start()
        if (
            not last_try
        ):  # after one to three checkpoints, the one that was there included, and somewhere within an epoch
            stamps, written = chance.randint(1, 3), set()
            while child.is_alive() and len(written) < stamps:
                written |= {checkpoint.stat().st_mtime_ns for checkpoint in out.glob("last.pt")}
                time.sleep(0.002)
        child.join(None if last_try else chance.uniform(0, seconds / LONG["epochs"]))
        kills += child.exitcode is None
        child.kill()
        child.join()
        for checkpoint in out.glob("last.pt"):
            weights_of(checkpoint)  # whole at any moment
        for best in out.glob("best.safetensors"):
            load_weights(best)
    assert kills and child.exitcode == 0
    assert_bit_equal(weights_of(whole / "last.pt"), weights_of(out / "last.pt"))
    assert_bit_equal(*(load_weights(folder / "best.safetensors").state_dict() for folder in (whole, out)))
    assert read_header(whole / "best.safetensors") == read_header(out / "best.safetensors")
    clock = ["images_per_s", "seconds"]
    pd.testing.assert_frame_equal(
        pd.read_csv(whole / "history.csv").drop(columns=clock),
        pd.read_csv(out / "history.csv").drop(columns=clock),
        check_exact=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch, its checkpoint's bytes and its parts."""
    root = write_prepared(tmp_path_factory.mktemp("set"), {"train": 4, "val": 2})
    run = trainer(root, root / "run", epochs=1)
    run.fit()
    return run, (root / "run" / "last.pt").read_bytes(), torch.load(root / "run" / "last.pt", weights_only=True)


def refusal(run, path):
    """What is said of a checkpoint; empty where it is taken."""
    try:
        run.resume(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}") and "\n" not in str(error), error
        return str(error)
    return ""


@pytest.mark.parametrize(
    "damage", ["cut", "one byte short", "zeros", "junk", "empty", "a zip of something else", "a number"]
)
def test_damaged_checkpoint_is_refused_in_a_line_that_names_it(finished, tmp_path, damage):
    run, data, _ = finished
    path = tmp_path / "last.pt"
    if damage == "a number":
        torch.save(3, path)
    elif damage == "a zip of something else":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", "no pickle")
    else:
        path.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "one byte short": data[:-1],
                "zeros": bytes(len(data)),
                "junk": random.Random(0).randbytes(4000),
                "empty": b"",
            }[damage]
        )
    assert "move it away to start anew" in refusal(run, path)


def test_a_flipped_bit_anywhere_is_refused(finished, tmp_path):
    run, data, _ = finished
    path, chance = tmp_path / "last.pt", random.Random(0)
    # Of the directory at its end every byte: the entries' own checksums don't cover it.
    for at in [*(chance.randrange(len(data)) for _ in range(100)), *range(len(data) - 200, len(data) - 66)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
        assert "move it away to start anew" in refusal(run, path), at


def test_checkpoint_without_a_checksum_is_refused(finished, tmp_path):
    run, _, state = finished
    torch.save(state, tmp_path / "last.pt")
    assert "no or another checksum" in refusal(run, tmp_path / "last.pt")


@pytest.mark.parametrize("part, value", [("config", {"nonsense": 1}), ("begun", {"nonsense": 1}), ("begun", None)])
def test_checkpoint_of_another_version_is_refused_in_a_line_that_names_it(finished, tmp_path, part, value):
    run, _, state = finished
    training.write_checkpoint(tmp_path / "last.pt", {**state, part: value})
    assert "move it away to start anew" in refusal(run, tmp_path / "last.pt")


def test_checkpoint_of_another_network_is_refused(finished, tmp_path):
    run, _, state = finished
    other = UNet(base_channels=4, depth=2).state_dict()
    for part in ("model", "ema"):
        training.write_checkpoint(tmp_path / "last.pt", {**state, part: other})
        assert "its tensors aren't this network's" in refusal(run, tmp_path / "last.pt")


def test_checkpoint_of_a_version_in_which_all_parameters_decayed_is_refused(finished, tmp_path):
    run, _, state = finished
    groups = state["optimizer"]["param_groups"]
    whole = {**groups[0], "params": [number for group in groups for number in group["params"]]}
    state = {**state, "optimizer": {**state["optimizer"], "param_groups": [whole]}}
    training.write_checkpoint(tmp_path / "last.pt", state)
    assert "none of this version" in refusal(run, tmp_path / "last.pt")


def test_failed_write_keeps_the_old_checkpoint(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path / "run", epochs=1)
    run.fit()
    before = weights_of(tmp_path / "run" / "last.pt")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError):
        run._save(improved=True)
    assert_bit_equal(before, weights_of(tmp_path / "run" / "last.pt"))
    assert not list((tmp_path / "run").glob(".*"))


def test_finished_run_resumes_to_nothing_left_to_do(prepared, tmp_path):
    trainer(prepared, tmp_path / "run").fit()
    before = (tmp_path / "run" / "last.pt").read_bytes()
    again = trainer(prepared, tmp_path / "run")
    again.resume(tmp_path / "run" / "last.pt")
    assert len(again.fit()) == 3 and (tmp_path / "run" / "last.pt").read_bytes() == before


def test_more_epochs_may_be_asked_for_on_resuming(prepared, tmp_path):
    trainer(prepared, tmp_path / "run").fit()
    longer = trainer(prepared, tmp_path / "run", epochs=5)
    longer.resume(tmp_path / "run" / "last.pt")
    assert len(longer.fit()) == 5


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"augment": "none"}, {"seed": 7}], ids=str)
def test_other_settings_than_the_checkpoints_are_refused_by_name(prepared, tmp_path, change):
    trainer(prepared, tmp_path / "run", epochs=1).fit()
    with pytest.raises(ValueError, match=f"other settings: {next(iter(change))} = "):
        trainer(prepared, **change).resume(tmp_path / "run" / "last.pt")


def write_text_file(path):
    path.write_text("hello")


def write_pickle_of_code(path):
    torch.save({"config": training.LICENCES.get}, path)


def write_other_dict(path):
    torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize("write", [write_text_file, pytest.param(write_pickle_of_code), pytest.param(write_other_dict)])
def test_foreign_checkpoint_is_refused_with_its_name(prepared, tmp_path, write):
    write(tmp_path / "last.pt")
    with pytest.raises(ValueError, match="last.pt"):
        trainer(prepared).resume(tmp_path / "last.pt")


def test_folder_of_another_run_is_not_overwritten(prepared, tmp_path):
    config = replace(TINY, sources=("montgomery",), epochs=1)
    training.train(prepared, tmp_path / "run", config)
    with pytest.raises(FileExistsError, match="--resume"):
        training.train(prepared, tmp_path / "run", config)


# --- when it stops ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock takes a second."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(ticks)))


def test_time_budget_ends_in_mid_epoch_saves_and_is_resumable(prepared, tmp_path, clock):
    short = trainer(prepared, tmp_path / "run", epochs=1000, time_budget_min=10 / 60)
    history = short.fit()
    assert 10 <= history["seconds"].iloc[-1] <= 12
    assert load_weights(tmp_path / "run" / "best.safetensors")
    longer = trainer(prepared, tmp_path / "run", epochs=1000, time_budget_min=20 / 60)
    longer.resume(tmp_path / "run" / "last.pt")
    assert longer.seconds == short.seconds
    resumed = longer.fit()
    assert len(resumed) > len(history) and 20 <= resumed["seconds"].iloc[-1] <= 22


def test_learning_rate_reaches_its_end_with_the_time_budget(prepared, clock):
    history = trainer(prepared, epochs=1000, time_budget_min=1).fit()
    assert history["lr"].iloc[-1] < 0.05 * TINY.lr


def test_used_up_budget_stops_at_once_on_resuming(prepared, tmp_path, clock):
    first = trainer(prepared, tmp_path / "run", epochs=1000, time_budget_min=0.1)
    n = len(first.fit())
    again = trainer(prepared, tmp_path / "run", epochs=1000, time_budget_min=0.1)
    again.resume(tmp_path / "run" / "last.pt")
    assert len(again.fit()) == n


def test_early_stopping_counts_epochs_since_the_best(prepared, monkeypatch):
    run = trainer(prepared, epochs=50, patience=3)
    dice = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    zeros = dict.fromkeys(("val_loss", "val_iou", "val_accuracy", "val_foreground"), 0.0)
    monkeypatch.setattr(run, "validate", lambda: {**zeros, "val_dice": next(dice)})
    assert run.fit()["val_dice"].tolist() == [0.1, 0.5, 0.4, 0.5, 0.3]


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_with_the_films_names(prepared, value):
    class Broken(nn.Module):
        def forward(self, logits, truth):
            return logits.sum() * 0 + value

    run = trainer(prepared)
    run.loss = Broken()
    with pytest.raises(
        FloatingPointError, match=rf"the loss is {value} at step 0, on (MONTGOMERY_\d{{4}}_\d(, )?){{3}}: "
    ):
        run.fit()


def good_batch():
    films = [phantom(32, 32, seed) for seed in range(3)]
    images = torch.stack([(torch.from_numpy(f.image[None]).float() - 128) / 50 for f in films])
    return {
        "image": images,
        "mask": torch.stack([torch.from_numpy(f.mask[None]).float() for f in films]),
        "name": ["a", "b", "c"],
    }


def test_good_batch_passes():
    check_batch(good_batch())


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda b: b.update(mask=b["mask"][:, 0]), r"masks \(3, 32, 32\); both should be \(B, 1, H, W\)"),
        (lambda b: b.update(mask=b["mask"] * 255), r"masks hold \[0.0, 255.0\]"),
        (lambda b: b.update(mask=b["mask"] * 0.5), r"masks hold \[0.0, 0.5\]"),
        (lambda b: b.update(image=b["image"] * 100 + 128), "data.normalise"),
        (lambda b: b["image"].fill_(math.nan), "films go from nan"),
        (lambda b: b.update(mask=1 - b["mask"]), r"inverted, empty or paired with the wrong films\? \(a, b, c"),
        (lambda b: b["mask"].zero_(), "lungs cover 0.0%"),
    ],
    ids=["shape", "0/255", "soft", "not normalised", "nan", "inverted masks", "empty masks"],
)
def test_batch_that_can_not_be_learned_from_is_refused_in_words(break_it, message):
    batch = good_batch()
    break_it(batch)
    with pytest.raises(ValueError, match=message):
        check_batch(batch)


def test_first_batch_is_checked_before_any_step(prepared):
    run = trainer(prepared)
    run.train_loader.dataset.masks[:] = 0
    with pytest.raises(ValueError, match="lungs cover"):
        run.fit()
    assert run.step == 0


def test_several_prepared_sets_are_trained_on_and_the_first_one_validates(prepared, tmp_path):
    other = write_prepared(tmp_path / "other", {"train": 5, "val": 3}, first=100)
    run = training.train([prepared, other], tmp_path / "run", replace(TINY, sources=("montgomery",), epochs=1))
    assert len(run.train_loader.dataset) == 8 + 5 and len(run.val_loader.dataset) == 4


def test_a_source_that_the_first_set_lacks_is_validated_on_in_its_own(prepared, tmp_path):
    other = write_prepared(tmp_path / "other", {"train": 2, "val": 3}, first=100)
    write_prepared(other, {"train": 2, "val": 2}, source="shenzhen", first=50)
    _, held_out = training.select_films([prepared, other], replace(TINY, sources=("montgomery", "shenzhen")))
    assert held_out["source"].value_counts().to_dict() == {"montgomery": 4, "shenzhen": 2}
    assert held_out.loc[held_out["source"] == "montgomery", "image"].str.startswith(str(prepared)).all()


def test_film_put_aside_in_one_set_may_not_be_trained_on_in_another(prepared, tmp_path):
    other = write_prepared(
        tmp_path / "other", {"train": 14}
    )  # the first set's films again, those to validate among them
    with pytest.raises(ValueError, match="twice"):
        training.train([prepared, other], tmp_path / "run", replace(TINY, sources=("montgomery",), epochs=1))


def test_a_choice_of_films_is_drawn_by_the_seed(prepared, tmp_path):
    names = [
        training.train(
            prepared, tmp_path / str(i), replace(TINY, sources=("montgomery",), epochs=1, films=3, seed=seed)
        )
        .train_loader.dataset.frame["name"]
        .tolist()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert len(names[0]) == 3 and names[0] == names[1] != names[2]


@pytest.fixture
def two_sources(tmp_path):
    """Two sets whose annotators disagree: the second one's draw the lungs 2 px larger."""
    root = write_prepared(tmp_path / "two", {"train": 4, "val": 2})
    write_prepared(root, {"train": 4, "val": 2}, source="shenzhen", first=50)
    for path in root.glob("*/mask/SHENZHEN*.png"):
        write_mask(path, cv2.dilate(read_mask(path), np.ones((5, 5), np.uint8)))
    return root


@pytest.mark.slow
def test_each_set_has_a_head_that_learns_its_masks_alone(two_sources, tmp_path):
    config = replace(TINY, sources=("montgomery", "shenzhen"), base_channels=8, epochs=40, batch_size=4, augment="none")
    fitted = training.train(two_sources, tmp_path / "run", config)
    assert fitted.best_dice > 0.85 and read_header(tmp_path / "run" / "best.safetensors")["heads"] == [
        "montgomery",
        "shenzhen",
    ]
    with torch.inference_mode():
        ours, theirs = (fitted.best_model(next(iter(fitted.val_loader))["image"]) > 0).float().mean((0, 2, 3))
    assert theirs > 1.2 * ours > 0


@pytest.fixture
def begun(two_sources, tmp_path):
    """Weights of a run on the first of two sets."""
    training.train(two_sources, tmp_path / "begun", replace(TINY, sources=("shenzhen",), epochs=1))
    return tmp_path / "begun" / "best.safetensors"


def test_a_run_starts_from_weights_and_a_new_head_from_their_first(two_sources, tmp_path, begun):
    config = replace(TINY, sources=("montgomery", "shenzhen"), init=str(begun), epochs=1)
    run = training.make_trainer(two_sources, None, config)
    image = next(iter(run.val_loader))["image"]
    with torch.inference_mode():
        before, ours = load_weights(begun)(image), run.model.eval()(image)
    assert torch.allclose(ours, before.expand_as(ours), atol=1e-5) and run.model.architecture["classes"] == 2

    run = training.train(two_sources, tmp_path / "run", config)
    header = read_header(tmp_path / "run" / "best.safetensors")
    assert header["init"]["sources"] == ["shenzhen"] and header["init"]["films"] == {"shenzhen": 4}
    assert len(header["licence"]) == 2 and f"--init {begun}" in header["command"]


def test_heads_are_taken_over_by_their_names(two_sources, tmp_path):
    both = replace(TINY, sources=("montgomery", "shenzhen"), patch=2, epochs=1)
    training.train(two_sources, tmp_path / "both", both)
    weights = tmp_path / "both" / "best.safetensors"
    one = replace(both, sources=("shenzhen",), init=str(weights))
    run = training.make_trainer(two_sources, None, one)
    image = next(iter(run.val_loader))["image"]
    with torch.inference_mode():
        assert torch.allclose(run.model.eval()(image), load_weights(weights)(image)[:, 1:], atol=1e-5)


def test_weights_started_from_lend_their_licence(two_sources, tmp_path, begun):
    update_header(begun, licence="Ours: all rights reserved")
    config = replace(TINY, sources=("montgomery",), init=str(begun), epochs=1)
    training.train(two_sources, tmp_path / "run", config)
    licence = read_header(tmp_path / "run" / "best.safetensors")["licence"]
    assert licence[1:] == ["Ours: all rights reserved"]


def test_weights_of_another_architecture_are_no_start(two_sources, begun):
    config = replace(TINY, sources=("montgomery",), base_channels=4, init=str(begun))
    with pytest.raises(ValueError, match="a network of base_channels 2, not 4"):
        training.make_trainer(two_sources, None, config)


def test_a_run_is_not_resumed_from_another_start(two_sources, tmp_path, begun):
    config = replace(TINY, sources=("montgomery",), init=str(begun), epochs=1)
    training.train(two_sources, tmp_path / "run", config)
    update_header(begun, note="touched")
    with pytest.raises(ValueError, match="was trained on other films"):
        training.train(two_sources, tmp_path / "run", config, resume=True)


def test_without_heads_all_sets_share_one_output(two_sources, tmp_path):
    fitted = training.train(
        two_sources, tmp_path / "run", replace(TINY, sources=("montgomery", "shenzhen"), heads=False, epochs=1)
    )
    assert fitted.best_model.architecture["classes"] == 1
    assert read_header(tmp_path / "run" / "best.safetensors")["heads"] == []


@pytest.mark.parametrize("flagged, films", [(False, 6), (True, 8)])
def test_masks_known_to_be_bad_are_trained_on_only_if_asked_for(prepared, tmp_path, monkeypatch, flagged, films):
    bad = read_manifest(prepared)["name"].iloc[[0, 3, -1]]  # the last one is a test film
    monkeypatch.setattr(
        "kaggle_utils.training.films.flagged_masks", lambda: pd.DataFrame({"name": bad, "reason": "heart"})
    )
    fitted = training.train(
        prepared, tmp_path / "run", replace(TINY, sources=("montgomery",), epochs=1, flagged_masks=flagged)
    )
    assert len(fitted.train_loader.dataset) == films


def test_only_masks_of_the_published_training_lists_are_called_bad():
    assert (published_split(flagged_masks()) == "train").all()


def test_no_film_of_the_wanted_sources_is_an_error(prepared, tmp_path):
    with pytest.raises(ValueError, match="no film of shenzhen"):
        training.train(prepared, tmp_path / "run", replace(TINY, sources=("shenzhen",)))


@pytest.mark.parametrize("name", ["config.json", "history.csv", "best.safetensors"])
def test_files_of_others_are_not_replaced_by_a_run(prepared, tmp_path, name):
    (tmp_path / name).write_text("{}x")
    with pytest.raises(ValueError, match=f"{name}: not of an earlier run"):
        training.make_trainer(prepared, tmp_path, replace(TINY, sources=("montgomery",)))
    assert (tmp_path / name).read_text() == "{}x"


# --- settings --------------------------------------------------------------------------------------------------------


def test_unknown_setting_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="unknown setting learning_rate; there are sources, "):
        TrainConfig.from_dict({"learning_rate": 0.1})


def test_settings_survive_json():
    assert TrainConfig.from_dict(json.loads(json.dumps(asdict(TINY)))) == TINY


def test_stored_configuration_of_an_earlier_version_is_rebuilt():
    earlier = {"batch": 3, "width": 2, "clip": 0.5, "ema": 0.9, "minutes": 7.0}
    config = TrainConfig.from_dict(earlier)
    names = ("batch_size", "base_channels", "grad_clip", "ema_decay", "time_budget_min")
    assert tuple(getattr(config, name) for name in names) == tuple(earlier.values())


@pytest.mark.parametrize(
    "setting",
    [
        {"size": 8},
        {"batch_size": 0},
        {"epochs": 0},
        {"dice_weight": 2},
        {"ema_decay": 1.5},
        {"time_budget_min": -1},
        {"warmup": 1.5},
        {"warmup": -0.1},
        {"lr": math.nan},
        {"lr": math.inf},
        {"workers": -2},
        {"seed": -1},
    ],
    ids=str,
)
def test_setting_out_of_range_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is in"):
        TrainConfig(**setting)


@pytest.mark.parametrize(
    "setting",
    [
        {"precision": "fp8"},
        {"loss": "bogus"},
        {"augment": "heavy"},
        {"augment": "tb"},
        {"norm": "layer"},
        {"up": "nearest"},
        {"conv": "dilated"},
        {"device": "tpu"},
        {"device": "cuda:"},
        {"size": 64.0},
        {"size": "64"},
        {"size": None},
        {"heads": 1},
        {"epochs": True},
        {"sources": ()},
        {"sources": ("montgomery", 3)},
        {"sources": "montgomery"},
    ],
    ids=str,
)
def test_setting_that_makes_no_sense_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} (is|are) "):
        TrainConfig(**setting)


@pytest.mark.parametrize(
    "option, wrong",
    [
        ("--loss", "bogus"),
        ("--augment", "tb"),
        ("--norm", "layer"),
        ("--up", "nearest"),
        ("--conv", "dilated"),
        ("--precision", "fp8"),
    ],
)
def test_words_that_are_no_choice_are_refused_by_the_command_line_with_the_choices(option, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--out", "nowhere", option, wrong])
    choices = TrainConfig.__dataclass_fields__[option[2:]].metadata["choices"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and option in last and all(choice in last for choice in choices)


def test_choices_are_those_that_the_library_has():
    choices = {f.name: f.metadata["choices"] for f in fields(TrainConfig)}
    assert choices["loss"] == tuple(LOSSES)
    assert choices["precision"] == ("auto", *PRECISIONS)
    for augment in choices["augment"]:
        augmentation(augment)
    for name in ("norm", "up", "conv"):
        for value in choices[name]:
            UNet(base_channels=1, depth=1, **{name: value})


def test_default_network_has_at_most_2_million_parameters():
    config = TrainConfig()
    assert (
        count_parameters(
            UNet(
                base_channels=config.base_channels,
                depth=config.depth,
                norm=config.norm,
                up=config.up,
                patch=config.patch,
            )
        )
        <= 2_000_000
    )


@pytest.mark.parametrize(
    "changed",
    [{}, {"time_budget_min": 14.0, "sources": ("jsrt",)}, {"heads": False, "flagged_masks": True, "weight_decay": 0.1}],
)
def test_command_of_a_run_makes_the_same_configuration(changed, prepared, monkeypatch, tmp_path):
    config, seen = TrainConfig(**changed), []
    monkeypatch.chdir(prepared.parent)
    monkeypatch.setattr(
        training, "train", lambda data, out, config, resume: seen.append(config) or (_ for _ in ()).throw(ValueError)
    )
    python, dash, package, *arguments = config.command.split()
    assert (python, dash, package) == ("python", "-m", "kaggle_utils")
    cli.main([*arguments, "--data", str(prepared), "--out", str(tmp_path / "run")])
    assert seen == [config]


def test_every_setting_explains_itself():
    assert all(len(f.metadata["about"]) > 5 for f in fields(TrainConfig))


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_weights_are_float32_in_any_precision(prepared, precision):
    run, seen = trainer(prepared, precision=precision, epochs=1), []
    loss = run.loss
    run.loss = lambda logits, truth: seen.append((logits.dtype, (value := loss(logits, truth)).dtype)) or value
    run.fit()
    assert {dtype for dtype, _ in seen} == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert {dtype for _, dtype in seen} == {torch.float32}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_weights_and_films_lie_channels_last(prepared):
    run = trainer(prepared)
    images, *_ = run._to_device(next(iter(run.train_loader)))
    kernels = [p for p in run.model.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert kernels and all(each.is_contiguous(memory_format=torch.channels_last) for each in [images, *kernels])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("cores, machine, train, val", [(4, 1, 4, 2), (4, 2, 2, 2), (1, 1, 1, 1)])
def test_with_a_gpu_a_worker_a_core_loads_and_few_validate(prepared, monkeypatch, cores, machine, train, val):
    monkeypatch.setattr(films, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(films, "processors", lambda: cores)
    monkeypatch.setattr(films.distributed, "machine_size", lambda: machine)
    config = replace(TINY, sources=("montgomery",), augment_on="cpu", workers=-1)
    found = films.make_loaders(*films.select_films(prepared, config), config)
    assert [loader.num_workers for loader in found] == [train, val]
    assert all(loader.dataset.raw for loader in found)  # uint8, which the GPU normalises


def test_scaler_works_for_float16_alone(prepared):
    assert not trainer(prepared, precision="bf16").scaler.is_enabled()
    assert not trainer(prepared, precision="fp32").scaler.is_enabled()
    assert trainer(prepared, precision="fp16").scaler.is_enabled()


def test_without_a_terminal_an_epoch_is_a_line(prepared, tmp_path, capsys):
    training.train(prepared, tmp_path, replace(TINY, epochs=2, sources=("montgomery",)))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert all("validation Dice 0." in line and "films/s" in line for line in lines if line.startswith("epoch"))
    assert lines[0].endswith("under 1 min left") and lines[1].endswith(" s")


@pytest.mark.parametrize(
    "seconds, epochs_done, budget, left",
    [
        (0, 0, 4, ""),
        (60, 1, 0, "about 9 min left"),
        (60, 1, 4, "about 3 min left"),  # the budget ends it before the ten epochs
        (59, 9, 0, "under 1 min left"),
        (240, 5, 4, ""),
    ],
)
def test_time_left_follows_steps_or_the_budget(prepared, seconds, epochs_done, budget, left):
    run = trainer(prepared, epochs=10, time_budget_min=float(budget))
    run.seconds, run.history = seconds, [{"val_dice": 0.5}] * epochs_done
    assert run.time_left == left


@pytest.mark.parametrize(
    "shares, epoch_films, draws",
    [
        ((), 0, None),
        ((), 10, {"montgomery": 1, "shenzhen": 9}),
        ((1.0, 1.0), 600, {"montgomery": 20, "shenzhen": 20}),
        ((1.0, 3.0), 0, {"montgomery": 10, "shenzhen": 30}),
        ((1e-9, 1.0), 8, {"montgomery": 1, "shenzhen": 8}),
    ],
)
def test_sets_are_drawn_by_their_shares(shares, epoch_films, draws):
    config = replace(TINY, sources=("montgomery", "shenzhen"), shares=shares, epoch_films=epoch_films)
    sources = pd.Series(["montgomery"] * 4 + ["shenzhen"] * 36)
    assert draws_per_epoch(sources, config) == draws


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))], ids=str)
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="shares are a positive number for each of 2 sources"):
        replace(TINY, sources=("montgomery", "shenzhen"), shares=shares)


def test_no_set_outweighs_the_others_in_validation(tmp_path, monkeypatch):
    write_prepared(tmp_path, {"train": 2, "val": 9})
    write_prepared(tmp_path, {"train": 2, "val": 2}, source="shenzhen", first=50)
    monkeypatch.setattr("kaggle_utils.training.films.MOST_OF_A_SET", 3)
    config = replace(TINY, sources=("montgomery", "shenzhen"))
    _, held_out = training.select_films(tmp_path, config)
    assert held_out["source"].value_counts().to_dict() == {"montgomery": 3, "shenzhen": 2}
    pd.testing.assert_frame_equal(held_out, training.select_films(tmp_path, replace(config, seed=7))[1])


def test_a_source_that_a_choice_of_films_left_out_is_not_drawn():
    config = replace(TINY, sources=("montgomery", "shenzhen"), shares=(1.0, 1.0), epoch_films=4)
    assert draws_per_epoch(pd.Series(["shenzhen"] * 9), config) == {"shenzhen": 4}


@pytest.mark.parametrize("setting", [{"shares": (1.0,)}, {"epoch_films": 5}], ids=str)
def test_shards_are_not_drawn_by_shares(tmp_path, setting):
    write_shards(write_prepared(tmp_path / "set", {"train": 4, "val": 2}), tmp_path / "shards", films=2)
    config = replace(TINY, sources=("montgomery",), **setting)
    with pytest.raises(ValueError, match="streamed whole: leave shares and epoch_films away"):
        training.select_films(tmp_path / "shards", config)


def test_changed_code_is_dirty_and_new_results_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "kaggle_utils" / "config.py"))
    assert config.code_version() == ""
    code, result = tmp_path / "code.py", tmp_path / "results" / "a.csv"
    result.parent.mkdir()
    for path in (code, result):
        path.write_text("before")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *step], check=True)
    result.write_text("after")
    commit = config.code_version()
    assert len(commit) == 12 and int(commit, 16)
    code.write_text("after")
    assert config.code_version() == commit + "-dirty"
