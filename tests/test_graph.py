"""graph.py: a recorded step learns what the step itself would; to record is here to call it on the same tensors."""

from dataclasses import replace

import pytest
import torch
from phantoms import write_prepared
from test_no_waiting import TINY

from kaggle_utils import trainer as training
from kaggle_utils.trainer import make_trainer


def record_by_calling(step):
    """As a CUDA graph does it: the same tensors each time, and nothing is computed while recording."""
    result, calls = torch.zeros(()), []

    def repeat():
        calls.append(1)
        result.copy_(step())

    return repeat, result


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_a_recorded_training_is_the_training(tmp_path, monkeypatch, augment_on):
    data = write_prepared(tmp_path / "set", {"train": 18, "val": 3})
    write_prepared(data, {"train": 4, "val": 2}, source="shenzhen", first=50)
    monkeypatch.setattr(training, "RECORDED", {"cpu": record_by_calling})
    monkeypatch.setattr(training, "FUSED", ("cpu",))  # the learning rate is a tensor
    config = replace(TINY, augment_on=augment_on)
    runs = [make_trainer(data, None, replace(config, graph=graph)) for graph in (False, True)]
    histories = [run.fit().drop(columns=["images_per_s", "seconds"]) for run in runs]
    assert histories[0].equals(histories[1])
    assert runs[1].learn.seen == 10 and runs[1].learn.inputs[0].shape[0] == 4  # an epoch's last batch holds 2
    for name, tensor in runs[0].model.state_dict().items():
        assert torch.equal(tensor, runs[1].model.state_dict()[name]), name


def test_without_the_switch_or_a_gpu_nothing_is_recorded(tmp_path):
    data = write_prepared(tmp_path, {"train": 4, "val": 2})
    run = make_trainer(data, None, replace(TINY, sources=("montgomery",), graph=True))
    assert run.learn == run._learn
