"""How radiographs and masks are varied in training.

- ``presets``: none, light, full, and step two's; the only file that knows albumentations
"""

from .presets import augmentation

__all__ = ["augmentation"]
