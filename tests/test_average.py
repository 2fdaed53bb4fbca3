"""benchmarks/average.py: the mean of weights and of probabilities, and what can't be averaged."""

import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import write_prepared

from benchmarks import average
from kaggle_utils.model import UNet, load_weights, read_header, save_weights


@pytest.fixture
def networks(tmp_path):
    """Three of one start; the third is of another."""
    paths = []
    for number, start in enumerate("aab"):
        torch.manual_seed(number)
        about = {"size": 64, "sources": ["montgomery"], "command": f"train {number}", "init": {"sha256": start}}
        paths.append(tmp_path / f"{number}.safetensors")
        header = about | {"validation": {"dice": 0.9}}
        save_weights(paths[-1], UNet(base_channels=2, depth=2), header)
    return paths


def test_the_mean_of_weights_says_whose_it_is(networks, tmp_path):
    average.average_weights(networks[:2], tmp_path / "new/mean.safetensors")
    mean, first, second = (
        load_weights(path).state_dict() for path in [tmp_path / "new/mean.safetensors", *networks[:2]]
    )
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, ((first[name] + second[name]) / 2).to(tensor.dtype))
    header = read_header(tmp_path / "new/mean.safetensors")
    assert header["averaged"] == ["train 0", "train 1"] and "validation" not in header
    assert header["command"] == "the mean of train 0 and train 1"


def test_networks_of_different_starts_have_no_mean(networks, tmp_path):
    with pytest.raises(ValueError, match="networks of one init"):
        average.average_weights(networks, tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_each_network_their_mean_and_the_ensemble_are_scored(networks, tmp_path, monkeypatch, capsys):
    films = write_prepared(tmp_path / "films", {"val": 3}, size=64)
    monkeypatch.setattr(average, "RESULTS", tmp_path)
    names = [f"{name}={path}" for name, path in zip("ab", networks)]
    words = ["--data", str(films), "--weights", *names, "--out", str(tmp_path / "mean.safetensors")]
    monkeypatch.setattr("sys.argv", ["average.py", *words])
    average.main()
    table = pd.read_csv(tmp_path / "average.csv")
    assert list(table["network"].unique()) == ["a", "b", "weights averaged", "ensemble"]
    assert (table["n"] == 3).all() and "none" in set(table["artefact"])


def test_an_ensemble_is_the_mean_of_its_members():
    class Member:
        def __init__(self, value):
            self.value = value

        def probabilities(self, films, heads):
            return np.full((len(films), 4, 4), self.value, np.float32)

    found = average.Ensemble([Member(0.2), Member(0.6)]).probabilities([np.zeros((4, 4))] * 2, ["a", "b"])
    assert found.shape == (2, 4, 4) and found == pytest.approx(0.4)
