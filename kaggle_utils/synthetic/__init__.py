"""Radiographs that show nobody, with exact masks: for tests, examples, notebooks without data.

- ``model``: an active appearance model of the frontal chest film, sampled
- ``acquire``: between the patient and the file: position, exposure, noise, collimation, letters
- ``fit``: fits the model to films with lung masks
"""

from .model import ASSET, AppearanceModel, Film, fit_prepared, write_raw

__all__ = ["ASSET", "AppearanceModel", "Film", "fit_prepared", "write_raw"]
