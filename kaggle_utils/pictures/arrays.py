"""What Python's libraries hold pixels in, as NumPy arrays: tensors, Pillow's pictures, and NumPy's own."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_array(film: object) -> bool:
    """Whether something holds pixels: a NumPy array, a tensor, a Pillow picture, whatever NumPy makes an array of."""
    if isinstance(film, (str, bytes)):  # NumPy's own texts have __array__
        return False
    return hasattr(type(film), "__array__") or hasattr(type(film), "__array_interface__")


def as_array(film: Any) -> np.ndarray:
    """The pixels of what :func:`is_array` says has some.

    Raises:
        ValueError: NumPy has no such type.
        OSError: a Pillow picture whose file is damaged.
    """
    if hasattr(film, "detach"):  # a tensor, which may lie on a GPU
        film = film.detach().cpu()
    if hasattr(film, "getbands") and (len(film.getbands()) > 1 or film.mode == "P"):  # a picture: CMYK, a palette
        film = film.convert("RGB")
    try:
        return np.asarray(film)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"NumPy can't make an array of this {type(film).__name__}: {error}") from None


def check_array(array: np.ndarray) -> None:
    """Raises ValueError unless an array is gray or colour, but for axes of length 1."""
    what, shape = f"an array of {array.dtype} {array.shape}", np.squeeze(array).shape
    if array.dtype.kind not in "uif":
        hints = {"b": " (a mask?)", "O": "; paths are given as a list", "U": "; paths are given as a list"}
        hint = hints.get(array.dtype.kind, "")
        raise ValueError(f"{what}: grays are whole numbers or floats, which {array.dtype} is not{hint}")
    if len(shape) == 2 or len(shape) == 3 and shape[2] in (3, 4):
        return
    last = ""
    if len(shape) == 3 and shape[0] in (3, 4):
        last = f", channels last: np.moveaxis(array, {array.ndim - 3}, -1)"
    raise ValueError(f"{what}: expected gray (H, W), or RGB or RGBA (H, W, C){last}; several films are given as a list")
