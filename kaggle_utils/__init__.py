"""Lung segmentation in chest radiographs with a U-Net: raw public sets in, masks for new radiographs out.

The core, in the order to read it: ``config data model loss metrics trainer infer predictions prep image``; beside it
``files hardware distributed export tables cli``. Rooms with doors: ``pictures dicom quality tb synthetic tuning plots
scale page kaggle``, each with its face in ``__init__``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import TrainConfig
    from .infer import LungSegmenter, segment_films
    from .metrics import dice
    from .model import UNet, load_weights
    from .predictions import evaluate, predict
    from .trainer import Trainer, make_trainer, train

__version__ = "0.9.0"
__all__ = [
    "LungSegmenter",
    "TrainConfig",
    "Trainer",
    "UNet",
    "dice",
    "evaluate",
    "load_weights",
    "make_trainer",
    "predict",
    "segment_films",
    "train",
]
_HOMES = {
    "TrainConfig": "config",
    "LungSegmenter": "infer",
    "segment_films": "infer",
    "evaluate": "predictions",
    "predict": "predictions",
    "dice": "metrics",
    "UNet": "model",
    "load_weights": "model",
    "Trainer": "trainer",
    "make_trainer": "trainer",
    "train": "trainer",
}


def __getattr__(name: str) -> object:
    """Names are imported when they are asked for: the command line tells a mistyped path before PyTorch is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
