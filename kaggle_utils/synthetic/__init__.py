"""Synthetic radiographs with exact masks: for tests, examples and notebooks without data; they show no patient.

- ``model``: an active appearance model of the frontal chest X-ray, sampled
- ``acquire``: between the patient and the file: position, exposure, noise, collimation, letters
- ``fit``: fits the model to films with lung masks
"""

from .model import ASSET, AppearanceModel, SyntheticFilm, fit_prepared, write_prepared, write_raw

__all__ = ["ASSET", "AppearanceModel", "SyntheticFilm", "fit_prepared", "write_prepared", "write_raw"]
