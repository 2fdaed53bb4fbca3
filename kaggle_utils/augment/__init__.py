"""How radiographs and masks are varied in training.

- ``presets``: none, light, clinic, full; the only file that knows albumentations
- ``batched``: light and clinic for a batch on a GPU
- ``artefacts``: what real films have and clean sets lack: gas, devices, text, blinds, noise, blur, hard windows
"""

from .artefacts import draw_artefacts
from .batched import BATCHED, DRAWN, BatchedAugmentation
from .presets import augmentation

__all__ = ["BATCHED", "DRAWN", "BatchedAugmentation", "augmentation", "draw_artefacts"]
