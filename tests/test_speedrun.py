"""The speedrun: one file that trains from prepared films, and writes down what it took."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from kaggle_utils.metrics import confusion, overlap

FILE = Path(__file__).parents[1] / "speedrun.py"


@pytest.fixture
def speedrun(monkeypatch):
    """The module, small enough for tests."""
    spec = importlib.util.spec_from_file_location("speedrun", FILE)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    monkeypatch.setattr(module, "SIZE", 64)
    monkeypatch.setattr(module, "STAGES", ((32, 4, 160), (64, 4, 80)))
    monkeypatch.setattr(module, "WIDTHS", (8, 16, 16))
    monkeypatch.setattr(module, "PATCH", 2)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two bright ellipses on dark films, in the layout that prep writes."""
    root, random, rows = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0), []
    for n in range(28):
        split, source = ("train", "val")[n >= 24], ("montgomery", "shenzhen")[n % 2]
        mask = np.zeros((96, 96), np.uint8)
        for x in (30, 66):
            centre = (x + int(random.integers(-4, 5)), 48 + int(random.integers(-6, 7)))
            cv2.ellipse(mask, centre, (12, int(random.integers(22, 30))), 0, 0, 360, 1, -1)
        film = (40 + 120 * mask + random.integers(0, 40, mask.shape)).astype(np.uint8)
        for kind, picture in (("image", film), ("mask", 255 * mask)):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / split / kind / f"{n:03d}.png"), picture)
        rows.append({"name": f"{n:03d}", "source": source, "split": split})
    pd.DataFrame([*rows, {"name": "other", "source": "jsrt", "split": "val"}]).to_csv(
        root / "manifest.csv", index=False
    )
    return root


def test_it_needs_nothing_else_of_the_project():
    tree = ast.parse(FILE.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"cv2", "numpy", "pandas", "torch"}


def test_it_is_read_in_ten_minutes():
    lines = FILE.read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 260


def test_films_and_masks_are_read_at_its_size_and_other_sets_are_left_out(speedrun, prepared):
    films, masks = speedrun.read_films(prepared, "val")
    assert films.shape == masks.shape == (4, 1, 64, 64) and films.dtype == masks.dtype == torch.uint8
    assert masks.unique().tolist() == [0, 1] and 0.1 < masks.float().mean() < 0.5
    assert films[masks > 0].float().mean() > films[masks == 0].float().mean() + 80


def test_batches_draw_every_film_before_one_comes_again_and_mirror_some(speedrun):
    films = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).repeat(1, 1, 64, 64) * 20
    films[..., :32] += 5  # the left half is brighter
    masks = (films == films[..., :1]).byte()
    seen, mirrored, shares = [], 0, []
    for images, truth, done in speedrun.batches(films, masks, seed=0):
        assert images.shape == truth.shape and images.dtype == truth.dtype == torch.float32
        assert images.mean((1, 2, 3)).abs().max() < 1e-4 and (images.square().mean((1, 2, 3)) - 1).abs().max() < 1e-2
        assert torch.equal(images > 0, truth > 0)  # the mask is mirrored with its film
        mirrored += int((truth[..., 0] == 0).all(2).sum())
        shares.append(done)
        seen.append(images.shape[-1])
    assert seen == [32] * 40 + [64] * 20 and shares[0] == 0 and 0.95 < shares[-1] < 1 and shares == sorted(shares)
    assert 60 < mirrored < 180


def test_a_step_of_muon_is_orthogonal(speedrun):
    torch.manual_seed(0)
    for shape in ((8, 50), (50, 8)):
        values = torch.linalg.svdvals(speedrun.orthogonal(torch.randn(shape), torch.float32))
        assert values.min() > 0.5 and values.max() < 1.5


def test_its_dice_is_that_of_the_metrics(speedrun, prepared):
    torch.manual_seed(0)
    films, masks = speedrun.read_films(prepared, "val")
    net = speedrun.UNet()
    dice = speedrun.validate(net, films, masks, torch.float32)
    with torch.inference_mode():
        pred = (net(speedrun.normalise(films)) > 0).numpy().astype(np.uint8)
    expected = [overlap(confusion(p[0], t[0]))["dice"] for p, t in zip(pred, masks.numpy())]
    assert dice == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.slow
def test_it_learns_and_writes_a_row_for_each_seed(speedrun, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "choose_machine", lambda: ("a test's", "cpu", torch.float32))
    monkeypatch.setattr(speedrun, "commit", lambda: "0000001")
    arguments = ["speedrun.py", "--data", str(prepared), "--out", str(tmp_path), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    speedrun.main()
    rows = pd.read_csv(tmp_path / "speedrun.csv", dtype={"commit": str})
    assert rows["seed"].tolist() == [0, 1] and set(rows["films"]) == {240} and (rows["seconds"] > 0).all()
    assert rows["val_dice"].min() > 0.9
    (summary,) = json.loads((tmp_path / "speedrun.json").read_text())
    assert summary["commit"] == "0000001" and summary["worst_dice"] == rows["val_dice"].min()
    assert not summary["record"]  # which takes five seeds
    assert "seed 1: Dice 0.9" in capsys.readouterr().out


def rows_of(speedrun, commit: str, dice: float) -> pd.DataFrame:
    common = {"machine": "a, 2 cores", "commit": commit, "precision": "float32", "films": 8, "seconds": 2.0}
    return pd.DataFrame([common | {"seed": seed, "val_dice": dice} for seed in range(5)])


def test_a_record_takes_the_dice_in_every_seed_and_stands_beside_earlier_ones(speedrun, tmp_path):
    assert speedrun.record(tmp_path, rows_of(speedrun, "0000001", 0.96), "first")["record"]
    almost = rows_of(speedrun, "0000002", 0.96)
    almost.loc[3, "val_dice"] = 0.9499
    assert not speedrun.record(tmp_path, almost, "worse")["record"]
    speedrun.record(tmp_path, rows_of(speedrun, "0000002", 0.97), "again")
    records = json.loads((tmp_path / "speedrun.json").read_text())
    assert [(record["commit"], record["changed"], record["dice"]) for record in records] == [
        ("0000001", "first", 0.96),
        ("0000002", "again", 0.97),
    ]
    assert len(pd.read_csv(tmp_path / "speedrun.csv")) == 10


def test_what_is_wrong_with_the_data_is_one_line(speedrun, prepared, tmp_path):
    with pytest.raises(SystemExit, match="manifest.csv is not there: `python -m kaggle_utils prep"):
        speedrun.read_films(tmp_path, "train")
    with pytest.raises(SystemExit, match="no film of Montgomery or Shenzhen in its split test"):
        speedrun.read_films(prepared, "test")
    (tmp_path / "manifest.csv").write_text("name,source,split\nlost,shenzhen,val\n")
    with pytest.raises(SystemExit, match=r"lost.png can't be read: run prep again"):
        speedrun.read_films(tmp_path, "val")


@pytest.mark.slow
def test_its_help_says_the_rules_and_a_wrong_number_of_seeds_is_refused():
    command = [sys.executable, str(FILE)]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "every seed has 0.95" in done.stdout and "--note" in done.stdout
    done = subprocess.run([*command, "--seeds", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and "--seeds is at least 1" in done.stderr
