"""benchmarks/gpu.py: every part writes its result, here with tiny networks on the CPU."""

import json
import subprocess
import sys

import pytest
from phantoms import write_prepared

from benchmarks import gpu
from benchmarks.common import ROOT
from kaggle_utils.data import read_manifest


@pytest.fixture
def packed(tmp_path):
    root = write_prepared(tmp_path / "set", {"train": 6, "val": 3, "test": 2})
    write_prepared(root, {"train": 6, "val": 3, "unlabelled": 1}, source="shenzhen", first=50)
    write_prepared(root, {"train": 2}, source="jsrt", first=90)
    gpu.pack(root, tmp_path / "films.zip")
    return tmp_path / "films.zip"


def test_a_pack_holds_what_is_learned_from_and_validated_on_alone(packed, tmp_path):
    frame = read_manifest(gpu.unpack(packed, tmp_path / "again"))
    assert frame.groupby(["source", "split"]).size().to_dict() == {
        ("montgomery", "train"): 6,
        ("montgomery", "val"): 3,
        ("shenzhen", "train"): 6,
        ("shenzhen", "val"): 3,
    }


@pytest.mark.slow
def test_every_part_writes_its_result(packed, tmp_path):
    out = tmp_path / "results" / "cpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--data", packed, "--out", out, "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found) == set(gpu.PARTS)
    assert not {name: part["failed"] for name, part in found.items() if "failed" in part}
    assert found["agreement"]["agree"] and found["resume"]["exit"] == 0 and found["resume"]["epochs"] == 3
    assert [run["seed"] for run in found["time_to_dice"]["runs"]] == [0]
    assert all(row["images_per_s"] > 0 for row in found["speeds"]["rows"])
    assert found["processes"]["2 of batch 16"]["images_per_s"] > 0


def test_a_part_that_fails_is_told_and_the_others_go_on(packed, tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(gpu, "PARTS", {"one": broken, "two": lambda bench: {"films": len(list(bench.data.iterdir()))}})
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--data", str(packed), "--out", str(out), "--device", "cpu"])
    gpu.main()
    found = json.loads(out.read_text())
    assert found["one"]["failed"] == "RuntimeError: no kernel image" and found["two"]["films"] == 3
