"""tuning.protocol: trained on some sets, tested on the test lists of all and on the whole of external ones."""

from dataclasses import replace

import pandas as pd
import pytest
from phantoms import write_prepared

from kaggle_utils.cli import main
from kaggle_utils.model import UNet, read_header, save_weights
from kaggle_utils.splits import excluded_masks, published_split
from kaggle_utils.trainer import TrainConfig
from kaggle_utils.tuning import protocol
from kaggle_utils.tuning.protocol import run_protocol

TINY = TrainConfig(
    size=32, batch_size=4, base_channels=2, depth=2, patch=1, precision="fp32", device="cpu", augment="light"
)


@pytest.fixture
def sets(tmp_path):
    for first, source in enumerate(("montgomery", "shenzhen", "jsrt", "kermany")):
        write_prepared(tmp_path / "set", {"train": 4, "val": 2, "test": 3}, source=source, first=100 * first)
    return tmp_path / "set"


def run(name, sets, tmp_path):
    return run_protocol(name, sets, tmp_path / name, steps=3, config=TINY, results=tmp_path / "results")


def test_each_foreign_set_is_tested_whole_and_by_its_test_list(sets, tmp_path):
    summary = run("montgomery", sets, tmp_path).set_index(["source", "protocol", "size"])
    assert summary.loc[("montgomery", "test", 256), "n"] == 3
    assert summary.loc[("jsrt", "all", 1024), "n"] == 9 and summary.loc[("jsrt", "test", 256), "n"] == 3
    assert ("montgomery", "all", 256) not in summary.index
    assert summary.loc[("kermany", "test", 256), "n"] == 3 and ("kermany", "all", 256) not in summary.index


def test_a_set_of_another_convention_is_said_to_be_one(sets, tmp_path):
    summary = run("kermany", sets, tmp_path).set_index(["source", "protocol", "size"])["convention"]
    assert summary["kermany", "test", 256] == "" and summary["jsrt", "all", 256] == "with-heart for lung-field"
    summary = run("all", sets, tmp_path).set_index(["source", "protocol", "size"])["convention"]
    assert (summary == "").all() and len(summary) == 2 * 6  # JSRT's and Shenzhen's test list twice


def test_several_sets_are_drawn_evenly_unless_shares_are_given(sets, tmp_path):
    run("all", sets, tmp_path)
    config = replace(TINY, sources=protocol.PROTOCOLS["both"], shares=(1.0, 3.0), epoch_films=4)
    run_protocol("both", sets, tmp_path / "both", steps=3, config=config, results=tmp_path / "results")
    even, given = (read_header(tmp_path / name / "best.safetensors")["config"] for name in ("all", "both"))
    assert even["shares"] == [1, 1, 1] and even["epochs"] == 1  # 3 steps of 4 films are once through 12
    assert given["shares"] == [1, 3] and given["epochs"] == 3
    summary = pd.read_csv(tmp_path / "results/protocols_summary.csv").groupby("trained_on")["trained_by"].unique()
    assert "--shares 1.0 3.0" in summary["both"][0] and "--sources montgomery shenzhen kermany" in summary["all"][0]


def test_clean_rows_leave_out_what_a_review_left_out(sets, tmp_path, monkeypatch):
    bad = pd.DataFrame({"name": ["SHENZHEN_0106_0", "MONTGOMERY_0006_0"], "review": "somebody's"})
    monkeypatch.setattr(protocol, "excluded_masks", lambda: bad)
    summary = run("montgomery", sets, tmp_path).set_index(["source", "protocol", "size"])
    films = pd.read_csv(tmp_path / "results/protocols.csv").query("source == 'shenzhen' and protocol == 'test'")
    kept = films[(films["size"] == 256) & (films["name"] != "SHENZHEN_0106_0")]
    clean = summary.loc[("shenzhen", "clean", 256)]
    assert clean["n"] == 2 and clean["dice"] == pytest.approx(kept["dice"].mean(), abs=1e-5)
    assert ("montgomery", "clean", 256) not in summary.index


def test_the_excluded_masks_are_eighteen_of_shenzhens_test_list():
    names = excluded_masks()["name"]
    assert names.is_unique and len(names) == 18 and names.str.startswith("CHNCXR").all()
    assert (published_split(excluded_masks()) == "test").all()


def test_weights_are_tested_without_training(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "train", None)
    header = {"size": 32, "sources": ["kermany"], "command": "python -m kaggle_utils train --size 32", "commit": "abc"}
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), header)
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(sets), "--weights", "w.safetensors"]
    assert main(["protocol", "kermany", *words]) == 0
    summary = pd.read_csv("results/protocols_summary.csv")
    assert set(summary["trained_by"]) == {header["command"]} and set(summary["commit"]) == {"abc"}
    with pytest.raises(ValueError, match="w.safetensors: trained on kermany, all is on montgomery, shenzhen, kermany"):
        run_protocol("all", sets, tmp_path, weights="w.safetensors")
    assert main(["protocol", "all", "kermany", *words]) == 1


@pytest.mark.parametrize("name", ["protocols.csv", "protocols_summary.csv"])
def test_tables_of_others_are_refused_before_anything_is_trained(name, sets, tmp_path, monkeypatch):
    monkeypatch.setattr("kaggle_utils.tuning.protocol.train", None)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text("name,weight\na,1\n")
    with pytest.raises(ValueError, match=f"{name}: it is there, and no table that begins with trained_on"):
        run("montgomery", sets, tmp_path)
    assert (tmp_path / "results" / name).read_text() == "name,weight\na,1\n"


@pytest.mark.slow
def test_protocols_add_up_in_one_file_and_a_second_run_replaces_its_own_rows(sets, tmp_path):
    for name in ("montgomery", "jsrt", "jsrt"):
        run(name, sets, tmp_path)
    summary = pd.read_csv(tmp_path / "results/protocols_summary.csv")
    assert summary.groupby("trained_on")["trained_by"].nunique().to_dict() == {"jsrt": 1, "montgomery": 1}
    assert summary["trained_by"].notna().all()
    table = pd.read_csv(tmp_path / "results/protocols.csv")
    assert not table.duplicated(["trained_on", "source", "protocol", "size", "name"]).any()
    assert set(pd.read_csv(tmp_path / "results/protocols_summary.csv")["trained_on"]) == {"montgomery", "jsrt"}


def test_unknown_protocol_is_named(sets, tmp_path):
    with pytest.raises(ValueError, match="protocol is one of all, both, montgomery"):
        run("mars", sets, tmp_path)
