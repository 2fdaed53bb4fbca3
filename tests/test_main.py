"""The command line: help, errors, exit status, progress bars; and the whole way from raw films to masks."""

import argparse
import io
import os
import re
import subprocess
import sys
from argparse import SUPPRESS
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from dicoms import dicom
from phantoms import phantom, write_prepared, write_raw
from three_at_once import at_once

import kaggle_utils
from kaggle_utils.cli import build_parser, main
from kaggle_utils.commands import SECTIONS
from kaggle_utils.commands.common import print_scores
from kaggle_utils.commands.segment import _write_table
from kaggle_utils.config import RENAMED
from kaggle_utils.data import read_manifest
from kaggle_utils.export import read_onnx_header
from kaggle_utils.files import LOCK, locked
from kaggle_utils.image import write_image
from kaggle_utils.model import UNet, read_header, save_weights
from kaggle_utils.scale.cluster_work import Settings
from kaggle_utils.scale.shards import ShardedFilms, read_shards
from kaggle_utils.sets import EXAMPLES
from kaggle_utils.splits import flagged_masks
from kaggle_utils.synthetic.model import AppearanceModel
from kaggle_utils.trainer import read_checkpoint

COMMANDS = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
TINY = [
    "--size",
    "32",
    "--base-channels",
    "2",
    "--depth",
    "2",
    "--patch",
    "1",
    "--batch-size",
    "4",
    "--epochs",
    "2",
    "--precision",
    "fp32",
    "--device",
    "cpu",
]


def run(folder, *arguments) -> subprocess.CompletedProcess:
    """A user's own process, in a folder of theirs."""
    environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "kaggle_utils", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    return tmp_path / "w.safetensors"


@pytest.fixture
def film_file(tmp_path):
    return write_raw(tmp_path / "film.png", phantom().image)


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_main_commands_are_there():
    assert {"prep", "train", "evaluate", "predict"} <= set(COMMANDS)


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_earlier_name_of_an_option_is_taken(old, new):
    value = [] if new == "flagged_masks" else ["2"]
    args = build_parser().parse_args(["train", "--out", "run", f"--{old}", *value])
    assert getattr(args, new) == (2 if value else True) and not hasattr(args, old)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--width", "4", "--width=4"], "--width is now --base-channels\n"),
        (["--batch=2"], "--batch is now --batch-size\n"),
        (["--no-suspects"], "--no-suspects is now --no-flagged-masks\n"),
        (["--base-channels", "4"], ""),
    ],
)
def test_earlier_name_of_an_option_is_told_once(given, said, tmp_path, capsys):
    assert main(["train", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), *given]) == 1
    *before, _ = capsys.readouterr().err.splitlines(keepends=True)
    assert "".join(before) == said


@pytest.mark.parametrize(
    "arguments, advice",
    [
        (["predict", "film.png", "--ouput", "x"], "unrecognized arguments: --ouput x; did you mean --out?"),
        (["kaggle", "publish", "--owner=x", "--foo"], "kaggle publish: error: unrecognized arguments: --foo\n"),
        (["evaluate", "--xyzzy"], "unrecognized arguments: --xyzzy\n"),
        (["train", "--out", "x", "--base-chanels=4"], "did you mean --base-channels?\n"),
        (["--verson"], "unrecognized arguments: --verson; did you mean --version?\n"),
    ],
)
def test_unknown_option_prints_the_commands_usage_and_the_nearest_option(arguments, advice, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and advice in said and re.match(rf"usage: .* ({arguments[0]} .*)?\[-h\]", said)
    assert arguments[0].startswith("-") or f" {arguments[0]} " in said


@pytest.mark.parametrize(
    "words, advice",
    [
        (["pedict", "film.png"], "no command pedict; did you mean predict?\n"),
        (["xyzzy"], "no command xyzzy; try prep, synth, "),
        (["kaggle", "pusch"], "kaggle: error: no command pusch; did you mean push?\n"),
        ([], "a COMMAND is missing; --help lists them\n"),
    ],
)
def test_unknown_command_prints_the_nearest_one(words, advice, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and advice in capsys.readouterr().err


def test_help_lists_every_command_once_in_sections(capsys):
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(COMMANDS)
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert re.findall(r"^  ([a-z][\w-]*)  ", text, re.M) == names
    assert all(f"{title}:\n" in text for title in SECTIONS)


def test_options_of_training_are_in_groups(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    parts = re.split(r"^(\w+):$", capsys.readouterr().out, flags=re.M)
    groups = dict(zip(parts[1::2], parts[2::2]))
    assert list(groups) == ["options", "data", "network", "training", "hardware"]
    for group, option in (("data", "augment"), ("network", "init"), ("training", "seed"), ("hardware", "workers")):
        assert f"\n  --{option} " in groups[group]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["evaluate", "--sizes", "abc"], "argument --sizes: abc is not a whole number"),
        (["predict", "film.png", "--batch-size", "1.5"], "argument --batch-size: 1.5 is not a whole number"),
        (["predict", "film.png", "--threshold", "half"], "argument --threshold: half is not a number"),
    ],
)
def test_what_is_no_number_is_told_in_words(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_scores_are_printed_in_six_columns(capsys):
    scores = {"source": "jsrt", "protocol": "all", "size": [0, 256], "n": 247, "dice": [0.25, 0.5], "sd": 0.1}
    print_scores(pd.DataFrame({**scores, "low": 0.2, "high": 0.6, "worst": 0.1, "worst_film": "film"}))
    head, first, own = (line.split() for line in capsys.readouterr().out.splitlines())
    assert " ".join(head) == "tested on px n Dice 95 % interval worst"
    assert first == ["jsrt,", "all", "256", "247", "0.5000", "0.2000-0.6000", "0.1000"]
    assert own == ["jsrt,", "all", "own", "247", "0.2500", "0.2000-0.6000", "0.1000"]


@pytest.mark.parametrize("text", ["0", "1", "nan", "-0.5"])
def test_threshold_that_no_probability_could_fall_on_either_side_of_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["predict", "film.png", f"--threshold={text}"])
    assert f"{text} is not between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "screen"])
def test_earlier_name_of_the_batch_size_is_taken(command):
    assert build_parser().parse_args([command, "film.png", "--batch", "2"]).batch_size == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_with_a_sentence(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for action in COMMANDS[command]._actions:
        if action.help == SUPPRESS:  # an earlier name
            continue
        assert action.help and all(option in text for option in action.option_strings)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_states_the_defaults(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for action in COMMANDS[command]._actions:
        if (
            action.option_strings
            and not action.required
            and action.default not in (None, argparse.SUPPRESS)
            and action.default is not False
            and action.default not in ("", [], ())
        ):
            default = action.default
            words = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
            assert f"(default: {words})" in text
    assert not re.search(r"\(default: (\[\]|\(\))?\)", text)


@pytest.mark.parametrize(
    "option, unit",
    [("--size", "px"), ("--time-budget-min", "minutes"), ("--epochs", "passes"), ("--batch-size", "radiographs")],
)
def test_help_of_train_states_units(option, unit):
    action = next(a for a in COMMANDS["train"]._actions if option in a.option_strings)
    assert unit in action.help


def test_every_setting_of_the_configuration_is_an_option():
    from dataclasses import fields

    from kaggle_utils.trainer import TrainConfig

    options = {option for action in COMMANDS["train"]._actions for option in action.option_strings}
    assert {f"--{f.name.replace('_', '-')}" for f in fields(TrainConfig)} <= options


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["segment"],
        ["train"],
        ["predict", "--out", "x"],
        ["train", "--out", "x", "--epochs", "many"],
        ["kaggle"],
        ["kaggle", "push", "01"],
        ["export", "--format", "tflite"],
        ["predict", "film.png", "--out", "x", "--backend", "abacus"],
    ],
    ids=" ".join,
)
def test_wrong_usage_has_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err


# --- errors ----------------------------------------------------------------------------------------------------------

ERRORS = {
    "prep: no such folder": (["prep", "--input", "nowhere", "--out", "o"], "nowhere: no such folder"),
    "prep: no film": (["prep", "--input", "empty", "--out", "o"], "no film of Montgomery"),
    "prep: no film that works": (["prep", "--input", "broken", "--out", "o"], "none of 1 films could be prepared"),
    "prep: output is a file": (["prep", "--input", "broken", "--out", "film.png"], "film.png"),
    "train: no set": (["train", "--data", "nowhere", "--out", "o", *TINY], "kaggle_utils prep"),
    "train: no such source": (["train", "--data", "set", "--out", "o", "--sources", "jsrt", *TINY], "no film of jsrt"),
    "train: size out of range": (
        ["train", "--data", "set", "--out", "o", "--sources", "montgomery", *TINY, "--size", "7"],
        "size is in",
    ),
    "train: no such device": (
        ["train", "--data", "set", "--out", "o", "--sources", "montgomery", *TINY, "--device", "abacus"],
        "abacus",
    ),
    "train: a run is there": (["train", "--data", "set", "--out", "run", "--sources", "montgomery", *TINY], "--resume"),
    "train: a foreign checkpoint": (
        ["train", "--data", "set", "--out", "run", "--resume", "--sources", "montgomery", *TINY],
        "last.pt",
    ),
    "evaluate: no weights": (["evaluate", "--data", "set", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
    "evaluate: broken weights": (
        ["evaluate", "--data", "set", "--weights", "film.png"],
        "film.png: not a whole safetensors",
    ),
    "evaluate: no set": (["evaluate", "--data", "nowhere", "--weights", "w.safetensors"], "nowhere"),
    "evaluate: no film in the split": (
        ["evaluate", "--data", "set", "--split", "test", "--weights", "w.safetensors"],
        "test",
    ),
    "export: no weights": (["export", "--weights", "nowhere.safetensors"], "nowhere.safetensors: no such weights"),
    "export: broken weights": (["export", "--weights", "film.png"], "film.png: not a whole safetensors"),
    "export: no such folder": (["export", "--weights", "w.safetensors", "--out", "nowhere/w.onnx"], "nowhere"),
    "predict: broken ONNX": (
        ["predict", "film.png", "--out", "o", "--weights", "broken.onnx", "--backend", "openvino"],
        "broken.onnx: not a whole ONNX",
    ),
    "predict: a GPU for ONNX Runtime": (
        [
            "predict",
            "film.png",
            "--out",
            "o",
            "--weights",
            "w.safetensors",
            "--backend",
            "onnxruntime",
            "--device",
            "cuda",
        ],
        "choose device auto or cpu",
    ),
    "predict: no film": (
        ["predict", "nowhere.png", "--out", "o", "--weights", "w.safetensors"],
        "nowhere.png: no such file",
    ),
    "predict: no such device": (
        ["predict", "film.png", "--out", "o", "--weights", "w.safetensors", "--device", "abacus"],
        "abacus",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_on_stderr_and_a_status(case, tmp_path, weights, film_file, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_prepared(tmp_path / "set", {"train": 4, "val": 2})
    write_raw(tmp_path / "raw" / "CXR_png" / "MCUCXR_0001_0.png", phantom().image)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "MCUCXR_0001_0.png").write_bytes(b"")
    (tmp_path / "broken.onnx").write_text("something else")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_text("something else")
    arguments, message = ERRORS[case]
    assert main(arguments) == 1
    output = capfd.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"unet-lung {arguments[0]}: ") and message in lines[0]


@pytest.mark.parametrize("size", ["0", "7", "1000000"])
def test_prepared_side_has_bounds(size, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["prep", "--input", "raw", "--size", size])
    assert stopped.value.code == 2 and f"{size} is not from 8 to 8192" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["prep", "--input", "raw", "--workers", "0"], ["predict", "film.png", "--out", "o", "--batch-size", "0"]],
    ids=["prep: workers 0", "predict: batch of 0"],
)
def test_number_below_one_is_a_usage_error(arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "0 is not 1 or more" in capfd.readouterr().err


def test_a_gpu_that_is_not_there_is_one_line_too(tmp_path, weights, film_file, capfd):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert (
        main(["predict", str(film_file), "--out", str(tmp_path / "o"), "--weights", str(weights), "--device", "cuda"])
        == 1
    )
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_interrupted_training_says_how_to_go_on(monkeypatch, capsys, prepared, tmp_path):
    monkeypatch.setattr("kaggle_utils.trainer.train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["train", "--data", str(prepared), "--out", str(tmp_path), *TINY]) == 130
    assert "--resume" in capsys.readouterr().err


def test_ctrl_c_ends_a_training_in_a_line_and_it_goes_on(tmp_path, ctrl_c, prepared, capfd):
    from kaggle_utils.trainer import Trainer

    command = [
        "train",
        "--data",
        str(prepared),
        "--out",
        str(tmp_path / "run"),
        "--sources",
        "montgomery",
        *TINY,
        "--epochs",
        "3",
    ]
    ctrl_c(Trainer, "_train_step", calls=6)
    assert main(command) == 130
    assert (
        capfd.readouterr().err.splitlines()[-1] == "unet-lung train: stopped; --resume goes on from the last checkpoint"
    )  # below the epochs
    assert main([*command, "--resume"]) == 0
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 3


# --- wrong paths, told before anything is loaded ---------------------------------------------------------------------

WRONG_PATHS = [  # command, and what is said
    (["predict", "nowhere.png", "--out", "o"], "nowhere.png: no such file"),
    (["predict", "*.dcm", "--out", "o"], "*.dcm: no such file"),
    (["predict", "empty", "--out", "o"], "empty: no film in it"),
    (["predict", "film.png", "--out", "film.png"], "film.png: a file, where a folder is to be written"),
    (["predict", "film.png", "--out", "film.png/masks"], "film.png: a file, where a folder is to be written"),
    (
        ["predict", "film.png", "--out", "o", "--weights", "nowhere.safetensors"],
        "nowhere.safetensors: no such weights file",
    ),
    (["predict", "film.png", "--out", "o", "--weights", "empty"], "empty: a folder, not a weights file"),
    (["screen", "nowhere.png", "--out", "o"], "nowhere.png: no such file"),
    (["screen", "film.png", "--out", "o", "--segmenter", "nowhere"], "nowhere: no such weights file"),
    (["app", "--weights", "nowhere"], "nowhere: no such weights file"),
    (["train", "--data", "nowhere", "--out", "o"], "nowhere/manifest.csv is not there"),
    (["train", "--data", "film.png", "--out", "o"], "film.png: a file; expected the folder that"),
    (["evaluate", "--data", "film.png"], "film.png: a file; expected the folder that"),
    (["evaluate", "--data", "set", "--input", "film.png"], "film.png: a file; expected a folder"),
    (["evaluate", "--data", "set", "--out", "film.png/scores"], "film.png: a file, where a folder is to be written"),
    (["tune", "bugs", "--data", "film.png"], "film.png: a file; expected the folder that"),
    (["protocol", "both", "--data", "empty"], "empty/manifest.csv is not there"),
    (["shards", "--data", "nowhere", "--out", "o"], "nowhere/manifest.csv is not there"),
    (["fit-synth", "--data", "nowhere"], "nowhere/manifest.csv is not there"),
    (["fit-synth", "--data", "set", "--out", "empty"], "empty: a folder, where a file is to be written"),
    (["export", "--weights", "empty"], "empty: a folder, not a weights file"),
    (["export", "--out", "empty"], "empty: a folder, where a file is to be written"),
    (["export", "--out", "nowhere/w.onnx"], "nowhere: no such folder"),
    (["prep", "--input", "nowhere", "--out", "o"], "nowhere: no such folder"),
    (["prep", "--input", "film.png", "--out", "o"], "film.png: a file; expected a folder"),
    (["synth", "--out", "film.png"], "film.png: a file, where a folder is to be written"),
    (["plots", "--out", "film.png"], "film.png: a file, where a folder is to be written"),
]
HEAVY = ("torch", "numpy", "pandas", "cv2", "scipy", "albumentations", "matplotlib", "gradio", "ray", "boto3")


def modules_after(folder, code) -> tuple[list[str], set[str]]:
    """What a new Python process says when it runs the code, and the modules that it has loaded then."""
    environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stderr.splitlines(), set(done.stdout.splitlines()[-1].split())


def test_a_wrong_path_is_told_in_one_line_before_any_library_is_loaded(tmp_path, film_file):
    (tmp_path / "empty").mkdir()
    write_prepared(tmp_path / "set", {"train": 1})
    commands = [command for command, _ in WRONG_PATHS]
    said, modules = modules_after(
        tmp_path, f"from kaggle_utils.cli import main\nassert all([main(c) == 1 for c in {commands!r}])"
    )
    assert not modules & set(HEAVY)
    for line, (command, reason) in zip(said, WRONG_PATHS, strict=True):
        assert line.startswith(f"unet-lung {command[0]}: {reason}")


@pytest.mark.slow
def test_a_film_is_segmented_judged_and_measured_without_what_only_training_needs(tmp_path):
    write_raw(tmp_path / "film.png", AppearanceModel.load().film(7, 0, size=256, tb=0).image)
    said, modules = modules_after(
        tmp_path,
        "from kaggle_utils.cli import main\nassert main(['predict', 'film.png', '--out', 'o', '--device', 'cpu']) == 0",
    )
    assert said == [] and (tmp_path / "o" / "masks" / "film.png").exists()
    # PyTorch 2.10 itself loads sympy to lay out a network before its weights are there.
    _, of_torch = modules_after(tmp_path, "import torch; torch.nn.Conv2d(1, 1, 1, device='meta')")
    assert not (modules - of_torch) & {
        "albumentations",
        "torch._dynamo",
        "torch._inductor",
        "sympy",
        "scipy.stats",
        "scipy.interpolate",
        "scipy.ndimage",
        "matplotlib",
        "kaggle_utils.synthetic.model",
        "kaggle_utils.trainer",
    }


def test_results_go_to_a_folder_whose_name_is_not_utf_8(tmp_path, weights, odd_names):
    out = tmp_path / os.fsdecode(b"\xf6ut")
    assert (
        main(
            [
                "predict",
                str(tmp_path / "odd"),
                "--force",
                "--out",
                str(out),
                "--weights",
                str(weights),
                "--format",
                "png",
                "coco",
            ]
        )
        == 0
    )
    assert {path.name for path in out.iterdir()} == {
        "predictions.csv",
        "predictions.jsonl",
        "measurements.csv",
        "coco.parquet",
        "contact.png",
        "masks",
        "overlays",
    }


def test_names_that_the_terminal_has_no_letters_for_end_no_run(tmp_path, film_file):
    environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kaggle_utils",
            "synth",
            "--n",
            "1",
            "--size",
            "32",
            "--out",
            os.fsdecode(b"r\xf6ntgen \xe7\x89\x87"),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.startswith(r"1 synthetic radiographs in r\udcf6ntgen \u7247")


# --- progress --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def long_work(root, weights):
    return {
        "train": ["train", "--data", str(root), "--out", str(root / "run"), "--sources", "montgomery", *TINY],
        "evaluate": ["evaluate", "--data", str(root), "--weights", str(weights), "--sizes", "32"],
        "predict": ["predict", str(root / "val"), "--force", "--out", str(root / "masks"), "--weights", str(weights)],
        "prep": ["prep", "--input", str(root / "raw"), "--out", str(root / "prepared"), "--size", "32"],
    }


@pytest.mark.parametrize("command", ["prep", "train", "evaluate", "predict"])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "no terminal"])
def test_progress_bar_is_shown_on_a_terminal_and_a_training_as_lines_elsewhere(
    command, terminal, prepared, weights, monkeypatch
):
    write_raw(prepared / "raw" / "CXR_png" / "MCUCXR_0001_0.png", phantom().image)
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(long_work(prepared, weights)[command]) == 0
    if terminal:
        assert command in screen.getvalue()
    else:
        assert all(line.startswith("epoch ") for line in screen.getvalue().splitlines()) and bool(
            screen.getvalue()
        ) == (command == "train")


# --- predict's exit status -------------------------------------------------------------------------------------------


def test_status_is_0_when_every_film_was_read(tmp_path, weights, film_file, capsys):
    out = tmp_path / "o"
    assert main(["predict", str(film_file), "--force", "--out", str(out), "--weights", str(weights)]) == 0
    said = capsys.readouterr().out
    assert "1 mask in" in said
    assert (
        said.splitlines()[-1].startswith(f"next: look at {out}/contact.png, the most doubtful")
        and (out / "contact.png").exists()
    )


def test_refused_films_are_counted_apart_and_status_is_3(tmp_path, weights, capsys):
    (tmp_path / "bad.png").write_text("not a film")
    blank = write_raw(tmp_path / "blank.png", np.full((80, 80), 9, np.uint8))
    assert (
        main(
            ["predict", str(blank), str(tmp_path / "bad.png"), "--out", str(tmp_path / "o"), "--weights", str(weights)]
        )
        == 3
    )
    output = capsys.readouterr()
    assert output.out.startswith("0 masks") and "1 file could not be read, 1 film refused (--force" in output.out
    assert "blank.png: refused: blank" in output.err


def test_status_is_3_when_one_film_of_several_was_not_read(tmp_path, weights, film_file, capsys):
    (tmp_path / "bad.png").write_text("not a film")
    assert (
        main(
            [
                "predict",
                str(film_file),
                str(tmp_path / "bad.png"),
                "--force",
                "--out",
                str(tmp_path / "o"),
                "--weights",
                str(weights),
            ]
        )
        == 3
    )
    output = capsys.readouterr()
    assert "1 mask in" in output.out and "1 file could not be read" in output.out
    assert output.err.count("\n") == 1 and "bad.png: not an image" in output.err
    assert (tmp_path / "o" / "masks" / "film.png").exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_status_is_3_where_a_folder_can_not_be_searched(tmp_path, weights, film_file, monkeypatch, capsys, kind):
    films = tmp_path / "films"
    films.mkdir()
    film_file.rename(films / "film.png")
    listdir = os.listdir

    def locked_away(path):
        if str(path).endswith("study"):
            raise PermissionError("Permission denied")
        return listdir(path)

    (films / "study").symlink_to("gone") if kind == "link" else (films / "study").mkdir()
    monkeypatch.setattr(os, "listdir", locked_away)
    assert main(["predict", str(films), "--force", "--out", str(tmp_path / "o"), "--weights", str(weights)]) == 3
    output = capsys.readouterr()
    assert "1 mask in" in output.out and "1 file could not be read" in output.out
    assert f"{films / 'study'}" in output.err and output.err.count("\n") == 1
    assert list(pd.read_csv(tmp_path / "o" / "predictions.csv")["name"]) == ["film", "study"]


def test_status_is_3_for_a_folder_of_dicom_with_a_report_and_a_bomb(tmp_path, weights, capsys):
    film = phantom(40, 32).image
    for name, data in {
        "IM1": dicom(film),
        "SR1": dicom(film, Modality="SR", PixelData=None),
        "IM2": dicom(film, Rows=65535, Columns=65535),
    }.items():
        (tmp_path / "study").mkdir(exist_ok=True)
        (tmp_path / "study" / name).write_bytes(data)
    assert (
        main(["predict", str(tmp_path / "study"), "--force", "--out", str(tmp_path / "o"), "--weights", str(weights)])
        == 3
    )
    output = capsys.readouterr()
    assert "1 mask in" in output.out and "2 files could not be read" in output.out
    assert (
        output.err.count("\n") == 2
        and "IM2: " in output.err
        and "too large" in output.err
        and "SR1: DICOM without an image" in output.err
    )


# --- other runtimes than PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_exported_file_is_evaluated_and_predicted_with(
    backend, prepared, weights, film_file, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--weights", "w.safetensors"]) == 0
    assert capfd.readouterr().out.startswith("w.onnx: ")
    assert (
        main(["evaluate", "--data", str(prepared), "--sizes", "32", "--weights", "w.onnx", "--backend", backend]) == 0
    )
    assert main(["predict", "film.png", "--force", "--out", "o", "--weights", "w.onnx", "--backend", backend]) == 0
    assert cv2.imread("o/masks/film.png").shape[:2] == cv2.imread("film.png").shape[:2] and capfd.readouterr().err == ""


def test_runtime_that_is_not_installed_is_one_line_with_the_command(weights, film_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what import finds where there is none
    assert (
        main(
            [
                "predict",
                str(film_file),
                "--out",
                str(tmp_path / "o"),
                "--weights",
                str(weights),
                "--backend",
                "onnxruntime",
            ]
        )
        == 1
    )
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("pip install onnxruntime")


# --- the whole way ---------------------------------------------------------------------------------------------------


def write_raw_sets(root):
    """Montgomery, Shenzhen and JSRT as Kaggle mounts them, with films of each published split."""
    lists = Path(kaggle_utils.__file__).parent / "splits"
    wanted = {"montgomery": (8, 2, 3), "shenzhen": (8, 2, 3), "jsrt": (2, 1, 1)}
    seed = 0
    for source, counts in wanted.items():
        table = pd.read_csv(lists / f"segmentation_{source}.csv")
        table = table[~table["name"].isin(flagged_masks()["name"])]
        for split, n in zip(("train", "val", "test"), counts):
            for name in table.loc[table["split"] == split, "name"].head(n):
                film, seed = phantom(96, 80, seed), seed + 1
                if source == "montgomery":
                    base = root / "pulmonary-chest-xray-abnormalities" / "Montgomery" / "MontgomerySet"
                    files = {
                        "CXR_png": film.image,
                        "ManualMask/leftMask": film.left * 255,
                        "ManualMask/rightMask": film.right * 255,
                    }
                    files = {base / folder / f"{name}.png": array for folder, array in files.items()}
                elif source == "shenzhen":
                    china = (
                        root
                        / "pulmonary-chest-xray-abnormalities"
                        / "ChinaSet_AllFiles"
                        / "ChinaSet_AllFiles"
                        / "CXR_png"
                    )
                    mask = root / "shcxr-lung-mask" / "mask" / "mask" / f"{name}_mask.png"
                    files = {china / f"{name}.png": film.image, mask: film.mask * 255}
                else:
                    files = {
                        root / "jsrt" / "images" / f"{name}.png": film.image,
                        root / "jsrt" / "masks" / f"{name}.png": film.mask * 255,
                    }
                for path, array in files.items():
                    write_raw(path, array)


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """prep → train → evaluate → predict, each a process of its own, in a folder that held nothing."""
    folder = tmp_path_factory.mktemp("empty")
    write_raw_sets(folder / "input")
    (folder / "new").mkdir()
    for shape in ((90, 60), (60, 90)):
        write_raw(folder / "new" / f"film {shape[0]}.png", phantom(*shape, 77).image)
    (folder / "new" / "broken.png").write_bytes(b"\x89PNG")
    done = {
        "prep": run(folder, "prep", "--input", "input", "--size", 64),
        "train": run(
            folder,
            "train",
            "--out",
            "run",
            "--size",
            48,
            "--base-channels",
            4,
            "--depth",
            3,
            "--patch",
            1,
            "--batch-size",
            4,
            "--epochs",
            25,
            "--lr",
            0.01,
            "--ema-decay",
            0.9,
            "--augment",
            "light",
            "--precision",
            "fp32",
            "--device",
            "cpu",
        ),
        "evaluate": run(
            folder, "evaluate", "--weights", "run/best.safetensors", "--sizes", 64, "--out", "results/scores"
        ),
        "predict": run(folder, "predict", "new", "--force", "--out", "masks", "--weights", "run/best.safetensors"),
    }
    return folder, done


@pytest.mark.parametrize("command, status", [("prep", 0), ("train", 0), ("evaluate", 0), ("predict", 3)])
def test_journey_each_command_ends_with_its_status(journey, command, status):
    done = journey[1][command]
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("command", ["prep", "train", "evaluate"])
def test_journey_nothing_but_a_trainings_epochs_on_stderr_where_nothing_is_wrong(journey, command):
    lines = journey[1][command].stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"epoch {n}/25" for n in range(1, 26) if command == "train"]


def test_journey_prep_finds_every_film_in_its_published_split(journey):
    counts = pd.read_csv(journey[0] / "segmentation" / "manifest.csv").groupby(["source", "split"]).size().unstack()
    assert counts[["train", "val", "test"]].to_dict("index") == {
        "montgomery": {"train": 8, "val": 2, "test": 3},
        "shenzhen": {"train": 8, "val": 2, "test": 3},
        "jsrt": {"train": 2, "val": 1, "test": 1},
    }


def test_journey_trained_weights_score_high_on_films_never_seen(journey):
    scores = pd.read_csv(journey[0] / "results" / "scores.csv")
    assert scores.groupby("source")["dice"].mean().min() > 0.9


def test_journey_jsrt_is_foreign_and_scored_whole(journey):
    scores = pd.read_csv(journey[0] / "results" / "scores.csv")
    assert scores.groupby(["source", "protocol"]).size().to_dict() == {
        ("montgomery", "test"): 3,
        ("shenzhen", "test"): 3,
        ("jsrt", "test"): 1,
        ("jsrt", "all"): 4,
    }
    assert read_header(journey[0] / "run" / "best.safetensors")["sources"] == ["montgomery", "shenzhen"]


def test_journey_summary_has_n_interval_worst_and_distances(journey):
    summary = pd.read_csv(journey[0] / "results" / "scores_summary.csv")
    assert {"source", "n", "dice", "sd", "low", "high", "worst", "worst_film", "hd95", "assd"} <= set(summary)
    assert re.search(r"montgomery, test\s+64\s+3\s+0\.9\d{3}", journey[1]["evaluate"].stdout)
    assert "all scores: results/scores_summary.csv" in journey[1]["evaluate"].stdout


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)], ids=str)
def test_journey_masks_have_the_films_own_size_and_place(journey, shape):
    mask = cv2.imread(str(journey[0] / "masks" / "masks" / f"film {shape[0]}.png"), cv2.IMREAD_UNCHANGED)
    truth = phantom(*shape, 77).mask
    assert mask.shape == shape and set(np.unique(mask)) == {0, 255}
    assert 2 * (truth & (mask > 0)).sum() / (truth.sum() + (mask > 0).sum()) > 0.9


def test_journey_the_broken_film_is_named_in_the_table_and_on_stderr(journey):
    table = pd.read_csv(journey[0] / "masks" / "predictions.csv", keep_default_na=False).set_index("name")
    assert "not an image" in table.loc["broken", "error"]
    assert len(journey[1]["predict"].stderr.splitlines()) == 1 and "broken.png" in journey[1]["predict"].stderr


def test_journey_second_prep_has_nothing_to_do(journey, monkeypatch):
    monkeypatch.chdir(journey[0])
    before = {p: p.stat().st_mtime_ns for p in Path("segmentation").glob("*/*/*.png")}
    assert main(["prep", "--input", "input", "--size", "64"]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_scores_replace_scores_and_nothing_else(tmp_path):
    scores = pd.DataFrame({"name": ["a"], "dice": [0.9]})
    _write_table(tmp_path / "scores.csv", scores)
    _write_table(tmp_path / "scores.csv", scores.assign(dice=0.8))
    assert pd.read_csv(tmp_path / "scores.csv")["dice"].tolist() == [0.8]
    (tmp_path / "mine.csv").write_text("name,weight\n")
    with pytest.raises(ValueError, match="mine.csv: it is there, and no table of scores"):
        _write_table(tmp_path / "mine.csv", scores)


def test_scores_of_runs_whose_names_hold_dots_have_tables_of_their_own(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_prepared(tmp_path / "set", {"test": 2})
    for out in ("run0.95", "run0.96", "run.csv"):
        assert (
            main(["evaluate", "--data", "set", "--sizes", "32", "--weights", "w.safetensors", "--out", f"scores/{out}"])
            == 0
        )
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == [
        "run.csv",
        "run0.95.csv",
        "run0.95_summary.csv",
        "run0.96.csv",
        "run0.96_summary.csv",
        "run_summary.csv",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "prep --input x --size",
        "synth --out x --size",
        "shards --out x --size",
        "evaluate --sizes 256",
        "tune loss --size",
    ],
)
@pytest.mark.parametrize("size", ["1000000", "0", "-3", "7.5"])
def test_sizes_beyond_memory_are_refused_before_anything_is_read(command, size, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), size])
    assert stopped.value.code == 2 and size in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 40.0 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4398046511104 bytes."
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        cv2.error(
            "OpenCV(4.12.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 4398046511104 bytes"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line_that_says_what_to_make_smaller(error, tmp_path, monkeypatch, capfd):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("kaggle_utils.trainer.train", full)
    write_prepared(tmp_path / "set", {"train": 1, "val": 1})
    assert main(["train", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run")]) == 1
    assert (
        capfd.readouterr().err == "unet-lung train: the memory is too small for this: "
        "try a smaller --batch-size or --size or --base-channels or --workers\n"
    )


def test_too_little_memory_for_built_in_films_is_one_line_too(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("kaggle_utils.synthetic.write_raw", lambda *_, **__: np.zeros(1 << 52))  # NumPy's own error
    assert main(["synth", "--out", str(tmp_path / "out"), "--size", "8192"]) == 1
    assert capfd.readouterr().err == "unet-lung synth: the memory is too small for this: try a smaller --size\n"


def test_another_fault_of_ours_is_no_lack_of_memory(tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("one of ours")

    monkeypatch.setattr("kaggle_utils.trainer.train", wrong)
    write_prepared(tmp_path / "set", {"train": 1, "val": 1})
    with pytest.raises(RuntimeError, match="one of ours"):
        main(["train", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run")])


# --- several runs at once --------------------------------------------------------------------------------------------

BUSY = re.compile(
    r"unet-lung \w+: (\S+) is being written by another run( \(process \d+\))?; "
    r"wait for it or choose another folder\n"
)
AT_ONCE = {  # command, and what the second run may say where the first one has ended already
    "prep": (["prep", "--input", "raw", "--out", "out/prep", "--size", "32"], ""),
    "synth": (["synth", "--n", "4", "--size", "32", "--out", "out/synth"], ""),
    "shards": (["shards", "--data", "set", "--out", "out/shards"], ""),
    "train": (
        ["train", "--data", "set", "--out", "out/train", "--sources", "montgomery", *TINY],
        "unet-lung train: out/train/last.pt is there: resume",
    ),
    "tune": (
        [
            "tune",
            "augmentation",
            "--data",
            "set",
            "--out",
            "out/tune",
            "--seeds",
            "1",
            "--jobs",
            "1",
            "--epochs",
            "1",
            "--size",
            "32",
        ],
        "",
    ),
    "predict": (
        [
            "predict",
            "films",
            "--force",
            "--out",
            "out/predict",
            "--weights",
            "w.safetensors",
            "--format",
            "png",
            "coco",
        ],
        "",
    ),
    "screen": (["screen", "films", "--out", "out/screen", "--device", "cpu"], ""),
    "evaluate": (
        ["evaluate", "--data", "set", "--sizes", "32", "--weights", "w.safetensors", "--out", "out/scores0.9"],
        "",
    ),
    "export": (["export", "--weights", "w.safetensors", "--out", "out/w.onnx"], ""),
}
# What is loaded once, before the processes are forked.
LOADED = [
    f"kaggle_utils.{name}"
    for name in (
        "prep",
        "synthetic",
        "scale.shards",
        "trainer",
        "tuning",
        "predictions",
        "tb",
        "export",
        "dicom.seg",
        "dicom.coco",
        "quality.fit",
    )
]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder in which three processes did each of these commands at once, and what they said."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "out").mkdir()
    write_raw_sets(folder / "raw")
    write_prepared(folder / "set")
    write_prepared(folder / "set", source="shenzhen", first=16)
    for n in range(4):
        write_raw(folder / "films" / f"film{n}.png", phantom(96, 80, n).image)
    torch.manual_seed(0)
    save_weights(folder / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    return folder, dict(zip(AT_ONCE, at_once(folder, [command for command, _ in AT_ONCE.values()], LOADED)))


@pytest.mark.slow
@pytest.mark.parametrize("command", AT_ONCE)
def test_three_at_once_one_does_the_work_and_the_others_say_so(three, command):
    ends = three[1][command]
    assert 0 in [status for status, _ in ends] or command == "screen" and 3 in [status for status, _ in ends], ends
    for status, said in ends:
        busy = BUSY.fullmatch(said)
        if busy:
            assert status == 1 and busy[1].startswith(AT_ONCE[command][0][AT_ONCE[command][0].index("--out") + 1])
        elif status == 1:
            assert AT_ONCE[command][1] and said.startswith(AT_ONCE[command][1])


@pytest.mark.slow
def test_three_at_once_leave_whole_files_and_no_others(three):
    out = three[0] / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "predict",
        "prep",
        "scores0.9.csv",
        "scores0.9_summary.csv",
        "screen",
        "shards",
        "synth",
        "train",
        "tune",
        "w.onnx",
    ]
    assert not [path for path in out.rglob(".*")]
    assert len(read_manifest(out / "prep")) == 30
    assert all(cv2.imread(str(path)) is not None for path in out.rglob("*.png"))
    assert len(list((out / "synth").rglob("CXR_png/*.png"))) == 4
    shards = read_shards(out / "shards")
    assert (
        len(list(ShardedFilms(shards, 32, batch=1))) == 32
        and len(list((out / "shards").glob("*.tar"))) == shards["shard"].nunique()
    )
    assert (
        len(read_checkpoint(out / "train" / "last.pt")["history"])
        == len(pd.read_csv(out / "train" / "history.csv"))
        == 2
    )
    assert "quality" in read_header(out / "train" / "best.safetensors")
    assert pd.read_csv(out / "tune" / "augmentation.csv")["run"].tolist() == [
        "augment=none",
        "augment=light",
        "augment=full",
    ]
    assert (
        len(pd.read_csv(out / "predict" / "predictions.csv")) == len(list((out / "predict" / "masks").iterdir())) == 4
    )
    assert (
        len(pd.read_csv(out / "screen" / "screening.csv")) == 4
        and (pd.read_csv(out / "scores0.9.csv")["source"] == "montgomery").sum() == 4
    )
    assert read_onnx_header(out / "w.onnx")["size"] == 32


@pytest.mark.parametrize("command", AT_ONCE)
def test_a_folder_that_another_run_writes_is_told_before_any_work(command, tmp_path, weights, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_prepared(tmp_path / "set", {"train": 1})
    for folder in ("raw", "films"):
        write_raw(tmp_path / folder / "film.png", phantom().image)
    words = AT_ONCE[command][0]
    out = Path(words[words.index("--out") + 1])
    name = {
        "tune": f"{out}/.augmentation",
        "evaluate": f"{out.parent}/.{out.name}",
        "export": f"{out.parent}/.{out.name}",
    }.get(command, f"{out}/")
    (tmp_path / "out").mkdir()
    with locked(Path(f"{name}.unet-lung.lock"), out):
        assert main(words) == 1
    what = out / "augmentation" if command == "tune" else out
    assert capfd.readouterr().err == (
        f"unet-lung {command}: {what} is being written by another run (process {os.getpid()}); "
        "wait for it or choose another folder\n"
    )
    assert not list((tmp_path / "out").iterdir())


def test_only_the_first_of_torchruns_processes_takes_the_lock(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("kaggle_utils.trainer.train", lambda *_, **__: None)
    monkeypatch.setattr("kaggle_utils.distributed.is_main", lambda: int(os.environ["RANK"]) == 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    write_prepared(tmp_path / "set", {"train": 1})
    words = ["train", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run"), *TINY]
    with locked(tmp_path / "run" / LOCK, "run"):
        monkeypatch.setenv("RANK", "1")
        assert main(words) == 0
        monkeypatch.setenv("RANK", "0")
        assert main(words) == 1
    assert "is being written by another run" in capfd.readouterr().err


def test_escape_codes_in_a_films_name_do_not_reach_the_terminal(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "\x1b[2Jfilm.png"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "\\x1b[2Jfilm.png" in error and "\x1b" not in error


def test_film_called_as_a_formula_is_a_text_in_every_table(tmp_path):
    write_image(tmp_path / "=1+1.png", AppearanceModel.load().film(7, 0, size=128, tb=0).image)
    main(["predict", str(tmp_path / "=1+1.png"), "--out", str(tmp_path / "out")])
    for table in ("predictions", "measurements"):
        assert (tmp_path / "out" / f"{table}.csv").read_text().splitlines()[1].startswith("'=1+1,")
    assert (tmp_path / "out" / "masks" / "=1+1.png").exists()


def test_a_higher_threshold_makes_smaller_masks(tmp_path, capfd):
    write_image(tmp_path / "film.png", AppearanceModel.load().film(7, 0, size=600, tb=0).image)
    areas = []
    for threshold in ("0.1", "0.9"):
        out = tmp_path / threshold
        assert main(["predict", str(tmp_path / "film.png"), "--out", str(out), "--threshold", threshold]) == 0
        areas.append(pd.read_csv(out / "predictions.csv")["lung_px"][0])
    assert areas[0] > areas[1] > 0


@pytest.mark.parametrize(
    "path, said",
    [("", "an empty name"), ("https://example.com/a.png", "https://example.com/a.png: addresses of the web")],
)
def test_what_names_no_file_of_this_machine_is_told(path, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", path]) == 1
    assert said in capsys.readouterr().err


def test_every_switch_of_predict_goes_to_the_cluster(monkeypatch, tmp_path):
    seen = []

    def predict(paths, out, settings, **_):
        seen.append(settings)
        return {"result": {"masks": 0, "unreadable": 0, "refused": 0, "doubtful": 0, "errors": []}}

    monkeypatch.setattr("kaggle_utils.scale.cluster.predict_on_cluster", predict)
    write_raw(tmp_path / "film.png", phantom().image)
    switches = ["--threshold", "0.7", "--flip", "--raw", "--force", "--batch-size", "3", "--head", "shenzhen"]
    words = ["predict", str(tmp_path / "film.png"), "--out", str(tmp_path / "o"), *switches]
    assert main([*words, "--backend", "onnxruntime", "--ray"]) == 0
    wanted = {"threshold": 0.7, "flip": True, "clean": False, "force": True, "batch": 3, "head": "shenzhen"}
    assert seen == [Settings(**wanted, backend="onnxruntime")]


def test_weights_that_ship_are_taken_by_their_name(tmp_path):
    example = next(EXAMPLES.glob("NORMAL*.jpg"))
    assert main(["predict", str(example), "--weights", "lungs-ccby", "--out", str(tmp_path / "out")]) == 0
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["error"].isna().all()
