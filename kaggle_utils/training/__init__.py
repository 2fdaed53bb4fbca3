"""What the trainer is made of, beside its loop.

- ``films``: which radiographs are learned from and validated on, and their loaders
- ``on_device``: films that live on the device, as a loader
- ``graph``: a step that the GPU repeats by itself
- ``average``: the moving average of the weights
- ``checkpoint``: all that a killed run needs to end as if it had not been killed
"""

from .average import MovingAverage
from .checkpoint import Epoch, check_folder, damaged, read_checkpoint, write_checkpoint
from .films import MOST_OF_A_SET, Loader, describe_films, draws_per_epoch, make_loaders, select_films
from .graph import RecordedStep, record_cuda
from .on_device import DeviceLoader

__all__ = [
    "MOST_OF_A_SET",
    "DeviceLoader",
    "Epoch",
    "Loader",
    "MovingAverage",
    "RecordedStep",
    "check_folder",
    "damaged",
    "describe_films",
    "draws_per_epoch",
    "make_loaders",
    "read_checkpoint",
    "record_cuda",
    "select_films",
    "write_checkpoint",
]
