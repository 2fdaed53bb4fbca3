"""What the trainer is made of, beside its loop.

- ``films``: which radiographs are learned from and validated on, and their loaders
- ``average``: the moving average of the weights
- ``checkpoint``: all that a killed run needs to end as if it had not been killed
"""

from .average import MovingAverage
from .checkpoint import Epoch, check_folder, damaged, read_checkpoint, write_checkpoint
from .films import MOST_OF_A_SET, describe_films, draws_per_epoch, make_loaders, select_films

__all__ = [
    "MOST_OF_A_SET",
    "Epoch",
    "MovingAverage",
    "check_folder",
    "damaged",
    "describe_films",
    "draws_per_epoch",
    "make_loaders",
    "read_checkpoint",
    "select_films",
    "write_checkpoint",
]
