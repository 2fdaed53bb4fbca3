"""The speedrun: one file that trains from prepared films, and writes down what it took."""

import ast
import importlib.util
import json
import shutil
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
    assert sum(bool(line.strip()) for line in lines) <= 200


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


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.mark.parametrize(
    "text", [None, "", "name,source\n000,shenzhen\n", "\0\0", "name,source,split\n000,shenzhen,val\n", "\udcff\udcfe"]
)
def test_what_is_not_prepared_is_told_in_one_line(speedrun, copy, text):
    manifest = copy / "manifest.csv"
    manifest.unlink()
    if text is not None:
        manifest.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        SystemExit, match=r"^[^\n]*manifest.csv is not there, or without a train film .*: `python -m [^\n]*$"
    ):
        speedrun.read_films(copy, "train")


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("damage", ["gone", "empty", "a text", "cut"])
def test_a_file_that_is_no_picture_is_told_in_one_line(speedrun, copy, kind, damage):
    path = copy / "val" / kind / "026.png"
    content = {"gone": None, "empty": b"", "a text": b"no picture", "cut": path.read_bytes()[:20]}[damage]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=rf"^[^\n]*val/{kind}/026.png is not there, or no picture: `python -m [^\n]*$"):
        speedrun.read_films(copy, "val")


@pytest.mark.slow
def test_it_learns_and_its_record_stands_beside_those_of_others(speedrun, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "choose_machine", lambda: ("a test's", "cpu", torch.float32))
    monkeypatch.setattr(speedrun, "SEEDS", 2)
    out = tmp_path / "new" / "speedrun.json"
    for target in (0.9, 0.9999):  # the second in place of the first, by one machine and commit
        monkeypatch.setattr(speedrun, "TARGET", target)
        monkeypatch.setattr(sys, "argv", ["speedrun.py", "--data", str(prepared), "--out", str(out), "--note", "all"])
        speedrun.main()
        if target == 0.9:
            (first,) = json.loads(out.read_text())
            assert first["record"] and first["films"] == 240 and first["seconds"] > 0 and first["changed"] == "all"
            assert 0.9 < first["worst_dice"] == min(first["dice_by_seed"]) <= first["dice"]
            out.write_text(json.dumps([{**first, "machine": "another"}, first]))
    other, again = json.loads(out.read_text())
    assert other["machine"] == "another" and not again["record"] and again["dice"] == first["dice"]
    assert "seed 1: Dice 0.9" in capsys.readouterr().out


@pytest.mark.slow
def test_its_help_says_the_rules():
    done = subprocess.run([sys.executable, str(FILE), "--help"], capture_output=True, text=True, check=True)
    assert "every seed has 0.95" in done.stdout and "--note" in done.stdout
