"""tuning.protocol: trained on some sets, tested on the test lists of all and on the whole of external ones."""

import pandas as pd
import pytest
from phantoms import write_prepared

from kaggle_utils.trainer import TrainConfig
from kaggle_utils.tuning.protocol import run_protocol

TINY = TrainConfig(
    size=32, batch_size=4, base_channels=2, depth=2, patch=1, precision="fp32", device="cpu", augment="light"
)


@pytest.fixture
def sets(tmp_path):
    for first, source in enumerate(("montgomery", "shenzhen", "jsrt")):
        write_prepared(tmp_path / "set", {"train": 4, "val": 2, "test": 3}, source=source, first=100 * first)
    return tmp_path / "set"


def run(name, sets, tmp_path):
    return run_protocol(name, sets, tmp_path / name, steps=3, config=TINY, results=tmp_path / "results")


def test_each_foreign_set_is_tested_whole_and_by_its_test_list(sets, tmp_path):
    summary = run("montgomery", sets, tmp_path).set_index(["source", "protocol", "size"])
    assert summary.loc[("montgomery", "test", 256), "n"] == 3
    assert summary.loc[("jsrt", "all", 1024), "n"] == 9 and summary.loc[("jsrt", "test", 256), "n"] == 3
    assert ("montgomery", "all", 256) not in summary.index


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
    table = pd.read_csv(tmp_path / "results/protocols.csv")
    assert not table.duplicated(["trained_on", "source", "protocol", "size", "name"]).any()
    assert set(pd.read_csv(tmp_path / "results/protocols_summary.csv")["trained_on"]) == {"montgomery", "jsrt"}


def test_unknown_protocol_is_named(sets, tmp_path):
    with pytest.raises(ValueError, match="protocol is one of both, montgomery"):
        run("mars", sets, tmp_path)
