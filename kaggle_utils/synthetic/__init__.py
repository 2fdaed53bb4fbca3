"""Synthetic radiographs, which show nobody, with exact masks: for tests, examples, notebooks without data.

- ``model``: an active appearance model of the frontal chest X-ray, sampled
- ``acquire``: between the patient and the file: position, exposure, noise, collimation, letters
- ``fit``: fits the model to films with lung masks
"""

from .model import ASSET, AppearanceModel, SyntheticFilm, fit_prepared, write_raw

__all__ = ["ASSET", "AppearanceModel", "SyntheticFilm", "fit_prepared", "write_raw"]
