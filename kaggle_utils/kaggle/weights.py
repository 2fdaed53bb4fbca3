"""Weights as a Kaggle Model, a variation for each file: ``OWNER/unet-lung/pyTorch/lungs``; up and down by kagglehub."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ..files import WEIGHTS, find_weights

KAGGLE = Path("/kaggle")
OWNER = "unet-lung"  # on Kaggle: of what notebooks/kaggle describes, where nobody names another one
LICENCES = {  # by the names that Kaggle has for a model's, see models_metadata.md of its package
    "lungs": "CC BY-NC-SA 4.0",
    "lungs-ccby": "Attribution 4.0 International (CC BY 4.0)",
}
# Below /kaggle/input, in the old layout and in the nested one: framework, variation, version.
_LAYOUTS = ("unet-lung/*/{0}/*/{0}.safetensors", "models/*/unet-lung/*/{0}/*/{0}.safetensors")


def model_handle(name: str, owner: str = OWNER) -> str:
    """What Kaggle calls the model of these weights; a version may follow.

    Raises:
        ValueError: no such weights are published.
    """
    if name not in LICENCES:
        raise ValueError(f"{name} is no Kaggle Model of this project: choose of {', '.join(LICENCES)}")
    return f"{owner}/unet-lung/pyTorch/{name}"


def find_model(name: str = "lungs", owner: str | None = None) -> Path:
    """The file of published weights: of the model that is attached to a notebook, or downloaded if an owner is named.

    Args:
        name: ``lungs`` or ``lungs-ccby``.
        owner: whose model is downloaded: kagglehub keeps what it has downloaded, and on Kaggle it attaches the model.
            Where nobody is named and nothing is attached, the weights are those that ship with the package.

    Raises:
        ValueError: no such weights are published.
        ImportError: kagglehub is missing.
        OSError: Kaggle refused, or can't be reached.
    """
    handle = model_handle(name, owner or OWNER)
    found = [path for layout in _LAYOUTS for path in (KAGGLE / "input").glob(layout.format(name))]
    if found:
        return max(found, key=lambda path: int(path.parent.name))  # the newest version
    if owner is None:
        return find_weights(name)
    return Path(import_kagglehub().model_download(handle), f"{name}.safetensors")


def upload_model(name: str, owner: str) -> str:
    """Puts weights and their card up as a private model's variation, or as a new version of it; returns its handle.

    Raises:
        ImportError: kagglehub is missing.
        OSError: Kaggle refused.
    """
    kagglehub, handle = import_kagglehub(), model_handle(name, owner)
    with TemporaryDirectory() as stage:
        for file in (f"{name}.safetensors", "README.md"):
            shutil.copy(WEIGHTS / file, stage)
        try:
            kagglehub.model_upload(handle, stage, LICENCES[name], "unet-lung kaggle publish")
        except kagglehub.exceptions.BackendError as error:  # a refusal with status 200
            raise OSError(f"{handle}: {error}") from None
    return handle


def import_kagglehub():
    """The package, imported where it is used.

    Raises:
        ImportError: it is missing; the message says what to install.
    """
    try:
        import kagglehub
        import kagglehub.exceptions
    except ImportError as error:
        how = "pip install 'kagglehub>=1', with Python 3.11 or newer"
        raise ImportError(f"kagglehub is missing, or too old ({error}): {how}") from None
    return kagglehub
