"""Training leaves a GPU no time to wait: no number is read from the device within a step, here on the CPU device."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from phantoms import write_prepared
from torch.utils._python_dispatch import TorchDispatchMode

from kaggle_utils import trainer as training
from kaggle_utils.config import TrainConfig
from kaggle_utils.loss import LOSSES
from kaggle_utils.trainer import make_trainer

TINY = TrainConfig(
    size=32,
    batch_size=4,
    base_channels=2,
    depth=2,
    epochs=2,
    precision="fp32",
    device="cpu",
    sources=("montgomery", "shenzhen"),
)
# What needs a number on the host, or a result whose shape depends on one. tolist() and numpy() are no operations.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique", "unique_dim", "equal")


class HostReads(TorchDispatchMode):
    """Counts the operations for which the host waits for a device."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name.startswith(READS):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reading(monkeypatch):
    """``with no_reading() as reads``: tolist() and numpy() are counted too."""
    reads = HostReads()
    for name in ("tolist", "numpy", "__array__"):
        real = getattr(torch.Tensor, name)

        def counted(tensor, *args, name=name, real=real, **options):
            reads.seen[name] += 1
            return real(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return lambda: reads


@pytest.fixture
def data(tmp_path):
    root = write_prepared(tmp_path / "set", {"train": 8, "val": 3})
    return write_prepared(root, {"train": 8, "val": 2}, source="shenzhen", first=50)


def test_a_read_is_counted(no_reading):
    with no_reading() as reads:
        number = torch.ones(())
        number.item(), bool(number), number.tolist(), number.numpy(), number.nonzero()
    assert reads.seen["_local_scalar_dense"] == 2 and reads.seen["tolist"] == reads.seen["numpy"] == 1
    assert reads.seen["nonzero"] == 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_number_is_read_within_a_step(data, no_reading, monkeypatch, loss, precision):
    monkeypatch.setattr(training, "FUSED", ("cpu",))
    run = make_trainer(data, None, replace(TINY, loss=loss, precision=precision))
    first, *others = run.train_loader
    run._train_step(first)  # a loss looks at the first truth that it sees
    no_reading().seen.clear()
    with no_reading() as reads:
        for batch in others:
            run._train_step(batch)
    assert run.step == 4 and len(run.unread) == 4
    assert not reads.seen


def test_losses_are_read_every_so_many_steps_and_at_the_epochs_end(data, no_reading, monkeypatch):
    monkeypatch.setattr(training, "READ_EVERY", 3)
    run = make_trainer(data, None, replace(TINY, batch_size=2, epochs=1))
    real, seen = run._train_step, []

    def watched(batch):
        real(batch)
        seen.append(len(run.unread))

    monkeypatch.setattr(run, "_train_step", watched)
    history = run.fit()
    assert seen == [1, 2, 0, 1, 2, 0, 1, 2] and not run.unread
    monkeypatch.setattr(training, "READ_EVERY", 1)
    each = make_trainer(data, None, replace(TINY, batch_size=2, epochs=1)).fit()
    assert history["train_loss"].tolist() == each["train_loss"].tolist()


def test_the_films_of_the_first_loss_that_is_not_finite_are_named(data, monkeypatch):
    run = make_trainer(data, None, replace(TINY, batch_size=2))
    batches = list(run.train_loader)
    batches[3]["image"][1, 0, 5, 5] = torch.nan
    for batch in batches[:6]:
        run._train_step(batch)
    with pytest.raises(FloatingPointError, match=f"at step 3, on {', '.join(batches[3]['name'])}: "):
        run._checkpoint()


def test_validation_reads_once(data, no_reading):
    run = make_trainer(data, None, replace(TINY, batch_size=2))
    run.validate()
    no_reading().seen.clear()
    with no_reading() as reads:
        run.validate()
    assert reads.seen == {"tolist": 2}
