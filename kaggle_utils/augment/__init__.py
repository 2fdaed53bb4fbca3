"""How radiographs and masks are varied in training.

- ``presets``: none, light, clinic, full, and step two's; the only file that knows albumentations
- ``artefacts``: what real films have and clean sets lack: gas, devices, text, blinds, noise, blur, hard windows
"""

from .presets import augmentation

__all__ = ["augmentation"]
