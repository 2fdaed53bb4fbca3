"""benchmarks/gpu.py: every part writes its result, here with tiny networks on the CPU."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
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


def test_a_folder_with_a_pack_is_taken_too_even_if_kaggle_has_unpacked_it(packed, tmp_path):
    kaggle, again = tmp_path / "input" / "unet-lung-pack", tmp_path / "again"
    kaggle.mkdir(parents=True)
    with pytest.raises(SystemExit, match="neither a pack"):
        gpu.unpack(kaggle, again)
    shutil.copy(packed, kaggle)
    first = read_manifest(gpu.unpack(kaggle, again))
    shutil.unpack_archive(packed, kaggle / "films")
    second = gpu.unpack(kaggle, tmp_path / "third")
    assert len(read_manifest(second)) == len(first) == 18 and not (tmp_path / "third" / "films").exists()
    assert gpu.unpack(second, tmp_path / "fourth") == second  # a prepared set as it is


@pytest.mark.slow
def test_every_part_writes_its_result(packed, tmp_path):
    out = tmp_path / "results" / "cpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--data", packed, "--out", out, "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found) == set(gpu.PARTS)
    assert not {name: part["failed"] for name, part in found.items() if "failed" in part}
    assert found["agreement"]["agree"] and found["resume"]["epochs"] == 3
    assert [run["seed"] for run in found["time_to_dice"]["runs"]] == [0]
    assert all(row["images_per_s"] > 0 for row in found["speeds"]["rows"])
    assert found["processes"]["2 of batch 16"]["images_per_s"] > 0 and "seconds" in found["processes"]["1 of batch 16"]
    assert found["processes"]["most_images_per_s"] in found["processes"]


def test_a_part_that_fails_is_told_and_the_others_go_on(packed, tmp_path, monkeypatch):
    def broken(bench):
        bench.keep("one", {"rows": [1]})
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(gpu, "PARTS", {"one": broken, "two": lambda bench: {"films": len(list(bench.data.iterdir()))}})
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--data", str(packed), "--out", str(out), "--device", "cpu"])
    gpu.main()
    found = json.loads(out.read_text())
    assert (
        found["one"]["rows"] == [1]
        and found["one"]["failed"] == "RuntimeError: no kernel image"
        and found["two"]["films"] == 3
    )


@pytest.mark.parametrize(
    "seconds, code, said",
    [
        (60, "print('unet-lung train: no film'); exit(2)", "2: unet-lung"),
        (1, "import time; time.sleep(60)", "not at its end after 1 s"),
    ],
)
def test_a_training_that_fails_or_hangs_is_told(tmp_path, seconds, code, said):
    bench = gpu.Bench(tmp_path, tmp_path, tmp_path / "out.json", torch.device("cpu"), True)
    with (tmp_path / "run.log").open("w") as log:
        run = subprocess.Popen([sys.executable, "-c", code], stdout=log)
    with pytest.raises(RuntimeError, match=said):
        gpu._end(bench, run, "run", seconds)
    assert run.returncode


def test_what_a_card_can_not_do_is_a_row_and_the_next_ones_follow(packed, tmp_path, monkeypatch):
    bench = gpu.Bench(gpu.unpack(packed, tmp_path / "set"), tmp_path, tmp_path / "out.json", torch.device("cpu"), True)
    monkeypatch.setattr(gpu.Bench, "limit", lambda *_: math.inf)  # however busy the machine is
    monkeypatch.setattr(gpu, "choose_precision", lambda _: "fp16")

    def out_of_memory(config):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "build_model", out_of_memory)
    rows = gpu.speeds(bench)["rows"]
    assert [row["mode"] for row in rows] == ["eager", "graph"]
    assert {row["why_not"] for row in rows} == {"OutOfMemoryError: CUDA out of memory"}
    assert json.loads((tmp_path / "out.json").read_text())["speeds"]["rows"] == rows


def test_the_faster_of_one_card_and_two_is_named_by_speed_and_by_time_to_a_dice():
    one, two, lost = (
        {"images_per_s": 500.0, "seconds": 7.0},
        {"images_per_s": 800.0, "seconds": 9.0},
        {"failed": "nccl"},
    )
    assert gpu.faster({"1": one, "2": two, "2 again": lost}) == {"most_images_per_s": "2", "first_at_0.95": "1"}
    assert gpu.faster({"1": one | {"seconds": None}, "2": lost}) == {"most_images_per_s": "1", "first_at_0.95": ""}
    assert gpu.faster({}) == {"most_images_per_s": "", "first_at_0.95": ""}


def test_a_part_whose_time_is_up_keeps_what_it_has(packed, tmp_path, monkeypatch):
    bench = gpu.Bench(gpu.unpack(packed, tmp_path / "set"), tmp_path, tmp_path / "out.json", torch.device("cpu"), True)
    monkeypatch.setattr(gpu.Bench, "limit", lambda *_: -math.inf)
    assert gpu.speeds(bench) == {"rows": [], "cut": "the time was up"}
